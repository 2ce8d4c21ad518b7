"""Reverting and archiving, decided through the real runtime on the memory store, with agents played by the test."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID, uuid4

import pytest

from schema.agent import CancelWork, RevertDisk, WriteSnapshot
from schema.failure import BadParameter, Refused
from schema.ids import derive
from schema.job import CancelJob
from schema.snapshot import ArchiveSnapshot, CreateSnapshot, DeleteSnapshot, RevertSnapshot
from schema.volume import DeleteVolume
from tests.support.cloud import Cloud
from tests.unit.test_flows import store_of, volume_of


async def some(count: int = 2) -> tuple[Cloud, UUID, list[UUID]]:
    """A cloud with a volume and its snapshots."""
    cloud = await Cloud.start()
    await store_of(cloud)
    volume, made = await volume_of(cloud), []
    for _ in range(count):
        job = await cloud.send(CreateSnapshot(volume_id=volume))
        await cloud.settle()
        made.append(derive(job, "snapshot"))
    return cloud, volume, made


async def of(cloud: Cloud, noun: str, thing: UUID) -> Any:
    return await (await cloud.another()).runtime._state(f"{noun}-{thing}")


async def test_a_revert_reads_the_whole_chain_and_the_next_backup_is_full() -> None:
    cloud, volume, made = await some(3)
    job = await cloud.send(RevertSnapshot(id=made[1]))
    (order,) = await cloud.open_orders()
    assert isinstance(order, RevertDisk)
    images = [(await of(cloud, "snapshot", each)).image for each in made[:2]]
    assert [*order.base, order.image] == images and order.motion == "direct"
    assert (await of(cloud, "volume", volume)).status == "RevertSnapshotting"
    assert await cloud.ends(await cloud.send(DeleteSnapshot(id=made[1]))) == ["job.failed"]
    with pytest.raises(BadParameter, match="RevertSnapshotting"):
        await cloud.runtime.precheck(DeleteVolume(id=volume), uuid4())
    await cloud.complete(order)
    assert await cloud.ends(job) == ["job.completed"]
    state = await of(cloud, "volume", volume)
    assert (state.status, state.head, state.reverted) == ("Ready", None, made[1])
    after = await cloud.send(CreateSnapshot(volume_id=volume))
    await cloud.settle()
    last = await of(cloud, "snapshot", derive(after, "snapshot"))
    assert last.parent is None and last.reason == f"the volume was reverted to the snapshot {made[1]} since the previous one"
    one_more = await cloud.send(CreateSnapshot(volume_id=volume))
    await cloud.settle()
    assert (await of(cloud, "snapshot", derive(one_more, "snapshot"))).parent == last.id
    assert await cloud.value(f"snapshot/{made[1]}/readers") == 0


@pytest.mark.parametrize("how", ["fail", "stop"])
async def test_a_revert_that_does_not_come_to_its_end_changes_nothing(how: str) -> None:
    cloud, volume, made = await some()
    before = await of(cloud, "volume", volume)
    job = await cloud.send(RevertSnapshot(id=made[0]))
    (order,) = await cloud.open_orders()
    if how == "stop":
        await cloud.send(CancelJob(job_id=job))
        assert any(isinstance(each, CancelWork) for each in await cloud.orders())
        await cloud.stop(order)
    else:
        await cloud.fail(order)
    assert await cloud.ends(job) == ["job.cancelled" if how == "stop" else "job.failed"]
    assert await of(cloud, "volume", volume) == before and await cloud.open_orders() == []
    assert await cloud.value(f"snapshot/{made[0]}/readers") == 0


async def test_a_cancel_that_comes_after_the_swap_is_too_late_and_says_the_truth() -> None:
    cloud, volume, made = await some()
    job = await cloud.send(RevertSnapshot(id=made[0]))
    (order,) = await cloud.open_orders()
    await cloud.send(CancelJob(job_id=job))
    await cloud.complete(order)
    assert await cloud.ends(job) == ["job.completed"]
    assert (await of(cloud, "volume", volume)).reverted == made[0] and await cloud.open_orders() == []


async def test_what_cannot_be_reverted_is_refused_at_once() -> None:
    cloud, volume, made = await some()
    await cloud.send(CreateSnapshot(volume_id=volume))
    for wrong, said in ((RevertSnapshot(id=made[0]), "Snapshotting"), (RevertSnapshot(id=uuid4()), "no snapshot")):
        with pytest.raises(Refused, match=said):
            await cloud.runtime.precheck(wrong, uuid4())
    await cloud.settle()
    await cloud.send(DeleteVolume(id=volume))
    await cloud.settle()
    with pytest.raises(Refused, match="volume is gone"):
        await cloud.runtime.precheck(RevertSnapshot(id=made[0]), uuid4())


@pytest.mark.parametrize("seed", range(15))
async def test_whatever_agents_do_a_revert_ends_once_and_the_volume_is_idle(seed: int) -> None:
    dice = random.Random(seed)
    cloud, volume, made = await some(3)
    jobs = [await cloud.send(RevertSnapshot(id=dice.choice(made))) for _ in range(2)]

    async def cancel(job: UUID) -> None:
        await cloud.send(CancelJob(job_id=job))

    await cloud.chaos(seed, jobs, cancel)
    assert [len(await cloud.ends(job)) for job in jobs] == [1, 1]
    assert (await of(cloud, "volume", volume)).status == "Ready"
    counters = {name: value for name, (value, _) in (await cloud.store.counters()).items() if "readers" in name}
    assert set(counters.values()) <= {0}
    assert await cloud.store.timers() == {}


async def test_one_whose_backup_was_stopped_before_it_began_is_archived() -> None:
    cloud, volume, _ = await some(1)
    job = await cloud.send(CreateSnapshot(volume_id=volume, async_backup=True))
    (take,) = await cloud.open_orders()
    await cloud.complete(take)
    await cloud.send(CancelJob(job_id=derive(job, "backup-job")))
    await cloud.settle()
    snapshot = derive(job, "snapshot")
    assert (await of(cloud, "snapshot", snapshot)).status == "CreatedOnPrimary"
    archived = await cloud.send(ArchiveSnapshot(id=snapshot))
    (write,) = await cloud.open_orders()
    assert isinstance(write, WriteSnapshot) and write.parent is not None
    await cloud.settle()
    assert await cloud.ends(archived) == ["job.completed"]
    state = await of(cloud, "snapshot", snapshot)
    assert (state.status, state.on_primary) == ("BackedUp", False)
    assert (await of(cloud, "volume", volume)).busy is None
    with pytest.raises(BadParameter, match="BackedUp"):
        await cloud.runtime.precheck(ArchiveSnapshot(id=snapshot), uuid4())
