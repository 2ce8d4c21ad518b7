"""Parts that are never in memory as a whole, with tiny limits: through every store, byte for byte, within the buffers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agents.buffers import Buffers
from agents.hypervisors.kvm import KvmHypervisor
from agents.image_stores import s3
from agents.image_stores.base import ImageStore, LentSource
from agents.image_stores.memory import MemoryImageStore
from agents.image_stores.s3 import S3ImageStore
from agents.image_stores.swift import SwiftImageStore
from agents.manifest import verify_object
from agents.motion.direct import read_image, write_image
from agents.motion.streamed import LENT, LentPart, StreamedPart
from agents.throttle import Throttle, limited
from schema.failure import Failed, WorkFailed
from schema.image import ImageRef
from tests.support.images import MIB, img, make_disk
from tests.support.motion_stores import REAL, opened, store_spec
from tests.support.noise import LoopNoise, Noise, ThreadNoise

PART, WHOLE, ROOM = 6 * MIB, 2 * MIB, 9 * MIB
"""S3 has no smaller parts than 5 MiB. Two slices of 2 MiB each: the buffers hold two parts' slices, never a part and a half."""


@pytest.fixture(params=[LoopNoise, ThreadNoise])
def noise(request: pytest.FixtureRequest) -> type[Noise]:
    """Both kinds."""
    kind: type[Noise] = request.param
    return kind


@pytest.fixture(params=["memory", *REAL, pytest.param("s3-md5", marks=pytest.mark.needs_s3)])
async def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ImageStore]:
    async with opened(request.param.removesuffix("-md5"), request, tmp_path) as store:
        if isinstance(store, S3ImageStore):
            monkeypatch.setattr(s3, "CHECKS", {(store.place.shown, store.bucket): request.param == "s3"})
        yield store


async def write(device: Any, store: ImageStore, buffers: Buffers, key: str = "k/streamed") -> ImageRef:
    """Stream it."""
    return await write_image(device, store, store_id=uuid4(), key=key, kind="snapshot", thing_id=uuid4(), job_id=uuid4(),
                             work="w.1", installation="i", progress=lambda *_: None, part=PART, whole=WHOLE, buffers=buffers)


@pytest.mark.needs_qemu
@pytest.mark.usefixtures("qemu")
async def test_byte_for_byte_within_the_buffers(store: ImageStore, tmp_path: Path) -> None:
    path, back, buffers = tmp_path / "disk.qcow2", tmp_path / "back.qcow2", Buffers(ROOM)
    await make_disk(path, 64 * MIB, [(0, 9 * MIB), (20 * MIB, 11 * MIB)])
    async with KvmHypervisor().open(str(path)) as device:
        image = await write(device, store, buffers)
    assert buffers.lent == 0 and MIB <= buffers.peak <= ROOM
    await verify_object(store, image.key)
    await read_image(store, image, str(back), hypervisor=KvmHypervisor(), progress=lambda *_: None)
    img("compare", "-f", "qcow2", "-F", "qcow2", str(path), str(back))


async def test_who_may_reads_in_the_thread_that_sends(store: ImageStore) -> None:
    device, buffers = ThreadNoise(8 * MIB), Buffers(ROOM)
    image = await write(device, store, buffers)
    await verify_object(store, image.key)
    assert threading.get_ident() not in device.threads, "nothing blocks the loop"
    if isinstance(store, SwiftImageStore):
        assert buffers.peak <= 2 * MIB, "a slice for each part, and nothing is read ahead"


async def test_a_disk_that_changes_while_it_is_read_is_never_stored(store: ImageStore, noise: type[Noise]) -> None:
    """Where a part is read twice, the two readings must agree; where once, there is nothing to disagree with."""
    def spoil(device: Noise, buffer: memoryview) -> None:
        if device.read_bytes > device.size + MIB:
            buffer[0] ^= 1

    device, buffers = noise(8 * MIB, spoil), Buffers(ROOM)
    twice = isinstance(store, S3ImageStore)
    with pytest.raises(Failed) if twice else contextlib.nullcontext():
        await write(device, store, buffers)
    assert buffers.lent == 0
    if twice:
        assert [info.key async for info in store.list("k")] == [] and list(await store.unfinished("k")) == []


async def test_a_disk_that_cannot_be_read_says_so_and_leaves_nothing(store: ImageStore, noise: type[Noise]) -> None:
    def spoil(device: Noise, buffer: memoryview) -> None:
        if device.read_bytes > 10 * MIB or (not isinstance(store, S3ImageStore) and device.read_bytes > 5 * MIB):
            raise WorkFailed("the disk cannot be read", field="volumeid")

    device, buffers = noise(8 * MIB, spoil), Buffers(ROOM)
    with pytest.raises(WorkFailed, match="the disk cannot be read"):
        await write(device, store, buffers)
    assert buffers.lent == 0
    assert [info.key async for info in store.list("k")] == [] and list(await store.unfinished("k")) == []


async def test_cancelled_it_stops_and_leaves_nothing(store: ImageStore, noise: type[Noise]) -> None:
    begun, loop = asyncio.Event(), asyncio.get_running_loop()

    def spoil(device: Noise, buffer: memoryview) -> None:
        if device.read_bytes > 15 * MIB:
            loop.call_soon_threadsafe(begun.set)
            time.sleep(0.02)  # slower, so that there is a middle

    device, buffers = noise(40 * MIB, spoil), Buffers(ROOM)
    task = asyncio.create_task(write(device, store, buffers))
    await asyncio.wait_for(begun.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert buffers.lent == 0
    assert [info.key async for info in store.list("k")] == [] and list(await store.unfinished("k")) == []


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64])
async def test_slices(size: int) -> None:
    data = random.Random(size).randbytes(size + 10)

    async def fill(offset: int, view: memoryview, then: Callable[[], None]) -> None:
        await asyncio.sleep(0)
        view[:] = data[offset:offset + len(view)]
        then()

    part, buffers = StreamedPart(fill, 10, size, piece=8, buffers=(kept := Buffers(16))), kept
    for _ in range(2):
        assert b"".join([bytes(view) async for view in part.slices()]) == data[10:]
    assert buffers.lent == 0 and buffers.peak <= 16
    async with contextlib.aclosing(part.slices()) as slices:
        async for _ in slices:
            break
    assert buffers.lent == 0


async def test_lent_slices() -> None:
    """Each reading gives all of it in order, and must be the same again; the room comes from the buffers and goes back."""
    data, buffers = bytearray(random.Random(1).randbytes(10 + 2 * LENT + 7)), Buffers(2 * LENT)

    def here(offset: int, view: memoryview) -> None:
        view[:] = data[offset:offset + len(view)]

    async def fill(offset: int, view: memoryview, then: Callable[[], None]) -> None:
        raise AssertionError("the loop reads nothing")

    part = LentPart(fill, here, 10, len(data) - 10, buffers=buffers)
    assert isinstance(part, LentSource) and not isinstance(StreamedPart(fill, 0, 1), LentSource)
    async with part.lent() as reading:
        for _ in range(2):
            slices = [bytes(view) for view in reading()]
            assert b"".join(slices) == data[10:] and [len(one) for one in slices] == [LENT, LENT, 7]
            assert part.sha256 == hashlib.sha256(data[10:]).hexdigest()
        assert buffers.lent == LENT
        data[-1] ^= 1
        with pytest.raises(WorkFailed, match="changed while it was read"):
            list(reading())
    assert buffers.lent == 0


async def test_a_limited_store_streams_within_its_limit(tmp_path: Path) -> None:
    """What limits a store's throughput takes streamed parts too, slice by slice."""
    opened = await MemoryImageStore.open(store_spec("memory", f"memory://{uuid4()}"), {})
    device, rate = ThreadNoise(12 * MIB), 16 * MIB  # whatever the device, the slices are the limit's to give
    began = asyncio.get_running_loop().time()
    image = await write(device, limited(opened, [Throttle(rate)]), Buffers(ROOM))
    assert asyncio.get_running_loop().time() - began > 0.6, "12 MiB at 16 MiB a second"
    await verify_object(opened, image.key)
