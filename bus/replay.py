"""Replay: a part of the log again, in order, to a callable, a queue, an iteration or a projection's rebuild.

Owns the selection, the exact count of what would be sent, pace and pause, and the fast path (pages of raw rows, the
next page being read while this one is used; constant memory, no long transaction). Refuses to append anything.
What it publishes is marked `replay`, so that nobody repeats a side effect.

The end is fixed when a replay begins: a replay ends even while the log grows, and a dry run counts the same rows.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from bus.errors import BrokerAway, PublishUnknown
from bus.event_store import EventStore, LogFilter, LogRow, Page
from bus.patterns import check
from bus.relay import envelope_of
from bus.subscription import FACTS, Start, SubscribedEvent, start_position
from bus.transport import Transport, WireMessage, queue
from schema.failure import BadParameter, Unavailable

PAGE = 2000
"""Rows of a page: at 256 KiB each they still fit, and at 1 KiB a page costs a few milliseconds."""
BREATHE = 100
"""Events after which the loop has a turn: the next page comes in meanwhile, and nobody else waits for a whole page."""
WINDOW = 256
"""Messages that wait for their confirms at once."""
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rows. Empty fields select everything; `kinds` are facts unless said otherwise."""

    start: Start = "beginning"
    """A position is the first one wanted, a time likewise."""
    end: int | datetime | None = None
    """A position is the last one wanted; of a time, what was recorded before it; None: the head when it begins."""
    types: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    correlation: UUID | None = None
    tenants: frozenset[str] = frozenset()
    kinds: frozenset[str] = FACTS


def selection(types: str | Iterable[str] = (), *, start: Start = "beginning", end: Start | None = None,
              streams: str | Iterable[str] = (), correlation: UUID | None = None, tenants: Iterable[str] = (),
              kinds: Iterable[str] = FACTS) -> Selection:
    """A Selection from what a caller writes; `end` may also be `now`. Raises BadParameter."""
    patterns = (types,) if isinstance(types, str) else tuple(types)
    if isinstance(end, str) and end != "now":
        raise BadParameter(f"{end[:64]!r} is not now, a position or a time", field="to")
    until = None if isinstance(end, str) else end
    if isinstance(until, datetime) and until.tzinfo is None:
        raise BadParameter("the time has no zone", field="to", remedy="use datetime.now(UTC) or the like")
    return Selection(
        start=start, end=until, types=tuple(check(each) for each in patterns if each != "#"),
        streams=(streams,) if isinstance(streams, str) else tuple(streams), correlation=correlation,
        tenants=frozenset(tenants), kinds=frozenset(kinds))


@dataclass(frozen=True, slots=True)
class Span:
    """The positions a replay walks: after `after`, up to and with `until`."""

    after: int
    until: int


@dataclass(slots=True)
class Outcome:
    """What a replay did, or (a dry run) would do."""

    span: Span
    count: int = 0
    by_type: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    """Of the bodies."""
    last_position: int = 0
    """The last one delivered; begin after it to go on."""
    stopped: bool = False

    def add(self, rows: list[LogRow]) -> None:
        """Rows that were delivered."""
        if rows:
            self.count += len(rows)
            self.by_type.update([row.type for row in rows])
            self.bytes += sum([len(row.payload) for row in rows])
            self.last_position = rows[-1].position


async def span(store: EventStore, chosen: Selection) -> Span:
    """The positions that the selection means at this moment."""
    after, until = await start_position(store, chosen.start), await store.head()
    if isinstance(chosen.end, datetime):
        until = min(until, await store.position_at(chosen.end))
    elif chosen.end is not None:
        until = min(until, chosen.end)
    return Span(after, until)


async def replay_raw(store: EventStore, chosen: Selection, *, within: Span | None = None,
                     page: int = PAGE) -> AsyncGenerator[list[LogRow], None]:
    """Pages of rows, as stored: the fast path. Raises LogBroken where a position is missing."""
    within = within or await span(store, chosen)
    tenants, kinds = chosen.tenants, chosen.kinds
    wanted: LogFilter | None = None
    if chosen.types or chosen.streams or chosen.correlation:
        wanted = LogFilter(kinds=kinds, types=chosen.types, streams=chosen.streams, correlation=chosen.correlation,
                           until_position=within.until)
        kinds = frozenset()  # else plain pages, which are the store's fastest, and kinds are sorted out here
    ahead: asyncio.Task[Page] | None = None
    at = within.after
    try:
        while at < within.until:
            got = await (ahead or _read(store, at, wanted, page, within.until))
            ahead = None
            before, at = at, got.scanned_to
            if at <= before:
                return
            if at < within.until:
                ahead = asyncio.create_task(_read(store, at, wanted, page, within.until), name="replay, next page")
                await asyncio.sleep(0)  # it is asked for before this page is used, even by a caller that never waits
            rows = got.rows
            if kinds:
                rows = [row for row in rows if row.kind in kinds]
            if tenants:
                rows = [row for row in rows if row.tenant in tenants]
            if rows:
                yield rows
    finally:
        if ahead is not None:
            ahead.cancel()
            await asyncio.wait([ahead])
            if not ahead.cancelled():
                ahead.exception()  # nobody asks for this page any more, nor for why it failed


async def _read(store: EventStore, after: int, wanted: LogFilter | None, page: int, until: int) -> Page:
    limit = page if wanted is not None else min(page, until - after)  # plain pages are dense
    return await store.read_log(after, filter=wanted, limit=limit)


class Replay:
    """One replay. Iterate it for events, or send it somewhere with `to`, `to_queue`; `count` is the dry run.

    `pause`, `resume` and `stop` may be called from any task of the loop; `stop` ends after the row in hand.
    """

    def __init__(self, store: EventStore, chosen: Selection, *, transport: Transport | None = None,
                 rate: float | None = None, page: int = PAGE) -> None:
        if rate is not None and rate <= 0:
            raise BadParameter("it must be more than 0 events a second", field="rate")
        self.store, self.chosen, self.transport, self.rate = store, chosen, transport, rate
        self.page = page if rate is None else max(1, min(page, int(rate)))
        self._go = asyncio.Event()
        self._go.set()
        self._stop = False
        self._due = 0.0

    def pause(self) -> None:
        """Hold after the row or page in hand, until `resume`."""
        self._go.clear()

    def resume(self) -> None:
        """Go on."""
        self._go.set()

    def stop(self) -> None:
        """End early."""
        self._stop = True
        self._go.set()

    async def count(self) -> Outcome:
        """The dry run: how many rows of each type would be delivered, by reading exactly those."""
        outcome = Outcome(await span(self.store, self.chosen))
        async for rows in replay_raw(self.store, self.chosen, within=outcome.span, page=self.page):
            if self._stop:
                outcome.stopped = True
                break
            outcome.add(rows)
        return outcome

    async def _turn(self, rows: int) -> bool:
        """Wait until `rows` more may go (pace, pause). False when stopped."""
        if not self._go.is_set():
            await self._go.wait()
            self._due = 0.0
        if self._stop:
            return False
        if self.rate is not None:
            now = time.monotonic()
            self._due = max(self._due, now) + rows / self.rate
            if (delay := self._due - rows / self.rate - now) > 0:
                await asyncio.sleep(delay)
        return not self._stop

    def __aiter__(self) -> AsyncIterator[SubscribedEvent]:
        """The events, in order; it ends at the end of the span."""
        return self.events()

    async def events(self) -> AsyncGenerator[SubscribedEvent, None]:
        """The events, one at a time."""
        pages = replay_raw(self.store, self.chosen, page=self.page)
        try:
            paced, going = self.rate is not None, self._go.is_set
            async for rows in pages:
                for start in range(0, len(rows), BREATHE):
                    await asyncio.sleep(0)
                    for row in rows[start:start + BREATHE]:
                        if (paced or self._stop or not going()) and not await self._turn(1):
                            return
                        yield SubscribedEvent(row)
        finally:
            await pages.aclose()

    async def to(self, target: Callable[[SubscribedEvent], Awaitable[None] | None]) -> Outcome:
        """Call `target` (a function or a coroutine function) with each event; what it raises ends the replay."""
        async def each(rows: list[LogRow]) -> None:
            for row in rows:
                answer = target(SubscribedEvent(row))
                if inspect.isawaitable(answer):
                    await answer

        return await self.to_pages(each)

    async def to_pages(self, target: Callable[[list[LogRow]], Awaitable[None]]) -> Outcome:
        """Call `target` with page after page of raw rows: how a projection is rebuilt."""
        outcome = Outcome(await span(self.store, self.chosen))
        pages = replay_raw(self.store, self.chosen, within=outcome.span, page=self.page)
        try:
            async for rows in pages:
                if not await self._turn(len(rows)):
                    outcome.stopped = True
                    break
                await target(rows)
                outcome.add(rows)
        finally:
            await pages.aclose()
        return outcome

    async def to_queue(self, name: str) -> Outcome:
        """Publish each row to the durable queue `name`, in order, marked as replayed, each confirmed.

        A broken connection is waited for (bounded), and the replay goes on with the first unconfirmed message, so
        that order is kept; those that had arrived unconfirmed arrive twice, with the same ids. Raises BrokerAway.
        """
        transport = self.transport
        if transport is None:
            raise Unavailable("this installation has no broker that other programs can read from", field="to-queue",
                              remedy="set STOREBUS_AMQP_URL, or replay to stdout")
        target, alone = queue(name), True

        async def send(rows: list[LogRow]) -> None:
            nonlocal alone
            first = 0
            while first < len(rows):
                # The very first one makes the queue; those sent beside it might overtake it.
                size, alone = (1 if alone else WINDOW), False
                await _publish_in_order(transport, target, [wire(row) for row in rows[first:first + size]])
                first += size

        return await self.to_pages(send)


async def _publish_in_order(transport: Transport, target: Any, messages: list[WireMessage]) -> None:
    """One window: all in flight at once; after a failure again from the lowest unconfirmed one on."""
    deadline = time.monotonic() + PATIENCE_S
    pause = 0.1
    while messages:
        answers = await asyncio.gather(*(transport.publish(target, each) for each in messages), return_exceptions=True)
        failed = next((at for at, answer in enumerate(answers) if answer is not None), None)
        if failed is None:
            return
        error = answers[failed]
        assert isinstance(error, BaseException)
        if not isinstance(error, (BrokerAway, PublishUnknown)) or time.monotonic() > deadline:
            raise error
        if failed:
            deadline = time.monotonic() + PATIENCE_S  # it moves
        messages = messages[failed:]
        await asyncio.sleep(pause)
        pause = min(2.0, pause * 2)


def wire(row: LogRow) -> WireMessage:
    """A log row as it is published by a replay: as the relay sends it, and marked."""
    return WireMessage(headers=envelope_of(row, replay=True).headers(), body=row.payload)


__all__ = ["PAGE", "WINDOW", "Outcome", "Replay", "Selection", "Span", "replay_raw", "selection", "span", "wire"]
