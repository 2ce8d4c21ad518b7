"""The contract of a hypervisor that resizes disks at rest: inherit beside HypervisorContract, same fixtures."""

from __future__ import annotations

import pytest

from agents.hypervisors.base import ChangeTracking, Hypervisor, Resizable, Untracked
from schema.failure import WorkFailed
from tests.contract.hypervisor import MIB, check_extents, data, whole


class ResizingContract:
    """What every hypervisor that resizes must do."""

    @pytest.fixture
    def resizer(self, hypervisor: Hypervisor) -> Resizable:
        assert isinstance(hypervisor, Resizable)
        return hypervisor

    async def test_what_is_added_is_zeros_and_what_was_there_stays(self, hypervisor: Hypervisor, resizer: Resizable, path: str) -> None:
        content = data(MIB + 512)
        await hypervisor.create(path, len(content))
        async with hypervisor.open(path, writable=True) as device:
            await device.write(0, content)
            await device.flush()
        for wanted, got in ((9 * MIB, 9 * MIB), (9 * MIB, 9 * MIB), (9 * MIB + 1, 9 * MIB + 512)):  # again is the same
            assert await resizer.resize(path, wanted, shrink=False) == got
            assert (await hypervisor.measure(path))[0] == got
        async with hypervisor.open(path) as device:
            check_extents(await device.extents(), 9 * MIB + 512)
            assert await whole(device) == content + bytes(8 * MIB)

    async def test_only_what_reads_as_zeros_is_cut_off(self, hypervisor: Hypervisor, resizer: Resizable, path: str) -> None:
        await hypervisor.create(path, 8 * MIB)
        async with hypervisor.open(path, writable=True) as device:
            await device.write(0, data(MIB))
            await device.write(5 * MIB, bytes(MIB))  # stored zeros are nothing
            await device.write(7 * MIB - 512, data(512))
            await device.flush()
        with pytest.raises(WorkFailed, match="may not become smaller"):
            await resizer.resize(path, 4 * MIB, shrink=False)
        with pytest.raises(WorkFailed, match="holds data in what would be cut off"):
            await resizer.resize(path, 4 * MIB, shrink=True)
        assert (await hypervisor.measure(path))[0] == 8 * MIB
        assert await resizer.resize(path, 7 * MIB, shrink=True) == 7 * MIB
        async with hypervisor.open(path, writable=True) as device:
            await device.zero(6 * MIB, MIB)
            await device.flush()
        assert await resizer.resize(path, 4 * MIB, shrink=True) == 4 * MIB
        assert await resizer.resize(path, 8 * MIB, shrink=False) == 8 * MIB
        async with hypervisor.open(path) as device:
            assert await whole(device) == data(MIB) + bytes(7 * MIB)

    async def test_no_record_of_changes_outlives_a_resize(self, hypervisor: Hypervisor, resizer: Resizable, path: str) -> None:
        assert isinstance(hypervisor, ChangeTracking)
        await hypervisor.create(path, 4 * MIB)
        await hypervisor.track(path, "sb-1")
        async with hypervisor.open(path, writable=True) as device:
            await device.write(MIB, data(512))
            await device.flush()
        await resizer.resize(path, 8 * MIB, shrink=False)
        with pytest.raises(Untracked):
            await hypervisor.changed(path, "sb-1")
        await hypervisor.track(path, "sb-2")
        async with hypervisor.open(path, writable=True) as device:
            await device.write(7 * MIB, data(512))
            await device.flush()
        assert [extent.offset for extent in await hypervisor.changed(path, "sb-2")] == [7 * MIB]

    async def test_a_disk_with_a_snapshot_inside_keeps_its_size(self, hypervisor: Hypervisor, resizer: Resizable, path: str) -> None:
        await hypervisor.create(path, 4 * MIB)
        await hypervisor.take_snapshot(path, "t")
        for size in (8 * MIB, 2 * MIB):
            with pytest.raises(WorkFailed, match="snapshot"):
                await resizer.resize(path, size, shrink=True)
        assert (await hypervisor.measure(path))[0] == 4 * MIB
        await hypervisor.drop_snapshot(path, "t")
        assert await resizer.resize(path, 8 * MIB, shrink=False) == 8 * MIB


__all__ = ["ResizingContract"]
