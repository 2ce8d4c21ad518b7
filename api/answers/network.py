"""Lists of networks: empty ones, since machines have no network here. A client that lists machines asks for them first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.access import Principal
from api.commands.network import COMMANDS
from api.listing import Listed, Lists, Special, page_of
from api.registry import ApiCommand


async def none(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """Whatever is asked for, there is nothing of it. Raises BadParameter for a page that no list has."""
    page_of(values)
    return [], 0


LISTS: dict[str, Special] = {each.name: none for each in COMMANDS}
