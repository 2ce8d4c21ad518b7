"""Lists: a question in CloudStack's words into pages of the read tables, and back.

Owns paging, filters and which rows are shown. Refuses to write, and to know the lists that are more than rows of one table: those
are in `api.answers`. What is deleted is not listed; `count` is the number of all that match, not of the page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import UUID

from api import responses
from api.access import SYSTEM, Principal
from api.ownership import Ownership
from api.registry import ApiCommand
from api.responses import Names
from handlers import capacity
from handlers.agent import Heard
from schema.failure import BadParameter

PAGE = 500
"""CloudStack's `default.page.size`: the largest page, and what a list without paging gives."""
UNLIMITED = 100_000
"""What pagesize=-1 gives at most."""
LOOKUPS = 4
"""Look-ups of one list at once."""

Listed = tuple[list[dict[str, Any]], int]
Special = Callable[["Lists", ApiCommand, Mapping[str, Any], Principal], Awaitable[Listed]]
"""(lists, command, values, caller) -> the page and how many match."""
T = TypeVar("T")


class Reads(Protocol):
    """What a list needs of the system."""

    async def rows(self, table: str, where: Mapping[str, Any] | None = None, *, search: str = "",
                   order: str = "created", limit: int = 500, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """One page of a read table, and how many rows match in all."""

    async def job(self, job_id: UUID) -> dict[str, Any] | None:
        """A job with its progress."""

    async def counters(self, names: Sequence[str]) -> dict[str, int]:
        """The values of these counters; one that was never counted is absent."""

    async def link(self, link_id: UUID) -> dict[str, Any] | None:
        """A link's state, and its URL while it is good: only for whoever may see that."""

    async def heard(self, agents: Iterable[str]) -> dict[str, Heard]:
        """When these agents were heard last, and what they said of their room."""


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of what matches."""

    limit: int
    offset: int


def page_of(values: Mapping[str, Any]) -> Page:
    """The page asked for. Raises BadParameter when page and pagesize do not fit together."""
    page, size = values.get("page"), values.get("pagesize")
    if size == -1 and page is None:
        return Page(UNLIMITED, 0)
    if (page is None) != (size is None):
        missing = "page" if page is None else "pagesize"
        raise BadParameter("missing", field=missing, remedy="page and pagesize come together")
    if page is None or size is None:
        return Page(PAGE, 0)
    if not 1 <= size <= PAGE:
        raise BadParameter(f"{size} is not 1 to {PAGE}", field="pagesize")
    if page < 1:
        raise BadParameter(f"{page} is not 1 or more", field="page")
    return Page(size, (page - 1) * size)


def brief(item: Mapping[str, Any]) -> dict[str, Any]:
    """An object for `details=min`: without its fields that are lists or objects themselves."""
    return {name: value for name, value in item.items() if not isinstance(value, list | dict)}


class Lists:
    """Answers every list command."""

    def __init__(self, system: Reads, special: Mapping[str, Special] | None = None,
                 facts: Mapping[str, Any] | None = None, configuration: Sequence[Mapping[str, Any]] = ()) -> None:
        self.system = system
        self.facts, self.configuration = facts or {}, configuration
        """What listCapabilities says of this process's settings, and what listConfigurations lists of them."""
        self.ownership = Ownership(system)
        self._special = special or {}

    async def answer(self, command: ApiCommand, values: Mapping[str, Any], principal: Principal = SYSTEM) -> dict[str, Any]:
        """The body below the envelope's key: count and items, count alone beyond the end, or nothing."""
        special = self._special.get(command.name)
        items, count = await (special(self, command, values, principal) if special else self.of_table(command, values, principal))
        if [word.lower() for word in values.get("details") or ()] == ["min"]:
            items = [brief(each) for each in items]
        if items:
            return {"count": count, command.item: items}
        return {"count": count} if count else {}

    async def object(self, table: str, thing_id: str) -> dict[str, Any] | None:
        """One thing as lists show it, deleted or not; None when the read tables do not have it."""
        rows, _ = await self.system.rows(table, {"id": thing_id}, limit=1)
        return (await self.objects(table, rows))[0] if rows else None

    async def objects(self, table: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows as objects, with what they show of other things."""
        names = await self.names(table, rows)
        show: Callable[[Mapping[str, Any], Names], dict[str, Any]] = responses.OBJECTS[table]
        return [show(row, names) for row in rows]

    # --- tables ---

    async def of_table(self, command: ApiCommand, values: Mapping[str, Any], principal: Principal,
                       more: Mapping[str, Any] | None = None) -> Listed:
        """The rows of the command's own table that match, and `more` of a filter."""
        page, where = page_of(values), {**self.where_of(command, values), **(more or {})}
        where |= await self.ownership.visible(command, values, principal)
        if command.noun in ("volume", "snapshot", "snapshot_policy", "image_store", "machine"):
            where["removed"] = None
        if command.noun == "image_store":
            where["state"] = "Ready"
        search = values.get("keyword") or ""
        if "ids" in values:
            found = await self.by_ids(command.noun, values, where, search)
            return await self.objects(command.noun, found[page.offset:page.offset + page.limit]), len(found)
        rows, count = await self.system.rows(command.noun, where, search=search, limit=page.limit, offset=page.offset)
        if not rows and page.offset:
            _, count = await self.system.rows(command.noun, where, search=search, limit=1)
        return await self.objects(command.noun, rows), count

    def where_of(self, command: ApiCommand, values: Mapping[str, Any]) -> dict[str, Any]:
        """The filter that the command's parameters make."""
        where: dict[str, Any] = {}
        for name, column in command.filters.items():
            value = values.get(name)
            if value is not None:
                where[column] = str(value) if isinstance(value, UUID) else value
        if values.get("tags"):
            where["tags"] = {"has": values["tags"]}
        if "provider" in where:
            where["provider"] = str(where["provider"]).lower()
        return where | dict(command.fixed)

    async def by_ids(self, table: str, values: Mapping[str, Any], where: Mapping[str, Any],
                     search: str) -> list[dict[str, Any]]:
        """The rows that `ids` names. Raises BadParameter when `id` is given too."""
        if "id" in values:
            raise BadParameter("give either id or ids", field="ids", remedy="leave one of them out")
        found = await self.each(values["ids"], lambda key: self.system.rows(table, {**where, "id": key},
                                                                             search=search, limit=1))
        return [row for rows, _ in found.values() for row in rows]

    # --- names of other things ---

    async def names(self, table: str, rows: list[dict[str, Any]]) -> Names:
        """What these rows show of other things."""
        if not rows or table == "zone":
            return Names()
        if table == "account":
            return Names(users=await self._users(rows))
        if table in ("domain", "user", "project", "resource_limit", "event", "resource_tag"):
            return Names()
        if table == "volume":
            zones, sources, chosen, machines, primaries = await asyncio.gather(
                self.table("zone"), self.lookup("template", (row.get("template_id") for row in rows)),
                self.lookup("disk_offering", (row.get("disk_offering_id") for row in rows)),
                self.lookup("machine", (row.get("machine_id") for row in rows)), self.table("primary_store"))
            return Names(zones=zones, primaries=primaries, templates=sources, offerings=chosen, machines=machines)
        if table == "snapshot_in_zone":  # its rows have what they show of volumes
            zones, stores, copies = await asyncio.gather(
                self.table("zone"), self.table("image_store"), self._copies("snapshot", rows))
            return Names(zones=zones, stores=stores, copies=copies)
        zones = await self.table("zone")
        if table == "snapshot_policy":
            return Names(zones=zones, volumes=await self.lookup("volume", (row["volume_id"] for row in rows)))
        if table in ("template", "snapshot"):
            volumes = await self.lookup("volume", (row.get("volume_id") for row in rows))
            return Names(zones=zones, stores=await self.table("image_store"), volumes=volumes,
                         copies=await self._copies(table, rows), progress=await self._progress(table, rows))
        if table == "image_store":
            used = await self.system.counters([capacity.used(UUID(row["id"])) for row in rows])
            return Names(zones=zones, used={row["id"]: used.get(capacity.used(UUID(row["id"])), 0) for row in rows})
        if table == "pending_deletion":
            return Names(zones=zones, stores={**await self.table("image_store"), **await self.table("primary_store")})
        return Names(zones=zones)

    async def _users(self, accounts: list[dict[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
        found: dict[str, list[Mapping[str, Any]]] = {}
        for user in await self.among("user", "account_id", (row["id"] for row in accounts), most=100):
            found.setdefault(user["account_id"], []).append(user)
        return found

    async def table(self, table: str) -> dict[str, dict[str, Any]]:
        """All rows of a small table, by id."""
        rows, _ = await self.system.rows(table, limit=UNLIMITED)
        return {row["id"]: row for row in rows}

    async def lookup(self, table: str, keys: Iterable[str | None]) -> dict[str, dict[str, Any]]:
        """The rows with these ids, by id."""
        return {row["id"]: row for row in await self.among(table, "id", keys)}

    async def among(self, table: str, column: str, keys: Iterable[str | None], *, most: int = 1) -> list[dict[str, Any]]:
        """The rows whose column is one of these, with one question for all of them; at most `most` for each."""
        wanted = list(dict.fromkeys(key for key in keys if key))
        if not wanted:
            return []
        rows, _ = await self.system.rows(table, {column: {"in": wanted}}, limit=most * len(wanted))
        return rows

    async def _copies(self, table: str, rows: list[dict[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
        of = f"{table}_id"
        found: dict[str, list[Mapping[str, Any]]] = {}
        for copy in await self.among(f"{table}_store_ref", of, (row["id"] for row in rows), most=100):
            found.setdefault(copy[of], []).append(copy)
        return found

    async def _progress(self, table: str, rows: list[dict[str, Any]]) -> dict[str, Mapping[str, Any]]:
        return await self.progress(row["job_id"] for row in rows if table == "template" and row["state"] == "Registering")

    async def progress(self, jobs: Iterable[str | None]) -> dict[str, Mapping[str, Any]]:
        """How far these jobs are, by id; of those that are not told of, nothing."""
        found = await self.each(jobs, lambda key: self.system.job(UUID(key)))
        return {key: row["progress"] for key, row in found.items() if row and row.get("progress")}

    async def each(self, keys: Iterable[Any], ask: Callable[[str], Awaitable[T]]) -> dict[str, T]:
        """Ask once for each distinct key, a few at a time."""
        turns = asyncio.Semaphore(LOOKUPS)

        async def one(key: str) -> T:
            async with turns:
                return await ask(key)

        distinct = list(dict.fromkeys(str(key) for key in keys if key))
        return dict(zip(distinct, await asyncio.gather(*(one(key) for key in distinct)), strict=True))


__all__ = ["PAGE", "UNLIMITED", "Listed", "Lists", "Page", "Reads", "Special", "page_of"]
