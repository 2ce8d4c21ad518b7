"""A file that grows from its beginning to its end, cut into parts that go out as soon as they are full.

Owns the part that is being filled, and those on their way: how many, in what memory, and what the store has of them. The first
part waits for the file's header, which is known last. Refuses to know what is in the file. Memory: the first part, and one that
is being filled or on its way, whatever there is; more come from the process's buffers while there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass
from typing import Any

from agents.buffers import BUFFERS
from agents.image_stores.base import Bytes, Upload
from agents.motion.base import Progress
from agents.uninterrupted import in_thread, to_the_end

PART = 5 << 20
"""Bytes of a part, unless the store or the object's size asks for more: two are held. No S3 store takes smaller ones."""


@dataclass(slots=True)
class Part:
    """Bytes of the file that go out together."""

    buffer: memoryview
    lent: bool
    """By the process's buffers; else it is the transfer's own."""
    filled: int = 0
    sum: Any = None
    """Their SHA-256, where whoever fills it sums them."""

    def lay(self, data: Bytes) -> int:
        """Take as much as there is room for; how many bytes that is."""
        step = min(len(self.buffer) - self.filled, len(data))
        piece = self.buffer[self.filled:self.filled + step]
        piece[:] = data[:step]
        self.filled += step
        if self.sum is not None:
            self.sum.update(piece)
        return step

    @property
    def full(self) -> bool:
        """Whether it goes out as it is."""
        return self.filled == len(self.buffer)

    def let_go(self) -> None:
        """Nobody needs its bytes any more."""
        if self.lent:
            BUFFERS.give_back(self.buffer)
        self.lent, self.buffer = False, memoryview(b"")


class Parts:
    """Of one upload."""

    def __init__(self, upload: Upload, size: int, workers: int, progress: Progress, total: int, *, summed: bool = False) -> None:
        """Parts of `size` bytes, `workers` of them on their way at most. `summed`: whoever fills them may take the time to sum
        them, since it is no event loop. Progress counts up to `total`."""
        self._upload, self._size, self._progress, self._total, self._summed = upload, size, progress, total, summed
        self._room = asyncio.Semaphore(workers)
        self._sending: set[asyncio.Task[None]] = set()
        self._first: Part | None = None
        self._told = 0
        self.part = Part(memoryview(bytearray(size)), lent=False)
        """The one that is being filled; never full but while it is exchanged."""
        self.digests: list[str] = []
        self.done = 0
        """Of `total`, what is in the file so far."""
        self.moved = 0
        """What the store has of it."""

    def _made(self, buffer: memoryview, *, lent: bool) -> Part:
        return Part(buffer, lent, sum=hashlib.sha256() if self._summed else None)

    async def add(self, data: Bytes) -> None:
        """The next bytes of the file. Waits while too many parts are on their way; raises what one of them met."""
        view, at = memoryview(data), 0
        while at < len(view):
            at += self.part.lay(view[at:])
            if self.part.full:
                await self.exchange()

    async def exchange(self) -> None:
        """The part is full: send it, and put an empty one in its place. Waits, and raises, as `add`."""
        await self._seal()
        self.part = await self._empty()

    async def _seal(self) -> None:
        self.digests.append("")
        if self._first is None:
            self._first = self.part
            return
        await self._begin(len(self.digests), self.part)

    async def _begin(self, number: int, part: Part) -> None:
        """Send it as soon as fewer are on their way than may be."""
        await self._room.acquire()
        self._look()
        share, self._told = self.done - self._told, self.done
        task = asyncio.create_task(self._send(number, part, share))
        task.add_done_callback(lambda _: part.let_go())  # of one that is cancelled before it begins, too
        self._sending.add(task)

    def _look(self) -> None:
        """Raise what a part met."""
        for task in [task for task in self._sending if task.done()]:
            self._sending.discard(task)
            task.result()

    async def _empty(self) -> Part:
        """Room for the next part. While others have all that the process lends, a transfer goes on with a buffer of its own, one
        part at a time: none may wait for another's."""
        while (lent := BUFFERS.try_borrow(self._size)) is None:
            if not self._sending:
                return self._made(memoryview(bytearray(self._size)), lent=False)
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
            self._look()
        return self._made(lent, lent=True)

    async def _send(self, number: int, part: Part, share: int) -> None:
        try:
            view = part.buffer[:part.filled]
            digest: str = part.sum.hexdigest() if part.sum is not None else await in_thread(
                lambda: hashlib.sha256(view).hexdigest())
            self.digests[number - 1] = digest
            await self._upload.part(number, view, sha256=digest)
        finally:
            self._room.release()
        self.moved += share
        self._progress("write", self.moved, self._total)

    async def end(self, header: bytes) -> None:
        """The file is whole: send what is left, and the first part with its header at last, beside those still on their way."""
        if self.part.filled:
            await self._seal()
        else:
            self.part.let_go()
        assert self._first is not None
        self._first.buffer[:len(header)] = header
        await self._begin(1, self._first)
        await asyncio.gather(*self._sending)
        self._sending.clear()

    async def stop(self) -> None:
        """Something failed: nothing is sent any more when this returns. Nobody may be filling a part."""
        for task in self._sending:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await to_the_end(asyncio.gather(*self._sending, return_exceptions=True))
        self.part.let_go()


__all__ = ["PART", "Parts"]
