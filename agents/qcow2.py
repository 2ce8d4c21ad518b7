"""Writing qcow2: an image whose every byte is known before the first is written. Reading one is qemu's job, never ours, but
for what this module wrote itself: `Tables` takes that in again and refuses everything else.

Layout: header, refcount table, refcount blocks, L1 table, L2 tables, data clusters in guest order. Which clusters hold data
is fixed by the extents, so any range of the file can be made at any time, in any order, again and again: parts of an
upload are independent. Metadata is made when it is asked for, so memory stays small for a disk of many TiB. A delta is the
same with the name of its backing file in the header, and zero clusters where the parent's bytes must not shine through.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agents.hypervisors.base import Extent

CLUSTER = 1 << 16
L2_ENTRIES = CLUSTER // 8
REFCOUNTS = CLUSTER // 2
"""Clusters that one refcount block counts (16 bits each)."""
COPIED = 1 << 63
ZERO = 1
"""The L2 entry of a cluster that reads as zeros whatever the backing file holds."""
HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
BACKING_FORMAT = struct.pack(">II8sQ", 0xE2792ACA, 5, b"qcow2", 0)
"""The header extension that says the backing file's format, and the end of extensions."""
BACKING_AT = HEADER.size + len(BACKING_FORMAT)
BACKING_MAX = 1023
"""Bytes of a backing file's name, by the format's rules."""
L1_MAX = (64 << 40) // (CLUSTER * L2_ENTRIES)
"""Entries of the L1 table of a disk of 64 TiB: larger ones are not written here."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring guest clusters that hold data; `at` is the first one's number among the data clusters."""

    guest: int
    count: int
    at: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of the file: metadata bytes, or guest bytes to be read from the device at `guest` (zeros past its end)."""

    offset: int
    length: int
    data: bytes | None
    guest: int = 0


def data_runs(extents: Iterable[Extent]) -> list[Run]:
    """The clusters touched by extents that are not zero, joined."""
    runs, at = [], 0
    for first, end in touched(extent for extent in extents if not extent.zero):
        runs.append(Run(first, end - first, at))
        at += end - first
    return runs


def touched(extents: Iterable[Extent]) -> list[tuple[int, int]]:
    """(first, end) of the clusters that the extents touch, joined."""
    spans: list[tuple[int, int]] = []
    for extent in extents:
        if extent.length == 0:
            continue
        first, end = extent.offset // CLUSTER, -(-(extent.offset + extent.length) // CLUSTER)
        if spans and first <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((first, end))
    return spans


class Layout:
    """The file of one disk: data where the extents have some, zero clusters where `zeros` says (first, end), the rest left to
    the file `backing`, or to nothing."""

    def __init__(self, virtual_size: int, extents: Iterable[Extent], *, zeros: Sequence[tuple[int, int]] = (),
                 backing: bytes = b"") -> None:
        self.virtual_size = virtual_size
        self.runs, self.zeros, self.backing = data_runs(extents), zeros, backing
        self._starts = [run.guest for run in self.runs]
        self._zero_starts = [first for first, _ in self.zeros]
        self._ats = [run.at for run in self.runs]
        self.data_clusters = sum(run.count for run in self.runs)
        self.l1_size = max(1, -(-virtual_size // (CLUSTER * L2_ENTRIES)))
        self._l1_clusters = -(-self.l1_size * 8 // CLUSTER)
        spans = [(run.guest, run.guest + run.count) for run in self.runs] + list(self.zeros)
        self._l2 = sorted({l2 for first, end in spans for l2 in range(first // L2_ENTRIES, (end - 1) // L2_ENTRIES + 1)})
        self._place()

    def _place(self) -> None:
        rest = 1 + self._l1_clusters + len(self._l2) + self.data_clusters
        blocks = 1
        while True:  # refcounts count themselves, so this is a fixed point
            table = -(-blocks * 8 // CLUSTER)
            needed = -(-(rest + table + blocks) // REFCOUNTS)
            if needed <= blocks:
                break
            blocks = needed
        self._table, self._blocks = table, blocks
        self._table_at = 1
        self._blocks_at = 1 + table
        self._l1_at = self._blocks_at + blocks
        self._l2_at = self._l1_at + self._l1_clusters
        self.data_at = self._l2_at + len(self._l2)
        self.clusters = self.data_at + self.data_clusters
        self.size = self.clusters * CLUSTER
        """Bytes of the file."""

    def place(self, guest: int) -> int:
        """The cluster of the file that holds this guest cluster, one that has data."""
        run = self.runs[bisect_right(self._starts, guest) - 1]
        return self.data_at + run.at + guest - run.guest

    def pieces(self, offset: int, length: int) -> list[Piece]:
        """What the range [offset, offset + length) of the file consists of, in order."""
        found: list[Piece] = []
        end = min(offset + length, self.size)
        while offset < end:
            cluster, inside = divmod(offset, CLUSTER)
            if cluster < self.data_at:
                step = min(CLUSTER - inside, end - offset)
                found.append(Piece(offset, step, self._metadata(cluster)[inside:inside + step]))
            else:
                run = self.runs[bisect_right(self._ats, cluster - self.data_at) - 1]
                guest = run.guest + (cluster - self.data_at - run.at)
                step = min((run.guest + run.count - guest) * CLUSTER - inside, end - offset)
                found.append(Piece(offset, step, None, guest * CLUSTER + inside))
            offset += step
        return found

    def _metadata(self, cluster: int) -> bytes:
        if cluster == 0:
            return self._header().ljust(CLUSTER, b"\0")
        if cluster < self._blocks_at:
            first = (cluster - self._table_at) * L2_ENTRIES
            return _table((self._blocks_at + n) * CLUSTER if n < self._blocks else 0
                          for n in range(first, first + L2_ENTRIES))
        if cluster < self._l1_at:
            first = (cluster - self._blocks_at) * REFCOUNTS
            used = max(0, min(REFCOUNTS, self.clusters - first))
            return (b"\0\1" * used).ljust(CLUSTER, b"\0")
        if cluster < self._l2_at:
            first = (cluster - self._l1_at) * L2_ENTRIES
            places = {l2: self._l2_at + n for n, l2 in enumerate(self._l2)}
            return _table((places[n] * CLUSTER | COPIED) if n in places else 0 for n in range(first, first + L2_ENTRIES))
        return self._l2_table(self._l2[cluster - self._l2_at])

    def _l2_table(self, number: int) -> bytes:
        entries = array("Q", bytes(CLUSTER))
        first, end = number * L2_ENTRIES, (number + 1) * L2_ENTRIES
        index = max(0, bisect_right(self._starts, first) - 1)
        while index < len(self.runs) and self.runs[index].guest < end:
            run = self.runs[index]
            low, high = max(first, run.guest), min(end, run.guest + run.count)
            if low < high:  # the first run looked at may end before this table
                place = ((self.data_at + run.at + low - run.guest) * CLUSTER) | COPIED
                entries[low - first:high - first] = array("Q", range(place, place + (high - low) * CLUSTER, CLUSTER))
            index += 1
        index = max(0, bisect_right(self._zero_starts, first) - 1)
        while index < len(self.zeros) and self.zeros[index][0] < end:
            low, high = max(first, self.zeros[index][0]), min(end, self.zeros[index][1])
            if low < high:
                entries[low - first:high - first] = array("Q", [ZERO]) * (high - low)
            index += 1
        entries.byteswap()
        return entries.tobytes()

    def _header(self) -> bytes:
        head = HEADER.pack(
            b"QFI\xfb", 3, BACKING_AT if self.backing else 0, len(self.backing), CLUSTER.bit_length() - 1, self.virtual_size,
            0, self.l1_size, self._l1_at * CLUSTER, self._table_at * CLUSTER, self._table, 0, 0, 0, 0, 0, 4, HEADER.size)
        return head + BACKING_FORMAT + self.backing if self.backing else head


def _table(values: Iterable[int]) -> bytes:
    entries = array("Q", values)
    entries.byteswap()
    return entries.tobytes()


class Tables:
    """Takes in the metadata of a file that `Layout` made, a range after the other; `layout` is then the same again.

    Nothing of it is believed: the layout that its tables lead to is written once more and must be the same bytes. Raises
    ValueError saying what is not as this module writes it."""

    def __init__(self, head: bytes) -> None:
        if len(head) != CLUSTER:
            raise ValueError("it has no whole header")
        magic, version, backing_at, backing_size, bits, self.virtual_size, _, self._l1_size, self.l1_at = HEADER.unpack_from(
            head)[:9]
        if (magic, version, 1 << bits if bits < 32 else 0) != (b"QFI\xfb", 3, CLUSTER):
            raise ValueError("it is no qcow2 of version 3 with clusters of 64 KiB")
        if (backing_size > BACKING_MAX or self.l1_at < CLUSTER or self.l1_at % CLUSTER
                or not self._l1_size == max(1, -(-self.virtual_size // (CLUSTER * L2_ENTRIES))) <= L1_MAX):
            raise ValueError("its header is damaged")
        self.backing = head[backing_at:backing_at + backing_size]
        self._spans: list[list[tuple[int, int]]] = [[], []]
        self._digest = hashlib.sha256(head)

    @property
    def l1_bytes(self) -> int:
        """The L1 table's room in the file, from `l1_at`."""
        size: int = self._l1_size
        return -(-size * 8 // CLUSTER) * CLUSTER

    def take_counts(self, data: bytes) -> None:
        """What lies between the header and the L1 table, or a part of it."""
        self._digest.update(data)

    def take_l1(self, data: bytes) -> list[int]:
        """The L1 table -> the numbers of the L2 tables that follow it, in order."""
        self._digest.update(data)
        return [number for number, entry in enumerate(_entries(data[:self._l1_size * 8])) if entry]

    def take_l2(self, number: int, data: bytes) -> None:
        """One L2 table."""
        self._digest.update(data)
        first = number * L2_ENTRIES
        entries = _entries(data)
        at = 0
        while at < L2_ENTRIES:
            kind, start = _kind(entries[at]), at
            while at < L2_ENTRIES and _kind(entries[at]) == kind:
                at += 1
            if kind is not None:
                spans = self._spans[kind]
                if spans and spans[-1][1] == first + start:
                    spans[-1] = (spans[-1][0], first + at)
                else:
                    spans.append((first + start, first + at))

    def layout(self) -> Layout:
        """The layout, after the last table."""
        data, zeros = self._spans
        if any(spans and spans[-1][1] > -(-self.virtual_size // CLUSTER) for spans in self._spans):
            raise ValueError("it holds data beyond its end")
        made = Layout(self.virtual_size, [Extent(offset=first * CLUSTER, length=(end - first) * CLUSTER, zero=False)
                                          for first, end in data], zeros=zeros, backing=self.backing)
        digest = hashlib.sha256()
        for cluster in range(made.data_at):
            for piece in made.pieces(cluster * CLUSTER, CLUSTER):
                assert piece.data is not None
                digest.update(piece.data)
        if digest.digest() != self._digest.digest():
            raise ValueError("its tables are not as Storebus writes them")
        return made


def _kind(entry: int) -> int | None:
    """0: data, 1: zeros, None: nothing. Any other entry makes the written-again tables differ."""
    return None if entry == 0 else 1 if entry == ZERO else 0


def _entries(data: bytes) -> array[int]:
    entries = array("Q", data)
    entries.byteswap()
    return entries
