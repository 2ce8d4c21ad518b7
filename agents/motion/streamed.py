"""Streamed parts: a part of an object that is never in memory as a whole, read from its device as often as the store asks.

Owns the reading ahead and the comparison of one reading with the next. Some stores want a part's digest before its first byte:
they read it twice. Memory is two slices, from the process's buffers, whatever the part's size; of a part that is lent to the
thread that sends it one, which is small enough for the cache of the processor that reads, sums and sends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from functools import partial

from agents import stall
from agents.buffers import BUFFERS, Buffers
from agents.uninterrupted import to_the_end
from schema.failure import WorkFailed

WHOLE = 16 << 20
"""Bytes of the largest part that is held in memory; larger ones are streamed."""
SLICE = 2 << 20
"""Bytes that are read at once, while those before are sent."""
LENT = 1 << 20
"""Bytes that a lent part is read by."""
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
        self._agree(digest.hexdigest())

    def _agree(self, found: str) -> None:
        """Another reading must find what the first one found. Raises WorkFailed."""
        if self.sha256 and self.sha256 != found:
            raise WorkFailed("the disk changed while it was read", remedy="take another snapshot")
        self.sha256 = found


class LentPart(StreamedPart):
    """See LentSource: a part of a device that any thread may read, by `here`."""

    def __init__(self, fill: Fill, here: Callable[[int, memoryview], None], start: int, size: int, *,
                 buffers: Buffers = BUFFERS) -> None:
        super().__init__(fill, start, size, buffers=buffers)
        self._here = here

    @contextlib.asynccontextmanager
    async def lent(self) -> AsyncIterator[Callable[[], Generator[memoryview, None, None]]]:
        """See LentSource."""
        async with self._buffers.buffer(LENT) as room:
            yield partial(self._read, room)

    def _read(self, room: memoryview) -> Generator[memoryview, None, None]:
        digest, at = hashlib.sha256(), 0
        while at < self.size:
            view = room[:min(len(room), self.size - at)]
            self._here(self._start + at, view)
            digest.update(view)
            at += len(view)
            yield view
        self._agree(digest.hexdigest())
