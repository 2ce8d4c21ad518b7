"""Snapshot policies: their states, the flows that set, show and delete them, and how many snapshots they keep.

Rules kept here: a volume has one policy of each interval, since its id follows from both; what is due comes by a timer of the
policy's own append (`snapshot_due`); what a policy keeps is decided when a snapshot of it is backed up, in that append, and never
touches a snapshot of anybody else. A volume that is deleted takes its policies along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from bus.event_store import Timer
from handlers import resource_tag, snapshot_places, snapshot_schedule
from handlers.decider import Context, Flow, IllegalTransition, Step
from handlers.job import result_of
from schema import ids
from schema.codec import canonical
from schema.failure import BadParameter, Failure
from schema.identity import ROOT_OWNER, Owner
from schema.message import Command, Event
from schema.snapshot import DeleteSnapshot
from schema.snapshot_policy import (
    INTERVALS,
    CreateSnapshotPolicy,
    DeleteSnapshotPolicies,
    SnapshotPolicyDeleted,
    SnapshotPolicyKept,
    SnapshotPolicyLetGo,
    SnapshotPolicyRan,
    SnapshotPolicyScheduled,
    SnapshotPolicySet,
    SnapshotPolicyShown,
    UpdateSnapshotPolicy,
    policy_of,
)

TIMER = "timer.snapshot_policy"
MOST_AT_ONCE = 100
"""Policies of one deletion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """The fold of a policy's events."""

    status: str
    """Active, Deleted"""
    id: UUID
    volume_id: UUID
    interval: str
    schedule: str
    timezone: str
    max_snaps: int
    zone_ids: tuple[UUID, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    owner: Owner = ROOT_OWNER
    due: datetime | None = None
    """When its next snapshot is due; None: that is still to be said."""
    last: datetime | None = None
    """The due time that was seen to last, also before it was deleted and set again."""
    snapshots: tuple[UUID, ...] = ()
    """Those that it keeps, the oldest first."""

    def next_after(self, moment: datetime) -> datetime:
        """The first due time after this moment that was not seen to yet."""
        return snapshot_schedule.next_due(
            snapshot_schedule.parse(self.interval, self.schedule), snapshot_schedule.zone(self.timezone),
            moment if self.last is None else max(moment, self.last))


def evolve(state: PolicyState | None, event: Event) -> PolicyState:
    """The policy after `event`."""
    if isinstance(event, SnapshotPolicySet):
        active = state is not None and state.status == "Active"
        return PolicyState(
            status="Active", id=event.policy_id, volume_id=event.volume_id, interval=event.interval_type,
            schedule=event.schedule, timezone=event.timezone, max_snaps=event.max_snaps, zone_ids=tuple(event.zone_ids),
            tags=tuple(event.tags.items()), owner=event.owner, last=state.last if state is not None else None,
            snapshots=state.snapshots if state is not None and active else ())
    if state is None or state.status != "Active":
        raise IllegalTransition(state.status if state else "absent", event)
    match event:
        case SnapshotPolicyShown():
            return state
        case SnapshotPolicyScheduled():
            return replace(state, due=event.due_at)
        case SnapshotPolicyRan():
            return replace(state, due=event.next_at, last=event.due_at)
        case SnapshotPolicyKept():
            return replace(state, snapshots=(*state.snapshots, event.snapshot_id))
        case SnapshotPolicyLetGo():
            return replace(state, snapshots=tuple(each for each in state.snapshots if each != event.snapshot_id))
        case SnapshotPolicyDeleted():
            return replace(state, status="Deleted", due=None)
    raise IllegalTransition(state.status, event)


def stream(policy_id: UUID) -> str:
    """The stream of a policy."""
    return ids.stream("snapshot_policy", policy_id)


def streams_of(volume_id: UUID) -> list[str]:
    """The streams of all policies that a volume may have."""
    return [stream(policy_of(volume_id, interval)) for interval in INTERVALS]


def timer_id(policy_id: UUID) -> str:
    """The timer of a policy's next snapshot."""
    return f"snapshot_policy-{policy_id}/due"


def due_timer(policy_id: UUID, volume_id: UUID, after_s: float) -> Timer:
    """The timer that comes when a policy is to be looked at: beside what else concerns its volume."""
    return Timer(id=timer_id(policy_id), after_s=max(0.0, after_s), key=ids.stream("volume", volume_id), type=TIMER,
                 payload=canonical({"policy_id": str(policy_id)}))


def active(context: Context, policy_id: UUID, field: str) -> PolicyState:
    """The policy. Raises BadParameter when there is none."""
    state: PolicyState | None = context.state(stream(policy_id))
    if state is None or state.status != "Active":
        raise BadParameter(f"no snapshot_policy has the id {policy_id}", field=field, remedy="listSnapshotPolicies shows them")
    return state


def followed(command: Any, states: Mapping[str, Any]) -> list[str]:
    """The streams of the policies that a snapshot is or was taken for."""
    ids_of = [getattr(command, "policy_id", None)]
    ids_of += [state.policy_id for name, state in states.items() if name.startswith("snapshot-") and state is not None]
    return [stream(each) for each in dict.fromkeys(ids_of) if each is not None]


# --- what other flows do with policies --------------------------------------------------------------------------------


def type_of(context: Context, policy_id: UUID | None, volume_id: UUID) -> str:
    """What type a snapshot is that is taken for this policy. Raises BadParameter when it is no policy of the volume."""
    if policy_id is None:
        return "MANUAL"
    state = active(context, policy_id, "policyid")
    if state.volume_id != volume_id:
        raise BadParameter(f"the policy {policy_id} is another volume's", field="policyid")
    return state.interval


def kept(context: Context, policy_id: UUID | None, snapshot_id: UUID) -> None:
    """A snapshot of the policy is backed up: the oldest of those that it keeps are deleted, by jobs of their own."""
    state: PolicyState | None = context.state(stream(policy_id)) if policy_id is not None else None
    if state is None or state.status != "Active":
        return
    context.emit(stream(state.id), SnapshotPolicyKept(policy_id=state.id, snapshot_id=snapshot_id))
    for old in (*state.snapshots, snapshot_id)[:-state.max_snaps]:
        context.out.submissions.append((ids.derive(context.job_id, f"retention/{old}"), DeleteSnapshot(id=old)))


def let_go(context: Context, policy_id: UUID | None, snapshot_id: UUID) -> None:
    """A snapshot is being deleted: its policy, if it has one, counts it no more."""
    state: PolicyState | None = context.state(stream(policy_id)) if policy_id is not None else None
    if state is not None and state.status == "Active" and snapshot_id in state.snapshots:
        context.emit(stream(state.id), SnapshotPolicyLetGo(policy_id=state.id, snapshot_id=snapshot_id))


def drop_all(context: Context, volume_id: UUID) -> None:
    """A volume is gone, and its policies with it. The flow names `streams_of(volume_id)` among its streams."""
    for name in streams_of(volume_id):
        state: PolicyState | None = context.state(name)
        if state is not None and state.status == "Active":
            drop(context, state)


def drop(context: Context, state: PolicyState) -> None:
    """It takes no more snapshots."""
    context.emit(stream(state.id), SnapshotPolicyDeleted(policy_id=state.id))
    context.out.clear_timers.append(timer_id(state.id))


# --- flows ------------------------------------------------------------------------------------------------------------


class _Now:
    """A flow without orders: one append and it is over."""

    subject, placed, cancellable = "snapshot_policy", True, False
    steps: tuple[Step, ...] = ()

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: there is nothing to wait for."""


class CreateFlow(_Now):
    """Set a volume's policy of an interval."""

    def streams(self, job_id: UUID, command: CreateSnapshotPolicy) -> list[str]:
        """The policy and its volume."""
        return [stream(policy_of(command.volume_id, command.interval_type)), ids.stream("volume", command.volume_id)]

    def start(self, context: Context) -> None:
        """A volume that is there, a schedule, a zone, a number within bounds."""
        command = context.command
        assert isinstance(command, CreateSnapshotPolicy)
        of = context.state(ids.stream("volume", command.volume_id))
        if of is None or of.status in ("Destroy", "Expunging", "Expunged"):
            raise BadParameter(f"no volume has the id {command.volume_id}", field="volumeid", remedy="listVolumes shows them")
        if of.status not in ("Ready", "Snapshotting"):
            raise BadParameter(f"the volume is {of.status}, not Ready", field="volumeid", remedy="wait for its job to end")
        snapshot_schedule.parse(command.interval_type, command.schedule)
        snapshot_schedule.zone(command.timezone)
        if not 1 <= command.max_snaps <= snapshot_schedule.MOST:
            raise BadParameter(f"{command.max_snaps} is not 1 to {snapshot_schedule.MOST}", field="maxsnaps",
                               remedy=f"at most {snapshot_schedule.MOST} snapshots of a policy are kept")
        resource_tag.check(command.tags)
        snapshot_places.wanted(context, command.zone_ids, "zoneids")
        policy_id = policy_of(of.id, command.interval_type)
        context.emit(stream(policy_id), SnapshotPolicySet(
            policy_id=policy_id, volume_id=of.id, interval_type=command.interval_type, schedule=command.schedule.strip(),
            timezone=command.timezone.strip(), max_snaps=command.max_snaps, zone_ids=command.zone_ids, tags=command.tags,
            for_display=command.for_display, owner=of.owner))
        context.out.timers.append(due_timer(policy_id, of.id, 0.0))

    def finish(self, context: Context) -> dict[str, Any]:
        """The policy."""
        command = context.command
        assert isinstance(command, CreateSnapshotPolicy)
        return result_of("snapshotpolicy", policy_of(command.volume_id, command.interval_type))


class UpdateFlow(_Now):
    """Show it, or do not."""

    def streams(self, job_id: UUID, command: UpdateSnapshotPolicy) -> list[str]:
        """The policy."""
        return [stream(command.id)]

    def start(self, context: Context) -> None:
        """A policy that is there."""
        command = context.command
        assert isinstance(command, UpdateSnapshotPolicy)
        state = active(context, command.id, "id")
        if command.for_display is not None:
            context.emit(stream(state.id), SnapshotPolicyShown(policy_id=state.id, for_display=command.for_display))

    def finish(self, context: Context) -> dict[str, Any]:
        """The policy."""
        command = context.command
        assert isinstance(command, UpdateSnapshotPolicy)
        return result_of("snapshotpolicy", command.id)


class DeleteFlow(_Now):
    """Take no more snapshots: by all of these policies or by none."""

    def streams(self, job_id: UUID, command: DeleteSnapshotPolicies) -> list[str]:
        """The policies."""
        return [stream(each) for each in dict.fromkeys(command.ids[:MOST_AT_ONCE])]

    def start(self, context: Context) -> None:
        """Policies that are there."""
        command = context.command
        assert isinstance(command, DeleteSnapshotPolicies)
        if not 1 <= len(command.ids) <= MOST_AT_ONCE:
            raise BadParameter(f"must name 1 to {MOST_AT_ONCE} policies", field="ids")
        for each in dict.fromkeys(command.ids):
            drop(context, active(context, each, "id" if len(command.ids) == 1 else "ids"))

    def finish(self, context: Context) -> dict[str, Any]:
        """Success, without an object."""
        return {"success": True}


FLOWS: dict[type[Command], Flow] = {
    CreateSnapshotPolicy: CreateFlow(),
    UpdateSnapshotPolicy: UpdateFlow(),
    DeleteSnapshotPolicies: DeleteFlow(),
}
"""Every command about this noun, and what it leads to."""
