"""Lists: a question in CloudStack's words into pages of the read tables, and back.

Owns paging, filters and which rows are shown. Refuses to write. What is deleted is not listed; `count` is the number
of all that match, not of the page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar
from uuid import UUID

from api import registry, responses
from api.access import SYSTEM, Principal, authorize
from api.ownership import Ownership
from api.registry import ApiCommand
from api.responses import Names
from schema.failure import BadParameter
from schema.identity import Role

PAGE = 500
"""CloudStack's `default.page.size`: the largest page, and what a list without paging gives."""
UNLIMITED = 100_000
"""What pagesize=-1 gives at most."""
LOOKUPS = 4
"""Look-ups of one list at once."""
READY_ONLY = frozenset({"featured", "selfexecutable", "executable", "community"})
SHARED = frozenset({"shared", "sharedexecutable"})
VERSION = "4.22.0.0"
"""The CloudStack release whose API is followed."""

Listed = tuple[list[dict[str, Any]], int]
T = TypeVar("T")


class Reads(Protocol):
    """What a list needs of the system."""

    async def rows(self, table: str, where: Mapping[str, Any] | None = None, *, search: str = "",
                   order: str = "created", limit: int = 500, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """One page of a read table, and how many rows match in all."""

    async def job(self, job_id: UUID) -> dict[str, Any] | None:
        """A job with its progress."""


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


class Lists:
    """Answers every list command."""

    def __init__(self, system: Reads) -> None:
        self._system = system
        self.ownership = Ownership(system)
        self._special: dict[str, Callable[[ApiCommand, Mapping[str, Any], Principal], Awaitable[Listed]]] = {
            "listStorageProviders": self._providers, "listTemplates": self._templates, "listAsyncJobs": self._jobs,
            "listApis": self._apis}

    async def answer(self, command: ApiCommand, values: Mapping[str, Any], principal: Principal = SYSTEM) -> dict[str, Any]:
        """The body below the envelope's key: count and items, count alone beyond the end, or nothing."""
        items, count = await self._special.get(command.name, self._rows)(command, values, principal)
        if items:
            return {"count": count, command.item: items}
        return {"count": count} if count else {}

    async def object(self, table: str, thing_id: str) -> dict[str, Any] | None:
        """One thing as lists show it, deleted or not; None when the read tables do not have it."""
        rows, _ = await self._system.rows(table, {"id": thing_id}, limit=1)
        return (await self.objects(table, rows))[0] if rows else None

    async def objects(self, table: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows as objects, with what they show of other things."""
        names = await self._names(table, rows)
        show: Callable[[Mapping[str, Any], Names], dict[str, Any]] = responses.OBJECTS[table]
        return [show(row, names) for row in rows]

    # --- tables ---

    async def _rows(self, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
        page, where = page_of(values), self._where(command, values)
        where |= await self.ownership.visible(command, values, principal)
        if command.noun in ("volume", "snapshot", "image_store"):
            where["removed"] = None
        if command.noun == "image_store":
            where["state"] = "Ready"
        if values.get("type") == "ROOT":
            return [], 0  # volumes are data disks: machines come later
        search = values.get("keyword") or ""
        if "ids" in values:
            found = await self._by_ids(command.noun, values, where, search)
            return await self.objects(command.noun, found[page.offset:page.offset + page.limit]), len(found)
        rows, count = await self._system.rows(command.noun, where, search=search, limit=page.limit, offset=page.offset)
        if not rows and page.offset:
            _, count = await self._system.rows(command.noun, where, search=search, limit=1)
        return await self.objects(command.noun, rows), count

    def _where(self, command: ApiCommand, values: Mapping[str, Any]) -> dict[str, Any]:
        where: dict[str, Any] = {}
        for name, column in command.filters.items():
            value = values.get(name)
            if value is not None:
                where[column] = str(value) if isinstance(value, UUID) else value
        if "provider" in where:
            where["provider"] = str(where["provider"]).lower()
        return where

    async def _by_ids(self, table: str, values: Mapping[str, Any], where: Mapping[str, Any],
                      search: str) -> list[dict[str, Any]]:
        if "id" in values:
            raise BadParameter("give either id or ids", field="ids", remedy="leave one of them out")
        found = await self._each(values["ids"], lambda key: self._system.rows(table, {**where, "id": key},
                                                                              search=search, limit=1))
        return [row for rows, _ in found.values() for row in rows]

    async def _templates(self, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
        """One row for each template and zone, unless showunique."""
        page, where, wanted = page_of(values), self._where(command, values), values["templatefilter"]
        if wanted in SHARED:
            return [], 0  # nobody is granted anything yet
        if wanted == "all" and principal.role is Role.USER:
            raise BadParameter("only admins list all templates", field="templatefilter", remedy="use executable or self")
        where["removed"] = None
        if wanted not in ("featured", "community"):  # those are everybody's
            asked_for = {**values, "listall": values.get("listall") or wanted == "all"}
            scope = await self.ownership.visible(command, asked_for, principal)
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
            rows = await self._by_ids("template", values, where, search)
        else:
            rows, _ = await self._system.rows("template", where, search=search, limit=UNLIMITED)
        if values.get("isready") is not None:
            rows = [row for row in rows if (row["state"] == "Ready") == values["isready"]]
        zones = await self._table("zone")
        asked = str(values["zoneid"]) if values.get("zoneid") else None
        placed = [(row, zone_id) for row in rows for zone_id in _zones_of(row, zones, asked, values)]
        chosen = placed[page.offset:page.offset + page.limit]
        names = await self._names("template", [row for row, _ in chosen])
        return [responses.template(row, names, zone_id) for row, zone_id in chosen], len(placed)

    async def _jobs(self, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
        page, where = page_of(values), await self.ownership.visible(command, values, principal)
        since: datetime | None = values.get("startdate")
        if since is None and not values.get("keyword"):
            rows, count = await self._system.rows("job", where, limit=page.limit, offset=page.offset)
            if not rows and page.offset:
                _, count = await self._system.rows("job", where, limit=1)
        else:
            every, _ = await self._system.rows("job", where, limit=UNLIMITED)
            word = (values.get("keyword") or "").lower()
            kept = [row for row in every if word in responses.command_name(row["command"]).lower()
                    and (since is None or datetime.fromisoformat(row["created"]) >= since)]
            rows, count = kept[page.offset:page.offset + page.limit], len(kept)
        return [await self.job(row, brief=True) for row in rows], count

    async def job(self, row: Mapping[str, Any], *, brief: bool = False) -> dict[str, Any]:
        """A job as queryAsyncJobResult shows it; `brief`: its result is the thing's id only (for lists of jobs)."""
        result = row.get("result") or {}
        item, thing_id = result.get("noun", ""), result.get("id", "")
        more = {registry.api_name(name): value for name, value in result.items() if name not in ("noun", "id")}
        if row["status"] == "completed" and item == "scrub":  # it is told whole: no table has it
            return responses.job(row, {"id": thing_id, **({} if brief else more)}, item)
        if row["status"] != "completed" or item not in responses.TABLES:
            return responses.job(row)
        thing = {"id": thing_id} if brief else await self.object(responses.TABLES[item], thing_id)
        return responses.job(row, {**(thing or {"id": thing_id}), **more}, item)

    # --- what agents carry, and the API itself ---

    async def _providers(self, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
        page, kind = page_of(values), values["type"]
        found: dict[str, dict[str, Any]] = {}
        if kind == "image":
            for agent in (await self._table("agent")).values():
                for spec in agent["providers"] or []:
                    found.setdefault(spec["name"].lower(), {
                        "name": responses.provider_name(spec["name"]), "type": "IMAGE", "scope": spec.get("scope", ""),
                        "settings": spec.get("settings", {}), "capabilities": spec.get("capabilities", [])})
        else:
            for pool in (await self._table("primary_store")).values():
                name = responses.provider_name(pool["kind"])
                found.setdefault(name.lower(), {"name": name, "type": "PRIMARY"})
        word = (values.get("keyword") or "").lower()
        every = [item for name, item in sorted(found.items()) if word in name]
        return every[page.offset:page.offset + page.limit], len(every)

    async def _apis(self, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
        wanted = (values.get("name") or "").lower()
        found = [describe(each) for each in registry.COMMANDS
                 if (not wanted or each.name.lower() == wanted) and authorize(principal, each)]
        if not found:
            raise BadParameter(f"no command is named {values['name'][:64]!r}", field="name",
                               remedy="leave it out to see all commands")
        return found, len(found)

    async def capability(self) -> dict[str, Any]:
        """What this installation can do."""
        stores, _ = await self._system.rows("image_store", {"removed": None, "state": "Ready", "scope": "REGION"},
                                            limit=1)
        return {
            "cloudstackversion": VERSION, "securitygroupsenabled": False, "dynamicrolesenabled": False,
            "userpublictemplateenabled": True, "supportELB": "false", "projectinviterequired": False,
            "allowusercreateprojects": False, "customdiskofferingminsize": 1, "customdiskofferingmaxsize": 2000,
            "regionsecondaryenabled": bool(stores), "kvmsnapshotenabled": True, "allowuserviewdestroyedvm": False,
            "allowuserexpungerecovervm": False, "allowuserexpungerecovervolume": False,
            "allowuserviewalldomainaccounts": False, "defaultuipagesize": 20}

    # --- names of other things ---

    async def _names(self, table: str, rows: list[dict[str, Any]]) -> Names:
        if not rows or table == "zone":
            return Names()
        if table == "account":
            return Names(users=await self._users(rows))
        if table in ("domain", "user", "project", "resource_limit"):
            return Names()
        zones = await self._table("zone")
        if table == "volume":
            sources = await self._lookup("template", (row.get("template_id") for row in rows))
            return Names(zones=zones, primaries=await self._table("primary_store"), templates=sources)
        if table in ("template", "snapshot"):
            volumes = await self._lookup("volume", (row.get("volume_id") for row in rows))
            return Names(zones=zones, stores=await self._table("image_store"), volumes=volumes,
                         copies=await self._copies(table, rows), progress=await self._progress(table, rows))
        return Names(zones=zones)

    async def _users(self, accounts: list[dict[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
        found = await self._each((row["id"] for row in accounts), lambda key: self._system.rows(
            "user", {"account_id": key}, limit=PAGE))
        return {key: list(users) for key, (users, _) in found.items()}

    async def _table(self, table: str) -> dict[str, dict[str, Any]]:
        rows, _ = await self._system.rows(table, limit=UNLIMITED)
        return {row["id"]: row for row in rows}

    async def _lookup(self, table: str, keys: Iterable[str | None]) -> dict[str, dict[str, Any]]:
        found = await self._each(keys, lambda key: self._system.rows(table, {"id": key}, limit=1))
        return {key: rows[0] for key, (rows, _) in found.items() if rows}

    async def _copies(self, table: str, rows: list[dict[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
        found = await self._each((row["id"] for row in rows), lambda key: self._system.rows(
            f"{table}_store_ref", {f"{table}_id": key}, limit=10))
        return {key: list(copies) for key, (copies, _) in found.items()}

    async def _progress(self, table: str, rows: list[dict[str, Any]]) -> dict[str, Mapping[str, Any]]:
        jobs = [row["job_id"] for row in rows if table == "template" and row["state"] == "Registering"]
        found = await self._each(jobs, lambda key: self._system.job(UUID(key)))
        return {key: row["progress"] for key, row in found.items() if row and row.get("progress")}

    async def _each(self, keys: Iterable[Any], ask: Callable[[str], Awaitable[T]]) -> dict[str, T]:
        """Ask once for each distinct key, a few at a time."""
        turns = asyncio.Semaphore(LOOKUPS)

        async def one(key: str) -> T:
            async with turns:
                return await ask(key)

        distinct = list(dict.fromkeys(str(key) for key in keys if key))
        return dict(zip(distinct, await asyncio.gather(*(one(key) for key in distinct)), strict=True))


def _zones_of(row: Mapping[str, Any], zones: Mapping[str, Any], asked: str | None,
              values: Mapping[str, Any]) -> list[str | None]:
    """The zones in which a template is listed."""
    here: list[str | None] = [row["zone_id"]] if row["zone_id"] else list(zones) or [None]
    kept = [zone_id for zone_id in here if asked is None or zone_id == asked]
    return kept[:1] if values.get("showunique") else kept


def describe(command: ApiCommand) -> dict[str, Any]:
    """A command as listApis shows it."""
    fields = responses.FIELDS["asyncjobs" if command.name == "queryAsyncJobResult" else command.item]
    more = {"id": "string"} if command.mode == registry.Mode.CREATE else {}
    if command.is_async:
        more["jobid"] = "string"
    return {
        "name": command.name, "description": command.description, "isasync": command.is_async,
        "related": command.related, "roles": list(command.roles),
        "params": [{"name": each.name, "description": each.description, "type": str(each.type), "length": each.length,
                    "required": each.required, "related": ""} for each in command.parameters],
        "response": [{"name": name, "description": name, "type": kind} for name, kind in {**fields, **more}.items()]}


__all__ = ["PAGE", "UNLIMITED", "Lists", "Page", "Reads", "describe", "page_of"]
