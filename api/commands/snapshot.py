"""Commands of snapshots, as `api.registry` collects them."""

from __future__ import annotations

from api.api_command import ID, IDS, NAME, TAGS, ZONE, ApiCommand, Mode, Type, derived, listing, parameter
from schema.snapshot import CreateSnapshot, DeleteSnapshot

COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="createSnapshot", mode=Mode.CREATE, item="snapshot", noun="snapshot", command=CreateSnapshot,
        parameters=derived(CreateSnapshot), related="listSnapshots",
        description="Takes a snapshot of a volume and backs it up to an image store."),
    ApiCommand(
        name="listSnapshots", mode=Mode.LIST, item="snapshot", noun="snapshot",
        parameters=listing(ID, IDS, NAME, ZONE, parameter("volumeid", Type.UUID), TAGS, access=True),
        filters={"id": "id", "name": "name", "zoneid": "zone_id", "volumeid": "volume_id"},
        description="Lists snapshots."),
    ApiCommand(
        name="deleteSnapshot", mode=Mode.ASYNC, noun="snapshot", command=DeleteSnapshot,
        parameters=derived(DeleteSnapshot), related="listSnapshots", description="Deletes a snapshot and its bytes."),
)
