"""Commands of OS types, as `api.registry` collects them."""

from __future__ import annotations

from api.api_command import ID, NAME, ApiCommand, Mode, Type, listing, parameter

COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="listOsTypes", mode=Mode.LIST, item="ostype",
        parameters=listing(ID, parameter("oscategoryid", Type.UUID, text="the UUID of the category"),
                           parameter("description", text="the whole name of the system")),
        description="Lists the operating systems that a template may name."),
    ApiCommand(
        name="listOsCategories", mode=Mode.LIST, item="oscategory", parameters=listing(ID, NAME),
        description="Lists the kinds of operating systems."),
)
