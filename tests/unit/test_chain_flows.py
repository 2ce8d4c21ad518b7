"""Chains of snapshots, decided through the real runtime on the memory store, with agents played by the test: what is linked,
what is hidden, what is deleted, in which order, and that of two that race neither harms the other."""

from __future__ import annotations

import random
from uuid import UUID, uuid4

import pytest

from api.cli_chain import drawing
from handlers.snapshot import SnapshotState
from schema.agent import (
    CreateDisk,
    DeleteImages,
    DropSnapshot,
    WorkCompleted,
    WriteSnapshot,
)
from schema.failure import Refused
from schema.ids import derive
from schema.image_store import AddImageStore, UpdateImageStore
from schema.job import CancelJob
from schema.message import Order
from schema.snapshot import CreateSnapshot, DeleteSnapshot
from schema.volume import CreateVolume
from tests.support.chains import Chains
from tests.support.cloud import result_of


async def test_each_backup_is_a_delta_of_the_one_before_and_keeps_its_record() -> None:
    chains = await Chains.start()
    one, two, three = [await chains.snapshot() for _ in range(3)]
    states = [await chains.state(each) for each in (one, two, three)]
    assert [state.parent for state in states] == [None, one, two]
    assert [state.depth for state in states] == [0, 1, 2]
    assert states[0].reason == "it is the first snapshot of its volume"
    writes = [order for order in await chains.cloud.orders() if isinstance(order, WriteSnapshot)]
    assert [order.parent_tag for order in writes] == ["", states[0].tag, states[1].tag]
    assert [order.parent for order in writes] == [None, states[0].image, states[1].image]
    drops = [order for order in await chains.cloud.orders() if isinstance(order, DropSnapshot)]
    assert [order.keep for order in drops] == [state.tag for state in states]


async def test_the_chain_has_a_most_and_beyond_it_a_backup_is_full() -> None:
    chains = await Chains.start(most=3)
    made = [await chains.snapshot() for _ in range(7)]
    states = [await chains.state(each) for each in made]
    assert [state.depth for state in states] == [0, 1, 2, 0, 1, 2, 0]
    assert "STOREBUS_SNAPSHOT_CHAIN" in states[3].reason
    off = await Chains.start(most=1)
    assert {(await off.state(await off.snapshot())).parent for _ in range(3)} == {None}


async def test_a_volume_is_made_from_the_whole_chain_base_first() -> None:
    chains = await Chains.start()
    made = [await chains.snapshot() for _ in range(4)]
    assert await chains.delete(made[1]) == "job.completed"
    await chains.cloud.send(CreateVolume(name="r", snapshot_id=made[3], zone_id=chains.cloud.zone_id))
    order: CreateDisk = await chains.open(CreateDisk)
    states = [await chains.state(each) for each in made]
    assert [*order.base, order.image] == [state.image for state in states]


async def test_what_is_read_is_not_deleted_nor_what_it_is_built_on() -> None:
    chains = await Chains.start()
    one, two = await chains.snapshot(), await chains.snapshot()
    await chains.cloud.send(CreateVolume(name="r", snapshot_id=two, zone_id=chains.cloud.zone_id))
    refused = await chains.cloud.send(DeleteSnapshot(id=two))
    assert await chains.cloud.ends(refused) == ["job.failed"]
    hidden = await chains.cloud.send(DeleteSnapshot(id=one))
    assert await chains.cloud.ends(hidden) == ["job.completed"]
    assert await chains.deleted_keys() == []
    assert await chains.statuses(one, two) == ["Hidden", "BackedUp"]


async def test_a_snapshot_that_another_needs_is_hidden_and_goes_with_it() -> None:
    chains = await Chains.start()
    made = [await chains.snapshot() for _ in range(4)]
    keys = [(await chains.state(each)).image.key for each in made]  # type: ignore[union-attr] # all are backed up
    for each in made[:3]:
        assert await chains.delete(each) == "job.completed"
    assert await chains.deleted_keys() == []
    assert await chains.statuses(*made) == ["Hidden", "Hidden", "Hidden", "BackedUp"]
    assert await chains.residents() == 4
    with pytest.raises(Refused):  # for its users it is gone
        await chains.cloud.runtime.precheck(DeleteSnapshot(id=made[0]), uuid4())
    assert await chains.delete(made[3]) == "job.completed"
    assert await chains.deleted_keys() == list(reversed(keys)), "deltas go before what they are built on"
    assert await chains.statuses(*made) == ["Destroyed"] * 4
    assert await chains.residents() == 0


async def test_only_what_nobody_needs_goes() -> None:
    chains = await Chains.start()
    one, two, three = [await chains.snapshot() for _ in range(3)]
    assert await chains.delete(two) == "job.completed"
    assert await chains.delete(three) == "job.completed"
    assert await chains.statuses(one, two, three) == ["BackedUp", "Destroyed", "Destroyed"]
    assert (await chains.state(one)).children == frozenset()
    four = await chains.state(await chains.snapshot())
    assert (four.parent, four.reason) == (None, "the previous snapshot was deleted")


async def test_a_parent_deleted_while_its_child_is_written_stays_for_it() -> None:
    chains = await Chains.start()
    one = await chains.snapshot()
    job = await chains.cloud.send(CreateSnapshot(volume_id=chains.volume))
    await chains.cloud.complete(await chains.open(Order))  # taken; the delta is on its way
    write: WriteSnapshot = await chains.open(WriteSnapshot)
    assert write.parent is not None
    gone = await chains.cloud.send(DeleteSnapshot(id=one))
    assert await chains.cloud.ends(gone) == ["job.completed"]
    assert await chains.statuses(one) == ["Hidden"]
    await chains.cloud.settle()
    assert await chains.cloud.ends(job) == ["job.completed"]
    assert await chains.deleted_keys() == []
    assert await chains.delete(derive(job, "snapshot")) == "job.completed"
    assert await chains.residents() == 0


@pytest.mark.parametrize("how", ["full after all", "failed", "cancelled"])
async def test_a_hidden_parent_goes_when_its_child_does_not_need_it_after_all(how: str) -> None:
    chains = await Chains.start()
    one = await chains.snapshot()
    job = await chains.cloud.send(CreateSnapshot(volume_id=chains.volume))
    await chains.cloud.complete(await chains.open(Order))
    await chains.cloud.send(DeleteSnapshot(id=one))
    write: WriteSnapshot = await chains.open(WriteSnapshot)
    if how == "failed":
        await chains.cloud.fail(write)
    elif how == "cancelled":
        await chains.cloud.send(CancelJob(job_id=job))
        await chains.cloud.stop(write)
    else:
        answer = result_of(write)
        answer["image"]["parent"], answer["reason"] = "", "the dirty bitmap was not closed"
        await chains.cloud.handle(WorkCompleted(job_id=write.job_id, work_id=write.work_id, attempt=write.attempt,
                                                agent=write.agent, result=answer), kind="report")
    await chains.cloud.settle()
    assert await chains.statuses(one) == ["Destroyed"]
    two = await chains.state(derive(job, "snapshot"))
    if how == "full after all":
        assert (two.status, two.parent, two.depth, two.reason) == ("BackedUp", None, 0, "the dirty bitmap was not closed")
    else:
        assert (two.status, two.parent) == ("Error", None)
        drop = [order for order in await chains.cloud.orders() if isinstance(order, DropSnapshot)][-1]
        assert drop.keep is None, "the disk still records since the snapshot before"
    assert await chains.residents() == (1 if how == "full after all" else 0)


async def test_a_failed_backup_does_not_break_the_chain() -> None:
    chains = await Chains.start()
    one = await chains.snapshot()
    await chains.cloud.send(CreateSnapshot(volume_id=chains.volume))
    await chains.cloud.complete(await chains.open(Order))
    await chains.cloud.fail(await chains.open(WriteSnapshot))
    await chains.cloud.settle()
    assert (await chains.state(await chains.snapshot())).parent == one


async def test_the_store_of_the_chain_is_preferred() -> None:
    chains = await Chains.start()
    one = await chains.snapshot()
    for n in range(8):  # some of them come before the first in the order of choice
        await chains.cloud.send(AddImageStore(name=f"s{n}", provider="S3", details={"bucket": f"b{n}"}))
        await chains.cloud.settle()
    assert (await chains.state(await chains.snapshot())).parent == one
    await chains.cloud.send(UpdateImageStore(id=chains.store, read_only=True))
    other = await chains.state(await chains.snapshot())
    assert (other.parent, other.reason) == (None, "the previous snapshot rests in another image store")


async def test_two_handlers_that_know_different_things_decide_as_one() -> None:
    """One deletes a snapshot while the other, whose memory is older, makes a delta of it."""
    chains = await Chains.start()
    one = await chains.snapshot()
    other = await chains.cloud.another()
    await other.runtime._load([f"snapshot-{one}", f"volume-{chains.volume}"])
    job = await chains.cloud.send(DeleteSnapshot(id=one))
    late = await other.send(CreateSnapshot(volume_id=chains.volume))
    for _ in range(2):
        for order in await chains.cloud.open_orders():
            if not isinstance(order, DeleteImages):
                await other.complete(order)
    await chains.cloud.settle()
    assert await chains.cloud.ends(job) == await chains.cloud.ends(late) == ["job.completed"]
    two = await chains.state(derive(late, "snapshot"))
    assert (two.status, two.parent) == ("BackedUp", None)
    assert await chains.statuses(one) == ["Destroyed"]


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_nothing_needed_is_deleted_and_nothing_else_remains(seed: int, merges: bool) -> None:
    """Seeded agents that fail, answer twice and late, find the record of changes lost, among deletes, restores and cancels."""
    chains = await Chains.start(most=4, merges=merges)
    dice = random.Random(seed)
    cloud = chains.cloud
    jobs: list[UUID] = []
    made: list[UUID] = []

    async def cancel(job: UUID) -> None:
        await cloud.send(CancelJob(job_id=job))

    plainly = cloud.complete

    async def complete(order: Order) -> None:
        """A delta that was asked for and could not be."""
        if isinstance(order, WriteSnapshot) and order.parent is not None and order.work_id.int % 4 == 0:
            order = order.model_copy(update={"parent": None})
        await plainly(order)

    cloud.complete = complete  # type: ignore[method-assign] # the played agent
    for _ in range(6):
        taken = await cloud.send(CreateSnapshot(volume_id=chains.volume, async_backup=dice.random() < 0.3))
        jobs.append(taken)
        made.append(derive(taken, "snapshot"))
        jobs += [await cloud.send(CreateVolume(name="r", snapshot_id=each, zone_id=cloud.zone_id))
                 for each in made if dice.random() < 0.2]
        jobs += [await cloud.send(DeleteSnapshot(id=each)) for each in made if dice.random() < 0.25]
        await cloud.chaos(seed, jobs, cancel)
        await needed_is_there(chains, made)
        await chains.counted()
    for each in dice.sample(made, len(made)):
        await chains.delete(each)
        await needed_is_there(chains, made)
    assert set(await chains.statuses(*[each for each in made if await chains.state(each) is not None])) <= {"Destroyed"}
    assert await chains.residents() == 0
    assert await cloud.store.timers() == {}


async def needed_is_there(chains: Chains, made: list[UUID]) -> None:
    """Each snapshot that is there has its whole chain; each that is hidden is needed; the store's count is theirs."""
    states = {each: state for each in made if (state := await chains.state(each)) is not None}
    gone = set(await chains.deleted_keys())
    needed: set[UUID] = set()
    for state in states.values():
        if state.status != "BackedUp":
            continue
        link: SnapshotState | None = state
        while link is not None:
            assert link.image is not None and link.image.key not in gone and link.status in ("BackedUp", "Hidden")
            needed.add(link.id)
            assert bool(link.image.parent) == (link.parent is not None)
            below = states[link.parent] if link.parent else None
            if below is not None:
                assert below.image is not None
                assert link.image.parent in (below.image.key, *below.image.replaces), "it is found by the names in the store"
                assert link.depth == below.depth + 1
            link = below
    hidden = {state.id for state in states.values() if state.status == "Hidden"}
    assert hidden <= needed
    assert await chains.residents() == len(needed)


def test_a_hidden_link_is_drawn_as_one() -> None:
    link = {"name": "s", "bytes": 1 << 20, "state": "BackedUp", "copy": "Ready", "reason": ""}
    drawn = drawing([
        link | {"id": "a", "kind": "full", "parent": None, "state": "Destroyed", "copy": "Hidden", "reason": "it is the first"},
        link | {"id": "b", "kind": "delta", "parent": "a"}, link | {"id": "c", "kind": "delta", "parent": "b"}], "b")
    assert "Destroyed, hidden" in drawn[0] and drawn[0].endswith("because it is the first")
    assert drawn[1].startswith("└── b") and drawn[1].endswith("<-")
    assert drawn[2].startswith("    └── c")
