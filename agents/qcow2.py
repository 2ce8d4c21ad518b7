"""Writing qcow2: an image whose every byte is known before the first is written. Reading one is qemu's job, never ours.

Layout: header, refcount table, refcount blocks, L1 table, L2 tables, data clusters in guest order. Which clusters hold data
is fixed by the extents, so any range of the file can be made at any time, in any order, again and again: parts of an
upload are independent. Metadata is made when it is asked for, so memory stays small for a disk of many TiB.
"""

from __future__ import annotations

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
HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")


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
    spans: list[list[int]] = []
    for extent in extents:
        if extent.zero or extent.length == 0:
            continue
        first, end = extent.offset // CLUSTER, -(-(extent.offset + extent.length) // CLUSTER)
        if spans and first <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([first, end])
    runs, at = [], 0
    for first, end in spans:
        runs.append(Run(first, end - first, at))
        at += end - first
    return runs


class Layout:
    """The file of one disk."""

    def __init__(self, virtual_size: int, extents: Sequence[Extent]) -> None:
        self.virtual_size = virtual_size
        self.runs = data_runs(extents)
        self._starts = [run.guest for run in self.runs]
        self._ats = [run.at for run in self.runs]
        self.data_clusters = sum(run.count for run in self.runs)
        self.l1_size = max(1, -(-virtual_size // (CLUSTER * L2_ENTRIES)))
        self._l1_clusters = -(-self.l1_size * 8 // CLUSTER)
        self._l2 = sorted({l2 for run in self.runs
                           for l2 in range(run.guest // L2_ENTRIES, (run.guest + run.count - 1) // L2_ENTRIES + 1)})
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
        entries.byteswap()
        return entries.tobytes()

    def _header(self) -> bytes:
        return HEADER.pack(
            b"QFI\xfb", 3, 0, 0, CLUSTER.bit_length() - 1, self.virtual_size, 0, self.l1_size, self._l1_at * CLUSTER,
            self._table_at * CLUSTER, self._table, 0, 0, 0, 0, 0, 4, HEADER.size)


def _table(values: Iterable[int]) -> bytes:
    entries = array("Q", values)
    entries.byteswap()
    return entries.tobytes()
