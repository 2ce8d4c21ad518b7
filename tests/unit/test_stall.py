"""The clock over a transfer: movement starts it again, silence ends it, and stages that move nothing are not timed."""

from __future__ import annotations

import asyncio

import pytest

from agents import stall
from agents.motion.base import Progress, no_progress


async def test_slow_but_moving_never_ends() -> None:
    async def work(progress: Progress) -> str:
        for done in range(8):
            progress("write", done, 8)
            await asyncio.sleep(0.1)
        return "whole"

    assert await stall.watched(work, no_progress, 0.3) == "whole"


async def test_bytes_below_a_part_count_also_from_tasks_and_threads() -> None:
    async def piece() -> None:
        stall.moved()

    async def work(progress: Progress) -> str:
        progress("read", 0, 8)
        tell = stall.from_thread()
        for number in range(8):
            await asyncio.sleep(0.1)
            await (asyncio.create_task(piece()) if number % 2 else asyncio.to_thread(tell))
        return "whole"

    assert await stall.watched(work, no_progress, 0.3) == "whole"


async def test_movement_that_starts_no_clock_again_counts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "EVERY_S", 0.5)

    async def work(progress: Progress) -> str:
        progress("read", 0, 8)
        await asyncio.sleep(0.4)
        stall.moved()  # too soon for the clock
        await asyncio.sleep(0.9)
        stall.moved()
        return "whole"

    assert await stall.watched(work, no_progress, 1.0) == "whole"


async def test_silence_ends_it_with_what_and_how_far_after_it_cleaned_up() -> None:
    told: list[float | None] = []

    async def work(progress: Progress) -> None:
        progress("write", 5, 9)
        try:
            while True:
                await asyncio.sleep(0.05)
                progress("write", 5, 9)  # said again, it is no movement
        finally:
            told.append(stall.cleaning())

    began = asyncio.get_running_loop().time()
    with pytest.raises(stall.Stalled, match=r"transfer into the image store stalled: nothing moved for 0.3 s, at byte 5 of 9") as caught:
        await stall.watched(work, no_progress, 0.3)
    assert asyncio.get_running_loop().time() - began < 2
    assert "STOREBUS_STALL_SECONDS" in caught.value.failure.remedy
    assert told == [stall.CLEAN_S]
    assert stall.cleaning() is None


async def test_what_moves_no_bytes_takes_as_long_as_it_takes() -> None:
    async def work(progress: Progress) -> str:
        progress("write", 9, 9)
        progress("verify", 9, 9)
        await asyncio.sleep(0.4)
        return "whole"

    assert await stall.watched(work, no_progress, 0.1) == "whole"


async def test_a_time_limit_of_the_work_itself_stays_what_it_is() -> None:
    async def work(progress: Progress) -> None:
        progress("write", 0, 9)
        async with asyncio.timeout(0.01):
            await asyncio.sleep(1)

    with pytest.raises(TimeoutError):
        await stall.watched(work, no_progress, 5)
