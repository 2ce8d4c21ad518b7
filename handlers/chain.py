"""Chains: a snapshot that is only what changed since another one needs that one's bytes.

Rules kept here: a delta's parent is the volume's snapshot before it, backed up, in the same store; the link is in the parent's
stream before the first byte is written, so what a chain needs is never deleted; a snapshot that is deleted while another one
needs it is hidden, and is merged into that one (`collapse`) or goes with the last that needs it. Every decision reads the
streams of all it relies on, so of two that race one is made again. Refuses to know how a delta is made, and whether the disk's
record of changes can be trusted: its agent finds that out, and a full backup is always right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from handlers import template
from handlers.decider import Context
from handlers.directory import Store
from schema.agent import MergeImages
from schema.ids import derive
from schema.ids import stream as thing_stream
from schema.image import ImageRef
from schema.message import Order
from schema.motion import MotionPlan
from schema.snapshot import CollapseSnapshot, DeleteSnapshot, SnapshotLinked, SnapshotUnlinked, SweepReplaced

if TYPE_CHECKING:
    from handlers.snapshot_state import SnapshotState


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


def family(states: Mapping[str, Any]) -> list[str]:
    """The streams of the parents and children of every snapshot among the states, and of those that it absorbs: followed to its
    end, all that are of one chain."""
    found = parents(states)
    for name, state in states.items():
        if name.startswith("snapshot-") and state is not None:
            found += [stream(each) for each in (*sorted(state.children), *state.merging, *state.absorbs)]
    return found


def descendants(context: Context, snapshot_id: UUID) -> list[SnapshotState]:
    """What is built on a snapshot, each after what it is built on."""
    found: list[SnapshotState] = []
    waiting = [snapshot_id]
    while waiting:
        children = sorted(context.state(stream(waiting.pop())).children)
        found += [context.state(stream(child)) for child in children]
        waiting += children
    return found


def kept(state: SnapshotState) -> bool:
    """Whether its bytes stay when it is deleted: others need them, or they are just being merged."""
    return bool(state.children or state.merging)


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


def whole(context: Context, snapshot_id: UUID) -> list[ImageRef]:
    """All objects of a snapshot's chain, the full one first and its own last."""
    own = context.state(stream(snapshot_id)).image
    return [*images(context, snapshot_id), *([own] if own is not None else [])]


def merge_order(context: Context, plan: MotionPlan, work_id: UUID, attempt: int, *, links: list[ImageRef], store: Store, key: str,
                thing: tuple[str, UUID], source: Store | None = None, parent: ImageRef | None = None,
                replaces: Sequence[str] = ()) -> Order:
    """The order that makes one object `key` in `store`, for `thing` (kind, id), of `links` that rest in `source` (None: there).

    Of all that a snapshot is built on, itself the last (`whole`), it makes a full image. Whoever gives this order counts as a
    reader of the snapshot until its job has ended, and calls `read` then. `plan`: by `planner.merge`."""
    elsewhere = source is not None and source.spec.id != store.spec.id
    return MergeImages(
        job_id=context.job_id, work_id=work_id, attempt=attempt, agent=plan.agent, motion=plan.strategy,
        reply_key=context.command.key(context.job_id), store=store.spec, source=source.spec if source and elsewhere else None,
        links=links, parent=parent, key=key, kind=thing[0], thing_id=thing[1], replaces=list(replaces))


def read(context: Context, snapshot_id: UUID) -> None:
    """A job that counted as a reader of a snapshot ends."""
    context.count(template.readers("snapshot", snapshot_id), -1)
    for state in (context.state(stream(snapshot_id)), *ancestors(context, snapshot_id)):
        sweep(context, state)


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
    if parent.status == "Hidden" and not kept(parent):
        context.out.submissions.append((derive(context.job_id, f"sweep-{parent_id}"), DeleteSnapshot(id=parent_id)))


def look_again(context: Context, state: SnapshotState) -> None:
    """A hidden snapshot that is needed by one other: a job looks whether it is worth to merge it into that one."""
    if state.status == "Hidden" and len(state.children) == 1 and not state.absorbed and not state.merging:
        context.out.submissions.append((derive(context.job_id, f"collapse-{state.id}"), CollapseSnapshot(id=state.id)))


def look_up(context: Context, snapshot_id: UUID) -> None:
    """The same of the hidden snapshot nearest before one that stays: what stood in the way of its merge may be gone."""
    waiting = next((state for state in ancestors(context, snapshot_id) if state.status == "Hidden"), None)
    if waiting is not None:
        look_again(context, waiting)


def merge_again(context: Context, state: SnapshotState) -> None:
    """What stood in the way of a merge of this one, or into it, is gone."""
    look_again(context, state)
    if state.parent is not None:
        context.out.submissions.append((derive(context.job_id, f"collapse-{state.parent}"), CollapseSnapshot(id=state.parent)))


def sweep(context: Context, state: SnapshotState) -> None:
    """Somebody who may have read what a snapshot had before a merge reads it no more: a job deletes it, if it was the last."""
    if state.replaced is not None and state.sweep is None:
        context.out.submissions.append((derive(context.job_id, f"replaced-{state.id}"), SweepReplaced(id=state.id)))


def hidden_above(context: Context, snapshot_id: UUID) -> list[SnapshotState]:
    """The hidden snapshots that only this one still needs, its parent first."""
    found: list[SnapshotState] = []
    needed_by = snapshot_id
    for state in ancestors(context, snapshot_id):
        if state.status != "Hidden" or state.children != {needed_by} or state.merging:
            break
        found.append(state)
        needed_by = state.id
    return found
