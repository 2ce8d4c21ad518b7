"""Work that ends before its caller: threads outlive no buffer, and what was made for a cancelled caller is undone."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agents.uninterrupted import in_thread, to_the_end


async def test_the_result_and_the_error_come_through() -> None:
    assert await in_thread(lambda a, b: a + b, 1, b=2) == 3
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_caller_waits_for_its_thread(times: int) -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(10)
        ended.set()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait, 10)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


@pytest.mark.parametrize("undo_fails", [False, True])
async def test_what_a_cancelled_caller_never_got_is_undone(undo_fails: bool) -> None:
    made: list[str] = []

    async def make() -> str:
        await asyncio.sleep(0.05)
        made.append("socket")
        return "socket"

    async def undo(one: str) -> None:
        made.remove(one)
        if undo_fails:
            raise OSError("away")

    task = asyncio.create_task(to_the_end(make(), undo=undo))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made == []
    assert await to_the_end(make(), undo=undo) == "socket" and made == ["socket"]


async def test_a_failure_of_cancelled_work_is_no_noise() -> None:
    async def fail() -> None:
        await asyncio.sleep(0.02)
        raise OSError("late")

    task = asyncio.create_task(to_the_end(fail()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
