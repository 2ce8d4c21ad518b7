"""The doctor for an installation that is only reached by its API: what its lists tell.

Owns the questions. Refuses to need more than the rights of who asks: what a caller may not see is said to be so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from api.client.connection import Connection
from api.doctor.certificates import judge
from api.doctor.cloud import AgentSeen, StoreSeen, judge_agents, judge_room, judge_stores, silence
from api.doctor.finding import Finding
from schema.failure import Unsupported

Asking = Callable[[Connection], Awaitable[list[Finding]]]


async def _list(connection: Connection, command: str, item: str, **more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await connection.ask(command, {"page": "1", "pagesize": "500", **more})).get(item, [])
    return found


async def api(connection: Connection) -> list[Finding]:
    """Does it answer, and are the keys right."""
    told = (await connection.ask("listCapabilities", {}))["capability"]
    return [Finding("ok", f"{connection.url}, as of CloudStack {told['cloudstackversion']}")]


async def agents(connection: Connection) -> list[Finding]:
    """Were they heard."""
    rows = await _list(connection, "listHosts", "host")
    return judge_agents(AgentSeen(row["name"], tuple(row.get("capabilities", "").split(",")), silence(_time(row, "lastpinged")),
                                  row.get("version", "")) for row in rows)


async def primaries(connection: Connection) -> list[Finding]:
    """Have they room."""
    rows = await _list(connection, "listStoragePools", "storagepool")
    return [judge_room(row["name"], row["disksizetotal"], row["disksizetotal"] - row["disksizeused"]) for row in rows
            if row.get("disksizetotal") and "disksizeused" in row] or [Finding("ok", "none tells of its room")]


async def stores(connection: Connection) -> list[Finding]:
    """State and room."""
    rows = await _list(connection, "listImageStores", "imagestore")
    return judge_stores(StoreSeen(row["name"], bool(row.get("readonly")), row.get("disksizeused"), row.get("disksizetotal"))
                        for row in rows)


async def certificates(connection: Connection) -> list[Finding]:
    """Of the API and of the image stores."""
    rows = await _list(connection, "listImageStores", "imagestore")
    return await judge([connection.url, *(str(row.get("url", "")) for row in rows)])


def _time(row: Mapping[str, Any], name: str) -> datetime | None:
    return datetime.strptime(row[name], "%Y-%m-%dT%H:%M:%S%z").astimezone(UTC) if row.get(name) else None


def permitted(ask: Asking) -> Asking:
    """A check that needs an admin says so to others."""
    async def run(connection: Connection) -> list[Finding]:
        try:
            return await ask(connection)
        except Unsupported:
            return [Finding("ok", "only an admin may see it")]

    return run


REMOTE: dict[str, Asking] = {
    "api": api, "agents": permitted(agents), "primary stores": permitted(primaries), "image stores": permitted(stores),
    "certificates": permitted(certificates)}
"""What is checked, in this order."""

__all__ = ["REMOTE"]
