"""Which handlers process consumes which partitions: rendezvous hash over the living members.

Pure. A member that comes or goes moves only its own share. Two views that differ for a moment do no harm: a partition
queue has one active consumer, and correctness rests on expected versions alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from schema.ids import PARTITIONS


def share(member: str, members: Iterable[str], partitions: int = PARTITIONS) -> set[int]:
    """The partitions of `member` among `members` (itself included)."""
    everyone = sorted({*members, member})
    return {number for number in range(partitions)
            if max(everyone, key=lambda name: _weight(name, number)) == member}


def _weight(member: str, number: int) -> bytes:
    return hashlib.sha256(f"{member}|{number}".encode()).digest()
