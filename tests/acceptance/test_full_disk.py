"""A full disk, for real: a small file system under the primary store, then under the image store.

Each command fails with words about space, leaves nothing, claims nothing; with space again the same command succeeds.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agents.hypervisors.kvm import KvmHypervisor
from agents.qemu import image_options, run
from api.verify import verify_all
from tests.support.small_disk import SmallDisk
from tests.support.up import Refusal, Up
from tests.support.web import Site, site

MIB = 1 << 20
SMALL, LARGE = 12 * MIB, 160 * MIB
"""The image has 20 MiB: it fits into the second only."""
SENTINEL = ".storebus-mount"


@dataclass
class Full:
    """An installation, and its small file system."""

    up: Up
    web: Site
    disk: SmallDisk
    images: Path
    zone: str = ""

    async def add_folder(self) -> str:
        """The image store; its id."""
        found = await self.up.call("addImageStore", name=f"f-{uuid4()}", provider="Folder", zoneid=self.zone,
                                   url=f"folder://{self.images}")
        return str(found["imagestore"]["id"])

    async def register(self, name: str) -> tuple[str, dict[str, Any]]:
        """A template from the image; (id, ended job)."""
        return await self.up.done("registerTemplate", name=name, displaytext=name, url=self.web.url("image"), format="QCOW2",
                                  hypervisor="KVM", zoneid="-1")

    async def state(self, noun: str, thing: str) -> str:
        """Its state as it is listed; empty when it is not."""
        more = {"templatefilter": "all"} if noun == "template" else {}
        found = (await self.up.call(f"list{noun.title()}s", id=thing, **more)).get(noun, [])
        return str(found[0].get("state", found[0].get("status", ""))) if found else ""

    async def disk_of(self, volume: str) -> Path:
        """Where a volume's bytes are."""
        found = (await self.up.call("listVolumes", id=volume))["volume"][0]
        return Path(self.up.environment.get("STOREBUS_PRIMARY_PATH", self.up.data / "primary")) / found["path"]


@pytest.fixture
async def full(qemu_tools: None, request: pytest.FixtureRequest) -> AsyncIterator[Full]:
    """One installation for each place of the small file system."""
    base = Path(tempfile.mkdtemp(prefix="sb-full-"))
    disk = None
    try:
        disk = SmallDisk.mount(base / "small", SMALL)
        images = disk.path if request.param == "images" else base / "images"
        images.mkdir(exist_ok=True)
        environment = {"STOREBUS_PRIMARY_PATH": str(disk.path)} if request.param == "primary" else {}
        (base / "web").mkdir()
        async with site(base / "web", random.Random(5).randbytes(20 * MIB)) as web:
            up = Up(environment=environment | {"STOREBUS_DOWNLOAD_ALLOW": f"127.0.0.1/32:{web.port}"})
            try:
                await up.start()
                yield Full(up, web, disk, images, (await up.call("listZones"))["zone"][0]["id"])
            finally:
                up.remove()
    finally:
        if disk is not None:
            disk.unmount()
        shutil.rmtree(base, ignore_errors=True)


def said(job: dict[str, Any], *words: str, code: int = 530) -> None:
    """The job failed with CloudStack's code and words that name field, cause and remedy."""
    assert (job["jobstatus"], job["jobresultcode"]) == (2, code), job
    text = job["jobresult"]["errortext"]
    for word in (*words, "full", "free space"):
        assert word in text, text


@pytest.mark.parametrize("full", ["primary"], indirect=True)
async def test_the_primary_store_is_full(full: Full) -> None:
    up, disk = full.up, full.disk
    await full.add_folder()
    template, job = await full.register("t")
    assert job["jobstatus"] == 1, job
    # from a template: the bytes do not fit
    volume, job = await up.done("createVolume", name="v", templateid=template)
    said(job, "primary")
    assert disk.names() == set()
    assert (await full.state("volume", volume)) in ("", "Failed")
    # empty: not even the first block
    disk.fill()
    empty, job = await up.done("createVolume", name="e", size=1)
    said(job, "primary")
    assert disk.names() == set()
    assert (await full.state("volume", empty)) in ("", "Failed")
    disk.clear()
    disk.resize(LARGE)
    volume, job = await up.done("createVolume", name="v", templateid=template)
    assert job["jobstatus"] == 1, job
    path = await full.disk_of(volume)
    await run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(full.web.image), str(path))
    # a snapshot, which needs space inside the disk's file
    async with KvmHypervisor().open(str(path), writable=True) as device:
        await device.write(0, b"changed!" * 64)
        await device.flush()
    names, content = disk.names(), await run("qemu-img", "map", "-U", "-f", "qcow2", str(path))
    disk.fill()
    snapshot, job = await up.done("createSnapshot", volumeid=volume)
    said(job, "primary")
    assert (await full.state("snapshot", snapshot)) in ("", "Error", "Failed")
    assert disk.names() == names
    assert "sb-" not in await run("qemu-img", "snapshot", "-l", "-U", "--image-opts", image_options(path))
    assert await run("qemu-img", "map", "-U", "-f", "qcow2", str(path)) == content
    await run("qemu-img", "check", "-f", "qcow2", str(path))
    disk.clear()
    snapshot, job = await up.done("createSnapshot", volumeid=volume)
    assert job["jobstatus"] == 1, job
    # and back: a volume from the snapshot
    disk.fill(8 * MIB)
    restored, job = await up.done("createVolume", name="r", snapshotid=snapshot, zoneid=full.zone)
    said(job, "primary")
    assert disk.names() == names
    disk.clear()
    restored, job = await up.done("createVolume", name="r", snapshotid=snapshot, zoneid=full.zone)
    assert job["jobstatus"] == 1, job
    await run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(path), str(await full.disk_of(restored)))
    # deleting needs no space
    disk.fill()
    for one in (volume, restored):
        assert (await up.call("deleteVolume", id=one))["success"]
    assert disk.names() == set()
    assert await verify_all(up.dsn) == []


@pytest.mark.parametrize("full", ["images"], indirect=True)
async def test_the_image_store_is_full(full: Full) -> None:
    up, disk = full.up, full.disk
    # adding it: refused, forgotten, and nothing of the try remains
    disk.fill()
    with pytest.raises(Refusal) as refused:
        await full.add_folder()
    assert "full" in refused.value.text
    assert "free space" in refused.value.text
    assert (await up.call("listImageStores")).get("imagestore", []) == []
    assert disk.names() == set()
    disk.clear()
    await full.add_folder()
    assert disk.names() == {SENTINEL}
    # a template
    template, job = await full.register("t")
    said(job, "url")
    assert disk.names() == {SENTINEL}
    assert disk.folders() == set()
    assert not (await up.call("listTemplates", templatefilter="all", id=template)).get("template", [{"isready": False}])[0]["isready"]
    disk.resize(LARGE)
    template, job = await full.register("t")
    assert job["jobstatus"] == 1, job
    volume, job = await up.done("createVolume", name="v", templateid=template)
    assert job["jobstatus"] == 1, job
    # a backup, with room for half of it; then for its bytes and nothing beside them
    names, folders = disk.names(), disk.folders()
    whole, job = await up.done("createSnapshot", volumeid=volume)
    assert job["jobstatus"] == 1, job
    size = max((disk.path / name).stat().st_size for name in disk.names() - names)
    assert (await up.done("deleteSnapshot", id=whole))[1]["jobstatus"] == 1
    for room in (10 * MIB, size):
        disk.fill(room)
        snapshot, job = await up.done("createSnapshot", volumeid=volume)
        # Half of it is seen before anything is written; whether the last bytes fit, writing shows.
        said(job, "url", "no room for" if room < size else "", code=533 if room < size else job["jobresultcode"])
        assert disk.names() == names
        assert disk.folders() == folders
        assert (await full.state("snapshot", snapshot)) in ("", "Error", "Failed")
        assert "sb-" not in await run("qemu-img", "snapshot", "-l", "-U", "--image-opts", image_options(await full.disk_of(volume)))
        disk.clear()
    snapshot, job = await up.done("createSnapshot", volumeid=volume)
    assert job["jobstatus"] == 1, job
    disk.fill()
    assert (await up.done("deleteSnapshot", id=snapshot))[1]["jobstatus"] == 1
    assert (await up.done("deleteTemplate", id=template))[1]["jobstatus"] == 1
    assert await asyncio.to_thread(disk.names) == {SENTINEL}
    assert await verify_all(up.dsn) == []
