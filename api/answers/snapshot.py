"""The list of snapshots: one row for each snapshot and zone, filtered, counted and paged by the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.access import Principal
from api.listing import Listed, Lists, Special, page_of
from api.registry import ApiCommand
from api.responses.snapshot import snapshot
from schema.failure import BadParameter
from schema.snapshot_policy import INTERVALS


async def snapshots(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """One row for each snapshot and zone; with showunique, one for each snapshot."""
    page, where = page_of(values), lists.where_of(command, values)
    unique = bool(values.get("showunique")) and "zoneid" not in values
    table, key = ("snapshot", "id") if unique else ("snapshot_in_zone", "snapshot_id")
    if "id" in values and "ids" in values:
        raise BadParameter("give either id or ids", field="ids", remedy="leave one of them out")
    asked = [values["id"]] if "id" in values else values.get("ids")
    if asked is not None:
        where[key] = {"in": [str(each) for each in asked]}
    kinds = [kind for kind in (values.get("snapshottype"), values.get("intervaltype")) if kind is not None]
    if kinds:
        where["all"] = [{"snapshot_type": {"in": list(INTERVALS)} if kind == "RECURRING" else kind} for kind in kinds]
    own = await lists.ownership.visible(command, values, principal)
    where = {**where, **own, "all": [*where.get("all", []), *own.get("all", [])], "removed": None}
    search = values.get("keyword") or ""
    rows, count = await lists.system.rows(table, where, search=search, limit=page.limit, offset=page.offset)
    if not rows and page.offset:
        _, count = await lists.system.rows(table, where, search=search, limit=1)
    if unique:
        return await lists.objects("snapshot", rows), count
    rows = [{**row, "id": row["snapshot_id"]} for row in rows]
    names = await lists.names("snapshot_in_zone", rows)
    return [snapshot(row, names) for row in rows], count


LISTS: dict[str, Special] = {"listSnapshots": snapshots}
