"""Many small requests, a few at once.

It owns their number and their end. It refuses to know what they are, and to outlive them: when it returns, none is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def each(items: Iterable[T], act: Callable[[T], Awaitable[None]], *, width: int) -> None:
    """Do it for all, `width` at once; the first failure ends the others."""
    todo = iter(items)

    async def work() -> None:
        for item in todo:
            await act(item)

    tasks = [asyncio.create_task(work()) for _ in range(width)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
