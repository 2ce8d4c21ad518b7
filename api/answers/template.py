"""The list of templates: one row for each template and zone, by CloudStack's templatefilter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.access import Principal
from api.listing import UNLIMITED, Listed, Lists, Special, page_of
from api.registry import ApiCommand
from api.responses.template import template
from schema.failure import BadParameter
from schema.identity import Role

READY_ONLY = frozenset({"featured", "selfexecutable", "executable", "community"})
SHARED = frozenset({"shared", "sharedexecutable"})


async def templates(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """One row for each template and zone, unless showunique."""
    page, where, wanted = page_of(values), lists.where_of(command, values), values["templatefilter"]
    if wanted in SHARED:
        return [], 0  # nobody is granted anything yet
    if wanted == "all" and principal.role is Role.USER:
        raise BadParameter("only admins list all templates", field="templatefilter", remedy="use executable or self")
    where["removed"] = None
    if wanted not in ("featured", "community"):  # those are everybody's
        asked_for = {**values, "listall": values.get("listall") or wanted == "all"}
        scope = await lists.ownership.visible(command, asked_for, principal)
        open_to_all = {"is_public": True} if wanted == "executable" or "id" in values or "ids" in values else None
        where |= {"any": [scope, open_to_all]} if open_to_all and scope else scope
    if wanted == "featured":
        where |= {"is_featured": True, "is_public": True}
    if wanted == "community":
        where |= {"is_featured": False, "is_public": True}
    if wanted in READY_ONLY:
        where["state"] = "Ready"
    search = values.get("keyword") or ""
    if "ids" in values:
        rows = await lists.by_ids("template", values, where, search)
    else:
        rows, _ = await lists.system.rows("template", where, search=search, limit=UNLIMITED)
    if values.get("isready") is not None:
        rows = [row for row in rows if (row["state"] == "Ready") == values["isready"]]
    zones = await lists.table("zone")
    asked = str(values["zoneid"]) if values.get("zoneid") else None
    placed = [(row, zone_id) for row in rows for zone_id in _zones_of(row, zones, asked, values)]
    chosen = placed[page.offset:page.offset + page.limit]
    names = await lists.names("template", [row for row, _ in chosen])
    return [template(row, names, zone_id) for row, zone_id in chosen], len(placed)


def _zones_of(row: Mapping[str, Any], zones: Mapping[str, Any], asked: str | None,
              values: Mapping[str, Any]) -> list[str | None]:
    """The zones in which a template is listed."""
    here: list[str | None] = [row["zone_id"]] if row["zone_id"] else list(zones) or [None]
    kept = [zone_id for zone_id in here if asked is None or zone_id == asked]
    return kept[:1] if values.get("showunique") else kept


LISTS: dict[str, Special] = {"listTemplates": templates}
