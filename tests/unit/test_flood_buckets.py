"""How much one caller may ask: buckets by a clock of the test's, and turns."""

from __future__ import annotations

import asyncio

import pytest

from api import flood
from api.flood import UNLIMITED, Buckets, Rate, TooMany, Turns


class Clock:
    """Seconds, moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def taken(buckets: Buckets, key: str, times: int) -> int:
    """How many of so many tokens could be had."""
    got = 0
    for _ in range(times):
        try:
            buckets.take(key)
            got += 1
        except TooMany:
            pass
    return got


def test_a_bucket_holds_an_interval_and_fills_steadily() -> None:
    clock = Clock()
    buckets = Buckets(Rate(10, 5), clock)
    assert (taken(buckets, "a", 30), taken(buckets, "b", 3)) == (10, 3)
    clock.now += 1.0
    assert (taken(buckets, "a", 30), taken(buckets, "b", 30)) == (2, 9)
    with pytest.raises(TooMany) as refused:
        buckets.take("a")
    assert (refused.value.failure.code, refused.value.failure.cscode, refused.value.retry_s) == (429, 4545, 1)
    clock.now += 1000
    assert taken(buckets, "a", 30) == 10
    assert taken(Buckets(UNLIMITED, clock), "a", 1000) == 1000


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood, "KEYS", 3)
    buckets = Buckets(Rate(1, 1), Clock())
    assert [taken(buckets, key, 2) for key in "abcd"] == [1, 1, 1, 1]
    assert (taken(buckets, "d", 1), taken(buckets, "a", 1)) == (0, 1)  # a was forgotten


async def test_turns_bound_what_one_has_in_hand_and_what_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood, "IN_HAND", 8)
    monkeypatch.setattr(flood, "AT_ONCE", 2)
    turns, working, most, refused = Turns(), 0, 0, 0

    async def ask(key: str) -> None:
        nonlocal working, most, refused
        try:
            async with turns.in_hand(key) as turn, turn:
                working += 1
                most = max(most, working)
                await asyncio.sleep(0.002)
                working -= 1
        except TooMany:
            refused += 1

    await asyncio.gather(*(ask("a") for _ in range(20)))
    assert (most, refused) == (2, 12)
    assert turns._in_hand == {} and turns._turns == {}  # nothing of who is gone is kept
