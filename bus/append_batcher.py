"""Group commit: whoever waits when the previous commit ends goes together in the next. No artificial delay.

Owns the queue of appends and the rule that no two requests of a batch share a stream. A lone append goes at once; under
load the batch grows with the time a commit takes. Refuses to know SQL: it is given a function that commits a batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from bus.event_store import Appended, AppendRequest

Outcome = Appended | Exception
Commit = Callable[[list[AppendRequest]], Awaitable[list[Outcome]]]

MAX_REQUESTS = 256
MAX_BYTES = 1 << 20
MAX_WAITING = 100_000
"""Appends waiting at once; more are refused rather than kept."""


class AppendBatcher:
    """One commit at a time; many callers."""

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._waiting: deque[tuple[AppendRequest, asyncio.Future[Appended]]] = deque()
        self._leader: asyncio.Task[None] | None = None

    async def append(self, request: AppendRequest) -> Appended:
        """The request's outcome. A caller that is cancelled leaves its request in the batch: its outcome is unknown to it."""
        if len(self._waiting) >= MAX_WAITING:
            raise OverflowError(f"{MAX_WAITING} appends are waiting already")
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._leader is None or self._leader.done():
            self._leader = asyncio.create_task(self._lead(), name="append")
        return await future

    async def _lead(self) -> None:
        await asyncio.sleep(0)  # whoever appends in this turn of the loop goes together
        while self._waiting:
            batch = self._take()
            try:
                outcomes = await self._commit([request for request, _ in batch])
            except Exception as error:
                outcomes = [error] * len(batch)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():
                    continue  # its caller was cancelled
                if isinstance(outcome, Appended):
                    future.set_result(outcome)
                else:
                    future.set_exception(outcome)

    def _take(self) -> list[tuple[AppendRequest, asyncio.Future[Appended]]]:
        batch: list[tuple[AppendRequest, asyncio.Future[Appended]]] = []
        later: list[tuple[AppendRequest, asyncio.Future[Appended]]] = []
        streams: set[str] = set()
        size = 0
        while self._waiting and len(batch) < MAX_REQUESTS and size < MAX_BYTES and len(later) < MAX_REQUESTS:
            entry = self._waiting.popleft()
            request, future = entry
            if future.cancelled():
                continue  # nobody waits and nothing was sent
            if streams.isdisjoint(request.expected):
                streams.update(request.expected)
                batch.append(entry)
                size += sum(len(row.payload) for row in request.rows)
            else:
                streams.update(request.expected)  # what comes after it on these streams waits behind it
                later.append(entry)
        self._waiting.extendleft(reversed(later))
        return batch

    async def drain(self) -> None:
        """Wait until nothing is waiting."""
        while self._leader is not None and not self._leader.done():
            await asyncio.wait([self._leader])
