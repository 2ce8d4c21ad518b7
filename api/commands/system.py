"""Commands of the API itself, as `api.registry` collects them."""

from __future__ import annotations

from api.api_command import ADMIN, NAME, ZONE, ApiCommand, Mode, Type, listing, parameter

COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="listApis", mode=Mode.LIST, item="api", parameters=(NAME, parameter("listall", Type.BOOLEAN)),
        description="Describes the commands of this API."),
    ApiCommand(
        name="planCommand", mode=Mode.SYNC, item="plan", parameters=(parameter("of", required=True),),
        description="How another command's image bytes would move, given its parameters; nothing is done (extension)."),
    ApiCommand(
        name="listHypervisors", mode=Mode.LIST, item="hypervisor", parameters=listing(ZONE),
        description="Lists the hypervisors that agents announced."),
    ApiCommand(
        name="listConfigurations", mode=Mode.LIST, item="configuration", roles=ADMIN,
        parameters=listing(NAME, parameter("category", text="the category"), parameter("group", text="the same as category")),
        description="Lists the settings of the API's process and fixed limits, secrets left out. They are changed in the "
                    "environment (STOREBUS_...), and each role reads its own."),
    ApiCommand(
        name="listCapabilities", mode=Mode.SYNC, item="capability", description="What this installation can do."),
)
