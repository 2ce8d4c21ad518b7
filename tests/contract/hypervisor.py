"""The contract of a hypervisor as a suite: inherit, give a hypervisor and absent paths, run pytest.

    class TestMine(HypervisorContract):
        @pytest.fixture
        def hypervisor(self) -> Hypervisor: ...

Every test compares with a model of bytes kept beside the disk, never with what the implementation says of itself.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from agents.hypervisors.base import BlockDevice, Extent, Hypervisor
from agents.motion.direct import read_device_then
from agents.qcow2 import Layout
from schema.failure import WorkFailed
from schema.image import ImageFormat

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
CLUSTER = 1 << 16


def data(size: int, seed: int = 1) -> bytes:
    """Bytes that are not zero and not one another's."""
    return random.Random(seed).randbytes(size)


async def snapped(hypervisor: Hypervisor, path: str, size: int) -> bytes:
    """Makes a disk full of `data`, with a snapshot `t` of it; the data."""
    await hypervisor.create(path, size)
    content = data(size)
    async with hypervisor.open(path, writable=True) as device:
        await device.write(0, content)
        await device.flush()
    await hypervisor.take_snapshot(path, "t")
    return content


async def whole(device: BlockDevice) -> bytes:
    """Everything a small device holds."""
    return bytes(await device.read(0, device.size))


def spans(extents: Sequence[Extent]) -> list[tuple[int, int]]:
    """Where data is, as (from, to)."""
    return [(extent.offset, extent.offset + extent.length) for extent in extents if not extent.zero]


def check_extents(extents: Sequence[Extent], size: int) -> None:
    """In order, without gaps, neighbours of one kind joined, the whole device."""
    end = 0
    for extent in extents:
        assert extent.offset == end and extent.length > 0
        end += extent.length
    assert end == size
    assert all(one.zero != other.zero for one, other in itertools.pairwise(extents)), "neighbours are not joined"


def image_file(path: Path, content: bytes) -> None:
    """A plain qcow2 of `content` at `path`, as the image writer makes them: zero clusters are left out."""
    extents = [Extent(offset=at, length=min(CLUSTER, len(content) - at), zero=not any(content[at:at + CLUSTER]))
               for at in range(0, len(content), CLUSTER)]
    layout = Layout(len(content), extents)
    with path.open("wb") as file:
        for piece in layout.pieces(0, layout.size):
            made = content[piece.guest:piece.guest + piece.length] if piece.data is None else piece.data
            file.write(made.ljust(piece.length, b"\0"))


class HypervisorContract:
    """What every hypervisor must do."""

    @pytest.fixture
    def hypervisor(self) -> Hypervisor:
        """Override."""
        raise NotImplementedError

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        """An absent path; a comma in it is legal on every file system."""
        return str(tmp_path / f"{uuid4()},disk.qcow2")

    @pytest.mark.parametrize("size", [512, MIB, MIB + 512, 3 * GIB + 1536])
    async def test_a_new_disk_is_empty(self, hypervisor: Hypervisor, path: str, size: int) -> None:
        await hypervisor.create(path, size)
        async with hypervisor.open(path) as device:
            assert device.size == size
            assert list(await device.extents()) == [Extent(offset=0, length=size, zero=True)]
            assert bytes(await device.read(size - 512, 512)) == bytes(512)
        virtual, used = await hypervisor.measure(path)
        assert virtual == size and used < MIB
        assert await hypervisor.snapshots(path) == []

    @pytest.mark.parametrize("there", [False, True])
    async def test_what_is_no_disk_is_not_measured(self, hypervisor: Hypervisor, path: str, there: bool) -> None:
        if there:
            Path(path).write_bytes(b"no disk" * 100)
        with pytest.raises(WorkFailed):
            await hypervisor.measure(path)

    async def test_what_was_flushed_is_there_after_reopening(self, hypervisor: Hypervisor, path: str) -> None:
        size = 4 * MIB + 512
        model = bytearray(size)
        await hypervisor.create(path, size)
        async with hypervisor.open(path, writable=True) as device:
            for n, (offset, length) in enumerate([(0, 512), (MIB - 100, 70_001), (2 * MIB, CLUSTER), (size - 512, 512)]):
                model[offset:offset + length] = data(length, n)
            for kind in (bytes, bytearray, memoryview):  # every kind of buffer is taken
                await device.write(MIB - 100, kind(bytes(model[MIB - 100:MIB - 100 + 70_001])))
            await asyncio.gather(device.write(0, model[:512]), device.write(2 * MIB, memoryview(model)[2 * MIB:2 * MIB + CLUSTER]),
                                 device.write(size - 512, bytes(model[-512:])))
            await device.flush()
            assert await whole(device) == model
        async with hypervisor.open(path) as device:
            assert await whole(device) == model

    async def test_what_reads_may_go_on_with_what_it_read(self, hypervisor: Hypervisor, path: str) -> None:
        """Off the event loop, with the bytes in place; what fails there is raised, and the device goes on."""
        content, here = data(3 * MIB), threading.get_ident()
        await hypervisor.create(path, len(content))
        async with hypervisor.open(path, writable=True) as device:
            await device.write(0, content)
            await device.flush()

            async def one(at: int) -> tuple[bytes, int]:
                buffer = memoryview(bytearray(MIB))
                return await read_device_then(device, buffer, at, lambda: (bytes(buffer), threading.get_ident()))

            for at, (found, thread) in zip(range(0, 2 * MIB, 65536), await asyncio.gather(
                    *(one(at) for at in range(0, 2 * MIB, 65536))), strict=True):
                assert found == content[at:at + MIB] and thread != here
            with pytest.raises(ZeroDivisionError):
                await asyncio.gather(*(read_device_then(device, memoryview(bytearray(512)), 0, lambda: 1 // 0) for _ in range(9)))
            assert (await one(MIB))[0] == content[MIB:2 * MIB]

    async def test_extents_tell_where_data_is(self, hypervisor: Hypervisor, path: str) -> None:
        size = 64 * MIB + 512
        await hypervisor.create(path, size)
        async with hypervisor.open(path, writable=True) as device:
            await device.write(0, data(CLUSTER))
            await device.write(CLUSTER, data(CLUSTER))
            await device.write(40 * MIB, data(CLUSTER))
            await device.write(size - 512, data(512))
            await device.flush()
        async with hypervisor.open(path) as device:
            extents = await device.extents()
            check_extents(extents, size)
            assert spans(extents) == [(0, 2 * CLUSTER), (40 * MIB, 40 * MIB + CLUSTER), (64 * MIB, size)]

    async def test_zeroed_runs_are_zeros_and_not_stored(self, hypervisor: Hypervisor, path: str) -> None:
        await hypervisor.create(path, 8 * MIB)
        model = bytearray(data(8 * MIB))
        async with hypervisor.open(path, writable=True) as device:
            await device.write(0, model)
            for offset, length in ((CLUSTER, 4 * CLUSTER), (2 * MIB + 512, 3 * CLUSTER), (8 * MIB - 512, 512)):
                await device.zero(offset, length)
                model[offset:offset + length] = bytes(length)
            await device.flush()
            assert await whole(device) == model
        async with hypervisor.open(path) as device:
            assert await whole(device) == model
            stored = spans(await device.extents())
            assert stored[0] == (0, CLUSTER) and stored[1][0] == 5 * CLUSTER
            assert all(end <= 2 * MIB + CLUSTER or start >= 2 * MIB + 3 * CLUSTER for start, end in stored)

    async def test_a_snapshot_keeps_what_was(self, hypervisor: Hypervisor, path: str) -> None:
        await hypervisor.create(path, 2 * MIB + 512)
        contents = {}
        for tag in ("one", "two", str(uuid4())):
            async with hypervisor.open(path, writable=True) as device:
                await device.write(100, data(300_000, len(contents)))
                await device.write(2 * MIB + len(contents), b"x")
                await device.flush()
                contents[tag] = await whole(device)
            await hypervisor.take_snapshot(path, tag)
        async with hypervisor.open(path, writable=True) as device:
            await device.zero(0, device.size)
            await device.flush()
        assert sorted(await hypervisor.snapshots(path)) == sorted(contents)
        for tag, content in contents.items():
            async with hypervisor.open(path, tag=tag) as device:
                assert device.size == 2 * MIB + 512
                assert await whole(device) == content
                check_extents(await device.extents(), device.size)
        async with hypervisor.open(path) as device:
            assert not any(await whole(device))

    async def test_taking_and_dropping_twice_is_once(self, hypervisor: Hypervisor, path: str) -> None:
        await hypervisor.create(path, MIB)
        async with hypervisor.open(path, writable=True) as device:
            await device.write(0, b"first")
            await device.flush()
        await hypervisor.take_snapshot(path, "t")
        async with hypervisor.open(path, writable=True) as device:
            await device.write(0, b"later")
            await device.flush()
        await hypervisor.take_snapshot(path, "t")
        assert await hypervisor.snapshots(path) == ["t"]
        async with hypervisor.open(path, tag="t") as device:
            assert bytes(await device.read(0, 5)) == b"first", "the second taking must not replace the first"
        for _ in range(2):
            await hypervisor.drop_snapshot(path, "t")
            assert await hypervisor.snapshots(path) == []
        async with hypervisor.open(path) as device:
            assert bytes(await device.read(0, 5)) == b"later"
        await hypervisor.drop_snapshot(path + ".absent", "t")

    async def test_what_cannot_be_is_refused(self, hypervisor: Hypervisor, path: str) -> None:
        async def opened(**how: object) -> None:
            async with hypervisor.open(path, **how):  # type: ignore[arg-type] # arguments of several types
                pass

        with pytest.raises(WorkFailed, match="not there"):
            await opened()
        await hypervisor.create(path, MIB)
        await hypervisor.take_snapshot(path, "t")
        with pytest.raises(WorkFailed, match="no snapshot gone"):
            await opened(tag="gone")
        with pytest.raises(WorkFailed, match="cannot be written"):
            await opened(tag="t", writable=True)
        for how in ({}, {"tag": "t"}):
            async with hypervisor.open(path, **how) as device:
                with pytest.raises(WorkFailed) as refused:
                    await device.write(0, b"x")
                assert not refused.value.retryable
                for offset, length in ((MIB - 256, 512), (MIB, 1), (-1, 1)):
                    with pytest.raises(WorkFailed, match="not all on a disk") as refused:
                        await device.read(offset, length)
                    assert not refused.value.retryable

    async def test_a_huge_sparse_disk_is_cheap(self, hypervisor: Hypervisor, path: str) -> None:
        await hypervisor.create(path, TIB)
        async with hypervisor.open(path, writable=True) as device:
            await device.write(TIB - 512, data(512))
            await device.write(TIB // 2 + 7, b"y")
            await device.flush()
        await hypervisor.take_snapshot(path, "t")
        for tag in ("", "t"):
            async with hypervisor.open(path, tag=tag) as device:
                async with asyncio.timeout(60):
                    extents = await device.extents()
                check_extents(extents, TIB)
                first, last = spans(extents)  # to a cluster at most, finer where the format can
                assert TIB // 2 <= first[0] <= TIB // 2 + 7 < first[1] <= TIB // 2 + CLUSTER
                assert TIB - CLUSTER <= last[0] <= TIB - 512 and last[1] == TIB
                assert bytes(await device.read(TIB - 512, 512)) == data(512)
        assert (await hypervisor.measure(path))[1] < 4 * MIB

    async def test_many_read_at_once(self, hypervisor: Hypervisor, path: str, seed: int) -> None:
        dice = random.Random(seed)
        content = await snapped(hypervisor, path, 16 * MIB)

        async def reads(device: BlockDevice) -> None:
            places = [(offset := dice.randrange(16 * MIB), dice.randrange(1, 16 * MIB - offset + 1)) for _ in range(24)]
            for (offset, length), found in zip(places, await asyncio.gather(*(device.read(*place) for place in places)), strict=True):
                assert found == content[offset:offset + length]

        async with hypervisor.open(path) as live, hypervisor.open(path, tag="t") as one, hypervisor.open(path, tag="t") as other:
            await asyncio.gather(reads(live), reads(one), reads(other))

    async def test_a_random_history(self, hypervisor: Hypervisor, path: str, seed: int) -> None:
        dice = random.Random(seed)
        size = 3 * MIB + 512 * dice.randrange(1, 8)
        model, tags = bytearray(size), dict[str, bytes]()
        await hypervisor.create(path, size)
        for turn in range(12):
            async with hypervisor.open(path, writable=True) as device:
                for n in range(dice.randrange(1, 6)):
                    offset = dice.randrange(size)
                    length = min(dice.choice([1, 512, 4096, CLUSTER, 300_000]), size - offset)
                    fresh = bytes(length) if dice.random() < 0.4 else data(length, turn * 100 + n)
                    await (device.write(offset, fresh) if any(fresh) else device.zero(offset, length))
                    model[offset:offset + length] = fresh
                await device.flush()
            if dice.random() < 0.6:
                tags[f"t{turn}"] = bytes(model)
                await hypervisor.take_snapshot(path, f"t{turn}")
            if tags and dice.random() < 0.4:
                gone = dice.choice(sorted(tags))
                del tags[gone]
                await hypervisor.drop_snapshot(path, gone)
        assert sorted(await hypervisor.snapshots(path)) == sorted(tags)
        for tag, content in {"": bytes(model), **tags}.items():
            async with hypervisor.open(path, tag=tag) as device:
                assert await whole(device) == content, f"seed {seed}, tag {tag or 'live'}"
                extents = await device.extents()
                check_extents(extents, size)
                assert all(not any(content[e.offset:e.offset + e.length]) for e in extents if e.zero)

    async def test_an_image_becomes_a_disk(self, hypervisor: Hypervisor, path: str) -> None:
        content = data(3 * CLUSTER) + bytes(5 * CLUSTER) + data(CLUSTER + 512, 2)
        image_file(Path(path), content)
        assert await hypervisor.adopt(path, format=ImageFormat.QCOW2, grow_to=0) == len(content)
        assert await hypervisor.adopt(path, format=ImageFormat.QCOW2, grow_to=len(content) - 512) == len(content), "never shrunk"
        for _ in range(2):
            assert await hypervisor.adopt(path, format=ImageFormat.QCOW2, grow_to=64 * MIB) == 64 * MIB
        async with hypervisor.open(path, writable=True) as device:
            assert device.size == 64 * MIB
            assert bytes(await device.read(0, len(content) + MIB)) == content + bytes(MIB)
            await device.write(63 * MIB, b"end")
            await device.flush()
            assert bytes(await device.read(63 * MIB, 3)) == b"end"
        with pytest.raises(WorkFailed):
            await hypervisor.adopt(path, format=ImageFormat.RAW, grow_to=0)

    async def test_a_disk_may_be_open_for_long_while_others_work(self, hypervisor: Hypervisor, path: str,
                                                                   another: Callable[[], str]) -> None:
        other = another()
        await hypervisor.create(path, MIB)
        await hypervisor.create(other, MIB)
        async with hypervisor.open(path, writable=True) as one, hypervisor.open(other, writable=True) as two:
            await asyncio.gather(one.write(0, b"one"), two.write(0, b"two"))
            assert [bytes(await device.read(0, 3)) for device in (one, two)] == [b"one", b"two"]

    @pytest.fixture
    def another(self, tmp_path: Path) -> Callable[[], str]:
        """More absent paths."""
        return lambda: str(tmp_path / f"{uuid4()}.qcow2")
