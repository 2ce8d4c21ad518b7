"""Deleting a snapshot that is not at rest: the job that works on it is stopped, its end awaited, then it is deleted.

Rules kept here: a deletion is never refused because a backup goes on or hangs; each of the two jobs reaches its own end; the
deletion starts in the append that follows the other's end, and is looked at again by a timer if that is lost. One that only
lies inside its disk is removed from there, and its volume is free again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from bus.event_store import Timer
from bus.submission import TIMER_TYPE
from handlers.decider import Context
from handlers.job import timer_id
from schema.agent import DropSnapshot
from schema.codec import canonical
from schema.failure import BadParameter
from schema.ids import derive
from schema.ids import stream as thing_stream
from schema.job import CancelJob
from schema.message import Order
from schema.snapshot import SnapshotDeleteAwaited, SnapshotOffPrimary
from schema.volume import VolumeReleased

if TYPE_CHECKING:
    from handlers.snapshot_state import SnapshotState

LOOK_S = 30.0
"""Seconds after which a deletion looks for itself whether the other job has ended."""


def volumes(states: Mapping[str, Any]) -> list[str]:
    """The streams of the volumes in which the snapshots among the states lie."""
    return [thing_stream("volume", state.volume_id) for name, state in states.items()
            if name.startswith("snapshot-") and state is not None and state.on_primary]


def first(context: Context, state: SnapshotState) -> bool:
    """Whether the deletion has to wait, and then for what. Raises BadParameter when another deletion has it already."""
    works = state.status in ("Creating", "BackingUp")
    waits = works or (state.status == "BackedUp" and state.on_primary)
    if state.status == "Destroying" or (waits and state.awaited not in (None, context.job_id)):
        raise BadParameter("the snapshot is already being deleted", field="id")
    if not waits:
        return False
    context.out.waits_s = LOOK_S
    if state.awaited is not None:
        return True
    name = thing_stream("snapshot", state.id)
    context.emit(name, SnapshotDeleteAwaited(snapshot_id=state.id, job_id=context.job_id))
    if works and state.working is not None:  # else its bytes are safe, and the last thing its job does is to leave the disk
        context.out.submissions.append((derive(context.job_id, "stop"), CancelJob(job_id=state.working)))
    return True


def wake(context: Context, state: SnapshotState) -> None:
    """The job that worked on a snapshot ends: a deletion that waits for that starts now."""
    if state.awaited is not None:
        context.out.timers.append(Timer(
            id=timer_id(state.awaited, "submitted"), after_s=0.0, key=thing_stream("snapshot", state.id), type=TIMER_TYPE,
            payload=canonical({"job_id": str(state.awaited)})))


def drop_order(context: Context, state: SnapshotState, work_id: UUID, attempt: int) -> Order | None:
    """Remove it from its disk, with the record of changes that was begun with it. None where it lies in none."""
    if not state.on_primary:
        return None
    return DropSnapshot(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=state.disk.primary.agent,
                        reply_key=context.command.key(context.job_id), disk=state.disk, tag=state.tag, keep=None)


def dropped(context: Context, state: SnapshotState) -> None:
    """It is out of its disk; its volume may be worked on again."""
    context.emit(thing_stream("snapshot", state.id), SnapshotOffPrimary(snapshot_id=state.id))
    context.emit(thing_stream("volume", state.volume_id), VolumeReleased(
        volume_id=state.volume_id, snapshot_id=state.id, backing_up=False))
