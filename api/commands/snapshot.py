"""Commands of snapshots, as `api.registry` collects them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.api_command import ADMIN, DETAILS, ID, IDS, NAME, TAGS, ZONE, ApiCommand, Mode, Type, derived, listing, parameter
from api.commands.extract import EXTRACT
from schema.failure import BadParameter
from schema.snapshot import ArchiveSnapshot, CopySnapshot, CreateSnapshot, DeleteSnapshot, ExtractSnapshot, RevertSnapshot
from schema.snapshot_policy import INTERVALS

LOCATIONS = ("PRIMARY", "SECONDARY")
CREATE = derived(CreateSnapshot, texts={
    "tags": "given to the snapshot: tags[0].key=K&tags[0].value=V", "policyid": "the policy of the volume that it is taken for",
    "account": "the account of the volume", "domainid": "the UUID of the domain of the volume's account",
    "zoneids": "UUIDs of further zones, comma separated, to which it is copied once it is backed up"})
COPY = derived(CopySnapshot, texts={"zoneids": "the zones", "sourcezoneid": "the UUID of a zone in which it is"})
QUIESCE = parameter("quiescevm", Type.BOOLEAN, text="false: nothing here stops a machine's writes for a snapshot")
LOCATION = parameter("locationtype", choices=LOCATIONS, text="SECONDARY: every snapshot is backed up to an image store")


def _create(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    if values.get("quiescevm"):
        raise BadParameter("the volume's primary store cannot quiesce a machine", field="quiescevm", remedy="leave it out")
    if values.get("locationtype") == "PRIMARY":
        raise BadParameter("only managed primary stores keep snapshots, and this volume is on none", field="locationtype",
                           remedy="leave it out, or give SECONDARY; asyncbackup=true ends the job before the backup")
    by_name = {each.name: each.field for each in CREATE if each.field}
    return {by_name[name]: value for name, value in values.items() if name in by_name}


def _copy(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    one, several = values.get("destzoneid"), values.get("destzoneids")
    if (one is None) == (several is None):
        raise BadParameter("give either destzoneid or destzoneids", field="destzoneids", remedy="listZones shows them")
    return {"id": values["id"], "zone_ids": several or [one], "source_zone_id": values.get("sourcezoneid")}


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="createSnapshot", mode=Mode.CREATE, item="snapshot", noun="snapshot", command=CreateSnapshot, prepare=_create,
        parameters=(*CREATE, QUIESCE, LOCATION), related="listSnapshots",
        description="Takes a snapshot of a volume and backs it up to an image store."),
    ApiCommand(
        name="listSnapshots", mode=Mode.LIST, item="snapshot", noun="snapshot",
        parameters=listing(
            ID, IDS, NAME, ZONE, parameter("volumeid", Type.UUID), TAGS, DETAILS,
            parameter("intervaltype", choices=INTERVALS, text="only those of policies of this interval"),
            parameter("snapshottype", choices=("MANUAL", "RECURRING", *INTERVALS), text="MANUAL, RECURRING or an interval"),
            parameter("locationtype", choices=LOCATIONS, text="PRIMARY: not backed up yet"),
            parameter("showunique", Type.BOOLEAN, text="true: one row for a snapshot, not one for each zone"), access=True),
        filters={"name": "name", "zoneid": "zone_id", "volumeid": "volume_id", "locationtype": "location_type"},
        description="Lists snapshots: one row for each snapshot and zone."),
    ApiCommand(
        name="revertSnapshot", mode=Mode.ASYNC, item="snapshot", noun="snapshot", command=RevertSnapshot,
        parameters=derived(RevertSnapshot), related="listSnapshots",
        description="Gives a snapshot's volume the content again that it had then."),
    ApiCommand(
        name="copySnapshot", mode=Mode.ASYNC, item="snapshot", noun="snapshot", command=CopySnapshot, prepare=_copy,
        parameters=(*(each for each in COPY if each.name != "zoneids"),
                    parameter("destzoneid", Type.UUID, text="the UUID of the zone that it is copied to"),
                    parameter("destzoneids", Type.LIST, of_uuids=True, text="UUIDs of the zones that it is copied to")),
        related="listSnapshots", description="Makes a snapshot usable in further zones."),
    ApiCommand(
        name="extractSnapshot", mode=Mode.ASYNC, item="snapshot", noun="snapshot", command=ExtractSnapshot, roles=ADMIN,
        parameters=derived(ExtractSnapshot, texts=EXTRACT), related="listSnapshots",
        description="Gives a URL, which ends, of a whole image of a snapshot."),
    ApiCommand(
        name="archiveSnapshot", mode=Mode.ASYNC, item="snapshot", noun="snapshot", command=ArchiveSnapshot, roles=ADMIN,
        parameters=derived(ArchiveSnapshot), related="listSnapshots",
        description="Backs up a snapshot that is only on the primary store, and removes it from there."),
    ApiCommand(
        name="deleteSnapshot", mode=Mode.ASYNC, noun="snapshot", command=DeleteSnapshot,
        parameters=derived(DeleteSnapshot), related="listSnapshots", description="Deletes a snapshot and its bytes."),
)
