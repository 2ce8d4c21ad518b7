"""Whether a qcow2 is whole: every table and every cluster that it refers to lies within its bytes.

A file that was cut short is otherwise a valid one: its header and its first tables say nothing of what is missing behind them.
Owns the walk: header, refcount table and blocks, L1, L2 tables, data, the same of the snapshots inside. Refuses to know
stores (`read` gives it ranges) and contents of clusters, and to hold more than a piece of it: each table has qemu's own bounds
and is taken in pieces, what is read at once has at most WINDOW bytes, and a table that is named often is read once for a piece.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

from schema.failure import BadParameter, WorkRetryable

Read = Callable[[int, int], Awaitable[bytes]]
"""read(offset, length): these bytes of the file, fewer only past its end."""

WINDOW = 4 << 20
PIECE = 1 << 20
"""Bytes of an L1 or refcount table at once."""
NEAR = 256 << 10
"""Tables this close to each other are read together."""
L1_MAX, REFCOUNTS_MAX = 32 << 20, 8 << 20
"""Bytes of an L1 table and of a refcount table, as qemu has it."""
SNAPSHOTS = 32
"""Snapshots inside an image from elsewhere that are taken; more are refused."""
SNAPSHOTS_MAX = 1 << 20
"""Bytes of their table: each has a name and some tens of bytes."""
OFFSET = 0x00FFFFFFFFFFFE00
"""The bits of an L1 or L2 entry that are a place in the file."""
BLOCK = 0xFFFFFFFFFFFFFE00
"""Those of an entry of the refcount table."""
COMPRESSED, ZERO = 1 << 62, 1
RATIO, SMALL = 200, 64 << 20
"""A disk that reads as more than RATIO times its file, and as more than SMALL bytes, is a bomb: whoever copies it writes that."""
HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
"""magic, version, backing offset and length, cluster bits, size, encryption, L1 size, L1 offset, refcount table's offset and
clusters, snapshots and where."""
SNAPSHOT = struct.Struct(">QIHHIIQII")
"""L1 offset and entries, bytes of id and of name, time (three), bytes of the machine's state and of what is more; then that, id
and name."""


@dataclass(frozen=True, slots=True)
class _Disk:
    """An L1 table and the size of the disk that it is of."""

    at: int
    entries: int
    virtual_size: int


async def prove_whole(read: Read, size: int) -> None:
    """Raises BadParameter naming the first thing found outside of the file's `size` bytes; and what `read` raises."""
    await _Walk(read, size).run()


class _Walk:
    """Through one file."""

    def __init__(self, read: Read, size: int) -> None:
        self.read, self.size = read, size
        self.version = self.bits = self.cluster = self.mapped = 0

    async def run(self) -> None:
        """All of it."""
        head = await self._bytes(0, HEADER.size)
        (_, self.version, _, _, self.bits, virtual_size, _, l1_size, l1_at, refcounts_at, refcounts, snapshots,
         snapshots_at) = HEADER.unpack(head)
        self.cluster = 1 << self.bits
        if refcounts << self.bits > REFCOUNTS_MAX:
            raise self._bad(f"its refcount table has {refcounts} clusters")
        async for base, table in self._table(refcounts_at, refcounts << self.bits, "its refcount table"):
            await asyncio.to_thread(self._blocks, base, table)
        for one in (_Disk(l1_at, l1_size, virtual_size), *await self._snapshots(snapshots, snapshots_at, virtual_size)):
            await self._l1(one)

    async def _bytes(self, at: int, length: int) -> bytes:
        """A range that lies in the file."""
        body = await self.read(at, length)
        if len(body) != length:
            raise WorkRetryable(f"the store gives {len(body)} of the {length} bytes at {at} of the image",
                                remedy="it is tried again")
        return body

    def _bad(self, cause: str) -> BadParameter:
        return BadParameter(f"the image is damaged: {cause}", field="url", remedy="check the file at its source: qemu-img check")

    def _inside(self, at: int, length: int, what: str) -> None:
        """Raises BadParameter unless this lies in the file."""
        if at + length > self.size:
            raise BadParameter(f"the image is truncated: {what} ends at byte {at + length}, and {self.size} bytes came",
                               field="url", remedy="check the file at its source: qemu-img check")

    async def _table(self, at: int, length: int, what: str) -> AsyncIterator[tuple[int, array[int]]]:
        """A table of eight-byte numbers in windows: (number of the first, numbers)."""
        self._inside(at, length, what)
        for start in range(0, length, PIECE):
            yield start // 8, numbers(await self._bytes(at + start, min(PIECE, length - start)))

    def _blocks(self, base: int, table: array[int]) -> None:
        for number, entry in enumerate(table, base):
            if entry & BLOCK:
                self._place(entry & BLOCK, f"refcount block {number}")

    def _place(self, at: int, what: str) -> None:
        if at % self.cluster:
            raise self._bad(f"{what} does not begin with a cluster")
        self._inside(at, self.cluster, what)

    async def _snapshots(self, count: int, at: int, size: int) -> list[_Disk]:
        if count > SNAPSHOTS:
            raise BadParameter(f"the image holds {count} snapshots of its own; at most {SNAPSHOTS} are taken", field="url",
                               remedy="remove them: qemu-img convert -O qcow2")
        if not count:
            return []
        found = []
        body = await self.read(at, SNAPSHOTS_MAX)
        place = 0
        for number in range(count):
            self._inside(at, place + SNAPSHOT.size, f"snapshot {number + 1}")
            if len(body) < place + SNAPSHOT.size:
                raise self._bad(f"its snapshots have more than {SNAPSHOTS_MAX} bytes")
            l1_at, l1_size, id_size, name_size, _, _, _, _, extra = SNAPSHOT.unpack_from(body, place)
            more = body[place + SNAPSHOT.size:place + SNAPSHOT.size + min(extra, 16)]
            virtual_size = int.from_bytes(more[8:16], "big") if len(more) == 16 else size
            found.append(_Disk(l1_at, l1_size, virtual_size))
            place += SNAPSHOT.size + extra + id_size + name_size
            self._inside(at, place, f"snapshot {number + 1}")
            place = -(-place // 8) * 8
        return found

    async def _l1(self, one: _Disk) -> None:
        """The table and what it leads to. Of an L2 table is known how many bytes of the disk it is about."""
        if one.entries * 8 > L1_MAX:
            raise self._bad(f"its L1 table has {one.entries} entries")
        reach = 1 << (2 * self.bits - 3)
        self.mapped = 0
        async for base, table in self._table(one.at, one.entries * 8, "its L1 table"):
            places: dict[int, int] = {}
            uses: Counter[int] = Counter()
            for number, entry in enumerate(table, base):
                if at := entry & OFFSET:
                    self._place(at, f"L2 table {number}")
                    uses[at] += 1
                    places[at] = max(places.get(at, 0), min(reach, one.virtual_size - number * reach))
            await self._l2(places, uses)

    async def _l2(self, places: dict[int, int], uses: Mapping[int, int]) -> None:
        """The tables, neighbours together."""
        order = sorted(places)
        while order:
            first = order[0]
            group = [at for at in order[:WINDOW // 512] if at + self.cluster - first <= WINDOW]
            for number in range(1, len(group)):
                if group[number] - group[number - 1] > NEAR + self.cluster:
                    group = group[:number]
                    break
            group = group or [first]
            body = await self._bytes(first, group[-1] + self.cluster - first)
            await asyncio.to_thread(self._data, first, body, [(at, places[at], uses[at]) for at in group])
            order = order[len(group):]

    def _data(self, base: int, body: bytes, tables: list[tuple[int, int, int]]) -> None:
        for at, needed, uses in tables:
            entries = numbers(body[at - base:at - base + self.cluster])
            empty = entries.count(0)
            for index, entry in enumerate(entries):
                if entry & COMPRESSED:
                    self._compressed(entry)
                elif entry & OFFSET and not (entry & ZERO and self.version >= 3):
                    place = entry & OFFSET
                    if place + self.cluster > self.size:  # the last cluster of a disk may be written as far as the disk goes
                        self._inside(place, max(1, min(self.cluster, needed - index * self.cluster)), "a cluster of data")
                    if place % self.cluster:
                        raise self._bad("a cluster of data does not begin with a cluster")

                elif entry:
                    empty += 1
            self._bomb(min((len(entries) - empty) << self.bits, max(needed, 0)) * uses)

    def _bomb(self, more: int) -> None:
        """Tables that are named often and clusters that hold next to nothing make a small file a huge disk."""
        self.mapped += more
        if self.mapped > max(RATIO * self.size, SMALL):
            raise BadParameter(f"the image reads as more than {self.mapped} bytes of data and has {self.size} bytes: at most "
                               f"{RATIO} to 1 is taken", field="url", remedy="convert it: qemu-img convert -O qcow2")

    def _compressed(self, entry: int) -> None:
        shift = 62 - (self.bits - 8)
        place = entry & ((1 << shift) - 1)
        sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1
        self._inside(place // 512 * 512, sectors * 512, "a compressed cluster")


def numbers(body: bytes) -> array[int]:
    """A table's entries; what is behind the last whole one is left out."""
    found = array("Q", body[:len(body) // 8 * 8])
    if sys.byteorder == "little":
        found.byteswap()
    return found
