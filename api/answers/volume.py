"""The list of volumes: those that are not displayed are root admins' only, and a count can be had alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.access import Principal
from api.listing import Listed, Lists, Special
from api.registry import ApiCommand
from schema.failure import Denied
from schema.identity import Role


async def volumes(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """A page of volumes."""
    admin = principal.role is Role.ADMIN
    if not admin and values.get("displayvolume") is not None:
        raise Denied("only a root admin may ask by it", field="displayvolume", remedy="leave it out")
    items, count = await lists.of_table(command, values, principal, more={} if admin else {"display": True})
    return ([], count) if values.get("retrieveonlyresourcecount") else (items, count)


LISTS: dict[str, Special] = {"listVolumes": volumes}
