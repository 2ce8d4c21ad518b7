"""How things are measured here: both sides in turn, medians, the ratio, what was promised.

Owns the table at the end. Refuses single runs and figures from different runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Side = Callable[[], Awaitable[float]]
"""One run of one side; its figure."""


@dataclass
class Result:
    """One line of the table."""

    name: str
    unit: str
    ours: list[float]
    peer: list[float]
    peer_name: str
    floor: float
    aim: float
    higher_is_better: bool = True
    notes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How many times better than the peer (medians)."""
        ours, peer = statistics.median(self.ours), statistics.median(self.peer)
        return ours / peer if self.higher_is_better else peer / ours

    @property
    def holds(self) -> bool:
        """Whether the floor holds."""
        return self.ratio >= self.floor and not self.failed

    def show(self) -> str:
        """The line and what belongs to it."""
        ours, peer = statistics.median(self.ours), statistics.median(self.peer)
        word = "ok  " if self.holds else "MISS"
        lines = [(f"{word} {self.name}: {ours:,.4g} {self.unit} against {peer:,.4g} of {self.peer_name}: "
                 f"{self.ratio:.2f}x (floor {self.floor:g}x, aim {self.aim:g}x)")]
        lines += [f"       runs: {', '.join(f'{v:,.4g}' for v in self.ours)} | {', '.join(f'{v:,.4g}' for v in self.peer)}"]
        lines += [f"       {note}" for note in self.notes] + [f"       MISS: {what}" for what in self.failed]
        return "\n".join(lines)


async def interleaved(ours: Side, peer: Side, rounds: int = 3) -> tuple[list[float], list[float]]:
    """A B A B ...: a machine that drifts drifts for both."""
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        mine.append(await ours())
        theirs.append(await peer())
    return mine, theirs
