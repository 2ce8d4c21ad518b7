"""Objects read at any place, and never a byte of a part before that part was compared with its manifest.

Owns the two readings: a part is read whole when it is first asked for, and summed; what it then gives comes from memory, where
there is some, or is read again a block at a time and compared with the block's own digest, taken when the part was summed.
Parts that nobody asks for are not read. Memory is one budget of the process, taken without waiting: it runs out, nothing stands.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from agents import manifest as manifests
from agents import stall
from agents.buffers import Buffers
from agents.image_stores.base import ImageStore, ReadsInto
from agents.motion.parallel import parallel
from agents.uninterrupted import in_thread
from schema.image import Manifest

KEPT = Buffers(32 << 20)
"""Parts that this process keeps in memory, all merges together."""
BLOCK = 512 << 10
"""Bytes that are read again and compared together."""
RANGE = 2 << 20
"""Bytes of one ranged read of a part."""
AT_ONCE = 4
_SHORT = 8
"""Bytes of a block's digest: what it guards against is chance."""


class Kept:
    """The parts that one merge keeps, the least recently used let go first. Nothing waits for memory here."""

    def __init__(self, budget: Buffers = KEPT) -> None:
        self._budget = budget
        self._parts: OrderedDict[tuple[str, int], memoryview] = OrderedDict()

    def find(self, key: str, number: int) -> memoryview | None:
        """The part of an object, if it is kept. Good until the caller awaits something."""
        found = self._parts.get((key, number))
        if found is not None:
            self._parts.move_to_end((key, number))
        return found

    def borrow(self, size: int) -> memoryview | None:
        """A buffer for a part, or None. The caller keeps it (`keep`) or gives it back."""
        if size > self._budget.total:
            return None
        while (buffer := self._budget.try_borrow(size)) is None and self._parts:
            self._budget.give_back(self._parts.popitem(last=False)[1])
        return buffer

    def keep(self, key: str, number: int, buffer: memoryview) -> None:
        """A part that was compared with its manifest."""
        self._parts[key, number] = buffer

    def give_back(self, buffer: memoryview) -> None:
        """One that was not kept after all."""
        self._budget.give_back(buffer)

    def close(self) -> None:
        """Let go of everything."""
        while self._parts:
            self._budget.give_back(self._parts.popitem()[1])


class VerifiedObject:
    """One object. Several may read it at once."""

    def __init__(self, store: ImageStore, manifest: Manifest, kept: Kept) -> None:
        self.manifest = manifest
        self._store, self._kept = store, kept
        self._blocks: dict[int, bytes] = {}
        """Part that was found whole -> the digests of its blocks."""
        self._one_at_a_time = asyncio.Lock()

    async def read_into(self, view: memoryview, offset: int) -> None:
        """Fill the view. Raises Damaged naming the part that is not what was written, and what the store raises."""
        if offset + len(view) > self.manifest.physical_size:
            raise manifests.ended(self.manifest, self.manifest.physical_size)
        at = 0
        while at < len(view):
            number, inside = divmod(offset + at, self.manifest.part_size)
            step = min(len(view) - at, self._length(number) - inside)
            await self._piece(number, inside, view[at:at + step])
            at += step

    def _length(self, number: int) -> int:
        return min(self.manifest.part_size, self.manifest.physical_size - number * self.manifest.part_size)

    async def _piece(self, number: int, inside: int, view: memoryview) -> None:
        if number not in self._blocks:
            async with self._one_at_a_time:
                if number not in self._blocks:
                    await self._prove(number)
        part = self._kept.find(self.manifest.key, number)
        if part is not None:
            view[:] = part[inside:inside + len(view)]
        else:
            await self._again(number, inside, view)

    async def _prove(self, number: int) -> None:
        """Read a part whole, and compare it."""
        length = self._length(number)
        buffer = self._kept.borrow(length)
        kept = False
        try:
            whole, blocks = await (self._in_pieces(number, length) if buffer is None else self._whole(number, buffer))
            if whole != self.manifest.parts[number]:
                raise manifests.bad_part(self.manifest, number, whole)
            self._blocks[number] = blocks
            kept = buffer is not None
            if buffer is not None:
                self._kept.keep(self.manifest.key, number, buffer)
        finally:
            if buffer is not None and not kept:
                self._kept.give_back(buffer)

    async def _whole(self, number: int, buffer: memoryview) -> tuple[str, bytes]:
        async def one(part: int) -> None:
            at = part * RANGE
            await self._fetch(number, at, buffer[at:at + RANGE])

        await parallel(-(-len(buffer) // RANGE), AT_ONCE, one)
        return await in_thread(_sums, buffer)

    async def _in_pieces(self, number: int, length: int) -> tuple[str, bytes]:
        digest, blocks = hashlib.sha256(), bytearray()
        view = memoryview(bytearray(min(RANGE, length)))  # one for each object: bounded, however many wait for buffers
        for at in range(0, length, RANGE):
            piece = view[:min(RANGE, length - at)]
            await self._fetch(number, at, piece)
            await in_thread(digest.update, piece)
            blocks += await in_thread(_blocks, piece)
        return digest.hexdigest(), bytes(blocks)

    async def _again(self, number: int, inside: int, view: memoryview) -> None:
        """A range of a part that was found whole: block after block, each compared with what it was then."""
        length, room = self._length(number), bytearray(BLOCK)
        at = 0
        while at < len(view):
            block, skip = divmod(inside + at, BLOCK)
            piece = memoryview(room)[:min(BLOCK, length - block * BLOCK)]
            await self._fetch(number, block * BLOCK, piece)
            if _blocks(piece) != self._blocks[number][block * _SHORT:(block + 1) * _SHORT]:
                raise manifests.bad_part(self.manifest, number, "other bytes than a moment before")
            step = min(len(view) - at, len(piece) - skip)
            view[at:at + step] = piece[skip:skip + step]
            at += step

    async def _fetch(self, number: int, inside: int, view: memoryview) -> None:
        """Fill the view with bytes of a part."""
        start, at = number * self.manifest.part_size + inside, 0
        while at < len(view):
            if isinstance(self._store, ReadsInto):
                count = await self._store.read_into(self.manifest.key, start + at, view[at:])
            else:
                data = await self._store.read(self.manifest.key, start + at, len(view) - at)
                view[at:at + (count := len(data))] = data
            if not count:
                raise manifests.ended(self.manifest, start + at)
            at += count
            stall.moved()


def _sums(view: memoryview) -> tuple[str, bytes]:
    return hashlib.sha256(view).hexdigest(), _blocks(view)


def _blocks(view: memoryview) -> bytes:
    """The digests of the blocks of these bytes, one behind another."""
    return b"".join(hashlib.blake2b(view[at:at + BLOCK], digest_size=_SHORT).digest() for at in range(0, len(view), BLOCK))


__all__ = ["Kept", "VerifiedObject"]
