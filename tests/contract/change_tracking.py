"""The contract of a hypervisor that records changes inside a disk: inherit beside HypervisorContract, same fixtures.

What is recorded is compared with what the test wrote: never less, and no more than the blocks that it touched.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from agents.hypervisors.base import GRANULARITY, ChangeTracking, Extent, Hypervisor, Untracked
from tests.contract.hypervisor import MIB, data


def blocks(extents: Sequence[Extent]) -> set[int]:
    """The numbers of the blocks in the extents, which are in order and apart."""
    found: list[int] = []
    for extent in extents:
        assert extent.length > 0 and extent.offset % GRANULARITY == 0
        found += range(extent.offset // GRANULARITY, -(-(extent.offset + extent.length) // GRANULARITY))
    assert found == sorted(set(found))
    return set(found)


class ChangeTrackingContract:
    """What every hypervisor that records changes must do."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        """An absent path."""
        return str(tmp_path / f"{uuid4()},disk.qcow2")

    @pytest.fixture
    def tracker(self, hypervisor: Hypervisor) -> ChangeTracking:
        assert isinstance(hypervisor, ChangeTracking)
        return hypervisor

    async def write(self, hypervisor: Hypervisor, path: str, *places: int, length: int = 512) -> None:
        async with hypervisor.open(path, writable=True) as device:
            for place in places:
                await device.write(place, data(length, place))
            await device.flush()

    async def test_what_was_written_is_recorded_and_nothing_else(self, hypervisor: Hypervisor, tracker: ChangeTracking,
                                                                 path: str, seed: int) -> None:
        dice, size = random.Random(seed), 16 * MIB + 512
        await hypervisor.create(path, size)
        await self.write(hypervisor, path, 0, MIB)
        await tracker.track(path, "sb-1")
        await hypervisor.take_snapshot(path, "sb-1")
        assert list(await tracker.changed(path, "sb-1")) == []
        touched: set[int] = set()
        for _ in range(3):  # opened and closed again and again
            async with hypervisor.open(path, writable=True) as device:
                for _ in range(8):
                    place, length = dice.randrange(0, 16 * MIB, 512), dice.randrange(512, 300_000, 512)
                    length = min(length, size - place)
                    if dice.random() < 0.3:
                        await device.zero(place, length)
                    else:
                        await device.write(place, data(length, place))
                    touched |= set(range(place // GRANULARITY, -(-(place + length) // GRANULARITY)))
                await device.write(size - 512, data(512))
                touched.add(16 * MIB // GRANULARITY)
                await device.flush()
        found = blocks(await tracker.changed(path, "sb-1"))
        written = {block for block in touched if block in found}
        async with hypervisor.open(path) as now, hypervisor.open(path, tag="sb-1") as then:
            for block in range(-(-size // GRANULARITY)):
                start = block * GRANULARITY
                length = min(GRANULARITY, size - start)
                if bytes(await now.read(start, length)) != bytes(await then.read(start, length)):
                    assert block in found
        assert found <= touched and len(written) > 3

    async def test_two_records_are_apart(self, hypervisor: Hypervisor, tracker: ChangeTracking, path: str) -> None:
        await hypervisor.create(path, 8 * MIB)
        await tracker.track(path, "sb-1")
        await self.write(hypervisor, path, MIB)
        await tracker.track(path, "sb-2")
        await hypervisor.take_snapshot(path, "sb-2")
        await self.write(hypervisor, path, 2 * MIB)
        assert blocks(await tracker.changed(path, "sb-1")) == {16, 32}
        assert blocks(await tracker.changed(path, "sb-2")) == {32}
        await tracker.keep_changes(path, "sb-2")
        with pytest.raises(Untracked):
            await tracker.changed(path, "sb-1")
        assert blocks(await tracker.changed(path, "sb-2")) == {32}
        await tracker.track(path, "sb-3")
        await tracker.forget_changes(path, "sb-2")
        assert list(await tracker.changed(path, "sb-3")) == []

    async def test_a_snapshot_keeps_its_content_and_the_record_outlives_it(self, hypervisor: Hypervisor, tracker: ChangeTracking,
                                                                           path: str) -> None:
        await hypervisor.create(path, 4 * MIB)
        await self.write(hypervisor, path, 0, length=GRANULARITY)
        await tracker.track(path, "sb-1")
        await hypervisor.take_snapshot(path, "sb-1")
        await self.write(hypervisor, path, 100)
        async with hypervisor.open(path, tag="sb-1") as device:
            assert bytes(await device.read(0, GRANULARITY)) == data(GRANULARITY, 0)
            assert blocks(await tracker.changed(path, "sb-1")) == {0}, "asked while a snapshot is being read"
        await hypervisor.drop_snapshot(path, "sb-1")
        assert blocks(await tracker.changed(path, "sb-1")) == {0}

    async def test_tracking_twice_goes_on(self, hypervisor: Hypervisor, tracker: ChangeTracking, path: str) -> None:
        await hypervisor.create(path, MIB)
        await tracker.track(path, "sb-1")
        await self.write(hypervisor, path, 0)
        await tracker.track(path, "sb-1")
        assert blocks(await tracker.changed(path, "sb-1")) == {0}

    async def test_what_is_absent_is_forgotten_already(self, tracker: ChangeTracking, hypervisor: Hypervisor, path: str) -> None:
        for forget in (tracker.forget_changes, tracker.keep_changes):
            await forget(path, "sb-1")
        await hypervisor.create(path, MIB)
        for forget in (tracker.forget_changes, tracker.keep_changes):
            await forget(path, "sb-1")
        with pytest.raises(Untracked):
            await tracker.changed(path, "sb-1")
