"""Numbered pieces of work, some at once: what every motion is made of.

Owns how many run, and that a failure of one stops and awaits the rest. Refuses to know what they move.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from agents.uninterrupted import to_the_end


async def parallel(count: int, workers: int, one: Callable[[int], Awaitable[None]]) -> None:
    """Run one(0) to one(count - 1), `workers` at once; the first failure stops the rest and is raised."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    tasks = [asyncio.create_task(worker()) for _ in range(min(workers, count))]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # what happened first is what is raised
            await to_the_end(asyncio.gather(*tasks, return_exceptions=True))
        raise
