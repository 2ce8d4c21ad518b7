"""Appending on Postgres: a batch as the arrays of `es.append`, its answer as outcomes, the connections that carry it.

Owns the appending connections, one a lane, made when they are first needed and again after they broke. Rule: what is
known not to have been committed says so (StoreAway, Conflict, a refusal); everything else is AppendUnknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any

import asyncpg

from bus.append_batcher import LANES, AppendBatcher, Outcome
from bus.errors import AppendUnknown, ClaimTaken, Conflict, CounterFull, StoreAway
from bus.event_store import Appended, AppendRequest
from bus.event_store_connection import AWAY, away, connect
from bus.sql import query
from schema.codec import canonical
from schema.failure import BadParameter, Failed

log = logging.getLogger(__name__)

TRIES = 5
ANSWER_S = 60.0
CLOSE_S = 30.0


class Appender:
    """Group commit onto one database. `grown(position)` is called after each commit."""

    def __init__(self, dsn: str, grown: Callable[[int], None]) -> None:
        self._dsn, self._grown = dsn, grown
        self._lanes: list[asyncpg.Connection[asyncpg.Record] | None] = [None] * LANES
        self._batcher = AppendBatcher(self._commit)

    async def append(self, request: AppendRequest) -> Appended:
        """See EventStore."""
        request.check()
        return await self._batcher.append(request)

    async def _commit(self, lane: int, batch: list[AppendRequest]) -> list[Outcome]:
        try:
            return await self._once(lane, batch)
        except asyncpg.PostgresError as error:
            # The database answered, and took none of it. Alone each shows whether it was the one.
            if len(batch) > 1:
                return await self._one_by_one(lane, batch)
            log.error("an append was refused by the database: %s", type(error).__name__, extra={"action": "append_refused"})
            raise BadParameter(f"the database cannot keep it ({type(error).__name__})", field="append") from None

    async def _one_by_one(self, lane: int, batch: list[AppendRequest]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for request in batch:
            try:
                outcomes += await self._commit(lane, [request])
            except (StoreAway, AppendUnknown) as error:
                outcomes.append(error)
                rest = len(batch) - len(outcomes)
                return outcomes + [StoreAway("Postgres went away before the append was sent") for _ in range(rest)]
            except Failed as error:
                outcomes.append(error)
        return outcomes

    async def _once(self, lane: int, batch: list[AppendRequest]) -> list[Outcome]:
        arguments = _arguments(batch)
        for _ in range(TRIES):
            connection = await self._connected(lane)
            try:
                found = await connection.fetchrow(query("append"), *arguments, timeout=ANSWER_S)
                break
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                continue  # rolled back whole: nothing was written
            except AWAY as error:
                self._drop(lane)
                raise AppendUnknown(f"the connection broke during an append: {type(error).__name__} {error}") from None
            except asyncpg.PostgresError as error:
                if connection.is_closed():  # its last words were not about this statement alone
                    raise AppendUnknown(f"the connection ended during an append: {type(error).__name__}") from None
                raise
            except BaseException:
                self._drop(lane)  # whatever it was, the connection's state is not known any more
                raise
        else:
            raise Conflict(f"the append met deadlocks {TRIES} times in a row")
        assert found is not None
        outcomes, head = _outcomes(batch, int(found["base"]), json.loads(found["failed"]))
        if head > found["base"]:
            self._grown(head)
        return outcomes

    async def _connected(self, lane: int) -> asyncpg.Connection[asyncpg.Record]:
        connection = self._lanes[lane]
        if connection is None or connection.is_closed():
            self._drop(lane)
            try:
                connection = self._lanes[lane] = await connect(self._dsn)
            except (*AWAY, asyncpg.PostgresError) as error:
                raise away(error) from None
        return connection

    def _drop(self, lane: int) -> None:
        connection, self._lanes[lane] = self._lanes[lane], None
        if connection is not None:
            connection.terminate()

    async def aclose(self) -> None:
        """Finish what waits, within bounds, and let go."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._batcher.drain(), CLOSE_S)
        await self._batcher.stop()
        for lane, connection in enumerate(self._lanes):
            if connection is not None:
                with contextlib.suppress(*AWAY):
                    await connection.close(timeout=5)
                self._drop(lane)


def _outcomes(batch: list[AppendRequest], base: int, failures: list[dict[str, Any]]) -> tuple[list[Outcome], int]:
    """One outcome for each request, and the head after them."""
    failed = {entry["req"]: entry for entry in failures}
    outcomes: list[Outcome] = []
    for number, request in enumerate(batch):
        if number in failed:
            outcomes.append(_refusal(failed[number]))
        else:
            base += len(request.rows)
            outcomes.append(Appended(base))
    return outcomes, base


def _refusal(entry: dict[str, Any]) -> Conflict:
    name = entry["name"]
    if entry["what"] == "claim":
        return ClaimTaken(f"{name} is held with {entry['value']}", stream=name, holder=entry["holder"])
    if entry["what"] == "counter":
        return CounterFull(f"{name} is {entry['actual']} of {entry['ceiling']}: the change does not fit", stream=name,
                           actual=entry["actual"])
    return Conflict(f"{name} is at version {entry['actual']}", stream=name, actual=entry["actual"])


def _done(request: AppendRequest) -> dict[str, Any]:
    """Claims and counters as es.append takes them and as `verify` folds them."""
    return {
        "take": [[c.name, c.value, c.holder] for c in request.take],
        "release": [[c.name, c.holder] for c in request.release],
        "counters": [[c.name, c.delta, c.ceiling, c.lift_ceiling] for c in request.counters]}


def _extra(batch: list[AppendRequest]) -> str | None:
    found = []
    for number, request in enumerate(batch):
        if request.folded or request.set_timers or request.clear_timers:
            found.append({
                "req": number, **_done(request), "clear": list(request.clear_timers),
                "timers": [[t.id, t.after_s, t.key, t.type, t.payload.hex()] for t in request.set_timers]})
    return json.dumps(found) if found else None


def _arguments(batch: list[AppendRequest]) -> list[Any]:
    """The batch as the arrays that es.append takes. The effects of a request lie with its first row."""
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
        effects = canonical(_done(request)) if request.folded else b""
        for row in request.rows:
            rows.append((index[row.stream], row.kind, row.type, row.type_version, row.id, row.key, row.address, row.tenant,
                         row.correlation, row.causation, row.payload, row.meta, effects))
            effects = b""
    columns: list[Any] = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(13)]
    return [requests, names, versions, *columns, _extra(batch)]
