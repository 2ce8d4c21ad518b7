"""Overlays: which link of a chain holds each cluster of the disk, the newest that says anything of it.

Owns the arithmetic of runs of clusters; no I/O, and memory by runs, not by clusters. Refuses to know files: a link is the
clusters that it has data for and those that it says are zeros.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agents.qcow2 import Layout

Span = tuple[int, int]
"""(first cluster, the one behind the last)"""


@dataclass(frozen=True, slots=True, order=True)
class Held:
    """Guest clusters whose data one link has."""

    first: int
    end: int
    link: int
    """Its number, from 0 for the oldest."""


class Overlay:
    """Links, the oldest first, seen as one."""

    def __init__(self, links: Sequence[Layout]) -> None:
        held: list[Held] = []
        zeros: list[Span] = []
        covered: list[Span] = []
        for number in reversed(range(len(links))):
            data = [(run.guest, run.guest + run.count) for run in links[number].runs]
            held += [Held(first, end, number) for first, end in without(data, covered)]
            zeros += without(links[number].zeros, covered)
            covered = joined([*covered, *data, *links[number].zeros])
        self.held = sorted(held)
        """Who has what, in guest order."""
        self.zeros = joined(zeros)
        """Clusters that read as zeros whatever lies below."""
        self._starts = [each.first for each in self.held]
        self._zero_starts = [first for first, _ in self.zeros]

    def who(self, cluster: int) -> Held | None:
        """Who has this cluster's data; None: nobody here."""
        index = bisect_right(self._starts, cluster) - 1
        return self.held[index] if index >= 0 and cluster < self.held[index].end else None

    def zero(self, cluster: int) -> bool:
        """Whether it reads as zeros."""
        index = bisect_right(self._zero_starts, cluster) - 1
        return index >= 0 and cluster < self.zeros[index][1]

    def touches(self, first: int, end: int) -> bool:
        """Whether anything is said of any of these clusters."""
        at = bisect_right(self._starts, end - 1) - 1
        zero = bisect_right(self._zero_starts, end - 1) - 1
        return (at >= 0 and self.held[at].end > first) or (zero >= 0 and self.zeros[zero][1] > first)


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same clusters in order, each once."""
    found: list[Span] = []
    for first, end in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((first, end))
    return found


def without(spans: Sequence[Span], gone: Sequence[Span]) -> list[Span]:
    """What is in `spans` and not in `gone`; both in order, without overlaps."""
    found: list[Span] = []
    at = 0
    for first, end in spans:
        while at < len(gone) and gone[at][1] <= first:
            at += 1
        index = at
        while index < len(gone) and gone[index][0] < end:
            if first < gone[index][0]:
                found.append((first, gone[index][0]))
            first = max(first, gone[index][1])
            index += 1
        if first < end:
            found.append((first, end))
    return found


__all__ = ["Held", "Overlay", "joined", "without"]
