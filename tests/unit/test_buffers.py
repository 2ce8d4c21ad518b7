"""The buffers of a process: never more than the budget, in the order of asking, and nothing kept when nothing runs."""

from __future__ import annotations

import asyncio
import random

import pytest

from agents.buffers import Buffers


async def test_never_more_than_the_budget_whatever_is_asked_for() -> None:
    buffers, dice = Buffers(1000), random.Random(3)
    now = most = 0

    async def one() -> None:
        nonlocal now, most
        size = dice.choice([100, 300, 1000, 5000])
        async with buffers.buffer(size) as buffer:
            assert len(buffer) == size
            now += min(size, 1000)
            most = max(most, now)
            try:
                await asyncio.sleep(0.0001)
            finally:
                now -= min(size, 1000)

    tasks = [asyncio.create_task(one()) for _ in range(300)]
    for task in tasks[::7]:
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert 900 <= most <= 1000
    assert (buffers.lent, buffers._kept_bytes, len(buffers._kept)) == (0, 0, 0)
    assert buffers.peak <= 1000


async def test_first_come_first_served() -> None:
    """A large one is not passed for ever by small ones."""
    buffers, order = Buffers(100), list[str]()
    async with buffers.room(60):
        async def want(name: str, size: int) -> None:
            async with buffers.room(size):
                order.append(name)

        tasks = [asyncio.create_task(want(name, size)) for name, size in (("large", 80), ("small", 10), ("other", 10))]
        await asyncio.sleep(0.01)
        assert order == [] and buffers.wanted and not buffers.try_take(1)
    await asyncio.gather(*tasks)
    assert order == ["large", "small", "other"] and not buffers.wanted


async def test_a_buffer_is_used_again() -> None:
    buffers = Buffers(100)
    async with buffers.room(10):
        async with buffers.buffer(50) as first:
            pass
        async with buffers.buffer(50) as again:
            assert again is first
        async with buffers.buffer(80) as larger:
            assert len(larger) == 80 and buffers._kept_bytes == 0, "what is kept counts"
        assert buffers.peak <= 100


@pytest.mark.parametrize("late", [False, True])
async def test_one_that_is_cancelled_while_it_waits_takes_nothing(late: bool) -> None:
    buffers = Buffers(100)
    async with buffers.room(100):
        waiting = asyncio.create_task(buffers._take(50))
        await asyncio.sleep(0.01)
        if not late:
            waiting.cancel()
            await asyncio.sleep(0)
    if late:  # its turn came, and it was cancelled before it ran
        waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled() and buffers.lent == 0
    assert buffers.try_take(100)
