"""Replay delivers exactly what its dry run counted, in order, once each, marked, at its pace, in constant memory."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from bus.client import Bus
from bus.envelope import Envelope
from bus.errors import BrokerAway, PublishUnknown
from bus.event_store import AppendRequest, EventStore, NewRow
from bus.replay import WINDOW, Outcome, Replay, replay_raw, selection
from bus.submission import submission, submit
from bus.transport import Address, WireMessage
from schema.codec import encode
from schema.failure import BadParameter, Unavailable
from schema.snapshot import CreateSnapshot, SnapshotDeleted, SnapshotTaken
from schema.volume import VolumeRenamed


def row(message: Any, stream: str, **more: Any) -> NewRow:
    return NewRow(stream=stream, kind="event", type=message.TYPE, id=uuid4(), payload=encode(message), key=stream,
                  **({"correlation": uuid4()} | more))


async def fill(store: EventStore, count: int) -> None:
    """`count` snapshots taken; every third is deleted, every fifth belongs to tenant b."""
    for first in range(0, count, 50):
        requests = []
        for number in range(first, min(first + 50, count)):
            thing, tenant = uuid4(), "b" if number % 5 == 0 else "a"
            stream = f"snapshot-{thing}"
            rows = [row(SnapshotTaken(snapshot_id=thing, virtual_size=number), stream, tenant=tenant)]
            if number % 3 == 0:
                rows.append(row(SnapshotDeleted(snapshot_id=thing), stream, tenant=tenant))
            requests.append(AppendRequest(expected={stream: -1}, rows=rows))
        for request in requests:
            await store.append(request)


async def positions(replay: Replay) -> list[int]:
    return [event.position async for event in replay]


async def test_the_whole_log_and_parts_of_it(store: EventStore) -> None:
    await fill(store, 60)
    bus = Bus(store=store)
    assert await positions(bus.replay()) == list(range(1, 81))
    assert await positions(bus.replay(from_=5, to=9)) == [5, 6, 7, 8, 9]
    assert await positions(bus.replay(to=10_000)) == list(range(1, 81))
    deleted = [event async for event in bus.replay("*.deleted")]
    assert len(deleted) == 20
    assert all(isinstance(event.message, SnapshotDeleted) for event in deleted)
    stream = deleted[3].stream
    assert [event.version async for event in bus.replay(stream=stream)] == [0, 1]
    assert [event.id async for event in bus.replay(correlation=deleted[4].correlation)] == [deleted[4].id]
    assert {event.tenant async for event in bus.replay(tenants=["b"])} == {"b"}
    assert await positions(bus.replay("volume.#")) == []


async def test_times_bound_it(store: EventStore) -> None:
    await fill(store, 6)
    await asyncio.sleep(0.05)
    middle = datetime.now(UTC)
    await asyncio.sleep(0.05)
    await fill(store, 6)
    assert await positions(Bus(store=store).replay(to=middle)) == list(range(1, 9))
    assert await positions(Bus(store=store).replay(from_=middle)) == list(range(9, 17))


async def test_the_end_is_fixed_when_it_begins(store: EventStore) -> None:
    await fill(store, 9)
    seen = []
    async for event in Bus(store=store).replay():
        seen.append(event.position)
        await fill(store, 1)
    assert seen == list(range(1, 13))


async def test_a_dry_run_counts_what_is_delivered(store: EventStore) -> None:
    await fill(store, 45)
    for more in ({}, {"types": "*.deleted"}, {"tenants": ["b"]}, {"from_": 7, "to": 31}):
        replay = Bus(store=store).replay(**more)  # type: ignore[arg-type] # a table of arguments
        counted = await replay.count()
        seen: list[Any] = []
        outcome = await replay.to(seen.append)
        assert counted.by_type == outcome.by_type
        assert counted.count == outcome.count == len(seen)
        assert counted.bytes == sum(len(event.row.payload) for event in seen)
        assert counted.last_position == seen[-1].position
        assert sum(counted.by_type.values()) == counted.count > 0


async def test_to_a_coroutine_function_whose_error_ends_it(store: EventStore) -> None:
    await fill(store, 9)
    seen: list[int] = []

    async def take(event: Any) -> None:
        seen.append(event.position)
        if event.position == 4:
            raise RuntimeError("the target is full")

    with pytest.raises(RuntimeError, match="full"):
        await Bus(store=store).replay().to(take)
    assert seen == [1, 2, 3, 4]


class Wire:
    """A broker double that confirms out of order, and refuses or loses confirms when told to."""

    durable = True

    def __init__(self) -> None:
        self.arrived: list[WireMessage] = []
        self.flying = self.most = 0
        self.fail: dict[int, Exception] = {}
        self.calls = 0

    async def publish(self, to: Address, message: WireMessage) -> None:
        assert (to.kind, to.name) == ("queue", "again")
        self.calls += 1
        number = self.calls
        self.flying += 1
        self.most = max(self.most, self.flying)
        error = self.fail.pop(number, None)
        if not isinstance(error, BrokerAway):
            self.arrived.append(message)
        await asyncio.sleep(0.001 * (number % 3))
        self.flying -= 1
        if error is not None:
            raise error


async def test_to_a_queue_in_order_and_marked(store: EventStore) -> None:
    await fill(store, 60)
    wire = Wire()
    replay = Bus(store=store, transport=wire).replay()  # type: ignore[arg-type] # only publish is used
    outcome = await replay.to_queue("again")
    envelopes = [Envelope.read(message.headers, message.body) for message in wire.arrived]
    assert [envelope.position for envelope in envelopes] == list(range(1, 81))
    assert all(envelope.replay for envelope in envelopes)
    assert outcome.count == (await replay.count()).count == 80
    assert 1 < wire.most <= WINDOW
    first = (await store.read_log(0, limit=1)).rows[0]
    assert (envelopes[0].id, envelopes[0].stream, envelopes[0].stream_version) == (first.id, first.stream, 0)
    assert envelopes[0].body == first.payload


async def test_lost_confirms_and_a_broker_away_lose_nothing_and_keep_order(store: EventStore) -> None:
    await fill(store, 30)
    wire = Wire()
    wire.fail = {5: PublishUnknown("no confirm"), 60: BrokerAway("closed"), 61: BrokerAway("closed")}
    await Bus(store=store, transport=wire).replay().to_queue("again")  # type: ignore[arg-type] # as above
    arrived = [int(message.headers["cloudEvents_sbposition"]) for message in wire.arrived]
    assert set(arrived) == set(range(1, 41))
    firsts = [position for at, position in enumerate(arrived) if position not in arrived[:at]]
    assert firsts == sorted(firsts)
    wire.fail = {wire.calls + 1: ValueError("not a broker's error")}
    with pytest.raises(ValueError, match="not a broker's"):
        await Bus(store=store, transport=wire).replay().to_queue("again")  # type: ignore[arg-type] # as above


async def test_without_a_broker_a_queue_is_refused_with_a_remedy(store: EventStore) -> None:
    with pytest.raises(Unavailable, match="STOREBUS_AMQP_URL"):
        await Bus(store=store).replay().to_queue("again")


async def test_rate_pause_and_stop(store: EventStore) -> None:
    await fill(store, 30)
    began = time.monotonic()
    assert len(await positions(Bus(store=store).replay(rate=100, to=30))) == 30
    assert 0.25 < time.monotonic() - began < 2
    began = time.monotonic()
    outcome = await Bus(store=store).replay(rate=100, to=40).to(lambda event: None)
    assert outcome.count == 40
    replay = Bus(store=store).replay()
    seen: list[int] = []

    async def run() -> None:
        async for event in replay:
            seen.append(event.position)
            if event.position == 10:
                replay.pause()
            if event.position == 20:
                replay.stop()

    task = asyncio.create_task(run())
    await asyncio.sleep(0.2)
    assert seen == list(range(1, 11))
    replay.resume()
    await asyncio.wait_for(task, 60)
    assert seen == list(range(1, 21))
    with pytest.raises(BadParameter, match="rate"):
        Bus(store=store).replay(rate=0)


async def test_raw_pages_are_dense_and_left_early_without_a_trace(store: EventStore) -> None:
    await fill(store, 60)
    pages = [rows async for rows in replay_raw(store, selection(), page=7)]
    assert [each.position for rows in pages for each in rows] == list(range(1, 81))
    assert max(map(len, pages)) == 7
    walk = replay_raw(store, selection(), page=7)
    await anext(walk)
    await walk.aclose()  # the page that was read ahead is given up; no task is left over
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "replay, next page"]


async def test_a_rebuild_gets_pages_and_the_outcome_says_where_to_go_on(store: EventStore) -> None:
    await fill(store, 30)
    table: dict[str, int] = {}

    async def apply(rows: list[Any]) -> None:
        for each in rows:
            table[each.stream] = each.version

    outcome: Outcome = await Bus(store=store).replay(to=20).to_pages(apply)
    assert outcome.last_position == 20
    again = await Bus(store=store).replay(from_=outcome.last_position + 1).to_pages(apply)
    assert outcome.count + again.count == 40
    assert len(table) == 30


async def test_a_submitted_command_is_seen_as_the_event_that_it_is(store: EventStore) -> None:
    job = uuid4()
    command = CreateSnapshot(volume_id=uuid4())
    first = await submit(store, submission(command, job_id=job, principal="engineer"))
    assert await submit(store, submission(command, job_id=job)) == first
    with pytest.raises(BadParameter, match="another command"):
        await submit(store, submission(CreateSnapshot(volume_id=uuid4()), job_id=job))
    [event] = [event async for event in Bus(store=store).replay("job.#")]
    assert event.id == event.correlation == job
    assert event.data["body"] == json.loads(encode(command))
    assert [timer.key for timer in (await store.timers()).values()] == [f"volume-{command.volume_id}"]


@pytest.mark.parametrize("wrong", [{"end": "tomorrow"}, {"types": "snap*"}, {"end": datetime(2026, 1, 1)}])  # noqa: DTZ001 - a time without a zone is what is refused
def test_a_wrong_selection_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadParameter):
        selection(**wrong)


async def test_renaming_is_typed(store: EventStore) -> None:
    thing = uuid4()
    await store.append(AppendRequest(expected={f"volume-{thing}": -1}, rows=[
        row(VolumeRenamed(volume_id=thing, name="new"), f"volume-{thing}")]))
    [event] = [event async for event in Bus(store=store).replay("volume.renamed")]
    assert event.message == VolumeRenamed(volume_id=thing, name="new")
