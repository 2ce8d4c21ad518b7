"""Direct motion with real disks: a device becomes a plain qcow2 object and a disk again, byte for byte, through each store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config

from agents import stall
from agents.buffers import Buffers
from agents.hypervisors.base import Extent
from agents.hypervisors.kvm import KvmHypervisor
from agents.hypervisors.memory import DISKS, MemoryHypervisor
from agents.image_stores import base
from agents.image_stores.base import ImageStore, Limits, ReadsInto
from agents.image_stores.memory import MemoryImageStore
from agents.image_stores.s3 import S3ImageStore
from agents.manifest import manifest_key, read_manifest, verify_object
from agents.motion.direct import good_part, part_size, read_image, write_image
from schema.failure import WorkFailed
from schema.image import ImageFormat, ImageRef
from tests.services.s3_fixture import s3_spec
from tests.support.images import MIB, img, make_disk, put_image
from tests.support.motion_stores import REAL, opened, store_spec
from tests.support.noise import ThreadNoise

pytestmark = [pytest.mark.needs_qemu, pytest.mark.usefixtures("qemu")]

GIB = 1 << 30
Seen = list[tuple[str, int, int]]


@pytest.fixture
async def memory() -> AsyncIterator[MemoryImageStore]:
    yield await MemoryImageStore.open(store_spec("memory", f"memory://{uuid4()}"), {})


@pytest.fixture(params=["memory", *REAL])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ImageStore]:
    async with opened(request.param, request, tmp_path) as store:
        yield store


async def write(device: Any, store: ImageStore, *, seen: Seen | None = None, key: str = "", **more: Any) -> ImageRef:
    """write_image with what does not matter here filled in."""
    def progress(stage: str, done: int, total: int) -> None:
        if seen is not None:
            seen.append((stage, done, total))

    return await write_image(device, store, store_id=uuid4(), key=key or f"{uuid4()}/snapshot", kind="snapshot", thing_id=uuid4(),
                             job_id=uuid4(), work="w.1", installation="i", progress=progress, **more)


async def read(store: ImageStore, image: ImageRef, path: Path, seen: Seen | None = None, **more: Any) -> int:
    """read_image onto KVM."""
    return await read_image(store, image, str(path), hypervisor=KvmHypervisor(),
                            progress=lambda *now: seen.append(now) if seen is not None else None, **more)


async def save(store: ImageStore, image: ImageRef, path: Path) -> None:
    """The object's bytes as a file."""
    with path.open("wb") as file:
        for at in range(0, image.physical_size, 8 * MIB):
            file.write(await store.read(image.key, at, min(8 * MIB, image.physical_size - at)))


async def left(store: ImageStore, prefix: str = "") -> list[str]:
    """Everything that is there, finished or not."""
    return [info.key async for info in store.list(prefix)] + [*await store.unfinished(prefix)]


def check_progress(seen: Seen, total: int) -> None:
    """Never decreases, never beyond the total, ends with all of it."""
    counted = [done for _, done, _ in seen]
    assert counted == sorted(counted) and counted[-1] == total
    assert all(0 <= done <= of for _, done, of in seen if of) and seen[-1][2] == total


DISKS_UNDER_TEST: dict[str, tuple[int, list[tuple[int, int]]]] = {
    "empty": (GIB, []),
    "odd": (MIB + 512, [(0, 100), (MIB, 512)]),
    "across-tables": (1100 * MIB + 1536, [(0, MIB), (500 * MIB, 30 * MIB), (1100 * MIB + 1024, 512)]),
    "fragments": (64 * MIB, [(n * MIB + 4096 * n, 512 * (n + 1)) for n in range(60)]),
}


class TestThere:
    """Device to store and back."""

    @pytest.mark.parametrize("disk", DISKS_UNDER_TEST)
    async def test_round_trip(self, store: ImageStore, tmp_path: Path, disk: str) -> None:
        size, places = DISKS_UNDER_TEST[disk]
        kvm, source, seen, back = KvmHypervisor(), tmp_path / "source.qcow2", Seen(), Seen()
        await make_disk(source, size, places)
        await kvm.take_snapshot(str(source), "t")
        frozen = tmp_path / "frozen.raw"
        img("convert", "-f", "qcow2", "-O", "raw", str(source), str(frozen))
        async with kvm.open(str(source), writable=True) as device:  # the object must be the snapshot, not what came later
            await device.write(size - 512, b"later".ljust(512, b"!"))
            await device.flush()
        async with kvm.open(str(source), tag="t") as device:
            image = await write(device, store, seen=seen)
        check_progress(seen, image.physical_size)
        assert image.virtual_size == size and seen[-1][0] == "verify"
        stored = sum(length for _, length in places)
        assert image.physical_size <= stored + 65536 * (8 + 2 * len(places)), "sparse stays sparse"

        await save(store, image, tmp_path / "object")
        img("check", "-f", "qcow2", str(tmp_path / "object"))
        img("compare", "-f", "qcow2", "-F", "raw", str(tmp_path / "object"), str(frozen))
        assert json.loads(img("info", "-f", "qcow2", "--output=json", str(tmp_path / "object")))["virtual-size"] == size
        manifest = await verify_object(store, image.key)
        assert (manifest.root, manifest.virtual_size, manifest.format) == (image.root, size, ImageFormat.QCOW2)

        draft = tmp_path / "draft"
        assert await read(store, image, draft, back) == image.physical_size
        check_progress(back, image.physical_size)
        assert await kvm.adopt(str(draft), format=ImageFormat.QCOW2, grow_to=size + MIB) == size + MIB
        img("check", "-f", "qcow2", str(draft))
        img("compare", "-f", "qcow2", "-F", "raw", str(draft), str(frozen))
        assert draft.stat().st_blocks * 512 <= image.physical_size + 4 * MIB

    @pytest.mark.needs_s3
    async def test_another_client_reads_the_object(self, s3_server: Any, tmp_path: Path) -> None:
        kvm, source = KvmHypervisor(), tmp_path / "source.qcow2"
        await make_disk(source, 300 * MIB, [(MIB, 40 * MIB)])
        opened = await S3ImageStore.open(s3_spec(s3_server), {"secretkey": s3_server.secret_key})
        try:
            async with kvm.open(str(source)) as device:
                image = await write(device, opened)
        finally:
            await opened.aclose()
        client = boto3.client("s3", endpoint_url=s3_server.endpoint, aws_access_key_id=s3_server.access_key,
                              aws_secret_access_key=s3_server.secret_key, region_name="us-east-1",
                              config=Config(s3={"addressing_style": "path"}))
        try:
            await asyncio.to_thread(client.download_file, s3_server.bucket, image.key, str(tmp_path / "object"))
        finally:
            client.close()
        img("check", "-f", "qcow2", str(tmp_path / "object"))
        img("compare", "-f", "qcow2", "-F", "qcow2", str(tmp_path / "object"), str(source))

    async def test_to_memory_and_back(self, memory: MemoryImageStore, tmp_path: Path) -> None:
        """The memory hypervisor takes in what KVM wrote."""
        source = tmp_path / "source.qcow2"
        await make_disk(source, 700 * MIB, [(0, 3 * MIB), (600 * MIB, MIB)])
        async with KvmHypervisor().open(str(source)) as device:
            expected = bytes(await device.read(600 * MIB, MIB))
            image = await write(device, memory)
        path = str(tmp_path / "in-memory")
        hypervisor = MemoryHypervisor()
        await read_image(memory, image, path, hypervisor=hypervisor, progress=lambda *_: None)
        await hypervisor.adopt(path, format=ImageFormat.QCOW2, grow_to=0)
        async with hypervisor.open(path) as device:
            assert device.size == 700 * MIB and await device.read(600 * MIB, MIB) == expected
        del DISKS[path]


class TestForeign:
    """Images made elsewhere."""

    @pytest.mark.parametrize("options", [["-o", "compat=0.10"], ["-c"], ["-o", "cluster_size=2M"]], ids=["v2", "compressed", "2M"])
    async def test_qcow2(self, memory: MemoryImageStore, tmp_path: Path, options: list[str]) -> None:
        source, made, draft = tmp_path / "source.qcow2", tmp_path / "made", tmp_path / "draft"
        await make_disk(source, 80 * MIB, [(0, 5 * MIB), (70 * MIB, 100_000)])
        img("convert", "-f", "qcow2", "-O", "qcow2", *options, str(source), str(made))
        image = await put_image(memory, made.read_bytes(), ImageFormat.QCOW2, 80 * MIB)
        await read(memory, image, draft)
        assert draft.read_bytes() == made.read_bytes()
        await KvmHypervisor().adopt(str(draft), format=ImageFormat.QCOW2, grow_to=80 * MIB)
        img("compare", "-f", "qcow2", "-F", "qcow2", str(draft), str(source))
        async with KvmHypervisor().open(str(draft)) as device:  # and it can be backed up again
            again = await write(device, memory)
        await save(memory, again, tmp_path / "again")
        img("check", "-f", "qcow2", str(tmp_path / "again"))
        img("compare", "-f", "qcow2", "-F", "qcow2", str(tmp_path / "again"), str(source))

    @pytest.mark.parametrize("extra", [0, 512, 7])
    async def test_raw(self, store: ImageStore, tmp_path: Path, extra: int) -> None:
        body = random.Random(1).randbytes(3 * MIB) + bytes(40 * MIB) + random.Random(2).randbytes(MIB) + b"x" * extra
        (tmp_path / "raw").write_bytes(body)
        seen = Seen()
        image = await put_image(store, body, ImageFormat.RAW, len(body), part=5 * MIB)
        draft = tmp_path / "draft"
        assert await read(store, image, draft, seen) == len(body)
        check_progress(seen, len(body))
        await KvmHypervisor().adopt(str(draft), format=ImageFormat.QCOW2, grow_to=0)
        img("check", "-f", "qcow2", str(draft))
        img("compare", "-f", "qcow2", "-F", "raw", str(draft), str(tmp_path / "raw"))
        assert draft.stat().st_size < 8 * MIB, "zeros are not stored"


class Fills(MemoryImageStore):
    """A store in memory that fills buffers, each at its second attempt."""

    async def read_into(self, key: str, offset: int, buffer: memoryview, seen: base.Seen | None = None) -> int:
        data = await self.read(key, offset, len(buffer))
        buffer[:len(data)] = data
        if seen is not None:
            half = len(data) // 2
            seen(0, memoryview(bytes(half)))
            seen(0, buffer[:half])
            seen(half, buffer[half:len(data)])
        return len(data)


class TestDamage:
    """What is wrong in the store is said, with its bytes."""

    @pytest.mark.parametrize("part", [MIB, 10 * MIB, 24 * MIB], ids=["one range", "two ranges", "three"])
    async def test_a_range_that_was_read_twice_is_summed_once(self, memory: MemoryImageStore, tmp_path: Path, part: int) -> None:
        """And what a store says of its bytes as they come is all that is compared: a changed byte is found."""
        body = random.Random(1).randbytes(20 * MIB + 5)
        image = await put_image(memory, body, ImageFormat.QCOW2, 20 * MIB, part=part)
        fills = Fills(memory._bucket)
        assert isinstance(fills, ReadsInto)
        await read(fills, image, tmp_path / "draft")
        assert (tmp_path / "draft").read_bytes() == body
        memory._bucket.objects[image.key] = body[:-1] + bytes([body[-1] ^ 1])
        with pytest.raises(WorkFailed, match="are not what was written"):
            await read(fills, image, tmp_path / "other")

    @pytest.mark.parametrize("image_format", [ImageFormat.QCOW2, ImageFormat.RAW])
    async def test_a_changed_byte_names_its_part(self, memory: MemoryImageStore, tmp_path: Path, image_format: ImageFormat) -> None:
        body = random.Random(1).randbytes(10 * MIB + 5)
        image = await put_image(memory, body, image_format, 10 * MIB + 512)
        damaged = bytearray(body)
        damaged[7 * MIB + 3] ^= 1
        memory._bucket.objects[image.key] = bytes(damaged)
        with pytest.raises(WorkFailed, match=f"bytes {7 * MIB} to {8 * MIB - 1} are not what was written"):
            await read(memory, image, tmp_path / "draft")

    async def test_a_short_object(self, memory: MemoryImageStore, tmp_path: Path) -> None:
        image = await put_image(memory, random.Random(1).randbytes(3 * MIB), ImageFormat.QCOW2, MIB)
        memory._bucket.objects[image.key] = memory._bucket.objects[image.key][:2 * MIB + 1]
        with pytest.raises(WorkFailed, match=r"ends at byte|not what was written"):
            await read(memory, image, tmp_path / "draft")

    async def test_another_object_under_the_same_key(self, memory: MemoryImageStore, tmp_path: Path) -> None:
        image = await put_image(memory, b"one" * MIB, ImageFormat.QCOW2, MIB)
        with pytest.raises(WorkFailed, match="not the one that the log knows"):
            await read(memory, image.model_copy(update={"root": "0" * 64}), tmp_path / "draft")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
    async def test_a_full_disk(self, memory: MemoryImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        image = await put_image(memory, random.Random(1).randbytes(3 * MIB), ImageFormat.QCOW2, MIB)
        full = os.open("/dev/full", os.O_WRONLY)
        real = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(full, data, at))
        try:
            with pytest.raises(WorkFailed, match="No space left") as failure:
                await read(memory, image, tmp_path / "draft")
        finally:
            os.close(full)
        assert "free space" in failure.value.failure.remedy


class TestStop:
    """Cancelled or failed at any byte, nothing is left, and soon."""

    @pytest.fixture
    async def source(self, tmp_path: Path) -> Path:
        path = tmp_path / "source.qcow2"
        await make_disk(path, 200 * MIB, [(0, 30 * MIB)])
        return path

    async def cancelled_at(self, store: ImageStore, source: Path, key: str, stop_at: int) -> float:
        """Cancel a transfer when the store has taken that many bytes; how long it took to end."""
        task: asyncio.Task[ImageRef]
        stopped = 0.0

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal stopped
            if stage == "write" and done >= stop_at:
                stopped = stopped or time.monotonic()
                task.cancel()

        async with KvmHypervisor().open(str(source)) as device:
            task = asyncio.create_task(write_image(
                device, store, store_id=uuid4(), key=key, kind="snapshot", thing_id=uuid4(), job_id=uuid4(), work="w.1",
                installation="i", part=5 * MIB, workers=3, progress=progress))
            with pytest.raises(asyncio.CancelledError):
                await task
        return time.monotonic() - stopped

    async def test_cancelled_anywhere(self, store: ImageStore, source: Path, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(8):
            stop_at, key = dice.randrange(0, 30 * MIB), f"{uuid4()}/snapshot"
            assert await self.cancelled_at(store, source, key, stop_at) < 5
            assert await left(store, key.split("/")[0]) == [], f"cancelled at {stop_at}"
            assert await store.stat(key) is None and await store.stat(manifest_key(key)) is None

    @pytest.mark.parametrize("operation", ["begin", "part", "complete", "put"])
    @pytest.mark.parametrize("how", ["fails", "cancelled"])
    async def test_at_each_step(self, memory: MemoryImageStore, source: Path, operation: str, how: str) -> None:
        task: asyncio.Task[ImageRef]
        calls = 0

        async def before(name: str, key: str) -> None:
            nonlocal calls
            if name != operation:
                return
            calls += 1
            if calls == (3 if name == "part" else 1):
                if how == "fails":
                    raise WorkFailed("the store says no")
                task.cancel()
                await asyncio.sleep(0.01)

        memory._bucket.before = before
        async with KvmHypervisor().open(str(source)) as device:
            task = asyncio.create_task(write(device, memory, part=MIB))
            with pytest.raises((WorkFailed, asyncio.CancelledError)):
                await task
            assert task.cancelled() == (how == "cancelled")
        memory._bucket.before = None
        assert calls and memory._bucket.objects == {} and memory._bucket.uploads == {}

    async def test_a_stopped_read_writes_no_more(self, memory: MemoryImageStore, source: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
        """A thread that still wrote when the descriptor was closed would write into whatever file gets its number next."""
        async with KvmHypervisor().open(str(source)) as device:
            image = await write(device, memory, part=MIB)
        writing, begun = 0, asyncio.Event()
        loop, real = asyncio.get_running_loop(), os.pwrite

        def slow(fd: int, data: Any, at: int) -> int:
            nonlocal writing
            writing += 1
            loop.call_soon_threadsafe(begun.set)
            try:
                time.sleep(0.2)
                return real(fd, data, at)
            finally:
                writing -= 1

        monkeypatch.setattr(os, "pwrite", slow)
        task = asyncio.create_task(read(memory, image, tmp_path / "draft"))
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()  # impatience changes nothing
        with pytest.raises(asyncio.CancelledError):
            await task
        assert writing == 0


class Full:
    """A device that says that it is full; its bytes do not matter."""

    def __init__(self, size: int) -> None:
        self.size = size

    async def extents(self) -> list[Extent]:
        return [Extent(offset=0, length=self.size, zero=False)]

    async def read_into(self, buffer: memoryview, offset: int) -> None:
        await asyncio.sleep(0)


class TestBounds:
    """Memory, parts and where bytes go."""

    async def test_a_disk_that_is_slow_to_fill_a_part_is_no_stall(self, memory: MemoryImageStore) -> None:
        device = ThreadNoise(16 * MIB, lambda device, buffer: time.sleep(0.15 * len(buffer) / MIB))
        image = await stall.watched(lambda progress: write_image(
            device, memory, store_id=uuid4(), key="i/slow", kind="snapshot", thing_id=uuid4(), job_id=uuid4(), work="w.1",
            installation="i", progress=progress, part=16 * MIB, workers=1), lambda *_: None, 1.0)
        assert image.physical_size > 16 * MIB

    def test_part_sizes_fit_the_store(self) -> None:
        s3 = Limits(min_part=5 * MIB, max_part=5 * GIB, max_parts=10_000)
        for size in (1, 8 * MIB, 80 * GIB, 1 << 40, 16 << 40, (16 << 40) + (16 << 30)):
            part = part_size(size, s3)
            assert s3.min_part <= part <= s3.max_part and -(-size // part) <= s3.max_parts
        assert part_size(GIB, s3) == 8 * MIB
        assert good_part(64 * GIB, s3) == 8 * MIB
        swift = Limits(min_part=MIB, max_part=5 * GIB, max_parts=10_000, good_part=32 * MIB)
        assert [good_part(size, swift) // MIB for size in (1, 128 * MIB, 256 * MIB, 512 * MIB, 64 * GIB)] == [8, 8, 16, 32, 32]
        folder = Limits(min_part=4096, max_part=1 << 40, max_parts=1 << 30)
        assert -(-(16 << 40) // part_size(16 << 40, folder)) <= 10_000, "a manifest names every part"
        with pytest.raises(WorkFailed, match="larger than the store takes"):
            part_size(64 << 40, Limits(min_part=MIB, max_part=64 * MIB, max_parts=10_000))

    async def test_a_store_is_given_the_parts_it_likes(self, memory: MemoryImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("agents.motion.direct.PART", MIB)
        monkeypatch.setattr(MemoryImageStore, "limits", Limits(
            min_part=4096, max_part=GIB, max_parts=10_000, good_part=3 * MIB))
        for size, part in ((8 * MIB, MIB), (40 * MIB, 3 * MIB), (60 * MIB, 3 * MIB)):
            image = await write(Full(size), memory, part=None)
            assert (await read_manifest(memory, image.key)).part_size == part
            await memory.delete(image.key)

    @pytest.mark.parametrize(("part", "room", "at_once"), [(MIB, 64 * MIB, 6), (4 * MIB, 12 * MIB, 3), (4 * MIB, 4 * MIB, 1)])
    async def test_parts_in_memory_are_bounded(self, memory: MemoryImageStore, part: int, room: int, at_once: int) -> None:
        now, most = 0, 0

        async def before(name: str, key: str) -> None:
            nonlocal now, most
            if name == "part":
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.3)  # longer than a part takes to be read and hashed
                now -= 1

        memory._bucket.before = before
        buffers = Buffers(room)
        await write(Full(8 * part), memory, part=part, buffers=buffers)
        assert most == at_once and buffers.peak <= room and buffers.lent == 0

    async def test_progress_is_what_the_store_took(self, memory: MemoryImageStore, tmp_path: Path) -> None:
        """With the store stopped, progress stops with it."""
        path, seen, gate = tmp_path / "disk.qcow2", Seen(), asyncio.Event()
        await make_disk(path, 64 * MIB, [(0, 20 * MIB)])
        taken = 0

        async def before(name: str, key: str) -> None:
            nonlocal taken
            if name == "part":
                if taken == 5:
                    await gate.wait()
                else:
                    taken += 1

        memory._bucket.before = before
        async with KvmHypervisor().open(str(path)) as device:
            task = asyncio.create_task(write(device, memory, seen=seen, part=MIB))
            while taken < 5:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            stood, ended = seen[-1][1], task.done()
            gate.set()
            image = await task
        assert stood == 4 * MIB + image.physical_size % MIB and not ended  # the last part, a short one, is among the first
        check_progress(seen, image.physical_size)
        assert (await read_manifest(memory, image.key)).part_size == MIB

    async def test_image_bytes_go_nowhere_else(self, memory: MemoryImageStore, tmp_path: Path) -> None:
        """During a transfer neither this process nor its children have a file open for writing that was not open before."""
        path, seen = tmp_path / "disk.qcow2", set[str]()
        await make_disk(path, 64 * MIB, [(0, 20 * MIB)])

        def open_for_writing() -> set[str]:
            found = set()
            ours = [os.getpid(), *(int(pid) for task in Path("/proc/self/task").iterdir()
                                   for pid in (task / "children").read_text().split())]
            for pid in ours:
                for link in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        target = os.readlink(link)
                        mode = int(Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split("flags:")[1].split()[0], 8)
                        if target.startswith("/") and not target.startswith("/dev/") and mode & (os.O_WRONLY | os.O_RDWR):
                            found.add(target)
            return found

        before = open_for_writing()
        async with KvmHypervisor().open(str(path)) as device:
            image = await write_image(
                device, memory, store_id=uuid4(), key="k/s", kind="snapshot", thing_id=uuid4(), job_id=uuid4(), work="w.1",
                installation="i", part=MIB, progress=lambda *_: seen.update(open_for_writing()))
        written = {target for target in seen - before if "sb-nbd-" not in target}  # qemu's pid file
        assert written == set()
        seen.clear()
        draft = tmp_path / "draft"
        await read_image(memory, image, str(draft), hypervisor=KvmHypervisor(), progress=lambda *_: seen.update(open_for_writing()))
        assert seen - before == {str(draft)}
