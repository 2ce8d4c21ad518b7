"""Slow transfers end well however long they take, standing ones end in the bound: a real mover, real S3 behind a proxy, and a
web server that stops in the middle."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agents.hypervisors.kvm import KvmHypervisor
from agents.image_stores.registry import open_store
from agents.motion.direct import PART, RANGE
from agents.mover import Mover, WorkFailure
from agents.stall import CLEAN_S
from schema.agent import CreateDisk, FetchImage, WriteSnapshot
from schema.image import DiskRef, ImageRef, PrimarySpec, StoreSpec
from schema.message import Order
from tests.services.http_files import HttpFiles, http_files
from tests.services.s3_fixture import s3_server, s3_spec
from tests.services.s3_proxy import S3Proxy
from tests.services.seaweedfs import SeaweedFS
from tests.support.images import MIB, img, make_disk

__all__ = ["s3_server"]
STALL_S = 1.5


@pytest.fixture
async def proxy(s3_server: SeaweedFS) -> AsyncIterator[S3Proxy]:
    async with S3Proxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def files() -> Iterator[HttpFiles]:
    with http_files() as server:
        server.bodies["raw"] = bytes(range(256)) * (20 * MIB // 256)
        yield server


async def done(one: Order, secrets: dict[str, str], watch: Any = lambda *_: None, **settings: Any) -> Any:
    """Its answer, by a mover of its own."""
    mover = Mover({"workers": 2, "stall_seconds": STALL_S, **settings})
    try:
        return (await mover.run(one, one.model_dump_json().encode(), secrets, watch))["result"]
    finally:
        await mover.aclose()


@pytest.mark.needs_s3
@pytest.mark.needs_qemu
@pytest.mark.usefixtures("qemu")
async def test_backup_and_restore_over_s3(tmp_path: Path, s3_server: SeaweedFS, proxy: S3Proxy) -> None:
    spec, secrets = s3_spec(s3_server, endpoint=proxy.endpoint), {"secretkey": s3_server.secret_key}
    await make_disk(tmp_path / "disk.qcow2", 2 * PART, [(0, PART)])
    await KvmHypervisor().take_snapshot(str(tmp_path / "disk.qcow2"), "t")
    primary = PrimarySpec(id=uuid4(), name="p", kind="folder", path=str(tmp_path), zone_id=uuid4(), agent="a")
    base: dict[str, Any] = {"job_id": uuid4(), "agent": "a", "reply_key": "k", "store": spec}

    def backup() -> WriteSnapshot:
        return WriteSnapshot(**base, work_id=uuid4(), tag="t", key=f"{spec.prefix}/snapshots/{uuid4()}", thing_id=uuid4(),
                             disk=DiskRef(primary=primary, volume_id=uuid4(), path="disk.qcow2", virtual_size=2 * PART))

    def restore(image: ImageRef) -> CreateDisk:
        return CreateDisk(**base, work_id=uuid4(), primary=primary, volume_id=uuid4(), image=image, virtual_size=2 * PART)

    async def stops(one: Order, stage: str, what: str) -> None:
        paused = 0.0

        def watch(said: str, at: int, total: int) -> None:
            nonlocal paused
            if said == stage and not paused:
                paused = time.monotonic()
                proxy.pause()

        proxy.rate = 2 * MIB
        with pytest.raises(WorkFailure, match=rf"the transfer {what} the image store stalled: nothing moved for 1.5 s, at byte \d+ of"):
            await done(one, secrets, watch)
        assert time.monotonic() - paused < STALL_S + CLEAN_S + 3
        proxy.resume()

    # No part of the backup, and no range of the restore, is whole within the stall: the bytes below count.
    proxy.rate = PART / STALL_S / 2
    began = time.monotonic()
    image = ImageRef.model_validate((await done(backup(), secrets))["image"])
    assert time.monotonic() - began > 1.5 * STALL_S
    proxy.rate = RANGE / STALL_S / 1.5
    one = restore(image)
    began = time.monotonic()
    await done(one, secrets)
    assert time.monotonic() - began > 1.5 * STALL_S
    img("convert", "-f", "qcow2", "-O", "raw", "-l", "t", str(tmp_path / "disk.qcow2"), str(tmp_path / "raw"))
    img("compare", "-f", "qcow2", "-F", "raw", str(tmp_path / f"{one.volume_id}.qcow2"), str(tmp_path / "raw"))
    await stops(backup(), "write", "into")
    await stops(restore(image), "read", "out of")
    assert [path.name for path in tmp_path.glob(".*.qcow2")] == [], "no draft stays"
    proxy.heal()
    store = await open_store(spec, secrets)
    await store.delete(image.key)
    await store.aclose()


def fetch(files: HttpFiles, path: str, tmp_path: Path) -> FetchImage:
    store = StoreSpec(id=uuid4(), name="m", provider="memory", url="memory://x", prefix="i")
    return FetchImage(job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", url=files.url(path), format="raw", store=store,
                      key="i/t/1", kind="template", thing_id=uuid4(), max_bytes=1 << 30, max_virtual_size=1 << 40)


async def test_a_source_that_stops_and_one_that_is_slow(tmp_path: Path, files: HttpFiles) -> None:
    files.hold_at = 9 * MIB
    began = time.monotonic()
    with pytest.raises(WorkFailure, match=rf"the download stalled: nothing moved for 1.5 s, at byte \d+ of {20 * MIB}"):
        await done(fetch(files, "gated/raw", tmp_path), {}, download_allow=files.allow)
    assert time.monotonic() - began < STALL_S + 10  # the mover starts first, beside other work
    files.gate.clear()
    files.pause_s, files.pause_every = 0.6, 5 * MIB
    began = time.monotonic()
    await done(fetch(files, "slow/raw", tmp_path), {}, download_allow=files.allow)
    assert time.monotonic() - began > 1.5
