"""Detect: wait for one of some subjects, without a lost wake-up.

Owns the order of things that makes it true: arm first (remember the log's head), then look at the durable state, then
wait on the log from where it was armed. What happens between arming and looking is seen twice, never missed.
Refuses to rely on a message: the wait reads the log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self
from uuid import UUID

from bus.errors import CallTimedOut
from bus.event_store import EventStore, LogFilter
from bus.patterns import check
from bus.submission import job_stream
from bus.subscription import FACTS, SubscribedEvent

POLL_S = 1.0

Recheck = Callable[[], Awaitable[bool]]
"""True when what is waited for is already so, by the durable state."""


class Detector:
    """Armed by `async with`; `wait` then finds the first event of its subjects.

    With a correlation (a job's id) the job's whole past counts: an event before the arming is found as well.
    """

    def __init__(self, store: EventStore, subjects: str | Iterable[str], *, correlation: UUID | None = None) -> None:
        patterns = (subjects,) if isinstance(subjects, str) else tuple(subjects)
        for pattern in patterns:
            check(pattern)
        types = () if not patterns or "#" in patterns else patterns
        self._store, self._correlation = store, correlation
        self._filter = LogFilter(kinds=FACTS, types=types, correlation=correlation)
        self.position = -1
        """Looked at up to here; -1 before it is armed."""

    async def __aenter__(self) -> Self:
        """Arm."""
        await self.arm()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        """Nothing is held."""

    async def arm(self) -> None:
        """From here on nothing is missed."""
        head = await self._store.head()
        if self._correlation is not None:
            # All of a job comes after its first row; a job without one has no past (its rows come after the head).
            first = await self._store.read_stream(job_stream(self._correlation), limit=1)
            head = min(head, first[0].position - 1) if first else head
        self.position = head

    async def wait(self, *, timeout_s: float, recheck: Recheck | None = None) -> SubscribedEvent | None:
        """The next event of the subjects; None when `recheck` says that it is already so. Raises CallTimedOut."""
        if self.position < 0:
            await self.arm()
        if recheck is not None and await recheck():
            return None
        deadline = time.monotonic() + timeout_s
        while True:
            page = await self._store.read_log(self.position, filter=self._filter, limit=1)
            if page.rows:
                self.position = page.rows[0].position
                return SubscribedEvent(page.rows[0])
            if page.scanned_to > self.position:
                self.position = page.scanned_to
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                raise CallTimedOut(f"none of {', '.join(self._filter.types) or '#'} happened within {timeout_s:g} s",
                                   field="timeout_s")
            if not await self._store.wait(self.position, timeout_s=min(POLL_S, left)):
                if recheck is not None and await recheck():
                    return None
                await asyncio.sleep(0)


async def detect(store: EventStore, subjects: str | Iterable[str], *, correlation: UUID | None = None,
                 recheck: Recheck | None = None, timeout_s: float = 30.0) -> SubscribedEvent | None:
    """Arm, look, wait: see Detector."""
    async with Detector(store, subjects, correlation=correlation) as detector:
        return await detector.wait(timeout_s=timeout_s, recheck=recheck)


__all__ = ["Detector", "Recheck", "detect"]
