"""Snapshot policies: when snapshots of a volume are taken by themselves, and how many are kept. In the order it happens.

A volume has at most one policy of each interval, whose id follows from both; the stream of one that was deleted goes on when it
is made again.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from schema.identity import ROOT_OWNER, Owner
from schema.ids import derive
from schema.message import Command, Event

INTERVALS = ("HOURLY", "DAILY", "WEEKLY", "MONTHLY")
"""In CloudStack's order: its answers show the index."""


def policy_of(volume_id: UUID, interval: str) -> UUID:
    """The id of a volume's policy of this interval."""
    return derive(volume_id, f"snapshot_policy/{interval}")


class CreateSnapshotPolicy(Command, type="snapshot_policy.create"):
    """Take snapshots of a volume by a schedule; the volume's policy of this interval, if it has one, becomes this."""

    EVENT = "SNAPSHOTPOLICY.CREATE"

    volume_id: UUID
    interval_type: str
    """One of INTERVALS."""
    schedule: str
    """MM for HOURLY, MM:HH for DAILY, MM:HH:DD for WEEKLY (1 is Sunday) and MONTHLY (1 to 28)."""
    timezone: str
    """The IANA name of the zone whose clock the schedule is of, or a name that Java's clients send."""
    max_snaps: int
    """How many of its snapshots are kept."""
    zone_ids: list[UUID] = []
    """Further zones in which each snapshot is to be available."""
    tags: dict[str, str] = {}
    """Given to each snapshot."""
    for_display: bool = True

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.volume_id}"


class UpdateSnapshotPolicy(Command, type="snapshot_policy.update"):
    """Show a policy to its users, or do not."""

    EVENT = "SNAPSHOTPOLICY.UPDATE"

    id: UUID
    for_display: bool | None = None

    def key(self, job_id: UUID) -> str:
        """The policy."""
        return f"snapshot_policy-{self.id}"


class DeleteSnapshotPolicies(Command, type="snapshot_policy.delete"):
    """Take no more snapshots by these policies. Those that were taken stay."""

    EVENT = "SNAPSHOTPOLICY.DELETE"

    ids: list[UUID]

    def key(self, job_id: UUID) -> str:
        """The first one."""
        return f"snapshot_policy-{self.ids[0] if self.ids else job_id}"


class SnapshotPolicySet(Event, type="snapshot_policy.set"):
    """It is this from now on; when its next snapshot is due comes in an event of its own."""

    policy_id: UUID
    volume_id: UUID
    interval_type: str
    schedule: str
    timezone: str
    max_snaps: int
    zone_ids: list[UUID] = []
    tags: dict[str, str] = {}
    for_display: bool = True
    owner: Owner = ROOT_OWNER


class SnapshotPolicyShown(Event, type="snapshot_policy.shown"):
    """Its users see it, or do not."""

    policy_id: UUID
    for_display: bool


class SnapshotPolicyScheduled(Event, type="snapshot_policy.scheduled"):
    """Its next snapshot is due then."""

    policy_id: UUID
    due_at: datetime


class SnapshotPolicyRan(Event, type="snapshot_policy.ran"):
    """The snapshot that was due was asked for, once, and the next one is due then."""

    policy_id: UUID
    due_at: datetime
    """When it was due: of several that were missed, the first."""
    job_id: UUID
    """The job that takes it: its id follows from the policy and the due time."""
    missed: int = 0
    """Further due times that had passed by then and are not made up for."""
    next_at: datetime


class SnapshotPolicyKept(Event, type="snapshot_policy.kept"):
    """A snapshot of it is backed up, and counts among those that it keeps."""

    policy_id: UUID
    snapshot_id: UUID


class SnapshotPolicyLetGo(Event, type="snapshot_policy.let_go"):
    """A snapshot of it is being deleted, by retention or by hand."""

    policy_id: UUID
    snapshot_id: UUID


class SnapshotPolicyDeleted(Event, type="snapshot_policy.deleted"):
    """It takes no more snapshots."""

    policy_id: UUID
