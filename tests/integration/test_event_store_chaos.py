"""The log under faults, judged by its history: writers that conflict, give up and lose their connections; a server killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import pytest

from bus.errors import AppendUnknown, Conflict, StoreAway
from bus.event_store import NO_STREAM, AppendRequest, Claim, CounterChange, LogRow, pages
from bus.event_store_postgres import PostgresEventStore
from bus.verify import verify
from schema.failure import BadParameter
from tests.contract.test_event_store import row
from tests.services.postgres import TestServer, fresh_database, start_postgres
from tests.support.stores import need_postgres

pytestmark = pytest.mark.needs_postgres
WRITERS = 64
APPENDS = int(os.environ.get("STOREBUS_SOAK_N", "12"))
"""By each writer."""
STREAMS = 150


@dataclass
class Append:
    """One append as its caller saw it. Times are of the event loop."""

    ids: list[UUID]
    stream: str
    asked: float
    ended: float = 0.0
    end: str = "unknown"
    """acked, refused or unknown."""
    position: int = 0


@dataclass
class History:
    """What was asked and answered, against what the log holds."""

    appends: list[Append] = field(default_factory=list)

    def check(self, log: list[LogRow]) -> None:
        """Raises AssertionError with what is wrong."""
        assert [row.position for row in log] == list(range(1, len(log) + 1))
        heads: Counter[str] = Counter()
        for found in log:
            assert found.version == heads[found.stream], f"{found.stream} at {found.position}"
            heads[found.stream] += 1
        at = {row.id: row.position for row in log}
        assert len(at) == len(log), "an id is in the log twice"
        assert not set(at) - {each for append in self.appends for each in append.ids}, "rows that nobody wrote"
        for append in self.appends:
            places = [at[each] for each in append.ids if each in at]
            assert len(places) in (0, len(append.ids)), "half of a request"
            assert places == list(range(places[0], places[0] + len(places))) if places else True
            assert append.end != "acked" or places[-1:] == [append.position], f"acked and lost: {append}"
            assert append.end != "refused" or not places, f"refused and there: {append}"
        self._check_order(at)

    def _check_order(self, at: dict[UUID, int]) -> None:
        """Whatever was acknowledged before an append was asked for lies before it in the log."""
        acked = sorted((a for a in self.appends if a.end == "acked"), key=lambda a: a.ended)
        highest, index = 0, 0
        for append in sorted((a for a in self.appends if a.ids[0] in at), key=lambda a: a.asked):
            while index < len(acked) and acked[index].ended < append.asked:
                highest = max(highest, acked[index].position)
                index += 1
            assert at[append.ids[0]] > highest, f"{append} went before what it came after"

    async def grow(self, by: int) -> None:
        """Wait until so many more were acknowledged."""
        before = self.count("acked")
        while self.count("acked") < before + by:
            await asyncio.sleep(0.02)

    def count(self, end: str) -> int:
        """Appends with this end."""
        return sum(append.end == end for append in self.appends)


async def write(store: PostgresEventStore, history: History, rng: random.Random, name: str) -> None:
    """One append to a stream that others write too, with some effect, perhaps cancelled."""
    stream = f"s{rng.randrange(STREAMS)}"
    clock = asyncio.get_running_loop().time
    while True:
        try:
            known = await store.read_stream(stream, limit=100_000)
            break
        except StoreAway:
            await asyncio.sleep(0.05)
    rows = [row(stream) for _ in range(rng.choice((1, 1, 1, 2, 5)))]
    append = Append([each.id for each in rows], stream, clock())
    version = len(known) - 1 if rng.random() < 0.9 else rng.randrange(-1, 9)
    history.appends.append(append)
    request = AppendRequest(
        expected={stream: version, f"read-{rng.randrange(5)}": NO_STREAM}, rows=rows,
        counters=[CounterChange(name=f"c{rng.randrange(3)}", delta=rng.choice((-2, 1, 3)))] if rng.random() < 0.3 else [],
        take=[Claim(name=f"n{rng.randrange(9)}", value=name, holder=name)] if rng.random() < 0.2 else [],
        release=[Claim(name=f"n{rng.randrange(9)}", value=name, holder=name)] if rng.random() < 0.2 else [])
    task = asyncio.create_task(store.append(request))
    if rng.random() < 0.1:
        await asyncio.sleep(rng.random() * 0.01)
        task.cancel()
    try:
        append.position = (await task).last_position
        append.end = "acked"
    except Conflict:
        append.end = "refused"
    except StoreAway:
        append.end = "refused"
        await asyncio.sleep(0.05)
    except AppendUnknown:
        await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        pass
    append.ended = clock()


async def writers(stores: list[PostgresEventStore], history: History, seed: int, appends: int) -> None:
    """All of them at once, each with a generator of its own."""
    async def one(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        for _ in range(appends):
            await write(stores[number % len(stores)], history, rng, f"w{number}")

    await asyncio.gather(*(one(number) for number in range(WRITERS)))


async def whole(store: PostgresEventStore) -> list[LogRow]:
    """The whole log."""
    return [found async for page in pages(store, 0) for found in page.rows]


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[TestServer]:
    """A durable server of these tests alone: it will be killed."""
    need_postgres()
    made = await start_postgres(durable=True)
    yield made
    await made.stop()
    await asyncio.to_thread(made.remove)


async def test_writers_that_conflict_give_up_and_lose_connections(server: TestServer, seed: int) -> None:
    dsn = await fresh_database(server)
    stores = [await PostgresEventStore.connect(dsn) for _ in range(3)]
    history = History()
    cuts = 0

    async def cut() -> None:
        nonlocal cuts
        rng = random.Random(seed)
        admin = await asyncpg.connect(dsn)
        try:
            while True:
                await asyncio.sleep(rng.random() * 0.1)
                cuts += len(await admin.fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND query LIKE '%es.append%' AND pid <> pg_backend_pid() LIMIT 1"))
        finally:
            await admin.close()

    cutter = asyncio.create_task(cut())
    try:
        await writers(stores, history, seed, APPENDS)
    finally:
        cutter.cancel()
        await asyncio.gather(cutter, return_exceptions=True)
        for store in stores[1:]:
            await store.aclose()
    log = await whole(stores[0])
    await stores[0].aclose()
    history.check(log)
    assert await verify(dsn) == []
    assert cuts and history.count("acked") > WRITERS and history.count("refused") and history.count("unknown")


async def test_what_was_acknowledged_survives_a_crash_of_the_server(server: TestServer, seed: int) -> None:
    dsn = await fresh_database(server)
    history = History()
    stores = [await PostgresEventStore.connect(dsn) for _ in range(2)]
    for turn, how in enumerate((signal.SIGQUIT, signal.SIGKILL)):  # `immediate`, and as the machine itself would
        load = asyncio.create_task(writers(stores, history, seed + turn, APPENDS))
        await asyncio.wait_for(history.grow(WRITERS), 60)
        await server.stop(how=how)
        await server.restart()
        await load
    log = await whole(stores[0])
    for store in stores:
        await store.aclose()
    history.check(log)
    assert await verify(dsn) == []
    assert history.count("unknown"), "no kill met an append in flight"


async def test_a_request_that_the_database_cannot_take_fails_alone(server: TestServer) -> None:
    store = await PostgresEventStore.connect(await fresh_database(server))
    try:
        bad = AppendRequest(expected={"nul\0": NO_STREAM}, rows=[row("nul\0")])
        worse = AppendRequest(expected={"half": NO_STREAM}, rows=[row("half", "\ud800")])
        good = [AppendRequest(expected={f"s{n}": NO_STREAM}, rows=[row(f"s{n}")]) for n in range(20)]
        ends = await asyncio.gather(*map(store.append, [*good[:10], bad, worse, *good[10:]]), return_exceptions=True)
        assert [type(end) for end in ends if isinstance(end, Exception)] == [BadParameter, BadParameter]
        assert isinstance(ends[10], BadParameter) and isinstance(ends[11], BadParameter)
        assert await store.head() == 20
    finally:
        await store.aclose()


async def test_a_store_says_that_the_server_is_away_and_comes_back_by_itself(server: TestServer) -> None:
    store = await PostgresEventStore.connect(await fresh_database(server))
    other = await PostgresEventStore.connect(store._dsn)
    try:
        await store.append(AppendRequest(expected={"a": NO_STREAM}, rows=[row("a")]))
        await server.stop()
        for _ in range(2):
            with pytest.raises((StoreAway, AppendUnknown)):
                await asyncio.wait_for(store.append(AppendRequest(expected={"a": 0}, rows=[row("a")])), 60)
            with pytest.raises(StoreAway):
                await asyncio.wait_for(store.read_log(0), 60)
        await server.restart()
        done = await store.append(AppendRequest(expected={"a": 0}, rows=[row("a")]))
        assert done.last_position == 2
        assert await other.wait(1, timeout_s=5)
        waiting = asyncio.create_task(other.wait(2, timeout_s=20))
        await asyncio.sleep(1.5)  # the listener is back too, and a poll stands behind it
        await store.append(AppendRequest(expected={"a": 1}, rows=[row("a")]))
        assert await asyncio.wait_for(waiting, 60)
    finally:
        await store.aclose()
        await other.aclose()


async def test_a_stream_expected_absent_stays_absent_until_the_commit(server: TestServer) -> None:
    """Two who each read that the other's stream is absent cannot both go on: one of them comes second."""
    dsn = await fresh_database(server)
    stores = [await PostgresEventStore.connect(dsn) for _ in range(2)]
    try:
        for turn in range(40):
            mine, yours = f"x{turn}", f"y{turn}"
            ends = await asyncio.gather(
                stores[0].append(AppendRequest(expected={mine: NO_STREAM, yours: NO_STREAM}, rows=[row(mine)])),
                stores[1].append(AppendRequest(expected={mine: NO_STREAM, yours: NO_STREAM}, rows=[row(yours)])),
                return_exceptions=True)
            assert sorted(type(end).__name__ for end in ends) == ["Appended", "Conflict"]
    finally:
        for store in stores:
            await store.aclose()


async def test_a_batch_with_a_stream_twice_is_refused_by_the_database(server: TestServer) -> None:
    connection = await asyncpg.connect(await fresh_database(server))
    try:
        nothing = ", ".join(["'{}'"] * 13)
        with pytest.raises(asyncpg.RaiseError, match="twice"):
            await connection.fetch(f"SELECT es.append('{{0,1}}', '{{a,a}}', '{{-1,-1}}', {nothing}, NULL)")
    finally:
        with contextlib.suppress(Exception):
            await connection.close()
