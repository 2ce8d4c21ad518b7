"""Volumes through the whole product on a real disk and a real S3 store: what is extracted is the disk, byte for byte."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import aiohttp
import pytest

from agents.hypervisors.kvm import KvmHypervisor
from api.verify import verify_all
from tests.acceptance.conftest import Place
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
    for _ in range(200):  # the copy goes by a job of its own
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
