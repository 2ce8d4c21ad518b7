"""Group commit: whoever waits when the previous commit ends goes together in the next. No artificial delay.

Owns the queue of appends and the rule that no two requests in flight share a stream. A lone append goes at once; under
load the batch grows with the time a commit takes. A second lane opens only when many wait: it prepares its batch while the
first one is committed; with few waiting it would only halve the batches. Refuses to know SQL: it is given a function that
commits a batch on a lane.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable

from bus.errors import AppendUnknown, StoreAway
from bus.event_store import Appended, AppendRequest

Outcome = Appended | Exception
Commit = Callable[[int, list[AppendRequest]], Awaitable[list[Outcome]]]
"""Commits a batch on the lane of this number: one outcome for each request, in their order."""
Entry = tuple[AppendRequest, asyncio.Future[Appended]]

LANES = 2
MAX_REQUESTS = 256
MAX_BYTES = 1 << 20
MANY = 64
"""So many must wait for the second lane to open: below, one commit for all of them costs less than two."""
MAX_WAITING = 100_000
"""Appends waiting at once; more are refused rather than kept."""


class AppendBatcher:
    """One commit at a time on each lane; many callers."""

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._waiting: deque[Entry] = deque()
        self._lanes: list[asyncio.Task[None] | None] = [None] * LANES
        self._flying: set[str] = set()

    async def append(self, request: AppendRequest) -> Appended:
        """The request's outcome. A caller that is cancelled leaves its request in the batch: its outcome is unknown to it."""
        if len(self._waiting) >= MAX_WAITING:
            raise StoreAway(f"{MAX_WAITING} appends are waiting already", remedy="it is tried again by itself")
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._open()
        return await future

    def _open(self) -> None:
        """Start the lanes that have something to do."""
        if self._lanes[0] is None:
            if self._waiting:
                self._lanes[0] = asyncio.create_task(self._lead(0), name="append-0")
        elif self._lanes[1] is None and len(self._waiting) >= MANY:
            self._lanes[1] = asyncio.create_task(self._lead(1), name="append-1")

    async def _lead(self, lane: int) -> None:
        batch: list[Entry] = []
        try:
            await asyncio.sleep(0)  # whoever appends in this turn of the loop goes together
            while batch := self._take(alone=self._lanes[1 - lane] is None):
                self._open()
                await self._send(lane, batch)
                if lane and len(self._waiting) < MANY:
                    break
        finally:
            self._lanes[lane] = None
            if batch:  # what waited for the streams of this lane may go now; an empty batch means: they are not free yet
                self._open()

    async def _send(self, lane: int, batch: list[Entry]) -> None:
        try:
            outcomes = await self._commit(lane, [request for request, _ in batch])
        except Exception as error:
            outcomes = [error] * len(batch)
        except asyncio.CancelledError:
            _settle(batch, [AppendUnknown("the append was stopped: it may have been committed")] * len(batch))
            raise
        finally:
            for request, _ in batch:
                self._flying.difference_update(request.expected)
        _settle(batch, outcomes)

    def _take(self, *, alone: bool) -> list[Entry]:
        """The next batch: in the order of arrival, but what shares a stream with a request before it waits for that one."""
        most = max(MANY, (len(self._waiting) + 1) // 2) if alone else MAX_REQUESTS
        batch: list[Entry] = []
        later: list[Entry] = []
        taken = set(self._flying)
        size = 0
        while self._waiting and len(batch) < min(most, MAX_REQUESTS) and size < MAX_BYTES and len(later) < MAX_REQUESTS:
            entry = self._waiting.popleft()
            request, future = entry
            if future.done():
                continue  # its caller was cancelled: nobody waits and nothing was sent
            if taken.isdisjoint(request.expected):
                batch.append(entry)
                size += sum(len(row.payload) for row in request.rows)
            else:
                later.append(entry)
            taken.update(request.expected)  # what comes after it on these streams waits behind it
        self._waiting.extendleft(reversed(later))
        for request, _ in batch:
            self._flying.update(request.expected)
        return batch

    async def drain(self) -> None:
        """Wait until nothing is waiting."""
        while running := [task for task in self._lanes if task is not None]:
            await asyncio.wait(running)

    async def stop(self) -> None:
        """End at once: what is in flight is unknown, what was not sent was not done."""
        running = [task for task in self._lanes if task is not None]
        waiting, self._waiting = list(self._waiting), deque()
        _settle(waiting, [StoreAway("the event store is closed")] * len(waiting))
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _settle(batch: list[Entry], outcomes: list[Outcome]) -> None:
    for (_, future), outcome in zip(batch, outcomes, strict=True):
        if future.done():
            continue  # its caller was cancelled
        if isinstance(outcome, Appended):
            future.set_result(outcome)
        else:
            # Each caller raises its own: one exception raised in many tasks would gather all their tracebacks.
            future.set_exception(copy.copy(outcome).with_traceback(None))
