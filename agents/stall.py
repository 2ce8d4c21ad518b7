"""Stalls: a transfer of which nothing moves any more is ended; one that moves, however slowly, never is.

Owns the only clock over a whole transfer: it starts again with every byte that either side took. Single requests keep their own
bounds. Only stages that move bytes are watched: to scan, to complete or to flush takes as long as it takes. Refuses to know
what moves: stores and motions say `moved()`, to the transfer that they belong to, wherever below it they run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

from schema.failure import WorkRetryable

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""As a motion tells it: (stage, bytes acknowledged by the destination, total or 0)."""

SECONDS = 60.0
EVERY_S = 0.05
"""Seconds for which a thread does not tell again that bytes moved, and for which the clock is not started again."""
CLEAN_S = 5.0
"""Seconds that cleaning up may take after a stall: what did not move before hardly answers now."""
MOVING = {"download": "the download", "write": "the transfer into the image store",
          "read": "the transfer out of the image store", "copy": "the copy between image stores"}
"""Stages that move bytes, and what an operator calls what does so."""


class Stalled(WorkRetryable):
    """Nothing moved for too long."""


class _Watch:
    """Of one transfer."""

    def __init__(self, progress: Progress, limit: asyncio.Timeout, seconds: float) -> None:
        self._progress, self._limit, self.seconds = progress, limit, seconds
        self._loop = asyncio.get_running_loop()
        self._set = 0.0
        """When the clock was started last."""
        self.stage, self.done, self.total = "", 0, 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if (stage, done) != (self.stage, self.done):
            self.stage, self.done, self.total = stage, done, total
            self._start()
        self._progress(stage, done, total)

    def onward(self) -> None:
        """Something moved: the clock starts again."""
        if self._loop.time() - self._set >= EVERY_S:  # not for each piece that moved
            self._start()

    def _start(self) -> None:
        if not self._limit.expired():
            self._set = self._loop.time()
            # Later by what a thread and this clock may be late: what moves is never ended.
            self._limit.reschedule(self._set + self.seconds + 2 * EVERY_S if self.stage in MOVING else None)

    @property
    def stalled(self) -> bool:
        """Whether it was ended."""
        return self._limit.expired()

    def error(self) -> Stalled:
        """What is said of it."""
        return stalled(self.stage, self.done, self.total, self.seconds)


def stalled(stage: str, done: int, total: int, after: float) -> Stalled:
    """The error of a transfer that stands."""
    of = f" of {total}" if total else ""
    return Stalled(f"{MOVING[stage]} stalled: nothing moved for {after:g} s, at byte {done}{of}", field="transfer",
                   remedy="see whether both ends and the network between them work, and try again; STOREBUS_STALL_SECONDS says "
                          "how long is waited")


_CURRENT: ContextVar[_Watch | None] = ContextVar("stall", default=None)


async def watched(work: Callable[[Progress], Awaitable[T]], progress: Progress, seconds: float) -> T:
    """The result of `work`, which is given the progress to tell. Raises Stalled when nothing moved for `seconds` while bytes
    should: the work was cancelled then, and has cleaned up."""
    watch: _Watch | None = None
    try:
        async with asyncio.timeout(None) as limit:
            watch = _Watch(progress, limit, seconds)
            token = _CURRENT.set(watch)
            try:
                return await work(watch)
            finally:
                _CURRENT.reset(token)
    except TimeoutError:
        if watch is None or not watch.stalled:
            raise
        raise watch.error() from None


def moved() -> None:
    """Some bytes of this task's transfer were taken by the other side, or came from it. On the event loop; cheap."""
    watch = _CURRENT.get()
    if watch is not None:
        watch.onward()


def from_thread() -> Callable[[], None]:
    """`moved` of this task's transfer, to be called in a thread that works for it."""
    watch, loop = _CURRENT.get(), asyncio.get_running_loop()
    if watch is None:
        return lambda: None
    told = 0.0

    def tell() -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < EVERY_S:  # to wake the loop for each piece costs as much as to send it
            return
        told = now
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the transfer with it
            loop.call_soon_threadsafe(watch.onward)

    return tell


def seconds() -> float:
    """After how many seconds without movement this task's transfer is ended."""
    watch = _CURRENT.get()
    return SECONDS if watch is None else watch.seconds


def cleaning() -> float | None:
    """Seconds that this task's transfer may take to clean up; None when nothing says that it would take long."""
    watch = _CURRENT.get()
    return CLEAN_S if watch is not None and watch.stalled else None


__all__ = ["EVERY_S", "SECONDS", "Stalled", "cleaning", "from_thread", "moved", "seconds", "stalled", "watched"]
