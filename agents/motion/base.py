"""Motion: how image bytes get from one place to another. No other code moves them, which an import contract proves.

Owns the interface of a strategy: the moves that it carries, what it needs of an image store and what it costs, so that whoever
plans need not know it. A strategy is one module here and one line of `registry.MOTIONS`. Each move reports progress as bytes
acknowledged by the destination, stops within 5 s of a cancel (asyncio cancellation), and leaves nothing behind then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schema.motion import BACKUP, COPY, FETCH, MERGE, RESTORE, SEED, MotionSpec

if TYPE_CHECKING:
    from agents.toolbox import Toolbox

Progress = Callable[[str, int, int], None]
"""(stage, bytes acknowledged by the destination, total or 0): called often, must be cheap; the runtime thins it out."""
Secrets = Mapping[str, str]
Carrier = Callable[[Any, str, "Toolbox", Secrets, Progress], Awaitable[Any]]
"""(order, disk, tools, secrets, progress) -> what its operation reports.

`disk` is the local path of the disk that is read (BACKUP) or of the absent one that is made (RESTORE, SEED); empty otherwise.
The orders: FetchImage of FETCH, WriteSnapshot of BACKUP, CreateDisk, RevertDisk and MakeSeed of RESTORE,
agents.motion.store_to_store.Copy of COPY, MergeImages of MERGE, CreateDisk of SEED (which says why the store was read)."""
OF_DISKS = frozenset({BACKUP, RESTORE, SEED})
"""Moves that only the host of the disk can carry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """A strategy as this host can carry it out."""

    name: str
    moves: Mapping[str, Carrier]
    """Move of schema.motion -> who carries it."""
    reads: tuple[str, ...] = ()
    """Capabilities that a store must have to be read from."""
    writes: tuple[str, ...] = ()
    """Capabilities that a store must have to be written to."""
    passes: int = 1
    """How often each byte crosses this host's network; 0: none does."""
    rate: int
    """Bytes a second and pass to plan with."""
    start: int = 0
    """Seconds before the first byte."""

    def __post_init__(self) -> None:
        unknown = set(self.moves) - {FETCH, BACKUP, RESTORE, COPY, MERGE, SEED}
        if unknown:
            raise ValueError(f"the motion {self.name} names moves that there are not: {', '.join(sorted(unknown))}")

    def spec(self, *, disks: bool) -> MotionSpec:
        """What an agent announces: of a host with disks the moves of disks, of any other the rest."""
        return MotionSpec(name=self.name, moves=[move for move in self.moves if (move in OF_DISKS) is disks],
                          reads=list(self.reads), writes=list(self.writes), passes=self.passes, rate=self.rate, start=self.start)


def no_progress(stage: str, done: int, total: int) -> None:
    """For callers that do not watch."""


__all__ = ["OF_DISKS", "Carrier", "Motion", "Progress", "Secrets", "no_progress"]
