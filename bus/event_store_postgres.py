"""The event store on Postgres 15 to 18: the one file that knows how the log's SQL is called.

Owns the connections: one that appends (group commit through AppendBatcher), one that listens, a pool that reads. Order
is decided in `es.append`, under an advisory lock that is held to the commit, so positions are dense and a row that is
visible has every earlier row visible too; its cost is that commits follow one another, which group commit pays back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from bus.append_batcher import AppendBatcher, Outcome
from bus.errors import AppendUnknown, ClaimTaken, Conflict, CounterFull, LogBroken, StoreAway
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
from bus.sql import query
from schema.codec import canonical

log = logging.getLogger(__name__)

AWAY = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.CannotConnectNowError,
        asyncpg.AdminShutdownError, asyncpg.CrashShutdownError, asyncpg.TooManyConnectionsError, TimeoutError)
"""What asyncpg raises when the server is away."""
CHANNEL = "storebus_log"
POLL_S = 0.25
SCAN = 20_000
"""Positions looked at by one page of a filtered read: bounds the time of a query that matches little."""
HELD_BODY = 256 * 1024


class PostgresEventStore:
    """See bus.event_store.EventStore."""

    def __init__(self, dsn: str, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._dsn, self._pool = dsn, pool
        self._appender: asyncpg.Connection[asyncpg.Record] | None = None
        self._batcher = AppendBatcher(self._commit)
        self._grown = asyncio.Event()
        self._head = 0
        self._tell = asyncio.Event()
        self._told: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, dsn: str, *, readers: int = 6) -> PostgresEventStore:
        """Connect as the application role. Raises StoreAway, or LogBroken when the database is not migrated."""
        try:
            pool = await asyncpg.create_pool(dsn, min_size=1, max_size=readers, setup=_become, reset=_keep,
                                             command_timeout=120, timeout=15)
        except AWAY as error:
            raise _away(error) from None
        except (asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError):
            raise LogBroken("the database is not migrated", remedy="storebus migrate") from None
        store = cls(dsn, pool)
        store._listening = asyncio.create_task(store._listen(), name="log-listener")
        store._told = asyncio.create_task(store._notify(), name="log-notifier")
        return store

    # --- append ---

    async def append(self, request: AppendRequest) -> Appended:
        """See EventStore."""
        if not request.rows and (request.take or request.release or request.counters):
            raise ValueError("claims and counters are folded from rows: a request that changes them needs one")
        return await self._batcher.append(request)

    async def _commit(self, batch: list[AppendRequest]) -> list[Outcome]:
        for _ in range(5):
            connection = await self._connected()
            try:
                found = await connection.fetchrow(query("append"), *_arguments(batch), timeout=60)
                break
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                continue  # rolled back whole: nothing was written
            except (asyncpg.CannotConnectNowError, asyncpg.AdminShutdownError) as error:
                self._drop_appender()
                raise AppendUnknown(f"the connection broke during an append: {error}") from None
            except AWAY as error:
                self._drop_appender()
                raise AppendUnknown(f"the connection broke during an append: {error}") from None
        else:
            raise Conflict("the append met deadlocks five times in a row")
        assert found is not None
        failed = {entry["req"]: entry for entry in json.loads(found["failed"])}
        outcomes: list[Outcome] = []
        position = int(found["base"])
        for number, request in enumerate(batch):
            if number in failed:
                outcomes.append(_refusal(failed[number]))
            else:
                position += len(request.rows)
                outcomes.append(Appended(position))
        if position > found["base"]:
            self._wake(position)
            self._tell.set()
        return outcomes

    async def _connected(self) -> asyncpg.Connection[asyncpg.Record]:
        if self._appender is None or self._appender.is_closed():
            try:
                self._appender = await asyncpg.connect(self._dsn, timeout=10, command_timeout=60)
                await _become(self._appender)
            except (*AWAY, asyncpg.PostgresError) as error:
                self._drop_appender()
                raise _away(error) from None
        return self._appender

    def _drop_appender(self) -> None:
        if self._appender is not None:
            self._appender.terminate()
            self._appender = None

    # --- waking ---

    def _wake(self, position: int) -> None:
        self._head = max(self._head, position)
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    async def _notify(self) -> None:
        """Tell other processes, after the commit and on another connection; one NOTIFY for many commits."""
        while True:
            await self._tell.wait()
            self._tell.clear()
            with contextlib.suppress(StoreAway):
                await self._fetch("notify")
            await asyncio.sleep(0.005)

    async def _listen(self) -> None:
        """A hint only: `wait` polls as well, and a dead listener is made anew."""
        while True:
            try:
                connection = await asyncpg.connect(self._dsn, timeout=10)
                try:
                    await connection.add_listener(CHANNEL, lambda *_: self._wake(0))
                    while not connection.is_closed():
                        await asyncio.sleep(5)
                        await connection.fetchval("SELECT 1", timeout=5)
                finally:
                    connection.terminate()
            except (*AWAY, asyncpg.PostgresError):
                await asyncio.sleep(1)

    async def wait(self, after: int, *, timeout_s: float) -> bool:
        """See EventStore."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            grown = self._grown
            if self._head > after or await self.head() > after:
                return True
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(grown.wait(), min(left, POLL_S))

    # --- read ---

    async def _fetch(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        try:
            return await self._pool.fetch(query(name), *arguments)
        except AWAY as error:
            raise _away(error) from None

    async def read_stream(self, stream: str, *, after_version: int = -1, limit: int = 1000) -> list[LogRow]:
        """See EventStore."""
        return _rows(await self._fetch("read_stream", stream, after_version, limit))

    async def read_streams(self, streams: Sequence[str]) -> dict[str, list[LogRow]]:
        """See EventStore."""
        found: dict[str, list[LogRow]] = {stream: [] for stream in streams}
        for row in _rows(await self._fetch("read_streams", list(streams))):
            found[row.stream].append(row)
        return found

    async def read_log(self, after: int, *, filter: LogFilter | None = None, limit: int = 1000) -> Page:  # noqa: A002
        """See EventStore."""
        if filter is None or filter == LogFilter():
            rows = _rows(await self._fetch("read_log", after, limit))
            if rows and (rows[-1].position != after + len(rows) or rows[0].position != after + 1):
                raise _hole(after, rows)
            return Page(rows, rows[-1].position if rows else after)
        until = filter.until_position if filter.until_position is not None else (1 << 62)
        found = await self._fetch(
            "read_log_where", after, min(after + SCAN, until), list(filter.kinds) or None, _regex(filter.types),
            list(filter.streams) or None, filter.correlation, filter.until_time, limit)
        last, count = found[0]["last"], found[0]["count"]
        if last is not None and count != last - after:
            raise LogBroken(f"between positions {after} and {last} there are {count} rows, not {last - after}")
        rows = _rows([record for record in found if record["position"] is not None])
        full = len(rows) >= limit
        return Page(rows, rows[-1].position if full else (last if last is not None else after))

    async def head(self) -> int:
        """See EventStore."""
        head = int((await self._fetch("head"))[0][0])
        self._head = max(self._head, head)
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
            raise LogBroken(f"checkpoint {name} is of epoch {checkpoint.epoch}, and the log has another")
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

    # --- timers, leases, members ---

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
        await self._batcher.drain()
        for task in (self._told, self._listening):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._appender is not None:
            with contextlib.suppress(*AWAY):
                await self._appender.close(timeout=5)
        try:
            await asyncio.wait_for(self._pool.close(), 10)
        except TimeoutError:
            self._pool.terminate()


async def _become(connection: Any) -> None:
    await connection.execute("SET ROLE storebus_app")


async def _keep(connection: Any) -> None:
    """Nothing to reset: no session state is ever changed here, and a reset costs a round trip."""


def _away(error: BaseException) -> StoreAway:
    return StoreAway(f"Postgres does not answer: {type(error).__name__} {error}".strip(),
                     remedy="start it, or check STOREBUS_DATABASE_URL; it is tried again by itself")


def _hole(after: int, rows: list[LogRow]) -> LogBroken:
    missing = next(n for n, row in enumerate(rows, after + 1) if row.position != n)
    return LogBroken(f"position {missing} is missing from the log", remedy="storebus verify names what else is wrong")


def _rows(records: Sequence[asyncpg.Record]) -> list[LogRow]:
    return [LogRow(*record[:15]) if len(record) > 15 else LogRow(*record) for record in records]


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


def _refusal(entry: dict[str, Any]) -> Conflict:
    name = entry["name"]
    if entry["what"] == "claim":
        return ClaimTaken(f"{name} is held with {entry['value']}", stream=name, holder=entry["holder"])
    if entry["what"] == "counter":
        return CounterFull(f"{name} is {entry['actual']} of {entry['ceiling']}: the change does not fit", stream=name,
                           actual=entry["actual"])
    return Conflict(f"{name} is at version {entry['actual']}", stream=name, actual=entry["actual"])


def _effects(request: AppendRequest) -> bytes:
    """What the request does besides its rows, kept with its first row: `verify` folds it."""
    if not (request.take or request.release or request.counters):
        return b""
    return canonical({
        "take": [[c.name, c.value, c.holder] for c in request.take],
        "release": [[c.name, c.holder] for c in request.release],
        "counters": [[c.name, c.delta, c.ceiling, c.lift_ceiling] for c in request.counters]})


def _extra(batch: list[AppendRequest]) -> str | None:
    found = []
    for number, request in enumerate(batch):
        if request.take or request.release or request.counters or request.set_timers or request.clear_timers:
            found.append({
                "req": number, "take": [[c.name, c.value, c.holder] for c in request.take],
                "release": [[c.name, c.holder] for c in request.release],
                "counters": [[c.name, c.delta, c.ceiling, c.lift_ceiling] for c in request.counters],
                "timers": [[t.id, t.after_s, t.key, t.type, t.payload.hex()] for t in request.set_timers],
                "clear": list(request.clear_timers)})
    return json.dumps(found) if found else None


def _arguments(batch: list[AppendRequest]) -> list[Any]:
    """The batch as the arrays that es.append takes. Raises KeyError for a row whose stream is not among the expected."""
    requests: list[int] = []
    names: list[str] = []
    versions: list[int] = []
    rows: list[tuple[Any, ...]] = []
    for number, request in enumerate(batch):
        index = {}
        for name, version in request.expected.items():
            names.append(name)
            requests.append(number)
            versions.append(version)
            index[name] = len(names)
        effects = _effects(request)
        for row in request.rows:
            rows.append((index[row.stream], row.kind, row.type, row.type_version, row.id, row.key, row.address, row.tenant,
                         row.correlation, row.causation, row.payload, row.meta, effects))
            effects = b""
    columns: list[Any] = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(13)]
    return [requests, names, versions, *columns, _extra(batch)]
