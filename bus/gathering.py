"""Gathering: what is asked for one by one is read for many at once.

Owns who waits for which reading: whoever asks while one is under way waits for the next, which is for all who ask until it
begins. Refuses to know what is read, and keeps nothing. Rule: what is told was read after it was asked for, so an answer is
never older than its question.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic, TypeVar

V = TypeVar("V")
MOST = 256
"""Keys of one reading; more go with the next."""


class _Batch(Generic[V]):
    """Who goes together."""

    def __init__(self) -> None:
        self.keys: dict[str, None] = {}
        self.found: asyncio.Future[Mapping[str, V]] = asyncio.get_running_loop().create_future()
        self.found.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever waits hears of it


class Gathered(Generic[V]):
    """One reading at a time, for many callers. `read` gives the values of keys; what it leaves out is not there."""

    def __init__(self, read: Callable[[list[str]], Awaitable[Mapping[str, V]]]) -> None:
        self._read = read
        self._waiting: deque[_Batch[V]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def get(self, keys: Iterable[str]) -> dict[str, V]:
        """The values of these keys, as they are now or later. Raises what `read` raises."""
        wanted = dict.fromkeys(keys)
        if not wanted:
            return {}
        if not self._waiting or len(self._waiting[-1].keys) >= MOST:
            self._waiting.append(_Batch())
        batch = self._waiting[-1]
        batch.keys |= wanted
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="gathering")
        try:
            found = await asyncio.shield(batch.found)
        except Exception as error:
            # Each caller raises its own: one exception raised in many tasks would gather all their tracebacks.
            raise copy.copy(error).with_traceback(None) from error.__cause__
        return {key: found[key] for key in wanted if key in found}

    async def _run(self) -> None:
        try:
            await asyncio.sleep(0)  # whoever asks in this turn of the loop goes together
            while self._waiting:
                batch = self._waiting.popleft()
                try:
                    batch.found.set_result(await self._read(list(batch.keys)))
                except Exception as error:
                    batch.found.set_exception(error)
                except asyncio.CancelledError:
                    batch.found.cancel()
                    raise
        finally:
            self._task = None
            for batch in self._waiting:
                batch.found.cancel()


__all__ = ["MOST", "Gathered"]
