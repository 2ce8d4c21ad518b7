"""Block devices of noise, doubles that count what is read of them and go bad as they are told: one that the event loop reads, one
that any thread may read."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable

from agents.hypervisors.base import Extent


class Noise:
    """A device of noise, which counts what is read of it, and may go bad."""

    def __init__(self, size: int, spoil: Callable[[Noise, memoryview], None] = lambda device, buffer: None) -> None:
        self.data = bytearray(random.Random(4).randbytes(size))
        self.size, self.read_bytes, self._spoil, self._one = size, 0, spoil, threading.Lock()
        self.threads: set[int] = set()

    async def extents(self) -> list[Extent]:
        return [Extent(offset=0, length=self.size, zero=False)]

    def fill(self, buffer: memoryview, offset: int) -> None:
        """As all reading does it."""
        with self._one:
            buffer[:] = self.data[offset:offset + len(buffer)]
            self.read_bytes += len(buffer)
            self.threads.add(threading.get_ident())
            self._spoil(self, buffer)


class LoopNoise(Noise):
    """Read by the event loop alone."""

    async def read_into(self, buffer: memoryview, offset: int) -> None:
        await asyncio.sleep(0)
        self.fill(buffer, offset)


class ThreadNoise(Noise):
    """Read by any thread."""

    def read_here(self, buffer: memoryview, offset: int) -> None:
        self.fill(buffer, offset)
