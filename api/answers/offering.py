"""The list of disk offerings: everybody's, and those of domains for whoever is in them or administers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.access import Principal
from api.listing import UNLIMITED, Listed, Lists, Special, page_of
from api.registry import ApiCommand
from handlers.offering import open_to
from schema.identity import Role


async def offerings(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """They are few: what the caller may see is chosen here, not by the database."""
    page, where = page_of(values), lists.where_of(command, values)
    rows, _ = await lists.system.rows("disk_offering", {**where, "removed": None}, search=values.get("keyword") or "",
                                      limit=UNLIMITED)
    found = [row for row in rows if _seen(row, principal) and _of_domain(row, values)]
    return await lists.objects("disk_offering", found[page.offset:page.offset + page.limit]), len(found)


def _seen(row: Mapping[str, Any], principal: Principal) -> bool:
    if principal.role is Role.ADMIN:
        return True
    paths, own = [each["path"] for each in row["domains"] or ()], principal.owner.path
    administers = principal.role is Role.DOMAIN and any(path.startswith(own) for path in paths)
    return bool(row["display"]) and (open_to(paths, own) or administers)


def _of_domain(row: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    wanted = values.get("domainid")
    return wanted is None or str(wanted) in [each["id"] for each in row["domains"] or ()]


LISTS: dict[str, Special] = {"listDiskOfferings": offerings}
