"""The event store on Postgres 15 to 18: the log's SQL, called.

Owns how a store waits, reads and keeps: a pool that reads, one connection that listens, an Appender that appends. Order is
decided in `es.append`, under an advisory lock that is held to the commit, so positions are dense and a row that is visible
has every earlier row visible too; its cost is that commits follow one another, which group commit pays back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg

from bus.errors import Conflict, LogBroken
from bus.event_store import (
    Appended,
    AppendRequest,
    Checkpoint,
    Claim,
    DueTimer,
    HeldMessage,
    Lease,
    LogFilter,
    LogRow,
    Page,
)
from bus.event_store_append import Appender
from bus.event_store_connection import AWAY, away, connect, open_pool, refused
from bus.sql import query
from schema.failure import Failed

log = logging.getLogger(__name__)

CHANNEL = "storebus_log"
NOTIFY_S = 0.005
"""At most one NOTIFY in this time: it takes a lock of the whole server at its commit."""
ALIVE_S = 5.0
"""A listener that does not answer in this time is made anew."""
POLL_S = 0.25
VERIFY = "storebus verify names what else is wrong"
SCAN = 20_000
WHOLE = 10_000
"""Rows of a stream that the query read_streams gives at most; longer ones are read on."""
"""Positions looked at by one page of a filtered read: bounds the time of a query that matches little."""
HELD_BODY = 256 * 1024
_ROW = partial(tuple.__new__, LogRow)
"""A record as a LogRow without a Python call for each: columns come in its order."""
_COLUMNS = len(LogRow._fields)


class PostgresEventStore:
    """See bus.event_store.EventStore."""

    def __init__(self, dsn: str, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._dsn, self._pool = dsn, pool
        self._appender = Appender(dsn, self._committed)
        self._grown = asyncio.Event()
        self._head = 0
        self._tell = asyncio.Event()
        self._waiters = 0
        self._waited_for = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def connect(cls, dsn: str, *, readers: int = 6) -> PostgresEventStore:
        """Connect as the application role. Raises StoreAway, Denied, or LogBroken when the database is not migrated."""
        store = cls(dsn, await open_pool(dsn, readers))
        try:
            await store.head()
        except asyncpg.PostgresError as error:
            await store.aclose()
            raise refused(error) from None
        except BaseException:
            await store.aclose()
            raise
        store._tasks = [asyncio.create_task(work(), name=f"log{work.__name__}")
                        for work in (store._listen, store._notify, store._poll)]
        return store

    # --- append ---

    async def append(self, request: AppendRequest) -> Appended:
        """See EventStore."""
        return await self._appender.append(request)

    # --- waking ---

    def _committed(self, position: int) -> None:
        self._wake(position)
        self._tell.set()

    def _wake(self, position: int) -> None:
        if position > self._head:
            self._head = position
            grown, self._grown = self._grown, asyncio.Event()
            grown.set()

    async def _notify(self) -> None:
        """Tell other processes, after the commit and on another connection; one NOTIFY for many commits."""
        while True:
            await self._tell.wait()
            self._tell.clear()
            try:
                await self._fetch("notify", str(self._head))
            except (Failed, asyncpg.PostgresError) as error:
                log.debug("nobody was told of position %s: %s", self._head, error)  # they poll as well
            await asyncio.sleep(NOTIFY_S)

    def _told(self, *notification: Any) -> None:
        told = str(notification[-1])
        if told.isdecimal():
            self._wake(int(told))

    async def _listen(self) -> None:
        """A hint only: `wait` polls as well, and a dead listener is made anew."""
        while True:
            try:
                connection = await connect(self._dsn)
                try:
                    self._head = 0  # a restored database may have a lower one
                    await connection.add_listener(CHANNEL, self._told)
                    while not connection.is_closed():
                        await asyncio.sleep(ALIVE_S)
                        await connection.fetchval(query("alive"), timeout=ALIVE_S)
                finally:
                    connection.terminate()
            except (*AWAY, asyncpg.PostgresError):
                await asyncio.sleep(1)

    async def _poll(self) -> None:
        """One look at the head for everybody who waits."""
        while True:
            await self._waited_for.wait()
            with contextlib.suppress(Failed, asyncpg.PostgresError):
                await self.head()
            await asyncio.sleep(POLL_S)

    async def wait(self, after: int, *, timeout_s: float) -> bool:
        """See EventStore."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        if self._head <= after:
            await self.head()
        self._waiters += 1
        self._waited_for.set()
        try:
            async with asyncio.timeout_at(deadline):
                while self._head <= after:
                    await self._grown.wait()
        except TimeoutError:
            return False
        finally:
            self._waiters -= 1
            if not self._waiters:
                self._waited_for.clear()
        return True

    # --- read ---

    async def _fetch(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        try:
            return await self._pool.fetch(query(name), *arguments)
        except AWAY as error:
            raise away(error) from None

    async def read_stream(self, stream: str, *, after_version: int = -1, limit: int = 1000) -> list[LogRow]:
        """See EventStore."""
        return _rows(await self._fetch("read_stream", stream, after_version, limit))

    async def read_streams(self, streams: Sequence[str]) -> dict[str, list[LogRow]]:
        """See EventStore."""
        found: dict[str, list[LogRow]] = {stream: [] for stream in streams}
        for row in _rows(await self._fetch("read_streams", list(streams))):
            found[row.stream].append(row)
        for stream, rows in found.items():
            while rows and len(rows) % WHOLE == 0 and (more := await self.read_stream(
                    stream, after_version=rows[-1].version, limit=WHOLE)):
                rows += more
        return found

    async def read_log(self, after: int, *, filter: LogFilter | None = None, limit: int = 1000) -> Page:  # noqa: A002
        """See EventStore."""
        if filter is None or filter == LogFilter():
            rows = _rows(await self._fetch("read_log", after, limit))
            if rows and (rows[-1].position != after + len(rows) or rows[0].position != after + 1):
                raise _hole(after, rows)
            return Page(rows, rows[-1].position if rows else after, at_head=len(rows) < limit)
        until = filter.until_position if filter.until_position is not None else (1 << 62)
        found = await self._fetch(
            "read_log_where", after, min(after + SCAN, until), list(filter.kinds) or None, _regex(filter.types),
            list(filter.streams) or None, filter.correlation, filter.until_time, limit)
        last, count = found[0]["last"], found[0]["count"]
        if last is None:
            if until > after and await self.head() > after:  # not even one row, though there are later ones
                found = await self._fetch("read_log_where", after, min(after + SCAN, until), *[None] * 5, 0)
                if found[0]["last"] is None:
                    raise LogBroken(f"position {after + 1} is missing from the log", remedy=VERIFY)
            return Page([], after, at_head=until > after)
        if count != last - after:
            raise LogBroken(f"between positions {after} and {last} there are {count} rows, not {last - after}", remedy=VERIFY)
        rows = [_ROW(record[:_COLUMNS]) for record in found if record["position"] is not None]
        whole = len(rows) < limit
        return Page(rows, last if whole else rows[-1].position, at_head=whole and last < min(after + SCAN, until))

    async def head(self) -> int:
        """See EventStore."""
        head = int((await self._fetch("head"))[0][0])
        self._wake(head)
        return head

    async def epoch(self) -> int:
        """See EventStore."""
        return int((await self._fetch("installation"))[0]["epoch"])

    async def installation_id(self) -> str:
        """The id under which this installation's objects lie in every store."""
        return str((await self._fetch("installation"))[0]["id"])

    async def position_at(self, time: datetime) -> int:
        """See EventStore."""
        return int((await self._fetch("position_at", time))[0][0])

    async def load_checkpoint(self, name: str) -> Checkpoint | None:
        """See EventStore."""
        found = await self._fetch("checkpoint", name)
        return _checkpoint(found[0]) if found else None

    async def save_checkpoint(self, name: str, checkpoint: Checkpoint, *, fence: int | None = None) -> None:
        """See EventStore."""
        wrong = (await self._fetch("save_checkpoint", name, checkpoint.epoch, checkpoint.position, checkpoint.event_id,
                                   name, fence))[0][0]
        if wrong == "epoch":
            raise LogBroken(f"checkpoint {name} is of epoch {checkpoint.epoch}, and the log has another",
                            remedy="the database was restored while this process ran: start it again")
        if wrong == "fence":
            raise Conflict(f"the lease {name} has another holder now", stream=name)

    async def list_checkpoints(self) -> dict[str, Checkpoint]:
        """See EventStore."""
        return {row["name"]: _checkpoint(row) for row in await self._fetch("checkpoints")}

    async def claims(self) -> dict[str, list[Claim]]:
        """See EventStore."""
        found: dict[str, list[Claim]] = {}
        for row in await self._fetch("claims"):
            found.setdefault(row["name"], []).append(Claim(name=row["name"], value=row["value"], holder=row["holder"]))
        return found

    async def counters(self) -> dict[str, tuple[int, int | None]]:
        """See EventStore."""
        return {row["name"]: (row["value"], row["ceiling"]) for row in await self._fetch("counters")}

    async def counter_values(self, names: Sequence[str]) -> dict[str, int]:
        """See EventStore."""
        return {row["name"]: row["value"] for row in await self._fetch("counter_values", list(names))}

    # --- timers, leases, members ---

    async def now(self) -> datetime:
        """See EventStore."""
        moment: datetime = (await self._fetch("now"))[0][0]
        return moment

    async def due_timers(self, *, limit: int = 100, again_s: float = 10.0, all_now: bool = False) -> list[DueTimer]:
        """See EventStore."""
        return [DueTimer(**dict(row)) for row in await self._fetch("due_timers", limit, again_s, all_now)]

    async def timers(self) -> dict[str, DueTimer]:
        """See EventStore."""
        return {row["id"]: DueTimer(**dict(row)) for row in await self._fetch("timers")}

    async def acquire_lease(self, name: str, holder: str, *, ttl_s: float, steal: bool = False) -> Lease | None:
        """See EventStore."""
        fence = (await self._fetch("acquire_lease", name, holder, ttl_s, steal))[0][0]
        return None if fence is None else Lease(name=name, holder=holder, fence=fence)

    async def release_lease(self, lease: Lease) -> None:
        """See EventStore."""
        await self._fetch("release_lease", lease.name, lease.holder, lease.fence)

    async def beat(self, role: str, member: str, *, info: Mapping[str, str], ttl_s: float) -> None:
        """See EventStore."""
        await self._fetch("beat", role, member, json.dumps(dict(info)), ttl_s)

    async def members(self, role: str) -> dict[str, dict[str, str]]:
        """See EventStore."""
        return {row["member"]: json.loads(row["info"]) for row in await self._fetch("members", role)}

    async def set_progress(self, work: str, progress: bytes) -> None:
        """See EventStore."""
        await self._fetch("set_progress", work, progress)

    async def get_progress(self, works: Sequence[str]) -> dict[str, bytes]:
        """See EventStore."""
        return {row["work"]: row["progress"] for row in await self._fetch("progress", list(works))}

    # --- held messages, secrets ---

    async def hold(self, *, key: str, partition: int, headers: Mapping[str, str], body: bytes, reason: str,
                   source: str = "work") -> int:
        """See EventStore."""
        return int((await self._fetch("hold", key, partition, json.dumps(dict(headers)), body[:HELD_BODY], reason,
                                      source))[0][0])

    async def held(self, *, key: str | None = None, limit: int = 1000) -> list[HeldMessage]:
        """See EventStore."""
        return [HeldMessage(**{**dict(row), "headers": json.loads(row["headers"])})
                for row in await self._fetch("held", key, limit)]

    async def held_keys(self) -> set[str]:
        """See EventStore."""
        return {row["key"] for row in await self._fetch("held_keys")}

    async def held_failed(self, id: int, reason: str) -> None:  # noqa: A002
        """See EventStore."""
        await self._fetch("held_failed", id, reason)

    async def drop_held(self, id: int) -> None:  # noqa: A002
        """See EventStore."""
        await self._fetch("drop_held", id)

    async def put_secret(self, id: UUID, sealed: bytes) -> None:  # noqa: A002
        """See EventStore."""
        await self._fetch("put_secret", id, sealed)

    async def get_secret(self, id: UUID) -> bytes | None:  # noqa: A002
        """See EventStore."""
        sealed: bytes | None = (await self._fetch("get_secret", id))[0][0]
        return sealed

    async def drop_secret(self, id: UUID) -> None:  # noqa: A002
        """See EventStore."""
        await self._fetch("drop_secret", id)

    async def make_partitions(self) -> int:
        """Make room ahead of the head; how many partitions were made."""
        return int((await self._fetch("make_partitions"))[0][0])

    async def aclose(self) -> None:
        """See EventStore."""
        await self._appender.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await asyncio.wait_for(self._pool.close(), 10)
        except TimeoutError:
            self._pool.terminate()


def _hole(after: int, rows: list[LogRow]) -> LogBroken:
    missing = next(n for n, row in enumerate(rows, after + 1) if row.position != n)
    return LogBroken(f"position {missing} is missing from the log", remedy=VERIFY)


def _rows(records: Sequence[asyncpg.Record]) -> list[LogRow]:
    return list(map(_ROW, records))


def _checkpoint(row: asyncpg.Record) -> Checkpoint:
    return Checkpoint(position=row["position"], epoch=row["epoch"], event_id=row["event_id"])


def _regex(patterns: tuple[str, ...]) -> str | None:
    """Topic patterns as one regular expression for Postgres; None matches everything."""
    if not patterns or "#" in patterns:
        return None
    return "^(" + "|".join(_pattern(pattern.split(".")) for pattern in patterns) + ")$"


def _pattern(words: list[str]) -> str:
    made = ""
    for number, word in enumerate(words):
        dot = r"\." if number else ""
        if word == "#":
            made += rf"({dot}[^.]+(\.[^.]+)*)?" if number else r"([^.]+(\.[^.]+)*)?"
        else:
            made += dot + ("[^.]+" if word == "*" else re.escape(word))
    return made
