"""Subscriptions miss nothing, in order, and repeat only what came after their last checkpoint."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from bus.client import Bus
from bus.detect import Detector
from bus.errors import CallTimedOut, Conflict, LogBroken, StoreAway
from bus.event_store import AppendRequest, Checkpoint, EventStore, LogFilter, NewRow, Page
from bus.subscription import SAVE_EVERY, Reading, Subscription, parse_start
from schema.codec import encode
from schema.failure import BadParameter
from schema.job import JobStarted
from schema.snapshot import SnapshotDeleted, SnapshotTaken
from schema.zone import ZoneCreated


def row(message: Any, stream: str, *, kind: str = "event", tenant: str = "root", correlation: UUID | None = None,
        type: str = "") -> NewRow:  # noqa: A002 - the wire's word
    return NewRow(stream=stream, kind=kind, type=type or message.TYPE, type_version=message.VERSION, id=uuid4(),
                  payload=encode(message), key=stream, tenant=tenant, correlation=correlation or uuid4())


async def append(store: EventStore, *rows: NewRow, expected: int = -1) -> int:
    return (await store.append(AppendRequest(expected={rows[0].stream: expected}, rows=rows))).last_position


async def taken(store: EventStore, count: int, **more: Any) -> None:
    for _ in range(count):
        thing = uuid4()
        await append(store, row(SnapshotTaken(snapshot_id=thing, virtual_size=1), f"snapshot-{thing}", **more))


async def read(store: EventStore, count: int, **wanted: Any) -> list[Any]:
    return [event async for event in Bus(store=store).subscribe(limit=count, **wanted)]


async def test_beginning_now_position_and_time(store: EventStore) -> None:
    await taken(store, 5)
    await asyncio.sleep(0.02)
    middle = datetime.now(UTC)
    await asyncio.sleep(0.02)
    await taken(store, 5)
    assert [event.position for event in await read(store, 10, from_="beginning")] == list(range(1, 11))
    assert [event.position for event in await read(store, 2, from_=4)] == [4, 5]
    if abs((await store.position_at(middle)) - 5) == 0:
        assert (await read(store, 1, from_=middle))[0].position == 6
    assert (await read(store, 1, from_=middle - timedelta(days=1)))[0].position == 1
    async with Bus(store=store).subscribe(from_="now", limit=1) as live:
        await taken(store, 1)
        assert [event.position async for event in live] == [11]


async def test_catches_up_and_goes_on_live_while_writers_append(store: EventStore) -> None:
    await taken(store, 30)

    async def write() -> None:
        for _ in range(10):
            await taken(store, 3)
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(read(store, 90, pattern="snapshot.#"))
        group.create_task(write())
        group.create_task(write())
    assert [event.position for event in reader.result()] == list(range(1, 91))


async def test_filters_by_pattern_tenant_and_kind(store: EventStore) -> None:
    await taken(store, 2, tenant="a")
    await taken(store, 2, tenant="b")
    zone = uuid4()
    await append(store, row(ZoneCreated(zone_id=zone, name="z"), f"zone-{zone}"))
    await taken(store, 1, kind="order")
    assert [event.tenant for event in await read(store, 2, pattern="snapshot.*", tenants=["b"])] == ["b", "b"]
    [event] = await read(store, 1, pattern="zone.#")
    assert event.message == ZoneCreated(zone_id=zone, name="z")
    assert event.data.items() >= {"zone_id": str(zone), "name": "z"}.items()
    assert event.as_dict()["type"] == "zone.created"
    assert [event.kind for event in await read(store, 1, kinds=["order"])] == ["order"]


async def test_unknown_types_are_passed_on_without_a_message(store: EventStore) -> None:
    thing = uuid4()
    await append(store, row(SnapshotDeleted(snapshot_id=thing), f"snapshot-{thing}", type="snapshot.teleported"))
    await taken(store, 1)
    first, second = await read(store, 2)
    assert (first.type, first.message, first.data) == ("snapshot.teleported", None, {"snapshot_id": str(thing)})
    assert isinstance(second.message, SnapshotTaken)


async def test_a_group_goes_on_where_it_stopped(store: EventStore) -> None:
    await taken(store, 10)
    assert [event.position for event in await read(store, 4, group="g")] == [1, 2, 3, 4]
    assert [event.position for event in await read(store, 6, group="g", from_="now")] == [5, 6, 7, 8, 9, 10]
    assert [event.position for event in await read(store, 3, group="other")] == [1, 2, 3]
    known = await store.load_checkpoint("sub/g")
    assert known is not None
    assert known.position == 10


async def test_an_event_is_taken_when_the_next_is_asked_for(store: EventStore) -> None:
    await taken(store, 5)
    bus = Bus(store=store)
    seen = []
    async for event in bus.subscribe(group="g"):
        seen.append(event.position)
        if event.position == 3:
            break
    await bus.aclose()
    assert seen == [1, 2, 3]
    assert [event.position for event in await read(store, 1, group="g")] == [3]


async def test_leaving_and_closing_gives_the_group_back(store: EventStore) -> None:
    await taken(store, 3)
    bus = Bus(store=store)

    async def forever() -> None:
        async for _ in bus.subscribe(group="g"):
            pass

    task = asyncio.create_task(forever())
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await bus.aclose()
    known = await store.load_checkpoint("sub/g")
    assert known is not None
    assert known.position == 3
    assert await store.acquire_lease("sub/g", "somebody else", ttl_s=1) is not None


async def test_two_readers_of_a_group_do_not_run_at_once(store: EventStore) -> None:
    await taken(store, 2)
    async with Bus(store=store).subscribe(group="g"):
        second = Subscription(store, Reading(group="g", patience_s=0.3))
        with pytest.raises(Conflict, match="another reader"):
            await second.begin()
    assert len(await read(store, 2, group="g")) == 2


async def test_a_reader_whose_lease_is_lost_stops_and_does_not_move_the_checkpoint(store: EventStore) -> None:
    await taken(store, 4)
    first = Subscription(store, Reading(group="g", lease_s=0.4))
    events = first.events()
    assert (await anext(events)).position == 1
    assert first._renewer is not None
    first._renewer.cancel()  # as if the process were stopped for longer than its lease
    await asyncio.sleep(0.6)
    assert [event.position for event in await read(store, 4, group="g")] == [1, 2, 3, 4]
    with pytest.raises(Conflict):
        for _ in range(3):
            await anext(events)
            first._saved_at = 0.0
    known = await store.load_checkpoint("sub/g")
    assert known is not None
    assert known.position == 4


async def test_repeats_only_after_the_last_checkpoint(store: EventStore) -> None:
    """Readers that die without a goodbye: nothing is missed, order holds, at most SAVE_EVERY events repeat."""
    total, chance = 450, random.Random(3)
    for _ in range(total // 50):
        rows = []
        for _ in range(50):
            thing = uuid4()
            rows.append(row(SnapshotTaken(snapshot_id=thing, virtual_size=1), f"snapshot-{thing}"))
        await store.append(AppendRequest(expected={each.stream: -1 for each in rows}, rows=rows))
    at, lives = 0, 0
    while at < total:
        lives += 1
        subscription = Subscription(store, Reading(group="g", lease_s=0.2))
        events = subscription.events()
        first = (await anext(events)).position
        assert first <= at + 1, "an event was missed"
        assert at + 1 - first <= SAVE_EVERY, "more repeated than the checkpoint allows"
        here = first
        for _ in range(chance.randrange(1, 170)):
            if here == total:
                break
            event = await anext(events)
            assert event.position == here + 1
            here = event.position
        at = max(at, here)
        # Killed: no save, no release.
        assert subscription._renewer is not None
        subscription._renewer.cancel()
        subscription._lease = None
        await events.aclose()
    assert lives > 3


class Away:
    """A store in front of another one, whose reads fail for a while; or that has another epoch."""

    def __init__(self, store: EventStore) -> None:
        self.store, self.failing, self.other_epoch = store, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def epoch(self) -> int:
        return await self.store.epoch() + self.other_epoch

    async def read_log(self, after: int, *, filter: LogFilter | None = None, limit: int = 1000) -> Page:  # noqa: A002
        if self.failing:
            self.failing -= 1
            raise StoreAway("Postgres does not answer")
        return await self.store.read_log(after, filter=filter, limit=limit)


async def test_a_database_that_is_away_is_waited_for(store: EventStore) -> None:
    await taken(store, 3)
    away = Away(store)
    events = Subscription(away, Reading(limit=3)).events()  # type: ignore[arg-type] # it hands all else on
    assert (await anext(events)).position == 1
    away.failing = 3
    await taken(store, 1)
    assert [event.position async for event in events] == [2, 3]
    away.failing = 10_000
    with pytest.raises(StoreAway):
        await anext(Subscription(away, Reading(patience_s=0.3)).events())  # type: ignore[arg-type] # as above


async def test_another_log_is_noticed(store: EventStore) -> None:
    await taken(store, 5)
    await read(store, 5, group="g")
    epoch = await store.epoch()
    away = Away(store)
    away.other_epoch = 1
    with pytest.raises(LogBroken, match="restored"):
        await Subscription(away, Reading(group="g")).begin()  # type: ignore[arg-type] # as above
    await store.save_checkpoint("sub/ahead", Checkpoint(position=99, epoch=epoch))
    with pytest.raises(LogBroken, match="ends at 5"):
        await read(store, 1, group="ahead")
    await store.save_checkpoint("sub/other", Checkpoint(position=3, epoch=epoch, event_id=uuid4()))
    with pytest.raises(LogBroken, match="another event"):
        await read(store, 1, group="other")
    live = Subscription(away, Reading(start="now")).events()  # type: ignore[arg-type] # as above
    waiting = asyncio.create_task(anext(live))  # type: ignore[arg-type] # an awaitable
    await asyncio.sleep(0.1)
    away.other_epoch = 2
    with pytest.raises(LogBroken, match="epoch"):
        await asyncio.wait_for(waiting, 60)


async def test_a_rare_type_moves_the_checkpoint_all_the_same(store: EventStore) -> None:
    await taken(store, 20)
    subscription = Subscription(store, Reading(patterns=("zone.#",), group="g"))
    waiting = asyncio.create_task(anext(subscription.events()))  # type: ignore[arg-type] # an awaitable
    for _ in range(200):
        await asyncio.sleep(0.1)
        known = await store.load_checkpoint("sub/g")
        if known is not None and known.position == 20:
            break
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await subscription.aclose()
    known = await store.load_checkpoint("sub/g")
    assert known is not None
    assert known.position == 20
    assert known.event_id is not None


@pytest.mark.parametrize("bad", ["yesterday", "-3", "now!", "0001-01-01", "9" * 5000])
async def test_a_start_that_is_none_is_refused(bad: str) -> None:
    with pytest.raises(BadParameter, match="from"):
        parse_start(bad)
    assert parse_start("7") == 7
    assert parse_start("2026-01-31T12:00:00Z") == datetime(2026, 1, 31, 12, tzinfo=UTC)


async def test_detect_finds_what_happened_before_and_after_arming(store: EventStore) -> None:
    bus, job, thing = Bus(store=store), uuid4(), uuid4()
    await taken(store, 3)
    await append(store, replace(row(JobStarted(job_id=job, steps=[]), f"job-{job}"), correlation=job))
    await append(store, row(SnapshotTaken(snapshot_id=thing, virtual_size=1), f"snapshot-{thing}", correlation=job))
    found = await bus.detect("snapshot.taken", job, 1.0)
    assert found is not None
    assert found.data["snapshot_id"] == str(thing)
    with pytest.raises(CallTimedOut):
        await bus.detect("snapshot.deleted", job, 0.2)
    async with Detector(store, "snapshot.deleted") as detector:
        await append(store, row(SnapshotDeleted(snapshot_id=thing), f"snapshot-{thing}"), expected=0)
        found = await detector.wait(timeout_s=1.0)
        assert found is not None
        assert found.stream == f"snapshot-{thing}"

    async def so() -> bool:
        return True

    assert await bus.detect("zone.#", timeout_s=1.0, recheck=so) is None
