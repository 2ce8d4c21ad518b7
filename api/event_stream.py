"""The event stream: GET `/events`, what happens as it happens, as server-sent events that a reader resumes by position.

Owns the form of the stream, its filter, and that a reader is told only what it may see: each row is asked about with the function
that lists ask. Refuses to keep anything for a reader: it is read from the log, so a slow one costs a page of rows and is let go.
`id` is the position in the log up to which the reader has been told everything that it asked for.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from api import registry
from api.access import Principal, Use, authorize, resource_of_row
from api.flood import TooMany
from bus.event_store import EventStore, LogFilter, LogRow
from bus.patterns import check
from bus.subscription import FACTS, SubscribedEvent, parse_start, start_position
from schema.failure import BadParameter, Failed

PAGE = 200
POLL_S = 1.0
BEAT_S = 15.0
"""A comment at least so often: proxies and clients see that the stream lives. The reader's rights are looked at again then."""
SLOW_S = 10.0
"""A reader that takes longer for one piece is let go."""
STREAMS, OF_ONE = 100, 8
"""Open streams of a process, and of one user."""
PATTERNS = 20
PARAMETERS = frozenset({"types", "id", "from"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a reader asked for."""

    after: int
    """Position of the last row it has."""
    types: tuple[str, ...]
    thing: str
    """Id of the thing that it is about; empty: any."""

    def matches(self, row: LogRow) -> bool:
        """Whether the row is of the thing: in its stream, or of what belongs to it (its jobs, a volume's snapshots)."""
        return not self.thing or self.thing in (row.stream.partition("-")[2], row.key.partition("-")[2])


async def wanted(store: EventStore, parameters: Mapping[str, str], last: str) -> Wanted:
    """Read the parameters `types`, `id` and `from`; `last`: the header Last-Event-ID. Raises BadParameter."""
    given = {name.lower(): value for name, value in parameters.items()}
    types = tuple(part for part in given.get("types", "").split(",") if part)
    if len(types) > PATTERNS:
        raise BadParameter(f"{len(types)} patterns", field="types", remedy=f"at most {PATTERNS} are allowed")
    for each in types:
        check(each)
    thing = given.get("id", "")
    if len(thing) > 64:
        raise BadParameter("not an id", field="id")
    head = await store.head()
    if last:
        if not last.isascii() or not last.isdecimal() or len(last) > 19:
            raise BadParameter("not a position", field="Last-Event-ID", remedy="send the id of the last event that was read")
        after = int(last)
    else:
        after = await start_position(store, parse_start(given.get("from") or "now"))
    if after > head:
        raise BadParameter(f"the log ends at {head}", field="Last-Event-ID" if last else "from",
                           remedy="the log was restored, or this is another one: begin with from=beginning")
    return Wanted(after, types, thing)


class EventStreams:
    """The open streams of one process."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._open: dict[str, int] = {}
        self._stopping = False

    def close(self) -> None:
        """Every stream ends soon, telling why."""
        self._stopping = True

    async def read(self, asked: Wanted, principal: Principal,
                   again: Callable[[], Awaitable[Principal]]) -> AsyncIterator[bytes]:
        """The stream. `again` gives the principal as it is now. Raises TooMany before it begins."""
        name = str(principal.user_id)
        if sum(self._open.values()) >= STREAMS or self._open.get(name, 0) >= OF_ONE:
            raise TooMany("too many event streams are open", remedy="close one, or narrow types and read them in one")
        self._open[name] = self._open.get(name, 0) + 1
        return self._told(asked, principal, again, name)

    async def _told(self, asked: Wanted, principal: Principal, again: Callable[[], Awaitable[Principal]],
                    name: str) -> AsyncIterator[bytes]:
        try:
            async for piece in self._pieces(asked, principal, again):
                began = time.monotonic()
                yield piece
                if time.monotonic() - began > SLOW_S:
                    yield _end("the reader is too slow: go on with the last id")
                    return
        finally:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]

    async def _pieces(self, asked: Wanted, principal: Principal,
                      again: Callable[[], Awaitable[Principal]]) -> AsyncIterator[bytes]:
        at, beat = asked.after, time.monotonic()
        filtered = LogFilter(kinds=FACTS, types=asked.types)
        yield f"retry: 2000\nid: {at}\n\n".encode()
        while not self._stopping:
            try:
                if time.monotonic() - beat > BEAT_S:
                    principal, beat = await again(), time.monotonic()
                    yield f": {at}\nid: {at}\n\n".encode()
                page = await self._store.read_log(at, filter=filtered, limit=PAGE)
            except Failed as failed:
                yield _end(failed.failure.text)
                return
            for row in page.rows:
                if asked.matches(row) and may_see(principal, row):
                    yield _event(row)
            if page.scanned_to == at:
                await self._store.wait(at, timeout_s=POLL_S)
            at = page.scanned_to
            await asyncio.sleep(0)
        yield _end("the server stops: go on with the last id")


def may_see(principal: Principal, row: LogRow) -> bool:
    """Whether the caller may know of a row of the log: the question that lists ask."""
    return authorize(principal, registry.BY_NAME["listevents"], resource_of_row(json.loads(row.meta)), Use.SEE)


def _event(row: LogRow) -> bytes:
    body: dict[str, Any] = SubscribedEvent(row).as_dict()
    return f"id: {row.position}\nevent: {row.type}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


def _end(reason: str) -> bytes:
    return f"event: end\ndata: {json.dumps({'reason': reason})}\n\n".encode()


__all__ = ["EventStreams", "Wanted", "may_see", "wanted"]
