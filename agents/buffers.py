"""The buffers of a process: how many bytes of images it holds in memory at once, whatever runs in it.

Owns one budget, shared by all transfers, served in the order of asking, so that each of them goes on. Refuses to know what is in
a buffer. A buffer that was given back is lent again (new memory costs the kernel more than the copy does) and counts as long as
it is kept; when nothing is lent, nothing is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from collections import deque
from collections.abc import AsyncIterator

from agents import stall

TOTAL = 32 << 20
"""Bytes of parts, ranges and batches that one process holds at once."""

LOOK_S = 1.0


class Buffers:
    """A budget of bytes, first come first served."""

    def __init__(self, total: int = TOTAL) -> None:
        self.total = total
        self.lent = 0
        self.peak = 0
        """The most that was lent and kept at once: for tests."""
        self._kept: deque[memoryview] = deque()
        self._kept_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """`size` bytes of the budget while this is open. More than all of it counts as all of it: such a one runs alone."""
        await self.take(size)
        try:
            yield
        finally:
            self.give(size)

    async def take(self, size: int) -> None:
        """`room` for what does not end where it begins: given back by `give`."""
        await self._take(min(size, self.total))
        self._shrink()

    def give(self, size: int) -> None:
        """Give back what `take` or `try_take` took."""
        self._give(min(size, self.total))

    @contextlib.asynccontextmanager
    async def buffer(self, size: int) -> AsyncIterator[memoryview]:
        """A buffer of exactly `size` bytes, with anything in it. It begins at a page, so that disks can be read and written
        past the host's page cache."""
        counted = min(size, self.total)
        await self._take(counted)
        buffer = self._pick(size)
        self._shrink()
        try:
            yield buffer
        finally:
            self._kept.append(buffer)
            self._kept_bytes += size
            del buffer
            self._give(counted)

    def try_borrow(self, size: int) -> memoryview | None:
        """A buffer of exactly `size` bytes now, or none. It is given back by `give_back`."""
        if self._waiting or self.lent + size > self.total:
            return None
        buffer = self._pick(size)
        self.lent += size
        self._shrink()
        return buffer

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for room. May be asked in any thread."""
        return bool(self._waiting)

    def give_back(self, buffer: memoryview) -> None:
        """Give back what `try_borrow` lent."""
        self._kept.append(buffer)
        self._kept_bytes += len(buffer)
        self._give(len(buffer))

    def try_take(self, size: int) -> bool:
        """Take `size` bytes now, or not at all. What was taken is given back by `give`."""
        if self._waiting or self.lent + size > self.total:
            return False
        self.lent += size
        self._shrink()
        return True

    async def _take(self, size: int) -> None:
        if not self._waiting and self.lent + size <= self.total:
            self.lent += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            while not turn.done():
                await asyncio.wait([turn], timeout=LOOK_S)
                stall.moved()  # waiting for its turn is no stall: who holds the room is watched
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(size)  # its turn had come in the same moment
            else:
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
                self._serve()
            raise

    def _give(self, size: int) -> None:
        self.lent -= size
        self._serve()
        if not self.lent:
            self._kept.clear()
            self._kept_bytes = 0

    def _serve(self) -> None:
        while self._waiting and self.lent + self._waiting[0][0] <= self.total:
            size, turn = self._waiting.popleft()
            if not turn.done():
                self.lent += size
                turn.set_result(None)

    def _pick(self, size: int) -> memoryview:
        for index, buffer in enumerate(self._kept):
            if len(buffer) == size:
                del self._kept[index]
                self._kept_bytes -= size
                return buffer
        return memoryview(mmap.mmap(-1, size))

    def _shrink(self) -> None:
        """Let go of what is kept beyond the budget."""
        while self._kept and self.lent + self._kept_bytes > self.total:
            self._kept_bytes -= len(self._kept.popleft())
        self.peak = max(self.peak, self.lent + self._kept_bytes)


BUFFERS = Buffers()
"""Those of this process."""
