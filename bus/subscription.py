"""Subscriptions: they read THE LOG, so nothing can be missed, whatever happens to a broker or a process.

Owns where a reader starts, catch-up and live in one loop, the group's lease and checkpoint, and when an event counts
as taken. Refuses to know what events mean: a type that is unknown here is handed on with `message` None.

The rules that keep it true: positions are dense, and every page says up to where it found them so; an event is taken
when the next one is asked for; a checkpoint never passes an event that was not taken; a reader whose log is not the
one it left (epoch, event id, head) stops and says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from pydantic import ValidationError

from bus.errors import Conflict, LogBroken, StoreAway
from bus.event_store import Checkpoint, EventStore, Lease, LogFilter, LogRow, Page
from bus.patterns import check
from schema import vocabulary
from schema.codec import FromTheFuture, UnknownType, decode, newest_version
from schema.failure import BadParameter
from schema.message import Message

REGISTRY = vocabulary()
"""Asked for while this is loaded, and not while somebody waits for an event."""
log = logging.getLogger(__name__)

Start = str | int | datetime
"""`beginning`, `now`, a position (the first one wanted) or a time with its zone."""
FACTS = frozenset({"event", "command"})
"""What a subscriber sees unless it asks otherwise: events. A `command` row is the event `job.submitted`."""
PAGE = 1000
SAVE_EVERY = 100
"""Events after which the checkpoint is saved: at most so many repeat after a crash."""
SAVE_AFTER_S = 1.0
POLL_S = 1.0
"""The log is looked at this often even when nobody wakes the reader."""
LONGEST_POSITION = 19
"""Digits of a position: it is a signed number of 64 bits."""
LEASE_S = 10.0
PATIENCE_S = 60.0
_UNREAD: Any = object()


_READERS: dict[tuple[str, int], Callable[[bytes], Message]] = {}
"""(wire name, version) -> its parser, of every message in its newest version: the common case, without the codec's questions."""
_read_of = 0
"""How many messages were registered when `_READERS` was made."""


def _make_readers() -> None:
    """A version that is not the newest is not among them: it is brought up by the codec."""
    global _read_of
    _READERS.clear()
    _READERS.update({(name, version): message.__pydantic_validator__.validate_json
                     for (name, version), message in REGISTRY.items() if newest_version(name) == version})
    _read_of = len(REGISTRY)


def _decoded(row: LogRow) -> Message | None:
    try:
        return decode(row.type, row.type_version, row.payload)
    except (UnknownType, FromTheFuture):
        return None


class SubscribedEvent:
    """One event as a subscriber sees it. `data` and `message` are read from the stored bytes when first asked for."""

    __slots__ = ("_data", "_message", "row")

    def __init__(self, row: LogRow) -> None:
        self.row = row
        self._data: Any = _UNREAD
        self._message: Any = _UNREAD

    def __repr__(self) -> str:
        """Without the body."""
        return f"<{self.position} {self.stream}@{self.version} {self.type}>"

    @property
    def position(self) -> int:
        """Place in the global order, dense."""
        return self.row.position

    @property
    def stream(self) -> str:
        """`<noun>-<id>`."""
        return self.row.stream

    @property
    def version(self) -> int:
        """Place in its stream, from 0."""
        return self.row.version

    @property
    def kind(self) -> str:
        """command, event or order."""
        return self.row.kind

    @property
    def type(self) -> str:
        """Wire name, e.g. `snapshot.taken`."""
        return self.row.type

    @property
    def type_version(self) -> int:
        """Version of the message's form."""
        return self.row.type_version

    @property
    def id(self) -> UUID:
        """The event's own id."""
        return self.row.id

    @property
    def time(self) -> datetime:
        """When it was recorded."""
        return self.row.recorded_at

    @property
    def correlation(self) -> UUID:
        """The job at the root of it."""
        return self.row.correlation

    @property
    def causation(self) -> UUID | None:
        """The message that led to it."""
        return self.row.causation

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.row.tenant

    @property
    def data(self) -> dict[str, Any]:
        """The body as JSON, as it was written."""
        if self._data is _UNREAD:
            self._data = json.loads(self.row.payload)
        data: dict[str, Any] = self._data
        return data

    @property
    def message(self) -> Message | None:
        """The typed message, brought to its newest version; None when its type or version is unknown here."""
        if self._message is _UNREAD:
            row = self.row
            if len(REGISTRY) != _read_of:
                _make_readers()
            try:
                self._message = _READERS[row.type, row.type_version](row.payload)
            except (KeyError, ValidationError):  # an older or unknown version, or a damaged body: the codec says which
                self._message = _decoded(row)
        message: Message | None = self._message
        return message

    def as_dict(self) -> dict[str, Any]:
        """For JSON output: envelope and data."""
        row = self.row
        return {
            "position": row.position, "stream": row.stream, "version": row.version, "kind": row.kind, "type": row.type,
            "id": str(row.id), "time": row.recorded_at.isoformat(), "correlation": str(row.correlation),
            "causation": str(row.causation) if row.causation else None, "tenant": row.tenant, "data": self.data,
        }


def parse_start(text: str) -> Start:
    """What a person writes after --from: beginning, now, a position, or an RFC 3339 time. Raises BadParameter."""
    if text in ("beginning", "now"):
        return text
    if text.isdecimal() and len(text) <= LONGEST_POSITION:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.astimezone()
    except (ValueError, OverflowError):  # a time that is none, or none that this host's zone has
        raise BadParameter(f"{text[:64]!r} is not beginning, now, a position or a time", field="from",
                           remedy="a time looks like 2026-01-31T12:00:00Z") from None


async def start_position(store: EventStore, start: Start) -> int:
    """The position after which a reader begins. A position given is the first one wanted."""
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise BadParameter("the time has no zone", field="from", remedy="use datetime.now(UTC) or the like")
        return await store.position_at(start)
    if isinstance(start, bool) or (isinstance(start, int) and start < 0):
        raise BadParameter(f"{start!r} is not a position", field="from", remedy="positions begin at 1")
    if isinstance(start, int):
        return max(start - 1, 0)
    if start == "beginning":
        return 0
    if start == "now":
        return await store.head()
    return await start_position(store, parse_start(start))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is read and how. `tenants` empty means all; `kinds` empty means all kinds of rows."""

    patterns: tuple[str, ...] = ("#",)
    start: Start = "beginning"
    group: str | None = None
    limit: int | None = None
    tenants: frozenset[str] = frozenset()
    kinds: frozenset[str] = FACTS
    streams: tuple[str, ...] = ()
    correlation: UUID | None = None
    page: int = PAGE
    lease_s: float = LEASE_S
    """How long a group stays taken after its reader was killed."""
    patience_s: float = PATIENCE_S
    """How long the database may be away, and how long to wait while another reader has the group."""

    def filter(self) -> LogFilter:
        """The part that the store does. Kinds alone are sorted out here: plain pages are the store's fastest."""
        types = () if "#" in self.patterns else self.patterns
        kinds = self.kinds if types or self.streams or self.correlation else frozenset[str]()
        return LogFilter(kinds=kinds, types=types, streams=self.streams, correlation=self.correlation)

    def wants(self, row: LogRow) -> bool:
        """The part that is done here."""
        return (not self.kinds or row.kind in self.kinds) and (not self.tenants or row.tenant in self.tenants)


class Subscription:
    """Iterate it: `async for event in subscription`. Or `async with` first: then it stands from that moment on.

    An event counts as taken when the next one is asked for (or `limit` is reached), so leaving the loop in the middle
    of an event brings that event again to the next reader of the group. Raises LogBroken when the log is not the one
    it was, Conflict when another reader has (or takes over) the group, StoreAway when the database stays away.
    """

    def __init__(self, store: EventStore, reading: Reading) -> None:
        for pattern in reading.patterns:
            check(pattern)
        if reading.limit is not None and reading.limit < 0:
            raise BadParameter("it must not be negative", field="limit")
        self.store, self.reading = store, reading
        self.position = -1
        """Everything up to here was taken, or was not asked for. -1 before it began."""
        self._epoch = 0
        self._saved = -1
        self._saved_at = 0.0
        self._unsaved = 0
        self._ids: tuple[int, UUID] | None = None
        self._lease: Lease | None = None
        self._renewer: asyncio.Task[None] | None = None
        self._lost: Conflict | None = None
        self._running = False

    @property
    def checkpoint_name(self) -> str:
        """Name of the group's checkpoint and lease."""
        return f"sub/{self.reading.group}"

    async def __aenter__(self) -> Self:
        """Find the place to begin now, not when the first event is asked for."""
        await self.begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        """Save and let go."""
        await self.aclose()

    async def begin(self) -> None:
        """Take the group and find the place to begin. Called by itself when iteration starts."""
        if self.position >= 0:
            return
        store, reading = self.store, self.reading
        self._epoch = await store.epoch()
        if reading.group is None:
            self.position = await start_position(store, reading.start)
            return
        await self._take_group()
        try:
            known = await store.load_checkpoint(self.checkpoint_name)
            if known is None:
                self.position = await start_position(store, reading.start)
            else:
                await self._check(known)
                self.position = self._saved = known.position
            self._saved_at = time.monotonic()
            if known is None:
                await self._save()  # a group that began at `now` stands there from its first moment on
        except BaseException:
            await self._let_go()
            raise

    async def _take_group(self) -> None:
        name, holder, lease_s = self.checkpoint_name, f"reader-{uuid4()}", self.reading.lease_s
        until = time.monotonic() + self.reading.patience_s
        while (lease := await self.store.acquire_lease(name, holder, ttl_s=lease_s)) is None:
            if time.monotonic() >= until:
                raise Conflict(f"another reader has the group {self.reading.group!r}", stream=name)
            await asyncio.sleep(0.25)
        self._lease = lease
        self._renewer = asyncio.create_task(self._renew(lease), name=f"lease {name}")

    async def _renew(self, lease: Lease) -> None:
        lease_s = self.reading.lease_s
        alive_until = time.monotonic() + lease_s
        while True:
            await asyncio.sleep(lease_s / 4)
            try:
                now = await self.store.acquire_lease(lease.name, lease.holder, ttl_s=lease_s)
            except StoreAway:
                if time.monotonic() < alive_until:
                    continue
                now = None
            if now is None or now.fence != lease.fence:
                self._lost = Conflict(f"another reader took over the group {self.reading.group!r}", stream=lease.name)
                return
            alive_until = time.monotonic() + lease_s

    async def _check(self, known: Checkpoint) -> None:
        if known.epoch != self._epoch:
            raise LogBroken(
                f"group {self.reading.group!r} stands at position {known.position} of epoch {known.epoch}, but this "
                f"log is epoch {self._epoch}: the database was restored", field="group",
                remedy="start a new group from a position or time that you know to be right")
        head = await self.store.head()
        if known.position > head:
            raise LogBroken(f"group {self.reading.group!r} stands at position {known.position}, "
                            f"but the log ends at {head}", field="group",
                            remedy="the database lost rows: `storebus verify`, then a new epoch")
        if known.event_id is not None and known.position:
            page = await self.store.read_log(known.position - 1, limit=1)
            if not page.rows or page.rows[0].id != known.event_id:
                raise LogBroken(f"at position {known.position} group {self.reading.group!r} took another event than "
                                "the one that is there now", field="group", remedy="`storebus verify` says more")

    def __aiter__(self) -> AsyncIterator[SubscribedEvent]:
        """The events. One iteration at a time."""
        return self.events()

    async def events(self) -> AsyncGenerator[SubscribedEvent, None]:
        """The events, in order, without end (or up to `limit`)."""
        if self._running:
            raise BadParameter("this subscription is being read already", field="subscription",
                               remedy="make one subscription for each reader")
        self._running = True
        try:
            await self.begin()
            left = self.reading.limit if self.reading.limit is not None else -1
            wants = self.reading.wants
            while left:
                page = await self._next_page()
                for row in page.rows:
                    if not wants(row):
                        continue
                    if self._lost is not None:
                        raise self._lost
                    yield SubscribedEvent(row)
                    self.position, self._ids = row.position, (row.position, row.id)
                    self._unsaved += 1
                    left -= 1
                    if self._unsaved >= SAVE_EVERY or time.monotonic() - self._saved_at >= SAVE_AFTER_S:
                        await self._save_soon()
                    if not left:
                        return
                self.position = max(self.position, page.scanned_to)
        finally:
            self._running = False
            await self.aclose()

    async def _next_page(self) -> Page:
        """Rows after `position`; waits until the log has some that match, or at least goes on."""
        wanted = self.reading.filter()
        away_since = 0.0
        while True:
            if self._lost is not None:
                raise self._lost
            try:
                if away_since:
                    await self._check_same_log()
                page = await self.store.read_log(self.position, filter=wanted, limit=self.reading.page)
                away_since = 0.0
                if page.rows or page.scanned_to > self.position:
                    return page
                if self._due:
                    await self._save()
                if not await self.store.wait(self.position, timeout_s=POLL_S):
                    await self._check_same_log()
            except StoreAway:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > self.reading.patience_s:
                    raise
                await asyncio.sleep(min(2.0, 0.1 + (time.monotonic() - away_since) / 4))

    async def _check_same_log(self) -> None:
        """While nothing comes: is it still the log that was read?"""
        epoch = await self.store.epoch()
        if epoch != self._epoch:
            raise LogBroken(f"the log is epoch {epoch} now; this reader began in epoch {self._epoch}",
                            remedy="the database was restored: subscribe again from a place that you know to be right")
        head = await self.store.head()
        if head < self.position:
            raise LogBroken(f"the log ends at {head}; this reader has seen position {self.position}",
                            remedy="the database lost rows: `storebus verify`")

    @property
    def _due(self) -> bool:
        return (self._lease is not None and self.position > self._saved
                and time.monotonic() - self._saved_at >= SAVE_AFTER_S)

    async def _save(self) -> None:
        """Save the checkpoint (of a group): everything up to `position` was taken or was not asked for."""
        self._saved_at, self._unsaved = time.monotonic(), 0
        if self._lease is None or self.position == self._saved:
            return
        event_id = self._ids[1] if self._ids is not None and self._ids[0] == self.position else None
        if event_id is None and self.position:
            page = await self.store.read_log(self.position - 1, limit=1)
            event_id = page.rows[0].id if page.rows else None
        at = Checkpoint(position=self.position, epoch=self._epoch, event_id=event_id)
        await self.store.save_checkpoint(self.checkpoint_name, at, fence=self._lease.fence)
        self._saved = at.position

    async def _save_soon(self) -> None:
        """Save if the database is there. If not, reading stops anyway and the checkpoint follows when it is back."""
        with contextlib.suppress(StoreAway):
            await self._save()

    async def aclose(self) -> None:
        """Save what was taken and give the group back. Safe to call again."""
        if self._lease is None:
            return
        try:
            if self._lost is None and self.position >= 0:
                await self._save()
        except (StoreAway, Conflict):
            # Not saved: the events since the last checkpoint come again, as they would after a crash.
            log.warning("the checkpoint of group %s was not saved at the end", self.reading.group)
        finally:
            await self._let_go()

    async def _let_go(self) -> None:
        lease, self._lease = self._lease, None
        renewer, self._renewer = self._renewer, None
        if renewer is not None:
            renewer.cancel()
            await asyncio.wait([renewer])
        if lease is not None and self._lost is None:
            with contextlib.suppress(StoreAway):
                await self.store.release_lease(lease)


def reading(pattern: str | Iterable[str] = "#", *, start: Start = "beginning", group: str | None = None,
            limit: int | None = None, tenants: Iterable[str] = (), kinds: Iterable[str] = FACTS) -> Reading:
    """A Reading from what a caller writes."""
    patterns = (pattern,) if isinstance(pattern, str) else tuple(pattern)
    return Reading(patterns=patterns or ("#",), start=start, group=group, limit=limit, tenants=frozenset(tenants),
                   kinds=frozenset(kinds))


__all__ = [
    "FACTS", "SAVE_AFTER_S", "SAVE_EVERY", "Reading", "Start", "SubscribedEvent", "Subscription", "parse_start",
    "reading", "start_position",
]
