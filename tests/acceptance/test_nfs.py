"""An NFS image store through the whole product, on the mount that STOREBUS_TEST_NFS_PATH names, else on a directory in its place."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from agents.image_stores.folder import SENTINEL
from agents.qemu import run
from tests.support.up import Refusal, Up
from tests.support.web import site

pytestmark = pytest.mark.needs_qemu


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """Where the export is mounted."""
    given = os.environ.get("STOREBUS_TEST_NFS_PATH", "")
    root = Path(given) / f"storebus-{uuid4()}" if given else tmp_path / "mount"
    root.mkdir()
    yield root
    if given:
        shutil.rmtree(root)


async def test_images_live_and_wait_on_an_nfs_store(mount: Path, tmp_path: Path, qemu_tools: None) -> None:
    """Register, snapshot, back up, restore; away, deletes wait and nothing is lost; back again, they are done and nothing is left."""
    def files() -> set[str]:
        return {str(path.relative_to(mount)) for path in mount.rglob("*") if path.is_file()} - {SENTINEL}

    async with site(tmp_path, random.Random(4).randbytes(3 << 20) + bytes(1 << 20)) as web:
        up = Up(environment={"STOREBUS_DOWNLOAD_ALLOW": f"127.0.0.1/32:{web.port}"})
        try:
            await up.start()
            zone = (await up.call("listZones"))["zone"][0]["id"]
            where = {"details[0].key": "mountpoint", "details[0].value": str(mount)}
            with pytest.raises(Refusal, match=r"url.*nfs://server/exported/path"):
                await up.call("addImageStore", name="n", provider="NFS", url="folder:///x", zoneid=zone, **where)
            with pytest.raises(Refusal, match=r"filer:/export is not mounted on this agent's host.*mount -t nfs"):
                await up.call("addImageStore", name="n", provider="NFS", url="nfs://filer/export", zoneid=zone)
            store = (await up.call("addImageStore", name="n", provider="NFS", url="nfs://filer/export", zoneid=zone, **where))["imagestore"]
            assert (store["providername"], store["scope"]) == ("NFS", "ZONE")
            template, job = await up.done("registerTemplate", name="t", displaytext="t", url=web.url("image"), format="QCOW2",
                                          hypervisor="KVM", zoneid=zone)
            assert job["jobstatus"] == 1, job
            volume, _ = await up.done("createVolume", name="v", templateid=template)
            snapshot, job = await up.done("createSnapshot", volumeid=volume)
            assert job["jobstatus"] == 1, job
            restored, job = await up.done("createVolume", name="r", snapshotid=snapshot, zoneid=zone)
            assert job["jobstatus"] == 1, job
            paths = {row["id"]: up.data / "primary" / row["path"] for row in (await up.call("listVolumes"))["volume"]}
            said = await run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(paths[volume]), str(paths[restored]))
            assert "identical" in said
            assert len(files()) == 4, "two objects with their manifests"
            (mount / SENTINEL).rename(mount / "away")  # as an empty mount point shows itself
            answer = await up.call("deleteSnapshot", id=snapshot)
            await asyncio.sleep(3)
            assert (await up.call("queryAsyncJobResult", jobid=answer["jobid"]))["jobstatus"] == 0, "pending, not failed"
            assert len(files()) == 5
            (mount / "away").rename(mount / SENTINEL)
            assert (await up.end(answer["jobid"]))["jobstatus"] == 1
            await up.done("deleteTemplate", id=template)
            for _ in range(500):
                if not files():
                    break
                await asyncio.sleep(0.1)
            assert files() == set()
        finally:
            up.remove()
