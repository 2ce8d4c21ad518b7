"""Volumes through the whole product on a real disk and a real S3 store: what is extracted is the disk, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
from pathlib import Path

import aiohttp
import pytest

from agents.hypervisors.kvm import KvmHypervisor
from api.verify import verify_all
from tests.acceptance.conftest import Place
from tests.support.attacks import Qcow2
from tests.support.images import MIB, img
from tests.support.up import Refusal

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_s3]


async def fetched(url: str, to: Path) -> int:
    """Get a URL into a file; its status."""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        to.write_bytes(await answer.read())
        return answer.status


async def written(place: Place, volume: str, seed: int) -> Path:
    """Noise into a volume at rest; its disk."""
    shown = (await place.up.call("listVolumes", id=volume))["volume"][0]
    disk = place.up.data / "primary" / shown["path"]
    async with KvmHypervisor().open(str(disk), writable=True) as device:
        for at in (0, 70 * MIB, device.size - MIB):
            await device.write(at, random.Random(seed + at).randbytes(MIB))
        await device.flush()
    return disk


async def test_the_life_of_a_volume(place: Place, tmp_path: Path) -> None:
    """By an offering, written, resized, extracted, destroyed, recovered, expunged; nothing is left, and the log is whole."""
    offerings = {each["name"]: each["id"] for each in (await place.up.call("listDiskOfferings"))["diskoffering"]}
    assert set(offerings) == {"Small", "Medium", "Large", "Custom"}
    before = place.objects()
    volume, _ = await place.up.done("createVolume", name="life", diskofferingid=offerings["Custom"], size=1)
    disk = await written(place, volume, 1)
    await place.up.done("resizeVolume", id=volume, size=2)
    with pytest.raises(Refusal, match="shrinkok"):
        await place.up.call("resizeVolume", id=volume, size=1)
    await written(place, volume, 2)
    img("check", "-f", "qcow2", str(disk))

    _, job = await place.up.done("extractVolume", id=volume, zoneid=place.zone, mode="HTTP_DOWNLOAD", lifetime=600)
    shown = job["jobresult"]["volume"]
    assert (shown["id"], shown["state"], shown["extractMode"]) == (volume, "DOWNLOAD_URL_CREATED", "HTTP_DOWNLOAD")
    copy = tmp_path / "copy.qcow2"
    assert await fetched(shown["url"], copy) == 200
    img("check", "-f", "qcow2", str(copy))
    img("compare", "-f", "qcow2", "-F", "qcow2", str(disk), str(copy))
    assert "snapshots" not in json.loads(img("info", "-f", "qcow2", "--output=json", str(disk)))
    [ref], [old] = await place.up.table("volume_store_ref"), await place.up.table("volume_host_ref")
    assert (old["volume_id"], old["host_id"], old["download_state"], old["install_path"], old["physical_size"]) == (
        volume, place.store, "DOWNLOADED", ref["key"], copy.stat().st_size)
    with pytest.raises(Refusal, match=f"1 thing resides on the image store: volume copy of {volume}"):
        await place.up.call("deleteImageStore", id=place.store)
    _, ended = await place.up.done("revokeExtractUrl", extractid=shown["extractId"])
    assert ended["jobstatus"] == 1
    for _ in range(600):  # the copy goes by a job of its own
        if place.objects() == before:
            break
        await asyncio.sleep(0.1)
    assert place.objects() == before
    assert await fetched(shown["url"], tmp_path / "gone") in (403, 404)

    await place.up.done("destroyVolume", id=volume)
    assert (await place.up.call("listVolumes", id=volume))["volume"][0]["state"] == "Destroy" and disk.exists()
    assert (await place.up.call("recoverVolume", id=volume))["volume"]["state"] == "Ready"
    await place.up.done("updateVolume", id=volume, deleteprotection="true")
    with pytest.raises(Refusal, match="delete protection"):
        await place.up.call("deleteVolume", id=volume)
    await place.up.done("updateVolume", id=volume, deleteprotection="false")
    await place.up.done("destroyVolume", id=volume, expunge="true")
    assert not disk.exists()
    with pytest.raises(Refusal, match="no volume has the id"):
        await place.up.call("recoverVolume", id=volume)
    assert await verify_all(place.up.dsn) == []


async def test_an_upload_from_a_store_and_from_the_web(place: Place, tmp_path: Path) -> None:
    """An object of the bucket is taken where it lies and stays; a URL is fetched; both become disks, and nothing else is left."""
    before = place.objects()
    raw, image = tmp_path / "raw", tmp_path / "image.qcow2"
    raw.write_bytes(random.Random(8).randbytes(3 * MIB) + bytes(5 * MIB))
    img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    with contextlib.closing(place.s3.client()) as client:
        client.put_object(Bucket=place.bucket, Key="theirs/disk image.qcow2", Body=image.read_bytes())
        client.put_object(Bucket=place.bucket, Key="theirs/evil.qcow2", Body=Qcow2(backing=b"/etc/passwd").body())
    theirs = {"theirs/disk image.qcow2", "theirs/evil.qcow2"}
    where = {"zoneid": place.zone, "format": "QCOW2"}
    _, refused = await place.up.done("uploadVolume", name="evil", url=f"s3://{place.bucket}/theirs/evil.qcow2", **where)
    assert refused["jobstatus"] == 2 and "not safe" in refused["jobresult"]["errortext"], refused
    assert place.objects() == before | theirs
    url = f"{place.s3.endpoint}/{place.bucket}/theirs/disk%20image.qcow2"
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    adopted, job = await place.up.done("uploadVolume", name="adopted", url=url, checksum=f"{{SHA-256}}{digest}", **where)
    assert (job["jobresult"]["volume"]["state"], job["jobresult"]["volume"]["status"]) == ("Uploaded", "Upload Complete")
    assert place.objects() == before | theirs | {"theirs/disk image.qcow2.manifest.json"}
    _, twice = await place.up.done("uploadVolume", name="twice", url=url, **where)
    assert "volume's already" in twice["jobresult"]["errortext"]
    fetched_id, job = await place.up.done("uploadVolume", name="fetched", url=place.web.url("image"), **where)
    assert job["jobresult"]["volume"]["state"] == "Uploaded" and len(place.objects()) > len(before) + 3
    for volume in (adopted, fetched_id):
        _, job = await place.up.done("placeVolume", id=volume)
        assert job["jobresult"]["volume"]["state"] == "Ready"
    disk = place.up.data / "primary" / (await place.up.call("listVolumes", id=adopted))["volume"][0]["path"]
    img("check", "-f", "qcow2", str(disk))
    img("compare", "-f", "raw", "-F", "qcow2", str(raw), str(disk))
    for _ in range(600):  # what they had in the store goes by jobs of their own
        if place.objects() == before | theirs:
            break
        await asyncio.sleep(0.1)
    assert place.objects() == before | theirs
    for volume in (adopted, fetched_id):
        await place.up.call("deleteVolume", id=volume)
    assert not disk.exists() and await verify_all(place.up.dsn) == []
