"""Motion: how image bytes get from one place to another. What agents announce they carry, and what was planned. Pure data.

Owns the words: a strategy, the moves it carries, what it needs and costs, the plan and what was refused on the way to it.
Refuses to choose (`handlers.planner`) and to move (`agents.motion`).
"""

from __future__ import annotations

from uuid import UUID

from schema.image import Frozen

FETCH = "url->store"
"""A download into an image store."""
BACKUP = "disk->store"
"""A disk, or a snapshot inside it, into an image store."""
RESTORE = "store->disk"
"""An object of an image store into a new disk."""
COPY = "store->store"
"""An object from one image store into another."""
MERGE = "chain->store"
"""Links of a chain in an image store into one object, there or in another."""
SEED = "seed->disk"
"""A template's copy on a primary store into a new disk there."""


class MotionSpec(Frozen):
    """A strategy as an agent announces it: enough to plan with, for whoever never heard of it before."""

    name: str
    """E.g. direct, store-to-store."""
    moves: list[str]
    """What this agent carries by it, of the moves above."""
    reads: list[str] = []
    """Capabilities that an image store must have to be read from."""
    writes: list[str] = []
    """Capabilities that an image store must have to be written to."""
    passes: int = 1
    """How often each byte crosses the agent's network; 0: none does."""
    rate: int = 200 << 20
    """Bytes a second and pass that a plan counts with: an assumption that ranks strategies, not a measurement."""
    start: int = 0
    """Seconds before the first byte moves (a server that is started, a cache that is mounted)."""


BEFORE_PLANS = MotionSpec(name="direct", moves=[FETCH, BACKUP, RESTORE], reads=["ranged_read"], writes=["parallel_parts"])
"""What an agent carries that announces no motions at all: one of a version before there were plans."""


class Endpoint(Frozen):
    """One end of a move."""

    kind: str
    """url, store, disk or seed"""
    id: UUID | None = None
    """The image store, or the primary store; None for a URL."""
    name: str
    """For people: the store's name, the URL's host."""


class Cost(Frozen):
    """What a move is expected to take. An estimate: it ranks strategies and is shown to people, nothing relies on it."""

    bytes: int | None = None
    """Bytes across the agent's network, every pass counted; None when nobody can know before it begins."""
    seconds: int | None = None
    basis: str = ""
    """What the bytes are estimated from."""


class RefusedMotion(Frozen):
    """A strategy that was not chosen."""

    strategy: str
    missing: str = ""
    """The capability that it lacks; empty when it was possible and only dearer."""
    where: str = ""
    """Who or what lacks it."""
    cause: str
    """The sentence."""


class MotionPlan(Frozen):
    """How the bytes of one step move, and why so."""

    strategy: str
    move: str
    source: Endpoint
    target: Endpoint
    agent: str
    """Who carries it."""
    cost: Cost
    reason: str
    refused: list[RefusedMotion] = []
