"""Machines on real qemu, and disks that come to them and go: plugged, written down, completed after any death in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents import qemu
from agents.hypervisors.base import GRANULARITY, Untracked
from agents.hypervisors.kvm import KvmHypervisor
from agents.machine import SOCKET, Attached, Machine
from agents.machine_keeper import MachineKeeper
from agents.operations import OPERATIONS
from agents.qmp import conversation
from agents.toolbox import Toolbox
from schema.agent import AttachDisk, DetachDisk, DiskAttached
from schema.failure import WorkFailed, WorkRetryable
from schema.image import DiskRef, PrimarySpec
from tests.support.images import img
from tests.support.machines import ask, define, disk, disks, keeper, killed, pid, write

pytestmark = [pytest.mark.needs_qemu, pytest.mark.usefixtures("machine_program")]
ID = UUID("2c1f5f0e-7a52-4f0c-9d53-6c1b7a1d9e10")


@pytest.fixture
def primary(tmp_path: Path) -> PrimarySpec:
    (tmp_path / "primary").mkdir()
    return PrimarySpec(id=uuid4(), name="p", kind="folder", path=str(tmp_path / "primary"), zone_id=UUID(int=1), agent="a")


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[MachineKeeper]:
    async with keeper(tmp_path) as made:
        yield made


async def one(kept: MachineKeeper, **more: Any) -> Machine:
    """A machine that the keeper has seen to."""
    define(kept.definitions, ID, **more)
    await kept.look()
    return Machine(kept.root, ID)


async def do(order: type[AttachDisk] | type[DetachDisk], ref: DiskRef, state: Path, **more: Any) -> Any:
    about = {"job_id": uuid4(), "work_id": uuid4(), "agent": "a", "reply_key": "k", "disk": ref, "machine_id": ID}
    return await OPERATIONS[order](order(**about, **more), Toolbox(state=str(state)), {}, lambda *_: None)


def state_of(kept: MachineKeeper) -> list[str]:
    return [spec.state for spec in kept._told or ()]


async def test_a_disk_is_plugged_written_locked_and_unplugged(tmp_path: Path, kept: MachineKeeper, primary: PrimarySpec) -> None:
    machine, ref = await one(kept), disk(primary)
    path = f"{primary.path}/{ref.path}"
    assert state_of(kept) == ["Running"]
    for _ in range(2):  # twice is once
        assert await do(AttachDisk, ref, tmp_path, device_id=1) == DiskAttached(plugged=True)
    assert await disks(machine) == {f"sb-{ref.volume_id.hex}": path}
    [shown] = [each for each in await ask(machine, "query-block") if each.get("inserted")]
    assert shown["inserted"]["drv"] == "qcow2"
    assert await ask(machine, "qom-get", path=f"/machine/peripheral/sb-{ref.volume_id.hex}", property="serial") == ref.volume_id.hex[:20]
    await write(machine, ref.volume_id, 0x5A, 1 << 20, 65536)
    # While it is in use nobody else of this host's tools opens it: qemu's locks hold.
    for tried in (KvmHypervisor().take_snapshot(path, "sb-x"), KvmHypervisor().adopt(path, format=ref.format, grow_to=16 << 20)):
        with pytest.raises(WorkRetryable, match="in use by another process"):
            await tried
    with pytest.raises(WorkRetryable, match="in use"):
        async with KvmHypervisor().open(path, writable=True):
            pass
    for _ in range(2):
        await do(DetachDisk, ref, tmp_path)
    assert await disks(machine) == {} and machine.attached() == []
    img("check", "-q", "-f", "qcow2", path)
    async with KvmHypervisor().open(path) as device:
        assert bytes(await device.read(1 << 20, 65536)) == b"\x5a" * 65536
        assert bytes(await device.read(0, 65536)) == bytes(65536)


async def test_a_stopped_machine_has_it_when_it_starts_and_again_after_each_death(
        tmp_path: Path, kept: MachineKeeper, primary: PrimarySpec) -> None:
    machine, refs = await one(kept, run=False), [disk(primary) for _ in range(2)]
    assert state_of(kept) == ["Stopped"]
    for number, ref in enumerate(refs, 1):
        assert await do(AttachDisk, ref, tmp_path, device_id=number) == DiskAttached(plugged=False)
    await one(kept)
    wanted = {f"sb-{ref.volume_id.hex}": f"{primary.path}/{ref.path}" for ref in refs}
    assert state_of(kept) == ["Running"] and await disks(machine) == wanted
    before = pid(machine)
    await killed(machine)
    await kept.look()
    assert await disks(machine) == wanted and pid(machine) != before
    await do(DetachDisk, refs[0], tmp_path)
    await one(kept, run=False)
    assert state_of(kept) == ["Stopped"] and not await machine.running()
    await do(DetachDisk, refs[1], tmp_path)
    await one(kept)
    assert await disks(machine) == {}


@pytest.mark.parametrize("plugged", ["nothing", "the node", "all"])
@pytest.mark.parametrize("then", ["attach", "detach"])
async def test_what_a_dead_agent_began_is_completed_or_taken_back(
        tmp_path: Path, kept: MachineKeeper, primary: PrimarySpec, plugged: str, then: str) -> None:
    """It was written down, and qemu was told as much as `plugged` says, when the agent died."""
    machine, ref = await one(kept), disk(primary)
    begun = Attached(disk=ref, device_id=5)
    machine._write([begun])
    async with conversation(machine.folder, SOCKET) as qmp:
        if plugged != "nothing":
            await qmp.ask("blockdev-add", **begun.blockdev())
        if plugged == "all":
            await qmp.ask("device_add", **begun.scsi())
    if then == "attach":
        assert (await do(AttachDisk, ref, tmp_path, device_id=5)).plugged
        assert list(await disks(machine)) == [begun.device] and machine.attached() == [begun]
    else:
        await do(DetachDisk, ref, tmp_path)
        assert await disks(machine) == {} and machine.attached() == []
        assert not [each for each in await ask(machine, "query-named-block-nodes", flat=True) if each["node-name"][0] in "fd"]
        img("check", "-q", "-f", "qcow2", f"{primary.path}/{ref.path}")


async def test_what_a_machine_wrote_is_in_the_next_delta_or_the_next_backup_is_full(
        tmp_path: Path, kept: MachineKeeper, primary: PrimarySpec) -> None:
    """The record of changes goes with the disk into the machine and out of it; where the machine was killed it is not believed."""
    machine, ref, kvm = await one(kept), disk(primary), KvmHypervisor()
    path = f"{primary.path}/{ref.path}"
    await kvm.track(path, "sb-since")
    await do(AttachDisk, ref, tmp_path, device_id=1)
    await write(machine, ref.volume_id, 0x11, 3 << 20, 4096)
    await do(DetachDisk, ref, tmp_path)
    assert [(each.offset, each.length) for each in await kvm.changed(path, "sb-since")] == [(3 << 20, GRANULARITY)]
    await do(AttachDisk, ref, tmp_path, device_id=1)
    await one(kept, run=False)  # an orderly end writes it down too
    await one(kept)
    await write(machine, ref.volume_id, 0x22, 5 << 20, 4096)
    await do(DetachDisk, ref, tmp_path)
    assert [each.offset for each in await kvm.changed(path, "sb-since")] == [3 << 20, 5 << 20]
    await do(AttachDisk, ref, tmp_path, device_id=1)
    await write(machine, ref.volume_id, 0x33, 6 << 20, 4096)
    await killed(machine)
    await kept.look()
    await do(DetachDisk, ref, tmp_path)
    with pytest.raises(Untracked, match="was not closed"):
        await kvm.changed(path, "sb-since")


async def test_what_cannot_be_attached_leaves_nothing(tmp_path: Path, kept: MachineKeeper, primary: PrimarySpec) -> None:
    machine, ref, other = await one(kept), disk(primary), disk(primary)
    await do(AttachDisk, ref, tmp_path, device_id=1)
    with pytest.raises(WorkFailed, match="device 1 of the machine has another disk"):
        await do(AttachDisk, other, tmp_path, device_id=1)
    with pytest.raises(WorkFailed, match="not on its primary store"):
        await do(AttachDisk, other.model_copy(update={"path": "absent.qcow2"}), tmp_path, device_id=2)
    async with qemu.export(qemu.daemon(f"{primary.path}/{other.path}", "qcow2", writable=True, connections=1)):
        with pytest.raises(WorkRetryable, match="in use by another process"):
            await do(AttachDisk, other, tmp_path, device_id=2)
    (tmp_path / "primary/raw.qcow2").write_bytes(bytes(1 << 20))
    with pytest.raises(WorkFailed, match="qemu refuses blockdev-add"):  # it is not taken for a raw disk
        await do(AttachDisk, other.model_copy(update={"path": "raw.qcow2"}), tmp_path, device_id=2)
    assert [each.disk for each in machine.attached()] == [ref] and len(await disks(machine)) == 1
    with pytest.raises(WorkFailed, match="this host has no machine"):
        await Machine(kept.root, uuid4()).attach(Attached(disk=other, device_id=1))
    await Machine(kept.root, uuid4()).detach(other.volume_id)


async def test_machines_outlive_their_keeper_and_end_when_the_folder_says_so(tmp_path: Path, kept: MachineKeeper) -> None:
    machine = await one(kept)
    first, news = pid(machine), []
    again = MachineKeeper(kept.definitions, kept.root, lambda: news.append(1))
    assert await again.told() is None
    await again.look()
    assert pid(machine) == first and [spec.state for spec in await again.told() or ()] == ["Running"]
    await again.look()
    assert news == [1]  # nothing changed
    broken = kept.definitions / "broken.json"
    broken.write_text("{")
    define(kept.definitions, ID).unlink()
    await again.look()
    assert await machine.running(), "a file that cannot be read says nothing about the others"
    assert [spec.id for spec in await again.told() or ()] == [ID]
    broken.unlink()
    await again.look()
    assert not await machine.running() and await again.told() == []


async def test_a_machine_that_does_not_start_says_why(kept: MachineKeeper, primary: PrimarySpec) -> None:
    machine, ref = await one(kept, run=False), disk(primary)
    await machine.attach(Attached(disk=ref, device_id=1))
    Path(primary.path, ref.path).rename(Path(primary.path, "away"))
    await one(kept)
    [spec] = await kept.told() or ()
    assert spec.state == "Stopped" and "not on its primary store" in spec.trouble
    Path(primary.path, "away").rename(Path(primary.path, ref.path))
    kept._tried.clear()
    await kept.look()
    assert [(each.state, each.trouble) for each in await kept.told() or ()] == [("Running", "")]


async def test_two_processes_do_not_change_a_machine_at_once(kept: MachineKeeper, primary: PrimarySpec) -> None:
    machine, refs = await one(kept), [disk(primary) for _ in range(6)]
    done = await asyncio.gather(*(Machine(kept.root, ID).attach(Attached(disk=ref, device_id=number))
                                  for number, ref in enumerate(refs, 4)))
    assert all(done) and len(await disks(machine)) == 6
    async with machine.locked():
        await kept.look()  # it waits for nobody
        assert state_of(kept) == ["Running"]
    await asyncio.gather(*(Machine(kept.root, ID).detach(ref.volume_id) for ref in refs))
    assert await disks(machine) == {} and machine.attached() == []
