"""Which motions there are: a literal table. What an agent announces and what an order names are found here.

Owns the table and nothing else. A new strategy is its module beside this one and its line of MOTIONS; the planner learns of it
from the agents that announce it.
"""

from __future__ import annotations

from agents.motion.at_rest import DIRECT
from agents.motion.base import Carrier, Motion
from agents.motion.seed import LOCAL
from agents.motion.store_to_store import STORE_TO_STORE
from schema.failure import Refused
from schema.motion import MotionSpec

MOTIONS: dict[str, Motion] = {motion.name: motion for motion in (DIRECT, STORE_TO_STORE, LOCAL)}
"""Name, as orders have it, -> strategy."""


def find(strategy: str, move: str) -> Carrier:
    """Who carries this move by this strategy. Raises Refused: the planner knew this agent otherwise."""
    motion = MOTIONS.get(strategy)
    carrier = motion.moves.get(move) if motion is not None else None
    if carrier is None:
        can = ", ".join(sorted(name for name, each in MOTIONS.items() if move in each.moves)) or "nothing"
        raise Refused(f"this agent does not carry {move} by {strategy}", field="motion",
                      remedy=f"here it is carried by: {can}; was the agent replaced by an older one?")
    return carrier


def announced(*, disks: bool) -> tuple[MotionSpec, ...]:
    """What an agent says that it carries: on a host with disks (`disks`), or on any other."""
    specs = [motion.spec(disks=disks) for _, motion in sorted(MOTIONS.items())]
    return tuple(spec for spec in specs if spec.moves)


__all__ = ["MOTIONS", "announced", "find"]
