"""Deleting a snapshot that is not at rest, decided through the real runtime on the memory store, with agents played by the test:
its job is stopped, each of the two jobs ends once, and nothing is left on the disk, in the store or in a counter."""

from __future__ import annotations

import random
from uuid import UUID

import pytest

from schema.agent import CancelWork, DeleteImages, DropSnapshot, TakeSnapshot, WriteSnapshot
from schema.failure import BadParameter
from schema.ids import derive
from schema.job import CancelJob
from schema.snapshot import CreateSnapshot, DeleteSnapshot
from schema.volume import DeleteVolume
from tests.support.cloud import Cloud
from tests.unit.test_flows import store_of, volume_of


class Taken:
    """A cloud with a volume, and a job that takes a snapshot of it."""

    def __init__(self, cloud: Cloud, store: UUID, volume: UUID, job: UUID) -> None:
        self.cloud, self.store, self.volume, self.job, self.snapshot = cloud, store, volume, job, derive(job, "snapshot")

    @classmethod
    async def start(cls, *, done: int, **more: object) -> Taken:
        """After `done` orders of it were carried out."""
        cloud = await Cloud.start()
        store, volume = await store_of(cloud), await volume_of(cloud)
        job = await cloud.send(CreateSnapshot(volume_id=volume, **more))  # type: ignore[arg-type] # the test's own keywords
        for _ in range(done):
            if not await cloud.open_orders():
                await cloud.submissions()
            (order,) = await cloud.open_orders()
            await cloud.complete(order)
        return cls(cloud, store, volume, job)

    async def timers(self) -> None:
        """Those that are due now."""
        for timer in await self.cloud.store.due_timers():
            await self.cloud.fire(UUID(timer.payload.decode()[11:-2]))

    async def gone(self, deletion: UUID) -> None:
        """Both jobs ended once, the volume can be worked on, nothing is held."""
        for _ in range(5):
            await self.timers()
            await self.cloud.settle()
        assert len(await self.cloud.ends(self.job)) == 1
        assert await self.cloud.ends(deletion) == ["job.completed"]
        state = await (await self.cloud.another()).runtime._state(f"snapshot-{self.snapshot}")
        assert (state.status, state.on_primary) == ("Destroyed", False)
        assert await self.cloud.value(f"image_store/{self.store}/residents") == 0
        last = await self.cloud.send(DeleteVolume(id=self.volume))
        await self.cloud.settle()
        assert await self.cloud.ends(last) == ["job.completed"]
        assert {value for value, _ in (await self.cloud.store.counters()).values()} == {0}
        assert await self.cloud.store.timers() == {}


@pytest.mark.parametrize("done", [0, 1])
async def test_one_that_is_taken_or_backed_up_is_stopped_and_deleted(done: int) -> None:
    taken = await Taken.start(done=done)
    deletion = await taken.cloud.send(DeleteSnapshot(id=taken.snapshot))
    assert await taken.cloud.ends(deletion) == []
    await taken.cloud.submissions()
    (order,) = await taken.cloud.open_orders()
    assert any(isinstance(each, CancelWork) and each.work_id == order.work_id for each in await taken.cloud.orders())
    await taken.cloud.stop(order)
    assert not [each for each in await taken.cloud.open_orders() if isinstance(each, WriteSnapshot)]
    await taken.gone(deletion)
    assert (await taken.cloud.ends(taken.job)) == ["job.cancelled"]


async def test_a_backup_that_is_done_before_the_stop_is_seen_is_taken_back_and_deleted() -> None:
    taken = await Taken.start(done=1)
    deletion = await taken.cloud.send(DeleteSnapshot(id=taken.snapshot))
    await taken.cloud.submissions()
    (order,) = await taken.cloud.open_orders()
    await taken.cloud.complete(order)
    await taken.gone(deletion)
    written = [each.key for each in await taken.cloud.orders() if isinstance(each, WriteSnapshot)]
    assert written == [key for each in await taken.cloud.orders() if isinstance(each, DeleteImages) for key in each.keys]


async def test_one_that_only_leaves_its_disk_is_deleted_after_that() -> None:
    taken = await Taken.start(done=2)
    deletion = await taken.cloud.send(DeleteSnapshot(id=taken.snapshot))
    await taken.gone(deletion)
    assert await taken.cloud.ends(taken.job) == ["job.completed"]


async def test_one_that_only_lies_in_its_disk_is_dropped_from_there() -> None:
    """Its backup was cancelled before anybody began it: CloudStack's snapshots stay like this for ever."""
    taken = await Taken.start(done=1, async_backup=True)
    await taken.cloud.send(CancelJob(job_id=derive(taken.job, "backup-job")))
    await taken.cloud.settle()
    assert await taken.cloud.ends(derive(taken.job, "backup-job")) == ["job.cancelled"]
    deletion = await taken.cloud.send(DeleteSnapshot(id=taken.snapshot))
    (order,) = await taken.cloud.open_orders()
    assert isinstance(order, DropSnapshot) and order.keep is None
    await taken.gone(deletion)


async def test_a_backup_that_comes_after_the_deletion_is_refused() -> None:
    taken = await Taken.start(done=1, async_backup=True)
    deletion = await taken.cloud.send(DeleteSnapshot(id=taken.snapshot))
    await taken.gone(deletion)
    assert await taken.cloud.ends(derive(taken.job, "backup-job")) == ["job.failed"]


async def test_a_backup_of_its_own_job_is_stopped() -> None:
    taken = await Taken.start(done=1, async_backup=True)
    await taken.cloud.submissions()
    deletion = await taken.cloud.send(DeleteSnapshot(id=taken.snapshot))
    await taken.gone(deletion)
    assert await taken.cloud.ends(derive(taken.job, "backup-job")) == ["job.cancelled"]


async def test_one_that_failed_is_deleted() -> None:
    taken = await Taken.start(done=1)
    (order,) = await taken.cloud.open_orders()
    await taken.cloud.fail(order)
    await taken.cloud.settle()
    assert await taken.cloud.ends(taken.job) == ["job.failed"]
    await taken.gone(await taken.cloud.send(DeleteSnapshot(id=taken.snapshot)))


async def test_a_second_deletion_is_refused_and_the_first_goes_on() -> None:
    taken = await Taken.start(done=1)
    deletion = await taken.cloud.send(DeleteSnapshot(id=taken.snapshot))
    with pytest.raises(BadParameter, match="already being deleted"):
        await taken.cloud.runtime.precheck(DeleteSnapshot(id=taken.snapshot), derive(deletion, "other"))
    await taken.gone(deletion)


async def test_a_deletion_that_waits_is_gone_on_with_by_another_process() -> None:
    """The handler dies between the end of the backup and the start of the deletion: the timer brings it to the next one."""
    taken = await Taken.start(done=0)
    deletion = await taken.cloud.send(DeleteSnapshot(id=taken.snapshot))
    await taken.cloud.submissions()
    (order,) = await taken.cloud.open_orders()
    await taken.cloud.stop(order)
    again = Taken(await taken.cloud.another(), taken.store, taken.volume, taken.job)
    await again.gone(deletion)


async def test_a_backup_that_is_cancelled_leaves_nothing() -> None:
    taken = await Taken.start(done=1)
    await taken.cloud.send(CancelJob(job_id=taken.job))
    (order,) = await taken.cloud.open_orders()
    await taken.cloud.stop(order)
    await taken.cloud.settle()
    assert await taken.cloud.ends(taken.job) == ["job.cancelled"]
    drops = [each for each in await taken.cloud.orders() if isinstance(each, DropSnapshot)]
    takes = [each for each in await taken.cloud.orders() if isinstance(each, TakeSnapshot)]
    assert [each.tag for each in drops] == [each.tag for each in takes]
    await taken.gone(await taken.cloud.send(DeleteSnapshot(id=taken.snapshot)))


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_agents_do_a_deletion_comes_to_its_end(seed: int) -> None:
    dice = random.Random(seed)
    taken = await Taken.start(done=dice.randrange(3), async_backup=bool(seed % 2))
    deletion = await taken.cloud.send(DeleteSnapshot(id=taken.snapshot))

    async def nothing(job: UUID) -> None:
        """Nobody cancels."""

    for _ in range(5):
        await taken.cloud.chaos(seed, [taken.job], nothing)
    await taken.gone(deletion)
