"""Snapshot policies in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change, owned
from schema import snapshot_policy

TABLES = ("snapshot_policy",)


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    key = str(event.policy_id)
    match event:
        case snapshot_policy.SnapshotPolicySet():
            yield "snapshot_policy", key, {
                "name": event.interval_type, "volume_id": str(event.volume_id), "interval_type": event.interval_type,
                "schedule": event.schedule, "timezone": event.timezone, "max_snaps": event.max_snaps,
                "for_display": event.for_display, "zone_ids": [str(each) for each in event.zone_ids], "tags": event.tags or None,
                "next_at": None, "created": at, "removed": None, **owned(event.owner)}
        case snapshot_policy.SnapshotPolicyShown():
            yield "snapshot_policy", key, {"for_display": event.for_display}
        case snapshot_policy.SnapshotPolicyScheduled():
            yield "snapshot_policy", key, {"next_at": event.due_at.isoformat()}
        case snapshot_policy.SnapshotPolicyRan():
            yield "snapshot_policy", key, {"last_at": event.due_at.isoformat(), "next_at": event.next_at.isoformat(),
                                           "last_job_id": str(event.job_id)}
        case snapshot_policy.SnapshotPolicyDeleted():
            yield "snapshot_policy", key, {"removed": at, "next_at": None}
        case _:
            pass
