"""Commands of the API itself, as `api.registry` collects them."""

from __future__ import annotations

from api.api_command import NAME, ApiCommand, Mode, Type, parameter

COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="listApis", mode=Mode.LIST, item="api", parameters=(NAME, parameter("listall", Type.BOOLEAN)),
        description="Describes the commands of this API."),
    ApiCommand(
        name="planCommand", mode=Mode.SYNC, item="plan", parameters=(parameter("of", required=True),),
        description="How another command's image bytes would move, given its parameters; nothing is done (extension)."),
    ApiCommand(
        name="listCapabilities", mode=Mode.SYNC, item="capability", description="What this installation can do."),
)
