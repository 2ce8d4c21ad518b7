"""Where the data of a snapshot lies in its qcow2 file, so that what is plain can be read from there.

qemu says what is data, keeps the file locked while it exports a snapshot, and never writes a cluster of one in place: until the
export ends, what the tables say of a plain cluster (allocated, not compressed, not zeros) stays true, and the file has its bytes.
To read them costs one copy; to be sent them by NBD costs three and two programs. Owns those tables. Refuses to judge: every other
cluster, a file with a feature that is not known here, and whatever cannot be read, is asked of qemu, which knows or says why not.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable, Iterator

from agents.qcow2_whole import COMPRESSED, HEADER, L1_MAX, OFFSET, SNAPSHOT, SNAPSHOTS_MAX, ZERO, numbers

KNOWN = 1 << 3
"""Incompatible features that plain clusters are the same with: how compressed ones are packed."""
TABLES = 64
"""L2 tables that are kept: 4 MiB, for 32 GiB of a disk."""
Otherwise = Callable[[memoryview, int], None]
"""Fills a buffer from an offset by another way. Blocking."""


class Clusters:
    """One snapshot's, while its file is locked. Blocking; several threads may read at once."""

    def __init__(self, descriptor: int, bits: int, l1: array[int]) -> None:
        self._descriptor, self._bits, self._l1 = descriptor, bits, l1
        self._tables: dict[int, array[int]] = {}

    @classmethod
    def of(cls, path: str, tag: str) -> Clusters | None:
        """None where all must be left to qemu."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            found = _l1_of(descriptor, tag)
        except (OSError, OverflowError, struct.error):
            found = None
        if found is None:
            os.close(descriptor)
            return None
        return cls(descriptor, *found)

    def read_into(self, view: memoryview, offset: int, otherwise: Otherwise) -> None:
        """Fill the buffer: plain clusters from the file, the rest by `otherwise`. Raises what that raises."""
        for start, length, place in self._runs(offset, offset + len(view)):
            piece = view[start - offset:start - offset + length]
            if place is None or not self._read(piece, place):
                otherwise(piece, start)

    def _read(self, view: memoryview, place: int) -> bool:
        """False when the file does not give it."""
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._descriptor, [view[done:]], place + done)
            except OSError:
                return False
            if not got:
                return False
            done += got
        return True

    def _runs(self, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """(offset, bytes, where in the file); what lies together is joined."""
        cluster, at, began = 1 << self._bits, start, self._place(start)
        while True:
            at = min(end, (at & -cluster) + cluster)
            if at >= end:
                break
            place = self._place(at)
            if place == (None if began is None else began + at - start):
                continue
            yield start, at - start, began
            start, began = at, place
        yield start, end - start, began

    def _place(self, offset: int) -> int | None:
        """Where in the file the byte at an offset of the disk lies; None when its cluster is not plain."""
        number, index = offset >> (2 * self._bits - 3), (offset >> self._bits) & ((1 << (self._bits - 3)) - 1)
        table = self._tables.get(number) or self._table(number)
        entry, inside = table[index] if table else 0, (1 << self._bits) - 1
        place = entry & OFFSET
        return None if not place or entry & (COMPRESSED | ZERO) or place & inside else place + (offset & inside)

    def _table(self, number: int) -> array[int] | None:
        at = self._l1[number] & OFFSET if number < len(self._l1) else 0
        if not at or at & ((1 << self._bits) - 1):
            return None
        try:
            table = numbers(os.pread(self._descriptor, 1 << self._bits, at))
        except OSError:
            return None
        if len(table) != 1 << (self._bits - 3):
            return None
        if len(self._tables) >= TABLES:
            self._tables.clear()
        self._tables[number] = table
        return table

    def close(self) -> None:
        """Nobody reads any more."""
        os.close(self._descriptor)


def _l1_of(descriptor: int, tag: str) -> tuple[int, array[int]] | None:
    """(cluster bits, L1 table) of a snapshot in a file that has nothing strange."""
    magic, version, _, _, bits, _, crypt, _, _, _, _, count, at = HEADER.unpack(os.pread(descriptor, HEADER.size, 0))
    features = int.from_bytes(os.pread(descriptor, 8, 72), "big") if version >= 3 else 0
    if magic != b"QFI\xfb" or version not in (2, 3) or crypt or features & ~KNOWN or not 9 <= bits <= 21:
        return None
    body, place = os.pread(descriptor, SNAPSHOTS_MAX, at), 0
    for _ in range(count):
        l1_at, l1_size, id_size, name_size, _, _, _, _, extra = SNAPSHOT.unpack_from(body, place)
        name = place + SNAPSHOT.size + extra + id_size
        if body[name:name + name_size] == tag.encode():
            l1 = numbers(os.pread(descriptor, l1_size * 8, l1_at)) if l1_size * 8 <= L1_MAX else array("Q")
            return (bits, l1) if len(l1) == l1_size else None
        place = -(-(name + name_size) // 8) * 8
    return None
