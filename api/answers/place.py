"""Lists of hosts and primary stores: what the tables say, with when each agent was heard and what room it told of."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from api.access import Principal
from api.listing import UNLIMITED, Listed, Lists, Special, page_of
from api.registry import ApiCommand
from api.responses.place import host, pool_host, storage_pool
from api.responses.shown import Names

LIKE = ("type", "state", "hypervisor", "zoneid")
"""Parameters of listHosts that a host's own field of this name must equal."""


async def hosts(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """One for each agent: there are as many as hosts, so the page is cut here."""
    page, names = page_of(values), Names(zones=await lists.table("zone"))
    rows, _ = await lists.system.rows("agent", limit=UNLIMITED)
    told, now = await lists.system.heard([row["id"] for row in rows]), datetime.now(UTC)
    found = [host(row, names, told.get(row["id"]), now) for row in rows]
    if values.get("virtualmachineid") is not None:
        of, _ = await lists.system.rows("machine", {"id": str(values["virtualmachineid"]), "removed": None}, limit=1)
        found = [each for each in found if of and each["id"] == of[0]["host_id"]]
    for name in ("id", "name", *LIKE):
        wanted = values.get(name)
        if wanted is not None:
            found = [each for each in found if str(each.get(name, "")).lower() == str(wanted).lower()]
    word = (values.get("keyword") or "").lower()
    found = sorted((each for each in found if word in each["name"].lower()), key=lambda each: str(each["name"]))
    return found[page.offset:page.offset + page.limit], len(found)


async def pools(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """Those that are there, or on their way."""
    page, names = page_of(values), Names(zones=await lists.table("zone"))
    where = lists.where_of(command, values) | {"removed": None}
    rows, _ = await lists.system.rows("primary_store", where, search=values.get("keyword") or "", limit=UNLIMITED)
    if values.get("ipaddress"):
        rows = [row for row in rows if values["ipaddress"].lower() in (pool_host(row).lower(), row["agent"].lower())]
    told = await lists.system.heard({row["agent"] for row in rows})
    room = {str(each.id): (each.total_bytes, each.free_bytes) for one in told.values() for each in one.usage}
    shown = [storage_pool(row, names, room.get(row["id"])) for row in rows]
    if values.get("status"):
        shown = [each for each in shown if each["state"].lower() == values["status"].lower()]
    return shown[page.offset:page.offset + page.limit], len(shown)


LISTS: dict[str, Special] = {"listHosts": hosts, "listStoragePools": pools}
