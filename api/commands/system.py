"""Commands of the rest of the cloud, and the API itself, as `api.registry` collects them."""

from __future__ import annotations

from api.api_command import ADMIN, ID, IDS, NAME, ZONE, ApiCommand, Mode, Type, listing, parameter

COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="listZones", mode=Mode.LIST, item="zone", noun="zone",
        parameters=listing(ID, IDS, NAME), filters={"id": "id", "name": "name"}, description="Lists zones."),
    ApiCommand(
        name="listStoragePools", mode=Mode.LIST, item="storagepool", noun="primary_store", roles=ADMIN,
        parameters=listing(ID, NAME, ZONE, parameter("path")),
        filters={"id": "id", "name": "name", "zoneid": "zone_id", "path": "path"}, description="Lists primary stores."),
    ApiCommand(
        name="listApis", mode=Mode.LIST, item="api", parameters=(NAME, parameter("listall", Type.BOOLEAN)),
        description="Describes the commands of this API."),
    ApiCommand(
        name="planCommand", mode=Mode.SYNC, item="plan", parameters=(parameter("of", required=True),),
        description="How another command's image bytes would move, given its parameters; nothing is done (extension)."),
    ApiCommand(
        name="listCapabilities", mode=Mode.SYNC, item="capability", description="What this installation can do."),
)
