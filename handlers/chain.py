"""Chains: a snapshot that is only what changed since another one needs that one's bytes.

Rules kept here: a delta's parent is the volume's snapshot before it, backed up, in the same store; the link is in the parent's
stream before the first byte is written, so what a chain needs is never deleted; a snapshot that is deleted while another one
needs it is hidden, and goes with the last that does. Every decision reads the streams of all it relies on, so of two that
race one is made again. Refuses to know how a delta is made, and whether the disk's record of changes can be trusted: its agent
finds that out, and a full backup is always right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from handlers.decider import Context
from schema.ids import derive
from schema.ids import stream as thing_stream
from schema.image import ImageRef
from schema.snapshot import DeleteSnapshot, SnapshotLinked, SnapshotUnlinked

if TYPE_CHECKING:
    from handlers.snapshot import SnapshotState


@dataclass(frozen=True, slots=True)
class Choice:
    """What a backup is written against."""

    parent: SnapshotState | None
    """None: it is written whole."""
    depth: int
    """Links before it."""
    reason: str
    """Why it is written whole."""


def stream(snapshot_id: UUID) -> str:
    """The stream of a snapshot."""
    return thing_stream("snapshot", snapshot_id)


def parents(states: Mapping[str, Any]) -> list[str]:
    """The streams of the parents of every snapshot among the states: followed to its end, the whole chain."""
    return [stream(state.parent) for name, state in states.items()
            if name.startswith("snapshot-") and state is not None and state.parent is not None]


def ancestors(context: Context, snapshot_id: UUID) -> list[SnapshotState]:
    """What a snapshot is built on: its parent first, the full one last."""
    found: list[SnapshotState] = []
    state = context.state(stream(snapshot_id))
    while state.parent is not None:
        state = context.state(stream(state.parent))
        found.append(state)
    return found


def images(context: Context, snapshot_id: UUID) -> list[ImageRef]:
    """The objects that a snapshot is built on, the full one first."""
    return [state.image for state in reversed(ancestors(context, snapshot_id)) if state.image is not None]


def choose(context: Context, head: UUID | None, store_id: UUID) -> Choice:
    """Whether the next backup of a volume, whose last one is `head`, may be a delta."""
    parent: SnapshotState | None = context.state(stream(head)) if head is not None else None
    most = context.limits.max_chain
    if most <= 1:
        reason = "incremental snapshots are switched off (STOREBUS_SNAPSHOT_CHAIN is 1)"
    elif parent is None:
        reason = "it is the first snapshot of its volume"
    elif parent.status in ("Destroying", "Hidden", "Destroyed"):
        reason = "the previous snapshot was deleted"
    elif parent.status != "BackedUp":
        reason = f"the previous snapshot is {parent.status}"
    elif (bad := quarantined(context, parent.id)) is not None:
        reason = f"the object {bad.image.key if bad.image else ''} of the previous snapshot's chain is quarantined"
    elif parent.store_id != store_id:
        reason = "the previous snapshot rests in another image store"
    elif parent.depth + 1 >= most:
        reason = f"the chain has {parent.depth + 1} links, and {most} is the most (STOREBUS_SNAPSHOT_CHAIN)"
    else:
        return Choice(parent, parent.depth + 1, "")
    return Choice(None, 0, reason)


def quarantined(context: Context, snapshot_id: UUID) -> SnapshotState | None:
    """The link of a snapshot's chain, itself among them, whose copy is Quarantined; None when all are sound."""
    links: list[SnapshotState] = [context.state(stream(snapshot_id)), *ancestors(context, snapshot_id)]
    return next((state for state in links if state.damage is not None), None)


def link(context: Context, parent_id: UUID, child_id: UUID) -> None:
    """From here on the parent's bytes are needed."""
    context.emit(stream(parent_id), SnapshotLinked(snapshot_id=parent_id, child_id=child_id))


def unlink(context: Context, parent_id: UUID, child_id: UUID) -> None:
    """The child needs the parent no more. If nobody does, and its users deleted it, a job removes its bytes."""
    context.emit(stream(parent_id), SnapshotUnlinked(snapshot_id=parent_id, child_id=child_id))
    parent: SnapshotState = context.state(stream(parent_id))
    if parent.status == "Hidden" and not parent.children:
        context.out.submissions.append((derive(context.job_id, f"sweep-{parent_id}"), DeleteSnapshot(id=parent_id)))


def hidden_above(context: Context, snapshot_id: UUID) -> list[SnapshotState]:
    """The hidden snapshots that only this one still needs, its parent first."""
    found: list[SnapshotState] = []
    needed_by = snapshot_id
    for state in ancestors(context, snapshot_id):
        if state.status != "Hidden" or state.children != {needed_by}:
            break
        found.append(state)
        needed_by = state.id
    return found
