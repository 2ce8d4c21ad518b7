"""Commands of snapshot policies, as `api.registry` collects them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from api.api_command import ID, IDS, JOB_ID, ApiCommand, Mode, Type, derived, listing, parameter
from schema.failure import BadParameter
from schema.snapshot_policy import INTERVALS, CreateSnapshotPolicy, DeleteSnapshotPolicies, UpdateSnapshotPolicy, policy_of

TEXTS = {
    "intervaltype": "HOURLY, DAILY, WEEKLY or MONTHLY", "schedule": "MM, MM:HH or MM:HH:DD: minute, hour, day of week or month",
    "timezone": "whose clock the schedule is of, as Europe/Zurich", "maxsnaps": "how many of its snapshots are kept, at most 8",
    "tags": "given to each snapshot: tags[0].key=K&tags[0].value=V", "fordisplay": "its users see it",
    "zoneids": "UUIDs of further zones in which each snapshot is to be",
}
SHOWN = parameter("fordisplay", Type.BOOLEAN, text="only those that their users see, or do not")


def _ids(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    if ("id" in values) == ("ids" in values):
        raise BadParameter("give exactly one of id and ids", field="id", remedy="listSnapshotPolicies shows them")
    return {"ids": values.get("ids") or [values["id"]]}


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="createSnapshotPolicy", mode=Mode.SYNC, item="snapshotpolicy", noun="snapshot_policy", command=CreateSnapshotPolicy,
        now=True, makes=lambda message: policy_of(message.volume_id, message.interval_type), related="listSnapshotPolicies",
        parameters=tuple(replace(each, choices=INTERVALS) if each.name == "intervaltype" else each
                         for each in derived(CreateSnapshotPolicy, texts=TEXTS)),
        description="Takes snapshots of a volume by a schedule; the volume's policy of the same interval becomes this one."),
    ApiCommand(
        name="updateSnapshotPolicy", mode=Mode.ASYNC, item="snapshotpolicy", noun="snapshot_policy", command=UpdateSnapshotPolicy,
        now=True, parameters=derived(UpdateSnapshotPolicy, texts=TEXTS), related="listSnapshotPolicies",
        description="Shows a policy to its users, or does not."),
    ApiCommand(
        name="listSnapshotPolicies", mode=Mode.LIST, item="snapshotpolicy", noun="snapshot_policy",
        parameters=listing(ID, parameter("volumeid", Type.UUID), SHOWN, access=True),
        filters={"id": "id", "volumeid": "volume_id", "fordisplay": "for_display"},
        description="Lists policies of snapshots."),
    ApiCommand(
        name="deleteSnapshotPolicies", mode=Mode.SYNC, noun="snapshot_policy", command=DeleteSnapshotPolicies, now=True,
        prepare=_ids, parameters=(ID, IDS, JOB_ID), related="listSnapshotPolicies",
        description="Takes no more snapshots by these policies; those that were taken stay."),
)
