"""When a policy's snapshot is due: the timer's end of schedules.

Owns what happens when a policy's timer comes: its next due time is said, or the snapshot that is due is asked for, as the job
whose id follows from the policy and the due time. So however often the timer comes, from however many schedulers, a due time has
one job. Rules kept here: the time is the database's; the next timer is set in the append that says what it is for; what was
missed is one snapshot, not many; a volume that is busy is waited for; a snapshot that fails is a job that failed, and the
schedule goes on. Refuses to reckon with calendars (`snapshot_schedule`) and to take snapshots (`snapshot`).
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from bus.errors import Conflict
from bus.event_store import AppendRequest, LogRow, NewRow
from handlers.snapshot_policy import PolicyState, due_timer, stream, timer_id
from schema import ids
from schema.codec import canonical, encode
from schema.failure import Refused
from schema.identity import ROOT_OWNER
from schema.message import Event
from schema.snapshot import CreateSnapshot
from schema.snapshot_policy import SnapshotPolicyDeleted, SnapshotPolicyRan, SnapshotPolicyScheduled, SnapshotPolicySet

if TYPE_CHECKING:
    from handlers.runtime import Runtime

LOOK_S = 6 * 3600.0
"""A policy is looked at this often at least: a clock that was set far ahead by mistake, and back, delays it by no more."""
BUSY_S = 15.0
"""When a volume that is busy is looked at again."""
GONE_S = 600.0
"""When a volume that is destroyed, and may be recovered, is looked at again."""
COUNTED = 1000
"""Due times that passed unseen are counted up to so many."""


async def due(runtime: Runtime, policy_id: UUID) -> None:
    """A policy's timer came."""
    name = stream(policy_id)
    rows = (await runtime.store.read_streams([name]))[name]
    state: PolicyState | None = runtime.folded(name, rows)
    if state is None or state.status != "Active":
        await runtime.store.append(AppendRequest(expected={}, rows=(), clear_timers=(timer_id(policy_id),)))
        return
    now = await runtime.store.now()
    if state.due is None:
        set_at = next(row.recorded_at for row in reversed(rows) if row.type == SnapshotPolicySet.TYPE)
        await _schedule(runtime, rows, state, state.next_after(set_at), now)
    elif now < state.due:
        sooner = state.next_after(now)  # not the same only where the clock was put back
        if sooner < state.due:
            await _schedule(runtime, rows, state, sooner, now)
        else:
            await _look_again(runtime, state, (state.due - now).total_seconds())
    else:
        await _run(runtime, rows, state, state.due, now)


async def _run(runtime: Runtime, rows: list[LogRow], state: PolicyState, due_at: datetime, now: datetime) -> None:
    """Ask for the snapshot, unless the volume is busy or gone; then say what is next."""
    name = ids.stream("volume", state.volume_id)
    volume: Any = runtime.folded(name, (await runtime.store.read_streams([name]))[name])
    if volume is None or volume.status == "Expunged":
        await _say(runtime, rows, state, SnapshotPolicyDeleted(policy_id=state.id), None)
        return
    if volume.busy is not None or volume.status == "Snapshotting":
        await _look_again(runtime, state, BUSY_S)
        return
    if volume.status in ("Destroy", "Expunging"):  # once it is recovered, what is due by then is one snapshot
        await _look_again(runtime, state, GONE_S)
        return
    job_id = ids.derive(state.id, due_at.isoformat())
    with contextlib.suppress(Refused):  # it was asked for before, when its volume had another name: it is that job still
        await runtime.begin(CreateSnapshot(
            volume_id=state.volume_id, name=f"{volume.name[:200]}-{due_at:%Y%m%d%H%M}-{state.interval.lower()}",
            policy_id=state.id, tags=dict(state.tags), zone_ids=list(state.zone_ids)), job_id,
            None if state.owner == ROOT_OWNER else state.owner)
    missed, after = 0, due_at
    while missed < COUNTED and (after := state.next_after(after)) <= now:
        missed += 1
    next_at = state.next_after(max(now, due_at))
    await _say(runtime, rows, state, SnapshotPolicyRan(
        policy_id=state.id, due_at=due_at, job_id=job_id, missed=missed, next_at=next_at), (next_at - now).total_seconds())


async def _schedule(runtime: Runtime, rows: list[LogRow], state: PolicyState, due_at: datetime, now: datetime) -> None:
    await _say(runtime, rows, state, SnapshotPolicyScheduled(policy_id=state.id, due_at=due_at), (due_at - now).total_seconds())


async def _look_again(runtime: Runtime, state: PolicyState, after_s: float) -> None:
    timer = due_timer(state.id, state.volume_id, min(LOOK_S, after_s))
    await runtime.store.append(AppendRequest(expected={}, rows=(), set_timers=(timer,)))


async def _say(runtime: Runtime, rows: list[LogRow], state: PolicyState, event: Event, after_s: float | None) -> None:
    """Append an event with the timer that follows from it. When the policy was changed meanwhile, nothing is written: the timer
    that brought us here comes again."""
    name, version = stream(state.id), rows[-1].version
    whose = {} if state.owner == ROOT_OWNER else {"account": str(state.owner.account_id), "domain": state.owner.path}
    row_id = ids.derive(state.id, f"{name}/{version + 1}")
    timers = () if after_s is None else (due_timer(state.id, state.volume_id, min(LOOK_S, after_s)),)
    row = NewRow(stream=name, kind="event", type=event.TYPE, type_version=event.VERSION, id=row_id, payload=encode(event),
                 key=name, correlation=row_id, meta=canonical({"principal": "system", **whose}))
    try:
        await runtime.store.append(AppendRequest(
            expected={name: version}, set_timers=timers, clear_timers=() if timers else (timer_id(state.id),), rows=[row]))
    except Conflict:
        return


__all__ = ["BUSY_S", "LOOK_S", "due"]
