"""Snapshot policies as CloudStack's response objects."""

from __future__ import annotations

from typing import Any

from api.responses.shown import OWNED, Names, Row, Show, filled, name_of, owned, tags, when
from schema.snapshot_policy import INTERVALS

FIELDS: dict[str, dict[str, str]] = {
    "snapshotpolicy": {
        "id": "string", "volumeid": "string", "volumename": "string", "schedule": "string", "intervaltype": "short",
        "maxsnaps": "integer", "timezone": "string", "fordisplay": "boolean", "zone": "list", "tags": "list", **OWNED,
        "created": "date", "nextsnapshot": "date", "lastsnapshot": "date", "lastjobid": "string"},
}


def policy(row: Row, names: Names) -> dict[str, Any]:
    """A policy. When it is due next, and was last, and by which job, are extensions."""
    volume = names.volumes.get(row["volume_id"])
    return filled(
        id=row["id"], volumeid=row["volume_id"], volumename=volume["name"] if volume else None, schedule=row["schedule"],
        intervaltype=INTERVALS.index(row["interval_type"]), maxsnaps=row["max_snaps"], timezone=row["timezone"],
        fordisplay=row["for_display"], tags=tags("SnapshotPolicy", row), created=when(row["created"]),
        zone=[{"id": each, "name": name_of(names.zones, each)} for each in row.get("zone_ids") or ()], **owned(row),
        nextsnapshot=when(row.get("next_at")), lastsnapshot=when(row.get("last_at")), lastjobid=row.get("last_job_id"))


OBJECTS: dict[str, Show] = {"snapshot_policy": policy}
TABLES = {"snapshotpolicy": "snapshot_policy"}
