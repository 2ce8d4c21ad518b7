"""The event store's contract, on every store there is: memory, Postgres from the wheel, the distribution's Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from bus.errors import ClaimTaken, Conflict, CounterFull, LogBroken
from bus.event_store import (
    NO_STREAM,
    AppendRequest,
    Checkpoint,
    Claim,
    CounterChange,
    EventStore,
    LogFilter,
    NewRow,
    Timer,
    pages,
)
from schema.failure import BadParameter
from tests.services.postgres import TestServer, start_postgres, system_bin
from tests.support.stores import memory_store, need_postgres, postgres_store

JOB = UUID(int=7)


def row(stream: str, type: str = "thing.happened", *, payload: bytes = b"{}", **more: Any) -> NewRow:  # noqa: A002
    """A new row; what a test does not say does not matter to it."""
    return NewRow(**{"stream": stream, "kind": "event", "type": type, "id": uuid4(), "payload": payload, "key": stream,
                     "correlation": JOB, **more})


async def put(store: EventStore, stream: str, version: int = NO_STREAM, rows: int = 1, **more: Any) -> int:
    """Append rows to one stream; the last position."""
    made = [row(stream) for _ in range(rows)]
    return (await store.append(AppendRequest(expected={stream: version}, rows=made, **more))).last_position


@dataclass
class Servers:
    """Each Postgres is started when the first test asks for it."""

    running: dict[str, TestServer] = field(default_factory=dict)

    async def get(self, which: str) -> TestServer:
        """The server: `wheel` or `system`."""
        if which not in self.running:
            binaries = None
            if which == "wheel":
                need_postgres()
            elif (binaries := system_bin()) is None:
                pytest.skip("no Postgres of the distribution is installed (optional): apt-get install postgresql")
            self.running[which] = await start_postgres(binaries)
        return self.running[which]


@pytest.fixture(scope="session")
async def servers() -> AsyncIterator[Servers]:
    """See Servers."""
    held = Servers()
    yield held
    for server in held.running.values():
        await server.stop()
        await asyncio.to_thread(server.remove)


@pytest.fixture(params=[
    "memory", pytest.param("wheel", marks=pytest.mark.needs_postgres), pytest.param("system", marks=pytest.mark.needs_postgres)])
async def store(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[EventStore]:
    """An empty log."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield await stack.enter_async_context(memory_store())
        else:
            yield await stack.enter_async_context(postgres_store(await servers.get(request.param)))


# --- append ---


async def test_positions_and_versions_are_dense_from_the_start(store: EventStore) -> None:
    assert await store.head() == 0
    assert await store.read_stream("a") == []
    assert (await store.read_log(0)).rows == []
    assert await put(store, "a", rows=2) == 2
    assert await put(store, "b") == 3
    assert await put(store, "a", 1, rows=2) == 5
    assert [(r.position, r.stream, r.version) for r in (await store.read_log(0)).rows] == [
        (1, "a", 0), (2, "a", 1), (3, "b", 0), (4, "a", 2), (5, "a", 3)]
    assert await store.head() == 5


async def test_a_row_comes_back_as_it_was_given(store: EventStore) -> None:
    made = row("a", "volume.created", payload=b'{"n":"\xc3\xa9"}', kind="order", type_version=3, key="k|1", address="agent-7",
               tenant="t", causation=uuid4(), meta=b'{"principal":"p"}')
    before = datetime.now(UTC) - timedelta(seconds=5)
    await store.append(AppendRequest(expected={"a": NO_STREAM}, rows=[made]))
    (found,) = await store.read_stream("a")
    for name in ("stream", "kind", "type", "type_version", "id", "payload", "key", "address", "tenant", "correlation",
                 "causation", "meta"):
        assert getattr(found, name) == getattr(made, name), name
    assert before < found.recorded_at < before + timedelta(seconds=60)


async def test_a_wrong_version_writes_nothing_and_says_the_right_one(store: EventStore) -> None:
    await put(store, "a", rows=3)
    for wrong in (NO_STREAM, 0, 1, 3, 9):
        with pytest.raises(Conflict) as refused:
            await store.append(AppendRequest(
                expected={"b": NO_STREAM, "a": wrong}, rows=[row("b"), row("a")],
                take=[Claim(name="c", value="v", holder="h")], counters=[CounterChange(name="n", delta=1)],
                set_timers=[Timer(id="t", after_s=0, key="k", type="x")]))
        assert (refused.value.stream, refused.value.actual) == ("a", 2)
    assert await store.head() == 3
    assert await store.read_stream("b") == []
    assert (await store.claims(), await store.timers()) == ({}, {})
    assert (await store.counters()).get("n", (0, None)) == (0, None)


async def test_a_stream_that_was_only_read_is_checked_too(store: EventStore) -> None:
    await put(store, "read")
    await store.append(AppendRequest(expected={"read": 0, "absent": NO_STREAM, "w": NO_STREAM}, rows=[row("w")]))
    with pytest.raises(Conflict):
        await store.append(AppendRequest(expected={"read": 1, "w": 0}, rows=[row("w")]))
    assert await put(store, "absent") == 3  # a stream that was only expected to be absent is still absent


async def test_rows_of_several_streams_go_together_in_their_order(store: EventStore) -> None:
    await store.append(AppendRequest(expected={"b": NO_STREAM, "a": NO_STREAM}, rows=[row("b"), row("a"), row("b"), row("a")]))
    assert [(r.stream, r.version) for r in (await store.read_log(0)).rows] == [("b", 0), ("a", 0), ("b", 1), ("a", 1)]


async def test_what_no_log_could_take_is_refused_before_it_is_sent(store: EventStore) -> None:
    for request in (
            AppendRequest(expected={"a": NO_STREAM}, rows=[row("elsewhere")]),
            AppendRequest(expected={"a": NO_STREAM}, rows=[], take=[Claim(name="c", value="v", holder="h")]),
            AppendRequest(expected={"a": NO_STREAM}, rows=[], counters=[CounterChange(name="n", delta=1)]),
            AppendRequest(expected={"a": NO_STREAM}, rows=[row("a", payload=b"x" * (1 << 21))])):
        with pytest.raises(BadParameter):
            await store.append(request)
    assert await store.head() == 0


async def test_an_append_without_rows_sets_timers_and_answers_the_head(store: EventStore) -> None:
    await put(store, "a", rows=2)
    done = await store.append(AppendRequest(expected={"a": 1}, rows=[], set_timers=[Timer(id="t", after_s=9, key="k", type="x")]))
    assert done.last_position == 2
    assert list(await store.timers()) == ["t"]


async def test_of_many_at_once_on_one_stream_one_wins_each_version(store: EventStore) -> None:
    ends = await asyncio.gather(*(put(store, "hot") for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(end, int) for end in ends) == 1
    assert all(isinstance(end, int | Conflict) for end in ends)
    assert len({id(end) for end in ends}) == 50  # nobody raises somebody else's error
    assert await store.head() == 1


async def test_a_refusal_fails_nobody_else_of_the_same_moment(store: EventStore) -> None:
    await put(store, "a")
    ends = await asyncio.gather(put(store, "b"), put(store, "a", 7), put(store, "c"), return_exceptions=True)
    assert [type(end) for end in ends] == [int, Conflict, int]
    assert await store.head() == 3


async def test_a_caller_that_gives_up_harms_nobody(store: EventStore) -> None:
    tasks = [asyncio.create_task(put(store, f"s{n}")) for n in range(40)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, int) for end in ends[1::2])
    assert [r.position for r in (await store.read_log(0)).rows] == list(range(1, await store.head() + 1))


# --- claims, counters ---


async def test_a_claim_is_shared_by_value_and_refused_to_another(store: EventStore) -> None:
    provider = {"name": "provider", "holder": "one"}
    await put(store, "a", take=[Claim(value="s3", **provider)])
    await put(store, "b", take=[Claim(name="provider", value="s3", holder="two")])
    await put(store, "a", 0, take=[Claim(value="s3", **provider)])  # again by its holder: nothing new
    with pytest.raises(ClaimTaken) as taken:
        await put(store, "c", take=[Claim(name="provider", value="swift", holder="three")])
    assert taken.value.stream == "provider" and taken.value.holder in ("one", "two")
    assert sorted(claim.holder for claim in (await store.claims())["provider"]) == ["one", "two"]
    await put(store, "a", 1, release=[Claim(value="s3", **provider)])
    with pytest.raises(ClaimTaken):
        await put(store, "c", take=[Claim(name="provider", value="swift", holder="three")])
    await put(store, "b", 0, release=[Claim(name="provider", value="s3", holder="two")])
    await put(store, "c", take=[Claim(name="provider", value="swift", holder="three")])


async def test_a_claim_passes_on_within_one_request(store: EventStore) -> None:
    await put(store, "a", take=[Claim(name="n", value="old", holder="h")])
    await put(store, "a", 0, release=[Claim(name="n", value="old", holder="h")], take=[Claim(name="n", value="new", holder="h")])
    assert await store.claims() == {"n": [Claim(name="n", value="new", holder="h")]}
    with pytest.raises(ClaimTaken):
        await put(store, "b", take=[Claim(name="m", value="x", holder="1"), Claim(name="m", value="y", holder="2")])
    assert "m" not in await store.claims()


async def test_of_many_who_want_a_claim_one_has_it(store: EventStore) -> None:
    ends = await asyncio.gather(*(put(store, f"s{n}", take=[Claim(name="only", value=str(n), holder=str(n))])
                                  for n in range(30)), return_exceptions=True)
    assert sum(isinstance(end, int) for end in ends) == 1
    assert sum(isinstance(end, ClaimTaken) for end in ends) == 29


async def test_a_counter_stays_between_zero_and_its_ceiling(store: EventStore) -> None:
    await put(store, "a", counters=[CounterChange(name="quota", delta=3, ceiling=5)])
    for change in (CounterChange(name="quota", delta=3), CounterChange(name="quota", delta=-4),
                   CounterChange(name="quota", ceiling=2)):
        with pytest.raises(CounterFull) as full:
            await put(store, "b", counters=[change])
        assert (full.value.stream, full.value.actual) == ("quota", 3)
    await put(store, "b", counters=[CounterChange(name="quota", delta=2)])
    assert (await store.counters())["quota"] == (5, 5)
    await put(store, "b", 0, counters=[CounterChange(name="quota", delta=10, lift_ceiling=True)])
    assert (await store.counters())["quota"] == (15, None)


async def test_a_counter_closes_only_at_zero(store: EventStore) -> None:
    residents = "store/1/residents"
    await put(store, "a", counters=[CounterChange(name=residents, delta=1)])
    with pytest.raises(CounterFull):
        await put(store, "b", counters=[CounterChange(name=residents, ceiling=0)])
    await put(store, "a", 0, counters=[CounterChange(name=residents, delta=-1), CounterChange(name=residents, ceiling=0)])
    with pytest.raises(CounterFull):
        await put(store, "c", counters=[CounterChange(name=residents, delta=1)])


async def test_a_counter_shared_by_all_of_a_moment_is_never_passed(store: EventStore) -> None:
    await put(store, "limit", counters=[CounterChange(name="n", ceiling=20)])
    ends = await asyncio.gather(*(put(store, f"s{n}", counters=[CounterChange(name="n", delta=1)]) for n in range(50)),
                                return_exceptions=True)
    assert sum(isinstance(end, int) for end in ends) == 20
    assert sum(isinstance(end, CounterFull) for end in ends) == 30
    assert (await store.counters())["n"] == (20, 20)
    assert await store.counter_values(["n", "never"]) == {"n": 20}
    assert await store.head() == 21


# --- reads ---


async def test_a_stream_is_read_in_pages(store: EventStore) -> None:
    await put(store, "a", rows=10)
    assert [r.version for r in await store.read_stream("a", after_version=3, limit=4)] == [4, 5, 6, 7]
    found = await store.read_streams(["a", "none"])
    assert (len(found["a"]), found["none"]) == (10, [])


async def test_a_stream_is_read_whole_however_long_it_is(store: EventStore) -> None:
    """A policy that runs each hour, or its volume, has some ten thousand rows in a year."""
    for start in range(0, 25_000, 5000):
        await put(store, "long-1", start - 1, rows=5000)
    await put(store, "short-1", rows=2)
    found = await store.read_streams(["long-1", "short-1", "none-1"])
    assert [len(rows) for rows in found.values()] == [25_000, 2, 0]
    assert [row.version for row in found["long-1"]] == list(range(25_000))


async def test_the_log_is_read_in_pages_without_a_gap(store: EventStore) -> None:
    for n in range(5):
        await put(store, f"s{n}", rows=7)
    seen = [r.position async for page in pages(store, 0, limit=4) for r in page.rows]
    assert seen == list(range(1, 36))
    page = await store.read_log(33, limit=10)
    assert ([r.position for r in page.rows], page.scanned_to) == ([34, 35], 35)
    assert (await store.read_log(35)).scanned_to == 35


async def test_filters_pick_and_the_scan_goes_on(store: EventStore) -> None:
    other = uuid4()
    rows = [row("a", "snapshot.taken"), row("a", "snapshot.backup.done"), row("a", "snapshot"), row("a", "volume.created"),
            row("a", "snapshot.taken", kind="command"), row("b", "volume.created", correlation=other)]
    await store.append(AppendRequest(expected={"a": NO_STREAM, "b": NO_STREAM}, rows=rows))

    async def at(**wanted: Any) -> list[int]:
        page = await store.read_log(0, filter=LogFilter(**wanted))
        assert page.scanned_to == min(6, wanted.get("until_position", 6))
        return [r.position for r in page.rows]

    assert await at(types=("snapshot.*",)) == [1, 5]
    assert await at(types=("snapshot.#",)) == [1, 2, 3, 5]
    assert await at(types=("#.created", "*")) == [3, 4, 6]
    assert await at(types=("#",)) == [1, 2, 3, 4, 5, 6]
    assert await at(types=("*.backup.#",)) == [2]
    assert await at(types=("snapshot+taken", "snapshot.take.")) == []
    assert await at(kinds=frozenset({"command"})) == [5]
    assert await at(streams=("b", "none")) == [6]
    assert await at(correlation=other) == [6]
    assert await at(until_position=2) == [1, 2]
    assert await at(until_time=datetime(2000, 1, 1, tzinfo=UTC)) == []
    assert await at(types=("snapshot.#",), kinds=frozenset({"event"}), until_position=4) == [1, 2, 3]
    page = await store.read_log(0, filter=LogFilter(types=("snapshot.#",)), limit=2)
    assert ([r.position for r in page.rows], page.scanned_to) == ([1, 2], 2)


async def test_a_time_is_a_position(store: EventStore) -> None:
    assert await store.position_at(datetime.now(UTC)) == 0
    for n in range(9):
        await put(store, f"s{n}", rows=3)
        await asyncio.sleep(0.002)
    rows = (await store.read_log(0)).rows
    assert await store.position_at(rows[0].recorded_at) == 0
    assert await store.position_at(rows[-1].recorded_at + timedelta(seconds=1)) == 27
    for found in rows:
        assert await store.position_at(found.recorded_at) == sum(1 for r in rows if r.recorded_at < found.recorded_at)


async def test_who_waits_is_woken_by_an_append(store: EventStore) -> None:
    assert not await store.wait(0, timeout_s=0.05)
    waiting = [asyncio.create_task(store.wait(0, timeout_s=20)) for _ in range(5)]
    await asyncio.sleep(0.05)
    started = asyncio.get_running_loop().time()
    await put(store, "a")
    assert all(await asyncio.gather(*waiting))
    assert asyncio.get_running_loop().time() - started < 5
    assert await store.wait(0, timeout_s=0)


# --- checkpoints, leases, timers, members ---


async def test_a_checkpoint_is_of_this_epoch_and_fenced(store: EventStore) -> None:
    epoch, event = await store.epoch(), uuid4()
    assert await store.load_checkpoint("r") is None
    await store.save_checkpoint("r", Checkpoint(position=4, epoch=epoch, event_id=event))
    assert await store.load_checkpoint("r") == Checkpoint(position=4, epoch=epoch, event_id=event)
    with pytest.raises(LogBroken):
        await store.save_checkpoint("r", Checkpoint(position=5, epoch=epoch + 1))
    first = await store.acquire_lease("r", "one", ttl_s=30)
    assert first is not None
    await store.save_checkpoint("r", Checkpoint(position=6, epoch=epoch), fence=first.fence)
    second = await store.acquire_lease("r", "two", ttl_s=30, steal=True)
    assert second is not None and second.fence > first.fence
    with pytest.raises(Conflict):
        await store.save_checkpoint("r", Checkpoint(position=7, epoch=epoch), fence=first.fence)
    await store.save_checkpoint("r", Checkpoint(position=8, epoch=epoch), fence=second.fence)
    assert {name: at.position for name, at in (await store.list_checkpoints()).items()} == {"r": 8}


async def test_a_lease_has_one_holder_and_its_fence_grows(store: EventStore) -> None:
    first = await store.acquire_lease("l", "one", ttl_s=30)
    assert first is not None
    assert await store.acquire_lease("l", "one", ttl_s=30) == first
    assert await store.acquire_lease("l", "two", ttl_s=30) is None
    await store.release_lease(first)
    second = await store.acquire_lease("l", "two", ttl_s=0.05)
    assert second is not None and second.fence > first.fence
    await store.release_lease(first)  # not its lease any more
    await asyncio.sleep(0.1)
    third = await store.acquire_lease("l", "three", ttl_s=30)
    assert third is not None and third.fence > second.fence
    ends = await asyncio.gather(*(store.acquire_lease("fresh", str(n), ttl_s=30) for n in range(8)))
    assert sum(end is not None for end in ends) == 1


async def test_its_clock_is_that_of_its_rows(store: EventStore) -> None:
    before = await store.now()
    await put(store, "clock-1")
    (made,) = await store.read_stream("clock-1")
    assert before <= made.recorded_at <= await store.now()


async def test_a_timer_comes_again_until_it_is_cleared(store: EventStore) -> None:
    await put(store, "a", set_timers=[Timer(id="now", after_s=0, key="k", type="t", payload=b"\x00p"),
                                      Timer(id="later", after_s=3600, key="k", type="t")])
    (due,) = await store.due_timers(again_s=0.05)
    assert (due.id, due.key, due.type, due.payload) == ("now", "k", "t", b"\x00p")
    assert await store.due_timers() == []
    await asyncio.sleep(0.1)
    assert [timer.id for timer in await store.due_timers(again_s=3600)] == ["now"]
    assert {timer.id for timer in await store.due_timers(again_s=0, all_now=True)} == {"now", "later"}
    await put(store, "a", 0, clear_timers=["now"], set_timers=[
        Timer(id="later", after_s=9, key="k", type="t"), Timer(id="later", after_s=9, key="last", type="t")])
    assert {name: timer.key for name, timer in (await store.timers()).items()} == {"later": "last"}
    await put(store, "a", 1, clear_timers=["later", "never-set"])
    assert await store.timers() == {}


async def test_a_member_lives_as_long_as_it_beats(store: EventStore) -> None:
    await store.beat("handlers", "h1", info={"version": "1"}, ttl_s=30)
    await store.beat("handlers", "h2", info={}, ttl_s=0.01)
    await store.beat("log", "l1", info={}, ttl_s=30)
    await asyncio.sleep(0.05)
    assert await store.members("handlers") == {"h1": {"version": "1"}}


async def test_the_last_progress_is_kept(store: EventStore) -> None:
    await store.set_progress("w", b"1")
    await store.set_progress("w", b"2")
    assert await store.get_progress(["w", "none"]) == {"w": b"2"}


# --- held messages, secrets ---


async def test_held_messages_keep_their_order_and_block_their_key(store: EventStore) -> None:
    first = await store.hold(key="k", partition=3, headers={"a": "b"}, body=b"1", reason="why")
    second = await store.hold(key="k", partition=3, headers={}, body=b"2", reason="behind")
    dead = await store.hold(key="", partition=0, headers={}, body=b"x" * (300 << 10), reason="dead", source="commands")
    assert [held.id for held in await store.held(key="k")] == [first, second]
    assert await store.held_keys() == {"k"}
    (letter,) = await store.held(key="")
    assert (letter.id, len(letter.body), letter.source) == (dead, 256 << 10, "commands")
    await store.held_failed(first, "again")
    (held, _) = await store.held(key="k")
    assert (held.attempts, held.reason, held.headers, held.body, held.partition) == (2, "again", {"a": "b"}, b"1", 3)
    await store.drop_held(first)
    await store.drop_held(second)
    assert await store.held_keys() == set()
    assert len(await store.held()) == 1


async def test_a_sealed_secret_is_kept_until_it_is_erased(store: EventStore) -> None:
    name = uuid4()
    assert await store.get_secret(name) is None
    await store.put_secret(name, b"sealed")
    await store.put_secret(name, b"sealed again")
    assert await store.get_secret(name) == b"sealed again"
    await store.drop_secret(name)
    assert await store.get_secret(name) is None


async def test_closing_finishes_what_waits(store: EventStore) -> None:
    tasks = [asyncio.create_task(put(store, f"s{n}")) for n in range(30)]
    await asyncio.sleep(0)
    await store.aclose()
    assert sorted([await task for task in tasks]) == list(range(1, 31))
