"""The lists of templates and ISOs: one row for each thing and zone, by CloudStack's filters; and who may use one.

Every condition is asked of the database, which also pages: nothing is folded here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from api.access import Principal
from api.listing import UNLIMITED, Listed, Lists, Page, Special, page_of
from api.registry import ApiCommand
from api.responses import Names
from api.responses.template import COMING, MIN, template
from schema.failure import BadParameter
from schema.identity import Role

READY_ONLY = frozenset({"featured", "selfexecutable", "executable", "community", "sharedexecutable"})
SHARED = frozenset({"shared", "sharedexecutable"})
VIEW, TABLE = "template_view", "template"
NOT_READY = ["Registering", "Creating", "Absent", "Quarantined", "Failed", "Destroying", "Deleting"]


async def templates(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """One row for each thing and zone, unless showunique."""
    page, iso = page_of(values), command.item == "iso"
    wanted = values.get("isofilter" if iso else "templatefilter") or "selfexecutable"
    where = {**lists.where_of(command, values), "kind": command.item, **await _whose(lists, command, values, principal, wanted)}
    if not values.get("showremoved"):
        where["removed"] = None
    conditions: list[dict[str, Any]] = [where]
    if wanted in READY_ONLY:
        conditions.append({"state": "Ready"})
    if values.get("isready") is not None:
        conditions.append({"state": "Ready"} if values["isready"] else {"state": {"in": NOT_READY}})
    table = TABLE if values.get("showunique") else VIEW
    if "ids" in values and "id" in values:
        raise BadParameter("give either id or ids", field="ids", remedy="leave one of them out")
    for name, ids in (("id", [values.get("id")]), ("ids", values.get("ids"))):
        if values.get(name):
            conditions.append({"id" if table == TABLE else "template_id": {"in": [str(each) for each in ids or ()]}})
    if values.get("zoneid"):
        if table == TABLE:
            here, _ = await lists.system.rows("template_zone", {"zone_id": str(values["zoneid"])}, limit=UNLIMITED)
            conditions.append({"any": [{"cross_zones": "true"}, {"id": {"in": [row["template_id"] for row in here]}}]})
        else:
            conditions.append({"in_zone": str(values["zoneid"])})
    rows, count = await _page(lists, table, {"all": conditions}, values.get("keyword") or "", page)
    shown = await objects(lists, rows)
    if [word.lower() for word in values.get("details", [])] == ["min"]:
        shown = [{name: value for name, value in each.items() if name in MIN} for each in shown]
    return shown, count


async def _page(lists: Lists, table: str, where: Mapping[str, Any], search: str, page: Page) -> tuple[list[dict[str, Any]], int]:
    rows, count = await lists.system.rows(table, where, search=search, limit=page.limit, offset=page.offset)
    if not rows and page.offset:
        _, count = await lists.system.rows(table, where, search=search, limit=1)
    return rows, count


async def _whose(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal,
                 wanted: str) -> dict[str, Any]:
    """The filter of who may see it, and which of these are asked for."""
    if wanted == "all" and principal.role is Role.USER:
        raise BadParameter("only admins list all", field="isofilter" if command.item == "iso" else "templatefilter",
                           remedy="use executable or self")
    mine = [principal.owner.account_id, *sorted(principal.projects)]
    granted = [{"granted": {"has": [str(each)]}} for each in mine]
    if wanted in SHARED:
        return {"any": granted}
    if wanted in ("featured", "community"):  # these are everybody's
        return {"is_featured": wanted == "featured", "is_public": True}
    asked_for = {**values, "listall": values.get("listall") or wanted == "all"}
    scope = await lists.ownership.visible(command, asked_for, principal)
    by_id = "id" in values or "ids" in values
    if not scope.get("all") or not (wanted == "executable" or by_id):
        return scope
    return {"any": [scope, {"is_public": True}, *granted]}


async def objects(lists: Lists, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the view or of the table as objects, with what they show of stores and of progress."""
    if not rows:
        return []
    plain = [{**row, "id": row.get("template_id") or row["id"]} for row in rows]
    ids = list(dict.fromkeys(row["id"] for row in plain))
    (found, _), told, zones, stores = await asyncio.gather(
        lists.system.rows("template_store_ref", {"template_id": {"in": ids}}, limit=100 * len(ids)),
        lists.progress(row["job_id"] for row in plain if row["state"] in COMING), lists.table("zone"), lists.table("image_store"))
    copies: dict[str, list[Mapping[str, Any]]] = {}
    for copy in found:
        copies.setdefault(copy["template_id"], []).append(copy)
    names = Names(zones=zones, stores=stores, copies=copies, progress=told)
    return [template(row, names) for row in plain]


async def in_zones(lists: Lists, template_id: str) -> list[dict[str, Any]]:
    """The rows of one thing, a zone each, as they are now."""
    rows, _ = await lists.system.rows(VIEW, {"template_id": template_id})
    return await objects(lists, rows)


async def permissions(lists: Lists, command: ApiCommand, values: dict[str, Any], principal: Principal) -> dict[str, Any]:
    """listTemplatePermissions and listIsoPermissions: one object, for who may change it."""
    await lists.ownership.check(command, values, principal)
    kind = "iso" if command.name == "listIsoPermissions" else "template"
    rows, _ = await lists.system.rows(TABLE, {"id": str(values["id"]), "removed": None, "kind": kind}, limit=1)
    if not rows:
        raise BadParameter(f"no {kind} has the id {values['id']}", field="id",
                           remedy="listIsos shows them" if kind == "iso" else "listTemplates shows them")
    row = rows[0]
    grants, _ = await lists.system.rows("launch_permission", {"template_id": row["id"]}, limit=10_000)
    ids = [grant["account_id"] for grant in grants]
    projects, _ = await lists.system.rows("project", {"account_id": {"in": ids}}, limit=10_000)
    accounts, _ = await lists.system.rows("account", {"id": {"in": ids}}, limit=10_000)
    shared = {project["account_id"]: project["id"] for project in projects}
    return {command.item: {
        "id": row["id"], "ispublic": bool(row["is_public"]), "domainid": row["domain_id"],
        "account": [each["name"] for each in accounts if each["id"] not in shared],
        "projectids": [shared[each] for each in ids if each in shared]}}


LISTS: dict[str, Special] = {"listTemplates": templates, "listIsos": templates}
ANSWERS = {"listTemplatePermissions": permissions, "listIsoPermissions": permissions}
