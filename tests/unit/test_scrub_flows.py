"""Scrubs and quarantines, decided through the real runtime on the memory store, with agents played by the test: what is read,
what follows from what is found, what is refused then, how it ends, and when it is done by itself."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from bus.envelope import Envelope
from bus.event_store import LogRow
from handlers.projector import fold
from handlers.scrub import KNOWN, TIMER, share_of
from handlers.survey import MOST, Copy, Survey
from handlers.table import FLOWS
from schema.agent import CreateDisk, DeleteImages, ScrubObjects, WorkCompleted, WriteSnapshot
from schema.failure import BadParameter, Damage, Refused
from schema.ids import derive
from schema.image_store import AddImageStore, DeleteImageStore
from schema.job import CancelJob
from schema.message import Command, Order
from schema.scrub import MARK_BYTES, LiftQuarantine, QuarantineCopy, ScheduleScrub, ScrubStore, ScrubTarget, mark, owner_of
from schema.snapshot import CreateSnapshot, DeleteSnapshot
from schema.template import DeleteTemplate, RegisterTemplate
from schema.volume import CreateVolume
from tests.support.cloud import Cloud


class Scene:
    """A cloud with a store and a volume."""

    def __init__(self, cloud: Cloud, store: UUID, volume: UUID) -> None:
        self.cloud, self.store, self.volume = cloud, store, volume

    @classmethod
    async def start(cls) -> Scene:
        cloud = await Cloud.start()
        store = await cloud.send(AddImageStore(name="s", provider="S3", details={"bucket": "b"}))
        await cloud.settle()
        volume = await cloud.send(CreateVolume(name="v", size=1))
        await cloud.settle()
        return cls(cloud, derive(store, "image_store"), derive(volume, "volume"))

    async def done(self, command: Command) -> UUID:
        job = await self.cloud.send(command)
        await self.cloud.settle()
        return job

    async def snapshot(self) -> UUID:
        job = await self.done(CreateSnapshot(volume_id=self.volume))
        assert await self.cloud.ends(job) == ["job.completed"]
        return derive(job, "snapshot")

    async def state(self, thing: UUID, noun: str = "snapshot") -> Any:
        return await (await self.cloud.another()).runtime._state(f"{noun}-{thing}")

    async def key(self, thing: UUID, noun: str = "snapshot") -> str:
        return str((await self.state(thing, noun)).image.key)

    async def open(self, kind: type[Order]) -> Any:
        (order,) = [order for order in await self.cloud.open_orders() if isinstance(order, kind)]
        return order

    async def scrub(self, *damaged: Damage, share: str = "100%", **more: Any) -> tuple[UUID, ScrubObjects]:
        """A scrub whose agent finds this; and all that follows."""
        job = await self.cloud.send(ScrubStore(id=self.store, share=share))
        order: ScrubObjects = await self.open(ScrubObjects)
        await self.found(order, *damaged, **more)
        await self.cloud.settle()
        return job, order

    async def found(self, order: ScrubObjects, *damaged: Damage, **more: Any) -> None:
        result = {"objects": len(order.objects), "bytes": 7, "damaged": [each.model_dump() for each in damaged]} | more
        await self.cloud.handle(WorkCompleted(job_id=order.job_id, work_id=order.work_id, attempt=1, agent=order.agent,
                                              result=result), kind="report")

    async def result(self, job: UUID) -> dict[str, Any]:
        rows = (await self.cloud.store.read_log(0, limit=100_000)).rows
        found: dict[str, Any] = next(columns["result"] for table, key, columns in fold(rows)
                                     if (table, key) == ("job", str(job)) and columns)
        return found

    async def row(self, table: str, thing: UUID) -> dict[str, Any]:
        rows = (await self.cloud.store.read_log(0, limit=100_000)).rows
        return next(columns for name, key, columns in fold(rows) if name == table and key.startswith(str(thing)) and columns)

    async def restore(self, snapshot: UUID) -> None:
        """Raises what refuses it at the door."""
        await self.cloud.runtime.precheck(CreateVolume(name="r", snapshot_id=snapshot, zone_id=self.cloud.zone_id), uuid4())

    async def fire(self, *, later: timedelta = timedelta()) -> None:
        """The timer of the schedule is delivered, this long after it was set."""
        timer = (await self.cloud.store.timers())[f"scrub-{self.store}/due"]
        read = self.cloud.store.read_stream

        async def aged(stream: str, **more: Any) -> list[LogRow]:
            return [row._replace(recorded_at=row.recorded_at - later) for row in await read(stream, **more)]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.cloud.store, "read_stream", aged)
            await self.cloud.runtime.handle(Envelope(id=uuid4(), type=timer.type, kind="timer", body=timer.payload))


def bad(key: str, part: int = 2) -> Damage:
    return Damage(object=key, what="part", part=part, parts=3, bad=1, offset=(part - 1) * 100, length=100, expected="aa", found="bb")


async def test_a_damaged_object_is_quarantined_named_and_refused_until_it_is_repaired() -> None:
    scene = await Scene.start()
    one, two = await scene.snapshot(), await scene.snapshot()
    key = await scene.key(one)
    job, order = await scene.scrub(bad(key))
    assert {target.key for target in order.objects} == {key, await scene.key(two)}
    assert (await scene.result(job))["damaged"] == [bad(key).model_dump()]
    assert (await scene.state(one)).damage == bad(key) and (await scene.state(one)).status == "BackedUp"
    assert (await scene.row("snapshot_store_ref", one))["state"] == "Quarantined"
    assert "bytes 100 to 199" in (await scene.row("snapshot", one))["error"]
    for snapshot in (one, two):  # the second is a delta of the first
        with pytest.raises(Refused, match=f"store s is quarantined: part 2 of 3 .bytes 100 to 199. of the object {key}.*scrub"):
            await scene.restore(snapshot)
    assert not [order for order in await scene.cloud.orders() if isinstance(order, DeleteImages)], "nothing is deleted by itself"
    three = await scene.snapshot()
    assert (await scene.state(three)).parent is None and "quarantined" in (await scene.state(three)).reason
    await scene.scrub(share="1%")  # a repaired one is looked at first, however small the share
    assert (await scene.state(one)).damage is None
    assert (await scene.row("snapshot_store_ref", one))["state"] == "Ready"
    assert (await scene.row("snapshot", one))["error"] is None
    await scene.restore(two)
    four = await scene.snapshot()
    assert (await scene.state(four)).parent == three


async def test_no_delta_is_built_on_a_chain_with_a_quarantined_link_far_below() -> None:
    scene = await Scene.start()
    made = [await scene.snapshot() for _ in range(4)]
    await scene.scrub(bad(await scene.key(made[1])))
    assert (await scene.state(await scene.snapshot())).parent is None
    with pytest.raises(Refused, match="quarantined"):
        await scene.restore(made[3])
    await scene.restore(made[0])


async def test_what_a_reader_finds_damaged_is_quarantined_too() -> None:
    scene = await Scene.start()
    one, two = await scene.snapshot(), await scene.snapshot()
    job = await scene.cloud.send(CreateVolume(name="r", snapshot_id=two, zone_id=scene.cloud.zone_id))
    key = await scene.key(one)
    await scene.cloud.fail(await scene.open(CreateDisk), damage=bad(key, 3))
    await scene.cloud.settle()
    assert await scene.cloud.ends(job) == ["job.failed"]
    assert (await scene.state(one)).damage == bad(key, 3)
    assert (await scene.state(two)).damage is None


async def test_a_template_is_quarantined_and_lifted() -> None:
    scene = await Scene.start()
    job = await scene.done(RegisterTemplate(name="t", url="http://x/y.qcow2", format="qcow2"))
    template = derive(job, "template")
    key = await scene.key(template, "template")
    await scene.scrub(bad(key))
    assert (await scene.row("template_store_ref", template))["state"] == "Quarantined"
    with pytest.raises(Refused, match="quarantined"):
        await scene.cloud.runtime.precheck(CreateVolume(name="r", template_id=template), uuid4())
    await scene.scrub()
    await scene.cloud.runtime.precheck(CreateVolume(name="r", template_id=template), uuid4())
    await scene.scrub(bad(key))
    await scene.done(DeleteTemplate(id=template))  # a quarantined one can be deleted by who wants it
    assert (await scene.state(template, "template")).status == "Deleted"


async def test_what_was_deleted_meanwhile_is_nobodys_damage() -> None:
    scene = await Scene.start()
    one = await scene.snapshot()
    key = await scene.key(one)
    job = await scene.cloud.send(ScrubStore(id=scene.store, share="100%"))
    order = await scene.open(ScrubObjects)
    await scene.cloud.send(DeleteSnapshot(id=one))
    await scene.cloud.complete(await scene.open(DeleteImages))
    await scene.found(order, Damage(object=key, what="missing"), unknown=[{"key": "inst/x", "size": 1}], unknown_count=1)
    await scene.cloud.settle()
    result = await scene.result(job)
    assert (result["missing"], result["damaged"]) == ([], [])
    assert result["unknown"] == [{"key": "inst/x", "size": 1}] and result["unknown_count"] == 1
    late = await scene.done(QuarantineCopy(kind="snapshot", thing_id=one, damage=bad(key)))  # came after the deletion
    assert await scene.cloud.ends(late) == ["job.completed"] and (await scene.state(one)).damage is None


async def test_an_object_that_is_being_written_is_no_stranger() -> None:
    scene = await Scene.start()
    await scene.cloud.send(CreateSnapshot(volume_id=scene.volume))
    for order in await scene.cloud.open_orders():
        await scene.cloud.complete(order)
    writing: WriteSnapshot = await scene.open(WriteSnapshot)
    job = await scene.cloud.send(ScrubStore(id=scene.store, share="100%"))
    order = await scene.open(ScrubObjects)
    strays = [{"key": writing.key, "size": 1}, {"key": f"inst/snapshot/{uuid4()}/w.1.qcow2", "size": 2}]
    await scene.found(order, unknown=strays, unknown_count=2)
    assert (await scene.result(job))["unknown"] == strays[1:]


async def test_a_hidden_link_is_scrubbed_and_stays_hidden() -> None:
    scene = await Scene.start()
    one, two = await scene.snapshot(), await scene.snapshot()
    key = await scene.key(one)
    await scene.done(DeleteSnapshot(id=one))
    _, order = await scene.scrub(bad(key))
    assert key in {target.key for target in order.objects}
    with pytest.raises(Refused, match="quarantined"):
        await scene.restore(two)
    await scene.scrub()
    assert (await scene.row("snapshot_store_ref", one))["state"] == "Hidden"
    await scene.restore(two)


async def test_the_longest_unverified_go_first_and_all_are_looked_at_in_turn() -> None:
    scene = await Scene.start()
    keys = [await scene.key(await scene.snapshot()) for _ in range(5)]
    seen = [[target.key for target in (await scene.scrub(share="40%"))[1].objects] for _ in range(3)]
    assert seen == [keys[:2], keys[2:4], [keys[4], *keys[:1]]]
    unread = await scene.scrub(share="20%", objects=0, unread=[{"key": keys[1], "cause": "EIO"}])
    assert [target.key for target in unread[1].objects] == [keys[1]]
    assert [target.key for target in (await scene.scrub(share="20%"))[1].objects] == [keys[1]], "what was not read is still due"


async def test_one_scrub_of_a_store_at_a_time_and_it_can_be_cancelled() -> None:
    scene = await Scene.start()
    await scene.snapshot()
    first = await scene.cloud.send(ScrubStore(id=scene.store))
    second = await scene.cloud.send(ScrubStore(id=scene.store))
    assert await scene.cloud.ends(second) == ["job.failed"]
    await scene.cloud.send(CancelJob(job_id=first))
    await scene.cloud.stop(await scene.open(ScrubObjects))
    assert await scene.cloud.ends(first) == ["job.cancelled"]
    third, _ = await scene.scrub()
    assert await scene.cloud.ends(third) == ["job.completed"]


async def test_an_unknown_store_and_a_bad_share_are_refused_by_name() -> None:
    scene = await Scene.start()
    for command, field in ((ScrubStore(id=uuid4()), "id"), (ScrubStore(id=scene.store, share="5 apples"), "share")):
        with pytest.raises(BadParameter) as refused:
            await scene.cloud.runtime.precheck(command, uuid4())
        assert refused.value.failure.field == field


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (" 12.5 % ", 0.125), ("1", 1.0), ("100%", 1.0), (".5", 0.5)])
def test_a_share(text: str, share: float) -> None:
    assert share_of(text) == share


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "-5%", "nan", "inf", "5e-2", "five", "5%%", "1,5%", "2", "9" * 400])
def test_no_share(text: str) -> None:
    with pytest.raises(BadParameter, match=r"5% or 0\.05"):
        share_of(text)


def test_a_percentage_without_its_sign_is_understood_and_refused() -> None:
    with pytest.raises(BadParameter, match="did you mean 5%"):
        share_of("5")


async def test_a_large_store_is_looked_over_in_slices_and_an_order_stays_small() -> None:
    scene = await Scene.start()
    await scene.cloud.runtime._look_around(None)
    keys = [f"inst/snapshot/{uuid4()}/{uuid4()}.1.qcow2" for _ in range(25_000)]
    many = {key: Copy(("snapshot", uuid4()), scene.store, ScrubTarget(key=key, size=1 << 40, root="ab" * 32), 0) for key in keys}
    scene.cloud.runtime.survey.copies = many
    seen: set[bytes] = set()
    for _ in range(3):
        _, order = await scene.scrub(share="100%")
        assert len(order.objects) == MOST and order.slices == 3 and len(order.model_dump_json()) < 256 << 10
        marks = base64.b64decode(order.known)
        assert len(marks) <= 2 * KNOWN * MARK_BYTES
        seen |= {marks[at:at + MARK_BYTES] for at in range(0, len(marks), MARK_BYTES)}
    assert seen == {mark(key) for key in keys}


def test_the_owner_of_a_key() -> None:
    thing = uuid4()
    assert owner_of(f"inst/snapshot/{thing}/w.1.qcow2") == ("snapshot", thing)
    for key in ("", "inst/probe/x", f"inst/machine/{thing}/w", "inst/snapshot/../w.1.qcow2", f"a/inst/snapshot/{thing}/w"):
        assert owner_of(key) is None


async def test_commands_from_elsewhere_that_name_no_copy_are_refused_or_harmless() -> None:
    scene = await Scene.start()
    one = await scene.snapshot()
    odd = await scene.done(QuarantineCopy(kind="volume", thing_id=one, damage=bad("x")))
    assert await scene.cloud.ends(odd) == ["job.failed"]
    other = await scene.done(QuarantineCopy(kind="snapshot", thing_id=one, damage=bad("another key")))
    sound = await scene.done(LiftQuarantine(kind="snapshot", thing_id=one, object_key=await scene.key(one)))
    assert [await scene.cloud.ends(job) for job in (other, sound)] == [["job.completed"]] * 2
    assert (await scene.state(one)).damage is None


# --- by itself --------------------------------------------------------------------------------------------------------


async def scrubs(scene: Scene) -> int:
    return len(await scene.cloud.rows("scrub.started"))


async def test_a_due_time_gives_one_scrub_however_often_it_is_told_and_however_late() -> None:
    scene = await Scene.start()
    await scene.done(ScheduleScrub(id=scene.store, every_s=86400, share="10%"))
    timer = (await scene.cloud.store.timers())[f"scrub-{scene.store}/due"]
    assert timer.type == TIMER
    again = Envelope(id=uuid4(), type=timer.type, kind="timer", body=timer.payload)
    await scene.fire()  # too early: a transport that does not outlive the process delivers all at its start
    await scene.cloud.settle()
    assert await scrubs(scene) == 0
    await scene.fire(later=timedelta(days=7))
    await scene.cloud.runtime.handle(again)
    await (await scene.cloud.another()).runtime.handle(again)
    await scene.cloud.settle()
    assert await scrubs(scene) == 1, "a week away is one scrub"
    assert (await scene.cloud.runtime.scrub_schedule(scene.store)) == (86400, "10%")
    await scene.fire(later=timedelta(days=1))
    await scene.cloud.settle()
    assert await scrubs(scene) == 2


async def test_a_schedule_ends_with_the_setting_and_with_the_store() -> None:
    scene = await Scene.start()
    name = f"scrub-{scene.store}/due"
    await scene.done(ScheduleScrub(id=scene.store, every_s=3600))
    await scene.done(ScheduleScrub(id=scene.store, every_s=0))
    assert name not in await scene.cloud.store.timers()
    await scene.done(ScheduleScrub(id=scene.store, every_s=3600))
    await scene.done(DeleteImageStore(id=scene.store))
    await scene.fire(later=timedelta(days=1))
    await scene.cloud.settle()
    assert name not in await scene.cloud.store.timers() and await scrubs(scene) == 0
    with pytest.raises(Refused, match="too often"):
        await scene.cloud.runtime.precheck(ScheduleScrub(id=scene.store, every_s=5), uuid4())


async def test_the_survey_is_the_same_after_a_restart() -> None:
    scene = await Scene.start()
    one = await scene.snapshot()
    await scene.scrub(bad(await scene.key(one)))
    await scene.cloud.runtime._look_around(None)
    fresh = await scene.cloud.another()
    for cloud in (scene.cloud, fresh):
        await cloud.runtime._look_around(FLOWS[ScrubStore])
    assert fresh.runtime.survey == scene.cloud.runtime.survey != Survey()
