"""Streamed parts: a part of an object that is never in memory as a whole, read from its device as often as the store asks.

Owns the reading ahead and the comparison of one reading with the next. Some stores want a part's digest before its first byte:
they read it twice. Memory is two slices, from the process's buffers, whatever the part's size.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial

from agents import stall
from agents.buffers import BUFFERS, Buffers
from agents.uninterrupted import to_the_end
from schema.failure import WorkFailed

WHOLE = 16 << 20
"""Bytes of the largest part that is held in memory; larger ones are streamed."""
SLICE = 2 << 20
Fill = Callable[[int, memoryview, Callable[[], None]], Awaitable[None]]
"""Puts the bytes at an offset of the object into a view, then calls what blocks off the event loop, in the thread that read where
there is one."""


class StreamedPart:
    """See PartSource: `size` bytes of an object from `start` on, made by `fill`."""

    def __init__(self, fill: Fill, start: int, size: int, *, piece: int = SLICE, buffers: Buffers = BUFFERS) -> None:
        self.size, self.sha256 = size, ""
        self._fill, self._start, self._piece, self._buffers = fill, start, piece, buffers

    async def slices(self) -> AsyncGenerator[memoryview, None]:
        """See PartSource. The next slice is read and hashed while the consumer is busy with this one."""
        digest = hashlib.sha256()

        async def read(half: memoryview, at: int) -> memoryview:
            view = half[:min(self._piece, self.size - at)]
            await self._fill(self._start + at, view, partial(digest.update, view))
            stall.moved()  # where a part is read twice, nothing arrives during the first reading
            return view

        async with self._buffers.buffer(2 * self._piece) as room:  # both at once: nobody holds one and waits for the other
            halves = memoryview(room)[:self._piece], memoryview(room)[self._piece:]
            ahead: asyncio.Task[memoryview] | None = None
            at, turn = 0, 0
            try:
                while at < self.size:
                    view = await (ahead or read(halves[turn], at))
                    at, turn = at + len(view), 1 - turn
                    ahead = asyncio.create_task(read(halves[turn], at)) if at < self.size else None
                    yield view
            finally:
                if ahead is not None:
                    ahead.cancel()
                    with contextlib.suppress(asyncio.CancelledError):  # the buffer is used until it ends
                        await to_the_end(asyncio.gather(ahead, return_exceptions=True))
        found = digest.hexdigest()
        if self.sha256 and self.sha256 != found:
            raise WorkFailed("the disk changed while it was read", remedy="take another snapshot")
        self.sha256 = found
