"""Hidden links are merged into what needs them, decided through the real runtime: what is merged with what, when the old objects go,
and that readers, backups, scrubs, deletions and failures in between find what they need."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from handlers.decider import Limits
from handlers.snapshot import SnapshotState
from handlers.table import FLOWS
from schema.agent import (
    CreateDisk,
    MergeImages,
    RevertDisk,
    WriteSnapshot,
)
from schema.failure import Damage, Refused
from schema.ids import derive
from schema.image_store import UpdateImageStore
from schema.job import CancelJob
from schema.message import Order
from schema.scrub import LiftQuarantine, ScrubStore
from schema.snapshot import CollapseSnapshot, CreateSnapshot, DeleteSnapshot, RevertSnapshot
from schema.template import CreateTemplate
from schema.volume import CreateVolume
from tests.support.chains import Chains


async def hidden_first() -> tuple[Chains, list[UUID]]:
    """A chain of four, the second of them deleted, the merge not done yet."""
    chains = await Chains.start(merges=True)
    made = [await chains.snapshot() for _ in range(4)]
    await chains.cloud.send(DeleteSnapshot(id=made[1]))
    await chains.cloud.submissions()
    return chains, made


async def test_a_hidden_link_is_merged_into_the_one_that_needs_it() -> None:
    chains, made = await hidden_first()
    before = [await chains.state(each) for each in made]
    order: MergeImages = await chains.open(MergeImages)
    assert (order.links, order.parent) == ([before[1].image, before[2].image], before[0].image)
    assert (order.replaces, order.thing_id, order.agent) == ([_key(before[2])], made[2], "merger")
    await chains.cloud.settle()
    after = [await chains.state(each) for each in made]
    assert [state.status for state in after] == ["BackedUp", "Destroyed", "BackedUp", "BackedUp"]
    assert [(state.parent, state.depth) for state in after if state.status == "BackedUp"] == [(None, 0), (made[0], 1), (made[2], 2)]
    assert after[0].children == {made[2]} and after[2].children == {made[3]}
    assert _key(after[2]) == order.key and after[3].image == before[3].image, "what is built on it is not touched"
    assert await chains.deleted_keys() == [_key(before[2]), _key(before[1])]
    assert await chains.residents() == 3
    await chains.counted()


async def test_a_whole_run_is_merged_at_once_and_into_a_full_image() -> None:
    chains = await Chains.start(merges=True)
    made = [await chains.snapshot() for _ in range(4)]
    blocked = await chains.cloud.send(DeleteSnapshot(id=made[2]))
    await chains.cloud.submissions()
    first: MergeImages = await chains.open(MergeImages)
    for each in made[:2]:  # while the merge of the third into the fourth is on its way
        assert await chains.cloud.ends(await chains.cloud.send(DeleteSnapshot(id=each))) == ["job.completed"]
    await chains.cloud.submissions()
    assert await chains.open(MergeImages) == first, "one at a time"
    assert await chains.cloud.ends(blocked) == ["job.completed"]
    await chains.cloud.settle()
    merges = [order for order in await chains.cloud.orders() if isinstance(order, MergeImages)]
    assert [len(order.links) for order in merges] == [2, 3]
    last = await chains.state(made[3])
    assert (last.parent, last.depth, last.image and last.image.parent) == (None, 0, "")
    assert last.reason == "it is the first snapshot of its volume"
    assert merges[1].replaces == [merges[0].replaces[0], merges[0].key]
    assert await chains.statuses(*made) == ["Destroyed"] * 3 + ["BackedUp"]
    assert await chains.residents() == 1
    await chains.counted()
    assert (await chains.state(await chains.snapshot())).parent == made[3], "the chain goes on"


async def test_what_is_read_stays_until_its_reader_ends() -> None:
    """A restore that began on the old objects reads them to its end; one that begins later reads the new one."""
    chains, made = await hidden_first()
    old = [await chains.state(each) for each in made]
    early = await chains.cloud.send(CreateVolume(name="r", snapshot_id=made[3], zone_id=chains.cloud.zone_id))
    await chains.cloud.complete(await chains.open(MergeImages))
    await chains.cloud.submissions()
    assert await chains.deleted_keys() == []
    late = await chains.cloud.send(CreateVolume(name="s", snapshot_id=made[3], zone_id=chains.cloud.zone_id))
    restores = {order.job_id: order for order in await chains.cloud.open_orders() if isinstance(order, CreateDisk)}
    assert restores[early].base == [state.image for state in old[:3]]
    assert restores[late].base == [old[0].image, (await chains.state(made[2])).image]
    await chains.cloud.complete(restores[late])
    await chains.cloud.submissions()
    assert await chains.deleted_keys() == [], "the other one may still read them"
    await chains.cloud.complete(restores[early])
    await chains.cloud.settle()
    assert await chains.deleted_keys() == [_key(old[2]), _key(old[1])]
    await chains.cloud.send(CreateVolume(name="t", snapshot_id=made[3], zone_id=chains.cloud.zone_id))
    assert await chains.open(CreateDisk), "it may be read again"
    await chains.cloud.settle()
    await chains.counted()


@pytest.mark.parametrize("how", ["done", "failed"])
async def test_a_backup_that_is_built_on_the_old_object_finds_it(how: str) -> None:
    chains = await Chains.start(merges=True)
    one, two = await chains.snapshot(), await chains.snapshot()
    old = await chains.state(two)
    await chains.cloud.send(CreateSnapshot(volume_id=chains.volume))
    await chains.cloud.complete(await chains.open(Order))
    write: WriteSnapshot = await chains.open(WriteSnapshot)
    assert write.parent == old.image
    await chains.cloud.send(DeleteSnapshot(id=one))
    await chains.cloud.submissions()
    await chains.cloud.complete(await chains.open(MergeImages))
    await chains.cloud.submissions()
    assert await chains.deleted_keys() == []
    await (chains.cloud.complete(write) if how == "done" else chains.cloud.fail(write))
    await chains.cloud.settle()
    assert len(await chains.deleted_keys()) == 2
    assert await chains.residents() == (2 if how == "done" else 1)
    await chains.counted()


@pytest.mark.parametrize("also", [[2], [2, 3], [3]])
async def test_what_is_deleted_while_it_is_merged_goes_afterwards(also: list[int]) -> None:
    chains, made = await hidden_first()
    merge = await chains.open(MergeImages)
    for each in also:
        assert await chains.cloud.ends(await chains.cloud.send(DeleteSnapshot(id=made[each]))) == ["job.completed"] * (each == 2)
    with pytest.raises(Refused):
        await chains.cloud.runtime.precheck(DeleteSnapshot(id=made[1]), uuid4())
    await chains.cloud.settle()
    assert merge.key in await chains.deleted_keys() or 2 not in also
    left = [each for each in (0, 2, 3) if each not in also]
    assert [await chains.state(made[each]) for each in left if (await chains.state(made[each])).status != "BackedUp"] == []
    assert await chains.residents() == len(left)
    await chains.counted()
    for each in left:
        await chains.delete(made[each])
    assert await chains.residents() == 0
    await chains.counted()


async def test_a_merge_that_fails_changes_nothing_and_damage_keeps_others_off() -> None:
    chains, made = await hidden_first()
    before = [await chains.state(each) for each in made]
    key = _key(before[2])
    await chains.cloud.fail(await chains.open(MergeImages), damage=Damage(object=key, what="part", found="x"))
    await chains.cloud.settle()
    assert await chains.deleted_keys() == []
    assert [(await chains.state(each)).image for each in made] == [state.image for state in before]
    assert (await chains.state(made[2])).damage is not None
    assert await chains.residents() == 4
    await chains.counted()
    await chains.cloud.send(LiftQuarantine(kind="snapshot", thing_id=made[2], object_key=key))
    await chains.cloud.settle()
    assert await chains.residents() == 3, "it was repaired: now it is merged"
    await chains.counted()


@pytest.mark.parametrize("late", [False, True])
async def test_a_merge_can_be_stopped_until_the_reference_moves(late: bool) -> None:
    chains, made = await hidden_first()
    before = [await chains.state(each) for each in made]
    merge: MergeImages = await chains.open(MergeImages)
    await chains.cloud.send(CancelJob(job_id=merge.job_id))
    await (chains.cloud.complete(merge) if late else chains.cloud.stop(merge))
    await chains.cloud.settle()
    assert await chains.cloud.ends(merge.job_id) == ["job.completed" if late else "job.cancelled"]
    assert await chains.residents() == (3 if late else 4)
    if not late:
        assert [(await chains.state(each)).image for each in made] == [state.image for state in before]
        assert await chains.deleted_keys() == []
    await chains.counted()


async def test_a_volume_that_is_reverted_counts_as_a_reader() -> None:
    chains, made = await hidden_first()
    await chains.cloud.send(RevertSnapshot(id=made[3]))
    revert: RevertDisk = await chains.open(RevertDisk)
    await chains.cloud.complete(await chains.open(MergeImages))
    await chains.cloud.submissions()
    assert await chains.deleted_keys() == []
    await chains.cloud.complete(revert)
    await chains.cloud.settle()
    assert len(await chains.deleted_keys()) == 2
    await chains.counted()


async def test_a_template_is_made_of_the_chain_that_its_order_names() -> None:
    chains, made = await hidden_first()
    old = [await chains.state(each) for each in made]
    job = await chains.cloud.send(CreateTemplate(name="t", snapshot_id=made[3]))
    orders = {order.thing_id: order for order in await chains.cloud.open_orders() if isinstance(order, MergeImages)}
    flatten, collapse = orders[derive(job, "template")], orders[made[2]]
    assert (flatten.links, flatten.parent, flatten.replaces) == ([state.image for state in old], None, [])
    assert (flatten.source, flatten.kind, flatten.key.split("/")[1]) == (None, "template", "template")
    await chains.cloud.complete(collapse)
    await chains.cloud.submissions()
    assert await chains.deleted_keys() == [], "the template is still made of them"
    await chains.cloud.complete(flatten)
    await chains.cloud.settle()
    assert await chains.deleted_keys() == [_key(old[2]), _key(old[1])]
    assert await chains.cloud.ends(job) == ["job.completed"]
    again = await chains.cloud.send(CreateTemplate(name="u", snapshot_id=made[3]))
    assert len((await chains.open(MergeImages)).links) == 3
    await chains.cloud.settle()
    assert await chains.cloud.ends(again) == ["job.completed"]


@pytest.mark.parametrize(("percent", "merged"), [(0, True), (50, True), (51, False), (100, False)])
async def test_it_is_merged_when_it_may_give_back_enough(percent: int, merged: bool) -> None:
    chains = await Chains.start(merges=True)
    chains.cloud.runtime.limits = Limits(collapse_percent=percent)
    made = [await chains.snapshot() for _ in range(3)]
    await chains.delete(made[0])  # each object has as many bytes: at best one of two is given back
    assert await chains.residents() == (2 if merged else 3)
    assert await chains.statuses(made[0]) == ["Destroyed" if merged else "Hidden"]
    for each in made[1:]:
        await chains.delete(each)
    assert await chains.residents() == 0


async def test_a_store_that_is_full_or_read_only_takes_no_merged_object() -> None:
    chains = await Chains.start(merges=True)
    made = [await chains.snapshot() for _ in range(3)]
    await chains.cloud.send(UpdateImageStore(id=chains.store, capacity_bytes=4000))
    await chains.delete(made[0])
    assert await chains.statuses(made[0]) == ["Hidden"]
    await chains.cloud.send(UpdateImageStore(id=chains.store, capacity_bytes=0, read_only=True))
    await chains.cloud.send(CollapseSnapshot(id=made[0]))
    await chains.cloud.settle()
    assert await chains.statuses(made[0]) == ["Hidden"]
    await chains.cloud.send(UpdateImageStore(id=chains.store, read_only=False))
    await chains.delete(made[2])
    assert await chains.statuses(*made) == ["Destroyed", "BackedUp", "Destroyed"], "the next deletion looks again"
    await chains.counted()


async def test_the_survey_knows_every_object_that_is_there() -> None:
    chains, made = await hidden_first()
    reader = await chains.cloud.send(CreateVolume(name="r", snapshot_id=made[3], zone_id=chains.cloud.zone_id))
    old = {_key(await chains.state(each)) for each in made}
    order: MergeImages = await chains.open(MergeImages)
    runtime = chains.cloud.runtime
    scrub = FLOWS[ScrubStore]
    await runtime._look_around(scrub)
    assert not runtime.survey.stray(order.key), "it is being written"
    await chains.cloud.complete(order)
    await runtime._look_around(scrub)
    assert not any(runtime.survey.stray(key) for key in (*old, order.key)), "the old ones rest until nobody reads them"
    there = {copy.target.key for copy in runtime.survey.resting(chains.store)}
    assert there == {_key(await chains.state(made[each])) for each in (0, 2, 3)}
    await chains.cloud.complete(await chains.open(CreateDisk))
    await chains.cloud.settle()
    assert await chains.cloud.ends(reader) == ["job.completed"]
    await runtime._look_around(scrub)
    assert set(runtime.survey.copies) == there


def _key(state: SnapshotState) -> str:
    assert state.image is not None
    return state.image.key
