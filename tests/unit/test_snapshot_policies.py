"""Policies of snapshots through the real edge, runtime and event store in memory, with a clock that the test sets: one snapshot for
each due time whatever the clock and the schedulers do, retention, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.edge import Answer, Edge
from bus.envelope import Envelope
from bus.event_store_memory import MemoryEventStore
from handlers.snapshot_policy import TIMER
from schema.agent import TakeSnapshot
from schema.ids import derive
from schema.snapshot_policy import policy_of
from tests.support.cloud import Cloud
from tests.support.system import FakeSystem


class Planned:
    """A cloud with a store and a volume, whose clock the test sets."""

    def __init__(self, system: FakeSystem) -> None:
        self.system, self.edge, self.cloud = system, Edge(system), system.cloud
        assert isinstance(system.cloud.store, MemoryEventStore)
        self.log = system.cloud.store
        self.volume = ""

    @classmethod
    async def start(cls, now: str = "2026-05-04T10:20:30+00:00") -> Planned:
        made = cls(await FakeSystem.start())
        made.set(now)
        async with made.system.working():
            await made.ok("addImageStore", provider="s3", name="s", **{"details[0].key": "bucket", "details[0].value": "b"})
            made.volume = (await made.ok("createVolume", name="v", size=1))["id"]
            await made.cloud.settle()
        return made

    def set(self, moment: str | datetime) -> None:
        """What time it is."""
        wanted = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        self.log.ahead = wanted - datetime.now(UTC)

    async def ask(self, command: str, **parameters: object) -> Answer:
        return await self.edge.call({"command": command, **{name: str(value) for name, value in parameters.items()}})

    async def ok(self, command: str, **parameters: object) -> dict[str, Any]:
        answer = await self.ask(command, **parameters)
        assert answer.status == 200, answer
        body: dict[str, Any] = answer.body[f"{command.lower()}response"]
        return body

    async def policy(self, schedule: str = "30:02", intervaltype: str = "DAILY", timezone: str = "UTC", maxsnaps: int = 2,
                     **more: object) -> str:
        made = await self.ok("createSnapshotPolicy", volumeid=self.volume, schedule=schedule, intervaltype=intervaltype,
                             timezone=timezone, maxsnaps=maxsnaps, **more)
        await self.tick()
        return str(made["snapshotpolicy"]["id"])

    async def tick(self, *clouds: Cloud, again: int = 1) -> None:
        """Every timer that is due is delivered, by as many schedulers as are given, each `again` times."""
        for timer in await self.log.due_timers():
            if timer.type == TIMER:
                for cloud in clouds or (self.cloud,):
                    for _ in range(again):
                        await cloud.runtime.handle(Envelope(id=uuid4(), type=TIMER, kind="timer", body=timer.payload))

    async def walk(self, until: str, step: timedelta) -> None:
        """The clock goes on; agents do what is asked."""
        end, moment = datetime.fromisoformat(until), await self.log.now()
        while moment < end:
            moment += step
            self.set(moment)
            await self.tick()
            await self.cloud.settle()

    async def snapshots(self, **filters: object) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.ok("listSnapshots", **filters)).get("snapshot", [])
        return found

    async def ran(self) -> list[str]:
        """Due times that were seen to."""
        return [row.payload.decode().split('"due_at":"')[1][:16] for row in await self.cloud.rows("snapshot_policy.ran")]


async def test_each_due_time_has_its_snapshot_and_only_the_newest_stay() -> None:
    planned = await Planned.start()
    by_hand = (await planned.ok("createSnapshot", volumeid=planned.volume))["id"]
    await planned.cloud.settle()
    policy = await planned.policy(**{"tags[0].key": "made", "tags[0].value": "by night"})
    await planned.walk("2026-05-09T10:00:00+00:00", timedelta(minutes=50))
    assert await planned.ran() == [f"2026-05-0{day}T02:30" for day in range(5, 10)]
    shown = await planned.snapshots()
    assert [each["snapshottype"] for each in shown] == ["MANUAL", "DAILY", "DAILY"] and shown[0]["id"] == by_hand
    assert [each["name"][-18:] for each in shown[1:]] == ["202605080230-daily", "202605090230-daily"]
    assert {each["policyid"] for each in shown[1:]} == {policy}
    assert [(tag["key"], tag["value"]) for tag in shown[1]["tags"]] == [("made", "by night")]
    assert shown[1]["id"] == str(derive(derive(UUID(policy), "2026-05-08T02:30:00+00:00"), "snapshot"))
    (one,) = (await planned.ok("listSnapshotPolicies", volumeid=planned.volume))["snapshotpolicy"]
    assert one["nextsnapshot"].startswith("2026-05-10T02:30") and one["lastsnapshot"].startswith("2026-05-09T02:30")


async def test_two_schedulers_that_deliver_a_timer_often_make_one_snapshot() -> None:
    planned = await Planned.start()
    await planned.policy()
    other = await planned.cloud.another()
    for day in (5, 6, 7):
        planned.set(f"2026-05-0{day}T02:30:01+00:00")
        await planned.tick(planned.cloud, other, again=3)
        await planned.cloud.settle()
    assert await planned.ran() == [f"2026-05-0{day}T02:30" for day in (5, 6, 7)]
    assert len([order for order in await planned.cloud.orders() if isinstance(order, TakeSnapshot)]) == 3


async def test_a_handler_that_dies_between_the_job_and_the_next_time_makes_one_snapshot() -> None:
    planned = await Planned.start()
    policy = await planned.policy()
    planned.set("2026-05-05T02:30:01+00:00")
    append, broken = planned.log.append, []

    async def dies(request: Any) -> Any:
        if any(row.type == "snapshot_policy.ran" for row in request.rows) and not broken:
            broken.append(request)
            raise ConnectionError("the process is gone")
        return await append(request)

    planned.log.append = dies  # type: ignore[method-assign] # a process that dies here
    with pytest.raises(ConnectionError):
        await planned.tick()
    await planned.cloud.settle()
    await planned.ok("updateVolume", id=planned.volume, name="another")
    planned.set("2026-05-05T02:30:30+00:00")
    other = await planned.cloud.another()
    await planned.tick(other)
    await planned.cloud.settle()
    assert await planned.ran() == ["2026-05-05T02:30"]
    assert len([order for order in await planned.cloud.orders() if isinstance(order, TakeSnapshot)]) == 1
    assert await planned.cloud.ends(derive(UUID(policy), "2026-05-05T02:30:00+00:00")) == ["job.completed"]


async def test_what_was_missed_is_one_snapshot() -> None:
    planned = await Planned.start()
    await planned.policy()
    planned.set("2026-05-25T12:00:00+00:00")
    await planned.tick()
    await planned.cloud.settle()
    planned.set("2026-05-25T12:10:00+00:00")
    await planned.tick()
    await planned.cloud.settle()
    assert await planned.ran() == ["2026-05-05T02:30"]
    (row,) = await planned.cloud.rows("snapshot_policy.ran")
    assert b'"missed":20' in row.payload and b'"next_at":"2026-05-26T02:30' in row.payload
    assert len(await planned.snapshots()) == 1


async def test_a_clock_that_is_put_back_makes_no_second_snapshot() -> None:
    planned = await Planned.start()
    await planned.policy(schedule="15", intervaltype="HOURLY", maxsnaps=8)
    await planned.walk("2026-05-04T12:20:00+00:00", timedelta(minutes=10))
    assert await planned.ran() == ["2026-05-04T11:15", "2026-05-04T12:15"]
    planned.set("2026-05-04T11:00:00+00:00")
    await planned.walk("2026-05-04T13:20:00+00:00", timedelta(minutes=10))
    assert await planned.ran() == ["2026-05-04T11:15", "2026-05-04T12:15", "2026-05-04T13:15"]


async def test_a_clock_that_was_a_year_ahead_by_mistake_delays_nothing_for_long() -> None:
    planned = await Planned.start()
    await planned.policy()
    planned.set("2027-05-04T10:00:00+00:00")
    await planned.tick()
    await planned.cloud.settle()
    assert await planned.ran() == ["2026-05-05T02:30"]
    planned.set("2026-05-05T10:00:00+00:00")
    # The timer was set by the wrong clock, at most some hours ahead: the scheduler's start brings every timer of it at once.
    for timer in await planned.log.due_timers(all_now=True):
        if timer.type == TIMER:
            await planned.cloud.runtime.handle(Envelope(id=uuid4(), type=TIMER, kind="timer", body=timer.payload))
    await planned.walk("2026-05-07T10:00:00+00:00", timedelta(minutes=50))
    assert await planned.ran() == ["2026-05-05T02:30", "2026-05-06T02:30", "2026-05-07T02:30"]


@pytest.mark.parametrize(("start", "until", "wanted"), [
    ("2026-03-27T12:00:00+00:00", "2026-03-31T12:00:00+00:00", ["28T01:30", "29T01:00", "30T00:30", "31T00:30"]),
    ("2026-10-23T12:00:00+00:00", "2026-10-27T12:00:00+00:00", ["24T00:30", "25T00:30", "26T01:30", "27T01:30"])])
async def test_a_day_on_which_the_clock_is_changed_has_one_snapshot(start: str, until: str, wanted: list[str]) -> None:
    planned = await Planned.start(start)
    await planned.policy(schedule="30:02", timezone="Europe/Zurich")
    await planned.walk(until, timedelta(minutes=13))
    assert [each[8:] for each in await planned.ran()] == wanted


async def test_a_volume_that_is_busy_is_waited_for_and_policies_of_one_moment_take_turns() -> None:
    planned = await Planned.start()
    await planned.policy(schedule="0", intervaltype="HOURLY")
    await planned.policy(schedule="0:12", intervaltype="DAILY")
    await planned.walk("2026-05-04T13:30:00+00:00", timedelta(seconds=20))
    kinds = [each["snapshottype"] for each in await planned.snapshots()]
    assert sorted(kinds) == ["DAILY", "HOURLY", "HOURLY"]
    assert await planned.cloud.rows("job.failed") == []


async def test_one_that_fails_is_a_job_that_failed_and_the_next_one_comes() -> None:
    planned = await Planned.start()
    policy = await planned.policy()
    planned.set("2026-05-05T02:30:01+00:00")
    await planned.tick()
    (order,) = await planned.cloud.open_orders()
    await planned.cloud.fail(order)
    await planned.cloud.settle()
    assert await planned.cloud.ends(derive(UUID(policy), "2026-05-05T02:30:00+00:00")) == ["job.failed"]
    await planned.walk("2026-05-06T10:00:00+00:00", timedelta(hours=1))
    assert [each["state"] for each in await planned.snapshots(snapshottype="RECURRING")] == ["Error", "BackedUp"]


async def test_a_snapshot_that_cannot_even_begin_is_a_job_that_failed() -> None:
    planned = await Planned.start()
    policy = await planned.policy()
    (store,) = (await planned.ok("listImageStores"))["imagestore"]
    await planned.ok("updateImageStore", id=store["id"], readonly="true")
    await planned.walk("2026-05-05T10:00:00+00:00", timedelta(hours=1))
    job = derive(UUID(policy), "2026-05-05T02:30:00+00:00")
    assert await planned.cloud.ends(job) == ["job.failed"]
    assert "read-only" in (await planned.ok("queryAsyncJobResult", jobid=job))["jobresult"]["errortext"]
    await planned.ok("updateImageStore", id=store["id"], readonly="false")
    await planned.walk("2026-05-06T10:00:00+00:00", timedelta(hours=1))
    assert [each["state"] for each in await planned.snapshots()] == ["BackedUp"]


async def test_one_deleted_by_hand_no_longer_counts() -> None:
    planned = await Planned.start()
    await planned.policy()
    await planned.walk("2026-05-06T10:00:00+00:00", timedelta(hours=1))
    first, second = await planned.snapshots()
    await planned.ok("deleteSnapshot", id=second["id"])
    await planned.cloud.settle()
    await planned.walk("2026-05-07T10:00:00+00:00", timedelta(hours=1))
    assert [each["name"][-18:-10] for each in await planned.snapshots()] == ["20260505", "20260507"]
    assert first["id"] == (await planned.snapshots())[0]["id"]


async def test_a_second_policy_of_an_interval_is_the_first_one_changed() -> None:
    planned = await Planned.start()
    one = await planned.policy(maxsnaps=3)
    await planned.walk("2026-05-06T01:00:00+00:00", timedelta(hours=1))
    two = await planned.policy(schedule="0:04", timezone="GMT+2", maxsnaps=1)
    assert one == two == str(policy_of(UUID(planned.volume), "DAILY"))
    (shown,) = (await planned.ok("listSnapshotPolicies", id=one))["snapshotpolicy"]
    assert (shown["schedule"], shown["timezone"], shown["maxsnaps"], shown["intervaltype"]) == ("0:04", "GMT+2", 1, 1)
    await planned.walk("2026-05-06T10:00:00+00:00", timedelta(hours=1))
    assert await planned.ran() == ["2026-05-05T02:30", "2026-05-06T02:00"]
    assert len(await planned.snapshots()) == 1


async def test_a_policy_that_is_deleted_takes_no_more_and_its_snapshots_stay() -> None:
    planned = await Planned.start()
    policy = await planned.policy()
    await planned.walk("2026-05-05T10:00:00+00:00", timedelta(hours=1))
    assert (await planned.ok("deleteSnapshotPolicies", id=policy)) == {"success": True}
    await planned.walk("2026-05-07T10:00:00+00:00", timedelta(hours=1))
    assert len(await planned.snapshots()) == 1 and await planned.ok("listSnapshotPolicies") == {}
    again = await planned.ask("deleteSnapshotPolicies", ids=policy)
    assert again.status == 431 and policy in again.error
    assert [timer for timer in await planned.log.timers() if "snapshot_policy" in timer] == []
    await planned.policy()
    await planned.walk("2026-05-08T10:00:00+00:00", timedelta(hours=1))
    assert len(await planned.snapshots()) == 2


async def test_a_volume_that_is_deleted_takes_its_policies_along() -> None:
    planned = await Planned.start()
    await planned.policy()
    await planned.policy(schedule="5", intervaltype="HOURLY")
    async with planned.system.working():
        await planned.ok("deleteVolume", id=planned.volume)
    assert await planned.ok("listSnapshotPolicies", listall="true") == {}
    assert [timer for timer in await planned.log.timers() if "snapshot_policy" in timer] == []


async def test_shown_or_not() -> None:
    planned = await Planned.start()
    policy = await planned.policy()
    await planned.ok("updateSnapshotPolicy", id=policy, fordisplay="false")
    assert await planned.ok("listSnapshotPolicies", fordisplay="true") == {}
    assert (await planned.ok("listSnapshotPolicies", fordisplay="false"))["snapshotpolicy"][0]["fordisplay"] is False


GOOD = {"schedule": "30:02", "intervaltype": "DAILY", "timezone": "UTC", "maxsnaps": "2"}


@pytest.mark.parametrize(("wrong", "said"), [
    ({"schedule": "30"}, "schedule"), ({"intervaltype": "YEARLY"}, "intervaltype"), ({"timezone": "Mars/Olympus"}, "timezone"),
    ({"maxsnaps": "0"}, "maxsnaps"), ({"maxsnaps": "9"}, "maxsnaps"), ({"maxsnaps": "x"}, "maxsnaps"), ({"schedule": None}, "schedule"),
    ({"volumeid": str(uuid4())}, "volumeid"), ({"schedule": "30:02:01"}, "schedule"), ({"timezone": "a\x07"}, "timezone")])
async def test_what_is_wrong_is_named_and_changes_nothing(wrong: dict[str, str | None], said: str) -> None:
    planned = await Planned.start()
    head = await planned.log.head()
    given = {name: value for name, value in ({"volumeid": planned.volume} | GOOD | wrong).items() if value is not None}
    answer = await planned.ask("createSnapshotPolicy", **given)
    assert answer.status == 431 and said in answer.error
    assert await planned.log.head() == head


async def test_exactly_one_of_id_and_ids() -> None:
    planned = await Planned.start()
    policy = await planned.policy()
    for given in ({}, {"id": policy, "ids": policy}, {"ids": f"{policy},{uuid4()}"}):
        assert (await planned.ask("deleteSnapshotPolicies", **given)).status == 431
    assert (await planned.ok("listSnapshotPolicies"))["count"] == 1
