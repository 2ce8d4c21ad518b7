"""Writing a compressed qcow2 from its beginning to its end, in one pass and little memory.

How much room a cluster takes is known when it was compressed, so the file grows in guest order: compressed clusters packed
byte behind byte in runs, those that do not shrink whole, each L2 table behind its last cluster, each refcount block when
nothing it counts can change any more, the L1 table and the refcount table at the end. A run follows the one before without a
gap unless something else lies between them. Only the header, the file's first cluster, waits for what comes last. Memory is one
run, one L2 table and one refcount block, whatever the disk.
`CompressedTables` takes such a file in again. No I/O, no compression: it is given bytes that were compressed elsewhere. Source:
qemu's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass

from agents.qcow2 import CLUSTER, COPIED, HEADER, L1_MAX, L2_ENTRIES, REFCOUNTS

COMPRESSED = 1 << 62
OFFSET_BITS = 62 - (CLUSTER.bit_length() - 1 - 8)
"""Bits of a compressed cluster's place; above them, how many sectors it reaches beyond its first."""
SECTOR = 512
RUN = 1 << 20
"""Compressed bytes that are packed together before they go into the file."""
HEADER_LENGTH = HEADER.size + 8
ZSTD = struct.pack(">B7x", 1)
"""The compression type, and its padding."""
HAS_TYPE = 1 << 3
"""Incompatible feature: the header says a compression type, so who does not know it refuses the file."""
Chunks = list[bytes | bytearray | memoryview]
"""Bytes that follow one another in the file; good until the file is given the next cluster."""


class CompressedFile:
    """The file as it grows. Every method returns the bytes that come next in it, behind the header's cluster."""

    def __init__(self, virtual_size: int) -> None:
        """`virtual_size`: bytes of the disk."""
        self.virtual_size = virtual_size
        self.size = CLUSTER
        """Bytes of the file so far, the header's cluster with them."""
        self._run, self._filled = bytearray(RUN + CLUSTER), 0  # the same one for every run: new memory costs more than the copy
        self._in_run: list[tuple[int, int, int]] = []
        """(place in the L2 table, offset in the run, length) of each compressed cluster not yet in the file."""
        self._tail = b""
        """The end of the last run, which filled no cluster: the next begins with it."""
        self._bound = False
        """The run begins with such an end, so it must follow the last one at once."""
        self._owed = 0
        """How many compressed clusters of the last run reach into the tail."""
        self._l1 = array("Q", bytes(8 * max(1, -(-virtual_size // (CLUSTER * L2_ENTRIES)))))
        self._l2 = array("Q")
        self._number = -1
        """Which L2 table is being filled."""
        self._last = -1
        self._counts = array("H", [1])
        """Refcounts of the clusters from `_counted` on."""
        self._counted = 0
        self._blocks: list[int] = []
        """Where the refcount blocks lie."""
        self._ended: bytes = b""

    def add(self, guest: int, packed: bytes | memoryview | None, raw: bytes | bytearray | memoryview) -> Chunks:
        """The next cluster that holds data: `guest` is its number, `packed` what it was compressed to (None: not worth it).

        Raises ValueError when it does not come behind the one before, or is packed to more than a cluster."""
        if not self._last < guest < -(-self.virtual_size // CLUSTER):
            raise ValueError(f"cluster {guest} comes after {self._last}")
        if packed is not None and len(packed) > CLUSTER:
            raise ValueError(f"cluster {guest} was packed to {len(packed)} bytes")
        self._last = guest
        out: Chunks = []
        self._begin_run()
        number, place = divmod(guest, L2_ENTRIES)
        if number != self._number:
            self._end_table(out)
            out = [bytes(data) for data in out]  # this cluster goes where the last run lies
            self._number, self._l2 = number, array("Q", bytes(CLUSTER))
        if packed is not None:
            start, self._filled = self._filled, self._filled + len(packed)
            self._in_run.append((place, start, len(packed)))
            self._run[start:self._filled] = packed
            if self._filled >= RUN:
                # A refcount block that is full comes behind this run: then nothing may stay for the next.
                self._end_run(out, whole=len(self._counts) + self._filled // CLUSTER >= REFCOUNTS)
        else:
            if self._bound:
                self._end_run(out)
            self._l2[place] = self._put(out, raw, 1) | COPIED
        return out

    def end(self) -> Chunks:
        """What closes the file; `header` is known afterwards."""
        out: Chunks = []
        self._begin_run()
        self._end_table(out)
        l1 = array("Q", self._l1)
        l1.byteswap()
        l1_at = self._put(out, _padded(l1.tobytes()), 1)
        used = self.size // CLUSTER
        blocks = 0
        while True:  # blocks and table count themselves
            table = -(-(len(self._blocks) + blocks) * 8 // CLUSTER) or 1
            if self._counted + blocks * REFCOUNTS >= used + blocks + table:
                break
            blocks += 1
        for _ in range(blocks + table):
            self._counts.append(1)
        for number in range(blocks):
            self._blocks.append(self.size)
            self._append(out, _block(self._counts[number * REFCOUNTS:(number + 1) * REFCOUNTS]))
        table_at = self.size
        places = array("Q", self._blocks)
        places.byteswap()
        self._append(out, _padded(places.tobytes()).ljust(table * CLUSTER, b"\0"))
        head = HEADER.pack(b"QFI\xfb", 3, 0, 0, CLUSTER.bit_length() - 1, self.virtual_size, 0, len(self._l1), l1_at,
                           table_at, table, 0, 0, HAS_TYPE, 0, 0, 4, HEADER_LENGTH)
        self._ended = (head + ZSTD).ljust(CLUSTER, b"\0")
        return out

    @property
    def header(self) -> bytes:
        """The file's first cluster, after `end`."""
        if not self._ended:
            raise ValueError("the file has not ended")
        return self._ended

    def _append(self, out: Chunks, data: bytes | bytearray | memoryview) -> None:
        out.append(data)
        self.size += len(data)

    def _put(self, out: Chunks, data: bytes | bytearray | memoryview, count: int) -> int:
        """Whole clusters, each counted `count` times; their place."""
        at = self.size
        self._append(out, data)
        self._counts.extend([count] * (len(data) // CLUSTER))
        self._end_blocks(out)
        return at

    def _begin_run(self) -> None:
        """What the last run left comes first. Not before the next call: until then the last run's bytes are somebody's."""
        if self._tail:
            self._run[:len(self._tail)] = self._tail
            self._tail = b""

    def _end_run(self, out: Chunks, *, whole: bool = True) -> None:
        """The run goes into the file: all of it, or only the clusters that are full."""
        if not self._filled:
            return
        clusters = -(-self._filled // CLUSTER)
        length = (clusters if whole else self._filled // CLUSTER) * CLUSTER
        at = self.size
        counts = array("H", bytes(2 * clusters))
        counts[0], self._owed = self._owed, 0
        later = []
        for place, offset, size in self._in_run:
            if offset >= length:
                later.append((place, offset - length, size))
                continue
            start = (at + offset) // SECTOR
            more = (at + offset + size - 1) // SECTOR - start
            self._l2[place] = COMPRESSED | (more << OFFSET_BITS) | (at + offset)
            for cluster in range(offset // CLUSTER, (offset + size - 1) // CLUSTER + 1):
                counts[cluster] += 1
        self._in_run = later
        if length > self._filled:
            self._run[self._filled:length] = bytes(length - self._filled)
        elif length < self._filled:
            self._tail, self._owed = bytes(self._run[length:self._filled]), counts.pop()
        self._filled, self._bound = len(self._tail), bool(self._tail)
        self._append(out, memoryview(self._run)[:length])
        self._counts.extend(counts)
        self._end_blocks(out)

    def _end_table(self, out: Chunks) -> None:
        if self._number < 0:
            return
        self._end_run(out)
        self._l2.byteswap()
        self._l1[self._number] = self._put(out, self._l2.tobytes(), 1) | COPIED

    def _end_blocks(self, out: Chunks) -> None:
        """Refcount blocks that are full go into the file; they are counted by a later one."""
        while len(self._counts) >= REFCOUNTS:
            block = _block(self._counts[:REFCOUNTS])
            del self._counts[:REFCOUNTS]
            self._counted += REFCOUNTS
            self._blocks.append(self.size)
            self._append(out, block)
            self._counts.append(1)


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a guest cluster lies in the file."""

    at: int
    """Byte."""
    length: int
    """Bytes; of a compressed one a few more than it has, perhaps: what reads it knows where it ends."""
    packed: bool


class CompressedTables:
    """Takes in the header and the tables of a file that `CompressedFile` made. Raises ValueError for what it never makes."""

    def __init__(self, head: bytes, size: int) -> None:
        """`head`: the file's first cluster; `size`: bytes of the file."""
        (magic, version, backing, _, bits, self.virtual_size, crypt, self.l1_size, self.l1_at, _, _, snapshots, _, features,
         _, _, _, length) = HEADER.unpack_from(head)
        self._size = size
        if (magic, version, bits, features, length) != (b"QFI\xfb", 3, CLUSTER.bit_length() - 1, HAS_TYPE, HEADER_LENGTH):
            raise ValueError("it is no qcow2 with zstd clusters as Storebus writes them")
        if head[HEADER.size:HEADER_LENGTH] != ZSTD or backing or crypt or snapshots:
            raise ValueError("its header says what Storebus never writes")
        if (self.l1_size != max(1, -(-self.virtual_size // (CLUSTER * L2_ENTRIES))) or self.l1_size > L1_MAX
                or self.l1_at % CLUSTER or not CLUSTER <= self.l1_at <= size - 8 * self.l1_size):
            raise ValueError("its header is damaged")
        self._tables = array("Q")

    def take_l1(self, data: bytes) -> None:
        """The L1 table: `l1_size` numbers of eight bytes at `l1_at`."""
        self._tables = _numbers(data)
        if any(entry & (CLUSTER - 1) or not entry & COPIED or (entry ^ COPIED) > self._size - CLUSTER
               for entry in self._tables if entry):
            raise ValueError("its L1 table is damaged")

    def table_at(self, number: int) -> int:
        """Where L2 table `number` lies, one cluster long; 0: there is none."""
        return self._tables[number] & ~COPIED

    def stored(self, data: bytes) -> list[Stored | None]:
        """What an L2 table says of each of its guest clusters; None: it reads as zeros."""
        entries = _numbers(data)
        found: list[Stored | None] = []
        for index, entry in enumerate(entries):
            if not entry:
                found.append(None)
            elif entry & COMPRESSED:
                at = entry & ((1 << OFFSET_BITS) - 1)
                end = (at // SECTOR + ((entry ^ COMPRESSED) >> OFFSET_BITS) + 1) * SECTOR
                behind = entries[index + 1] if index + 1 < len(entries) else 0
                if behind & COMPRESSED and at < (next_at := behind & ((1 << OFFSET_BITS) - 1)) < end:
                    end = next_at  # packed byte behind byte
                found.append(Stored(at, end - at, True))
            elif entry & (CLUSTER - 1) or not entry & COPIED:
                raise ValueError("its L2 table says what Storebus never writes")
            else:
                found.append(Stored(entry ^ COPIED, CLUSTER, False))
            if (last := found[-1]) is not None and not (
                    last.length <= CLUSTER <= last.at <= last.at + last.length <= self._size):
                raise ValueError("its L2 table is damaged")
        return found


def _numbers(data: bytes) -> array[int]:
    entries = array("Q", data)
    entries.byteswap()
    return entries


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // CLUSTER) * CLUSTER, b"\0")


def _block(counts: array[int]) -> bytes:
    swapped = array("H", counts)
    swapped.byteswap()
    return swapped.tobytes().ljust(CLUSTER, b"\0")
