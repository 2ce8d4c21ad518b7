"""Flood: how much one caller may ask, so that the others do not wait for it.

Owns the token buckets (a user's, an address's for whoever is nobody yet), the turns of one user's requests and how long a refusal
is held back: whoever asks as fast as it is answered is answered slowly. Refuses to know what is asked. Everything here is of one
API process, and bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from schema.failure import Failed

KEYS = 10_000
"""Buckets remembered at once; the one unused for longest is forgotten first."""
HOLD_S = 1.0
"""A refusal is held back so long, and up to twice so long: those of a moment are not all answered in another."""
IN_HAND = 64
"""Requests of one user at once; more are answered 429."""
AT_ONCE = 32
"""Of these, so many are worked on; the others wait their turn. Waiting for a job to end needs no turn."""


class TooMany(Failed):
    """The caller has too much in hand, or asks or tried too often."""

    code = 429
    cscode = 4545

    def __init__(self, cause: str, *, remedy: str = "", retry_s: float = HOLD_S) -> None:
        super().__init__(cause, remedy=remedy)
        self.retry_s = max(1, math.ceil(retry_s))
        """Whole seconds after which asking again may help."""


async def hold() -> None:
    """Let whoever asks as fast as it is answered wait for its refusal."""
    await asyncio.sleep(HOLD_S * (1.0 + random.random()))  # noqa: S311 - spreads load, keeps no secret


class Rate(NamedTuple):
    """At most `most` requests in `interval_s` seconds, all of them at once if need be; 0: no limit."""

    most: int = 0
    interval_s: int = 1


UNLIMITED = Rate()


class Buckets:
    """Token buckets by key."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self._clock = rate, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> None:
        """Take a token. Raises TooMany when there is none."""
        self._ask(key, 1.0)

    def look(self, key: str) -> None:
        """Take nothing. Raises TooMany when there is no token."""
        self._ask(key, 0.0)

    def _ask(self, key: str, wanted: float) -> None:
        if not self.rate.most:
            return
        now, speed = self._clock(), self.rate.most / self.rate.interval_s
        level, at = self._levels.get(key, (float(self.rate.most), now))
        level = min(float(self.rate.most), level + (now - at) * speed)
        there = level >= 1.0
        self._levels[key] = (level - wanted if there else level, now)
        self._levels.move_to_end(key)
        while len(self._levels) > KEYS:
            self._levels.popitem(last=False)
        if not there:
            raise TooMany(f"more than {self.rate.most} requests in {self.rate.interval_s} s", retry_s=(1.0 - level) / speed,
                          remedy="ask less often, or raise STOREBUS_API_LIMIT")


class Turns:
    """The turns of each key's requests."""

    def __init__(self) -> None:
        self._in_hand: dict[str, int] = {}
        self._turns: dict[str, asyncio.Semaphore] = {}

    @contextlib.asynccontextmanager
    async def in_hand(self, key: str) -> AsyncIterator[asyncio.Semaphore]:
        """While a request of `key` is answered; gives the semaphore under which it is worked on. Raises TooMany."""
        count = self._in_hand.get(key, 0)
        if count >= IN_HAND:
            raise TooMany(f"{count} requests of this user are in hand", remedy="wait for answers before asking more")
        self._in_hand[key] = count + 1
        try:
            yield self._turns.setdefault(key, asyncio.Semaphore(AT_ONCE))
        finally:
            self._in_hand[key] -= 1
            if not self._in_hand[key]:
                del self._in_hand[key], self._turns[key]


__all__ = ["IN_HAND", "UNLIMITED", "Buckets", "Rate", "TooMany", "Turns", "hold"]
