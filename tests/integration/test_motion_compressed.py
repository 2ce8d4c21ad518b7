"""Compressed motion with real disks: the object is an ordinary qcow2 that qemu reads back equal, and nothing is left of a failure."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agents import stall
from agents.buffers import BUFFERS
from agents.hypervisors.kvm import KvmHypervisor
from agents.image_stores.base import ImageStore
from agents.image_stores.memory import MemoryImageStore
from agents.manifest import delete_object, verify_object
from agents.motion import compressed
from agents.motion.compressed import write_compressed
from agents.motion.direct import read_image
from agents.qcow2 import CLUSTER
from schema.failure import WorkFailed, WorkRetryable
from schema.image import ImageRef, StoreSpec
from tests.support.images import MIB, img
from tests.support.motion_stores import REAL, opened
from tests.support.noise import LoopNoise, Noise, ThreadNoise

pytestmark = pytest.mark.needs_qemu
SIZE = 96 * MIB + 1536


@pytest.fixture
async def store() -> AsyncIterator[MemoryImageStore]:
    spec = StoreSpec(id=uuid4(), name="m", provider="memory", url=f"memory://{uuid4()}", prefix="i")
    opened = await MemoryImageStore.open(spec, {})
    yield opened
    await opened.aclose()


async def make_disk(path: Path, seed: int) -> None:
    """Half of it data: noise, text, and clusters that are half noise and half zeros; the very last bytes too."""
    dice = random.Random(seed)
    kvm = KvmHypervisor()
    await kvm.create(str(path), SIZE)
    async with kvm.open(str(path), writable=True) as device:
        for at in range(0, SIZE - CLUSTER, 2 * MIB):
            block = dice.choice((dice.randbytes(MIB), b"the same line\n" * (MIB // 14), (dice.randbytes(CLUSTER // 2) + bytes(CLUSTER // 2)) * 16))
            await device.write(at, block[:MIB])
        await device.write(SIZE - 700, dice.randbytes(700))
        await device.flush()


async def write(path: Path, store: ImageStore, progress: Any = lambda *_: None, **more: Any) -> ImageRef:
    async with KvmHypervisor().open(str(path)) as device:
        return await write_device(device, store, progress, **more)


async def write_device(device: Any, store: ImageStore, progress: Any = lambda *_: None, *, key: str = "i/k.qcow2", **more: Any) -> ImageRef:
    return await write_compressed(device, store, store_id=uuid4(), key=key, kind="snapshot", thing_id=uuid4(), job_id=uuid4(),
                                  work="w.1", installation="i", progress=progress, **more)


async def nothing_left(store: ImageStore, key: str = "i/k.qcow2") -> None:
    """No object, no upload, no lent memory, and no thread that goes on."""
    assert [entry.key async for entry in store.list(key.split("/", 1)[0])] == []
    assert list(await store.unfinished(key.split("/", 1)[0])) == []
    assert BUFFERS.lent == 0
    for _ in range(100):
        if not (left := [thread.name for thread in threading.enumerate() if thread.name.startswith("pack")]):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(left)


@pytest.fixture(params=[LoopNoise, ThreadNoise])
def noise(request: pytest.FixtureRequest) -> type[Noise]:
    """Both kinds of device."""
    kind: type[Noise] = request.param
    return kind


@pytest.mark.parametrize("part", [MIB, 8 * MIB, 16 * MIB])
async def test_what_is_written_is_read_back(store: MemoryImageStore, tmp_path: Path, qemu: None, seed: int, part: int) -> None:
    disk, told = tmp_path / "disk.qcow2", []
    await make_disk(disk, seed)
    image = await write(disk, store, lambda stage, done, total: told.append((stage, done, total)), part=part)
    assert (await verify_object(store, image.key)).root == image.root
    assert image.physical_size < 0.75 * disk.stat().st_size
    (tmp_path / "object.qcow2").write_bytes(await store.read(image.key, 0, image.physical_size))
    img("check", "-f", "qcow2", str(tmp_path / "object.qcow2"))
    img("compare", "-f", "qcow2", "-F", "qcow2", str(disk), str(tmp_path / "object.qcow2"))
    restored = tmp_path / "restored.qcow2"
    await read_image(store, image, str(restored), hypervisor=KvmHypervisor(), progress=lambda *_: None)
    img("compare", "-f", "qcow2", "-F", "qcow2", str(disk), str(restored))
    counts = [done for stage, done, _ in told if stage == "write"]
    assert counts == sorted(counts) and told[-1][0] == "verify" and told[-1][1] == told[-1][2]


@pytest.fixture(params=REAL)
async def real(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ImageStore]:
    """A store that is one."""
    async with opened(request.param, request, tmp_path) as store:
        yield store


async def test_every_store_gives_it_back_and_keeps_nothing_of_one_that_was_stopped(real: ImageStore, tmp_path: Path, qemu: None, seed: int) -> None:
    disk, restored, key = tmp_path / "disk.qcow2", tmp_path / "restored.qcow2", f"{uuid4()}/k"
    await make_disk(disk, seed)
    image = await write(disk, real, part=5 * MIB, key=key)
    assert (await verify_object(real, key)).root == image.root
    await read_image(real, image, str(restored), hypervisor=KvmHypervisor(), progress=lambda *_: None)
    img("compare", "-f", "qcow2", "-F", "qcow2", str(disk), str(restored))
    await delete_object(real, key)
    moved = asyncio.Event()
    task = asyncio.create_task(write(disk, real, lambda stage, done, total: moved.set() if done else None, part=5 * MIB, key=key))
    await asyncio.wait_for(moved.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await nothing_left(real, key)


async def test_an_empty_disk(store: MemoryImageStore, tmp_path: Path, qemu: None) -> None:
    disk = tmp_path / "disk.qcow2"
    await KvmHypervisor().create(str(disk), SIZE)
    image = await write(disk, store)
    (tmp_path / "object.qcow2").write_bytes(await store.read(image.key, 0, image.physical_size))
    img("check", "-f", "qcow2", str(tmp_path / "object.qcow2"))
    img("compare", "-f", "qcow2", "-F", "qcow2", str(disk), str(tmp_path / "object.qcow2"))


@pytest.mark.parametrize("where", ["part", "complete", "cancel"])
async def test_a_failure_leaves_nothing(store: MemoryImageStore, tmp_path: Path, qemu: None, seed: int, where: str) -> None:
    disk, calls = tmp_path / "disk.qcow2", 0
    await make_disk(disk, seed)
    task: asyncio.Task[ImageRef]

    async def before(name: str, key: str) -> None:
        nonlocal calls
        if name == "part":
            calls += 1
            if calls == 5 and where == "part":
                raise WorkRetryable("the store is away")
            if calls == 5 and where == "cancel":
                task.cancel()
        if name == "complete" and where == "complete":
            raise WorkFailed("no")

    store._bucket.before = before
    task = asyncio.create_task(write(disk, store, part=MIB))
    with pytest.raises(asyncio.CancelledError if where == "cancel" else WorkFailed):
        await task
    store._bucket.before = None
    await nothing_left(store)


async def test_threads_that_are_late_keep_the_order(store: MemoryImageStore, tmp_path: Path, qemu: None, noise: type[Noise], seed: int,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are read and compressed in any order, some much later than others, and lie in the file in theirs."""
    monkeypatch.setattr(compressed, "THREADS", 6)
    dice, real = random.Random(seed), compressed._smaller

    def late(compressor: Any, raw: memoryview) -> bytes | None:
        if dice.random() < 0.05:
            time.sleep(dice.random() / 20)
        return real(compressor, raw)

    monkeypatch.setattr(compressed, "_smaller", late)
    device = noise(40 * MIB + 512)
    for at in range(0, len(device.data), 3 * CLUSTER):  # else nothing is compressed
        device.data[at:at + CLUSTER] = bytes([at // CLUSTER % 255]) * len(device.data[at:at + CLUSTER])
    image = await write_device(device, store, part=MIB)
    assert (await verify_object(store, image.key)).root == image.root
    (tmp_path / "object.qcow2").write_bytes(await store.read(image.key, 0, image.physical_size))
    (tmp_path / "raw").write_bytes(device.data)
    img("check", "-f", "qcow2", str(tmp_path / "object.qcow2"))
    img("compare", "-f", "raw", "-F", "qcow2", str(tmp_path / "raw"), str(tmp_path / "object.qcow2"))
    if noise is ThreadNoise:
        assert threading.get_ident() not in device.threads and len(device.threads) > 1


async def test_a_disk_that_cannot_be_read_says_so_and_leaves_nothing(store: MemoryImageStore, noise: type[Noise]) -> None:
    def spoil(device: Noise, buffer: memoryview) -> None:
        if device.read_bytes > 10 * MIB:
            raise WorkFailed("the disk cannot be read", field="volumeid")

    with pytest.raises(WorkFailed, match="the disk cannot be read"):
        await write_device(noise(20 * MIB, spoil), store, part=MIB)
    await nothing_left(store)


async def test_a_slow_disk_that_fills_no_part_for_long_is_no_stall(store: MemoryImageStore) -> None:
    device = ThreadNoise(40 * MIB, lambda device, buffer: time.sleep(0.1))
    device.data[:] = b"the same line\n" * (len(device.data) // 14) + bytes(len(device.data) % 14)
    sent: list[float] = []

    async def before(name: str, key: str) -> None:
        sent.append(time.monotonic())

    store._bucket.before = before
    began = time.monotonic()
    image = await stall.watched(lambda progress: write_device(device, store, progress), lambda *_: None, 0.6)
    assert image.physical_size < MIB and len(device.threads) > 1
    assert min(moment for moment in sent if moment > began + 0.5) > began + 1, "nothing was sent for longer than a stall"


@pytest.mark.parametrize("where", ["disk", "store"])
async def test_cancelled_while_one_side_stands_it_ends_at_once(store: MemoryImageStore, where: str) -> None:
    """Threads that wait for the disk, for a part to go out, or for their turn go home."""
    stands = asyncio.Event()

    async def stand(*_: Any) -> None:
        stands.set()
        await asyncio.sleep(3600)

    class Hangs(LoopNoise):
        async def read_into(self, buffer: memoryview, offset: int) -> None:
            if where == "disk" and self.read_bytes > 5 * MIB:
                await stand()
            await super().read_into(buffer, offset)

    async def before(name: str, key: str) -> None:
        if where == "store" and name == "part":
            await stand()

    store._bucket.before = before
    task = asyncio.create_task(write_device(Hangs(40 * MIB), store, part=MIB, workers=2))
    await asyncio.wait_for(stands.wait(), 60)
    await asyncio.sleep(0.2)
    began = asyncio.get_running_loop().time()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.get_running_loop().time() - began < 5
    store._bucket.before = None
    await nothing_left(store)


class Slow:
    """What a store does before it takes a part: it waits, and remembers the most parts that waited at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.most = seconds, 0, 0

    async def __call__(self, name: str, key: str) -> None:
        if name == "part":
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(self.seconds)
            self.now -= 1


async def test_parts_and_batches_in_memory_are_bounded(store: MemoryImageStore, tmp_path: Path, qemu: None, seed: int) -> None:
    disk, slow = tmp_path / "disk.qcow2", Slow(0.05)
    await make_disk(disk, seed)
    store._bucket.before = slow
    await write(disk, store, part=MIB, workers=3)
    assert slow.most == 3
    assert BUFFERS.lent == 0


async def test_a_transfer_goes_on_while_others_have_all_of_the_memory(store: MemoryImageStore, tmp_path: Path, qemu: None, seed: int) -> None:
    """With two buffers of its own: one part at a time, and at the end the first one beside the last."""
    disk, slow = tmp_path / "disk.qcow2", Slow(0.01)
    await make_disk(disk, seed)
    store._bucket.before = slow
    async with BUFFERS.room(BUFFERS.total), asyncio.timeout(60):
        image = await write(disk, store, part=MIB, workers=3)
    assert image.physical_size > 3 * MIB
    assert slow.most <= 2
    assert BUFFERS.lent == 0


async def test_whoever_needs_all_of_the_memory_has_its_turn_before_a_transfer_ends(store: MemoryImageStore, tmp_path: Path, qemu: None,
                                                                                   seed: int) -> None:
    disk, begun, parts = tmp_path / "disk.qcow2", asyncio.Event(), 0
    await make_disk(disk, seed)

    async def before(name: str, key: str) -> None:
        nonlocal parts
        if name == "part":
            begun.set()
            parts += 1
            await asyncio.sleep(0.05)

    store._bucket.before = before
    transfer = asyncio.create_task(write(disk, store, part=MIB, workers=2))
    await asyncio.wait_for(begun.wait(), 60)
    async with asyncio.timeout(60), BUFFERS.room(BUFFERS.total):
        then = parts
    await transfer
    assert then < parts // 2
    assert BUFFERS.lent == 0
