"""Scrub and quarantine through the whole product, on a real S3 server and on a folder: back up, flip one byte in the store, and
the command line names object, part and offset; what would read it is refused; repaired, a scrub lifts it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agents.hypervisors.kvm import KvmHypervisor
from agents.manifest import manifest_key
from tests.acceptance.conftest import Place
from tests.services.forked import told
from tests.support.up import Refusal, Up

MIB = 1 << 20


@dataclass
class Target:
    """An installation with one store, and the store's inside."""

    up: Up
    store: str
    zone: str
    get: Callable[[str], bytes]
    put: Callable[[str, bytes], None]

    async def scrub(self, *words: str) -> tuple[int, dict[str, Any], str]:
        """`storebus scrub --wait`: (exit status, what it printed, what it said)."""
        status, out, err = await asyncio.to_thread(
            told, "scrub", self.store, "--wait", "-o", "json", "--data-dir", str(self.up.data), *words, env=os.environ)
        return status, json.loads(out) if out else {}, err.decode()

    def chain(self, snapshot: str) -> dict[str, Any]:
        """The first of what `storebus chain` says."""
        status, out, err = told("chain", snapshot, "--json", "--data-dir", str(self.up.data), env=os.environ)
        assert status == 0, err.decode()
        first: dict[str, Any] = json.loads(out)[0]
        return first

    async def copy(self, snapshot: str) -> dict[str, Any]:
        """The snapshot as it is listed."""
        found: dict[str, Any] = (await self.up.call("listSnapshots", id=snapshot))["snapshot"][0]
        return found

    async def until(self, snapshot: str, state: str) -> dict[str, Any]:
        """Once its copy has this state: what follows from a scrub is a job of its own."""
        for _ in range(1200):
            found = await self.copy(snapshot)
            if found["datastorestate"] == state:
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"{found}\n{self.up.log()}")


@pytest.fixture(scope="module")
async def on_s3(place: Place) -> AsyncIterator[Target]:
    """The place with the S3 server."""
    with contextlib.closing(place.s3.client()) as client:
        yield Target(place.up, place.store, place.zone,
                     lambda key: client.get_object(Bucket=place.bucket, Key=key)["Body"].read(),
                     lambda key, body: client.put_object(Bucket=place.bucket, Key=key, Body=body))


@pytest.fixture(scope="module")
async def on_a_folder(qemu_tools: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """An installation with a folder."""
    root: Path = tmp_path_factory.mktemp("store")
    up = Up()
    try:
        await up.start()
        zone = (await up.call("listZones"))["zone"][0]["id"]
        added = await up.call("addImageStore", name=f"f-{uuid4()}", provider="folder", url=f"file://{root}", zoneid=zone)
        yield Target(up, added["imagestore"]["id"], zone, lambda key: (root / key).read_bytes(),
                     lambda key, body: overwrite(root / key, body))
    finally:
        up.remove()


def overwrite(path: Path, body: bytes) -> None:
    if path.exists():
        path.chmod(0o600)
    path.write_bytes(body)


@pytest.fixture(params=["s3", "folder"])
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.getfixturevalue("on_s3" if request.param == "s3" else "on_a_folder")
    return found


@pytest.mark.soak(but=("s3",))
async def test_a_flipped_byte_is_found_refused_and_when_repaired_forgiven(target: Target) -> None:
    up = target.up
    volume, _ = await up.done("createVolume", name="scrubbed", size=1)
    disk = up.data / "primary" / (await up.call("listVolumes", id=volume))["volume"][0]["path"]
    async with KvmHypervisor().open(str(disk), writable=True) as device:
        await device.write(8 * MIB, random.Random(1).randbytes(20 * MIB))
        await device.flush()
    one, job = await up.done("createSnapshot", volumeid=volume)
    assert job["jobstatus"] == 1, job
    two, job = await up.done("createSnapshot", volumeid=volume)  # a delta of the first
    assert job["jobstatus"] == 1, job
    status, found, said = await target.scrub("--share", "100%")
    assert status == 0 and found["objects"] == found["of"] == 2 and not found["unknown"], (found, said)

    key = target.chain(one)["key"]
    original, manifest = target.get(key), json.loads(target.get(manifest_key(key)))
    at = manifest["part_size"] + 12345
    assert len(manifest["parts"]) > 2
    await asyncio.to_thread(target.put, key, original[:at] + bytes([original[at] ^ 1]) + original[at + 1:])
    stray = key.rsplit("/", 1)[0] + "/left-behind"
    await asyncio.to_thread(target.put, stray, b"?")

    status, found, said = await target.scrub("--share", "1.0")
    (damage,) = found["damaged"]
    assert status == 1, said
    assert (damage["object"], damage["part"], damage["offset"]) == (key, 2, manifest["part_size"])
    assert damage["expected"] == manifest["parts"][1] != damage["found"]
    assert found["unknown"] == [{"key": stray, "size": 1}] and target.get(stray) == b"?", "reported, not deleted"
    listed = await target.until(one, "Quarantined")
    assert f"bytes {manifest['part_size']} to" in listed["status"] and target.get(key) != original
    for snapshot in (one, two):
        with pytest.raises(Refusal, match=r"quarantined: part 2 of .*storebus scrub"):
            await up.call("createVolume", name="r", snapshotid=snapshot, zoneid=target.zone)
    three, _ = await up.done("createSnapshot", volumeid=volume)
    assert target.chain(three)["reason"].endswith("is quarantined")

    await asyncio.to_thread(target.put, key, original)  # the operator repaired it
    status, found, said = await target.scrub("--share", "1%")
    assert status == 0 and found["objects"] == 1, (found, said)
    assert (await target.until(one, "Ready"))["status"] == "Download Complete"
    _, job = await up.done("createVolume", name="r", snapshotid=two, zoneid=target.zone)
    assert job["jobstatus"] == 1, job


async def test_a_reader_that_meets_damage_quarantines_it(target: Target) -> None:
    up = target.up
    volume, _ = await up.done("createVolume", name="read", size=1)
    one, _ = await up.done("createSnapshot", volumeid=volume)
    key = target.chain(one)["key"]
    body = target.get(key)
    await asyncio.to_thread(target.put, key, body[:-1] + bytes([body[-1] ^ 1]))
    _, job = await up.done("createVolume", name="r", snapshotid=one, zoneid=target.zone)
    assert job["jobstatus"] == 2 and "not what was written" in job["jobresult"]["errortext"]
    await target.until(one, "Quarantined")
    with pytest.raises(Refusal, match="quarantined"):
        await up.call("createVolume", name="r", snapshotid=one, zoneid=target.zone)


@pytest.mark.soak(but=("folder",))
async def test_bad_shares_and_stores_are_refused(target: Target) -> None:
    for share in ("0", "101%", "much"):
        status, _, said = await target.scrub("--share", share)
        assert status == 1 and "share" in said and "5% or 0.05" in said
    with pytest.raises(Refusal, match="no image store"):
        await target.up.call("scrubImageStore", id=str(uuid4()))


@pytest.mark.skipif(not int(os.environ.get("STOREBUS_SOAK_N", "0")), reason="takes more than a minute, make soak runs it (optional)")
async def test_a_store_is_scrubbed_by_itself_and_a_restart_moves_nothing(qemu_tools: None, tmp_path: Path) -> None:
    up = Up(environment={"STOREBUS_SCRUB_EVERY": "60s", "STOREBUS_SCRUB_SHARE": "100%"})
    try:
        await up.start()
        zone = (await up.call("listZones"))["zone"][0]["id"]
        await up.call("addImageStore", name="f", provider="folder", url=f"file://{tmp_path}", zoneid=zone)
        await asyncio.sleep(10)  # it has its schedule
        for restart in (True, False, False):
            if restart:
                up.kill()
                await up.start()
            assert not await _scrubs(up)
            await asyncio.sleep(5)
        for _ in range(300):
            if await _scrubs(up):
                break
            await asyncio.sleep(0.5)
        assert len(await _scrubs(up)) == 1, up.log()
    finally:
        up.remove()


async def _scrubs(up: Up) -> list[dict[str, Any]]:
    """The scrubs that completed."""
    jobs = (await up.call("listAsyncJobs")).get("asyncjobs", [])
    return [job for job in jobs if job["cmd"].endswith(".ScrubImageStoreCmd") and job["jobstatus"] == 1]
