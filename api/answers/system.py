"""What this installation can do, and the API itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api import registry
from api.access import Principal, authorize
from api.listing import Listed, Lists, Special, page_of
from api.registry import ApiCommand
from api.related import related
from api.responses import FIELDS
from schema.failure import BadParameter
from schema.identity import Role

VERSION = "4.22.0.0"
"""The CloudStack release whose API is followed."""


async def apis(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    wanted = (values.get("name") or "").lower()
    found = [describe(each) for each in registry.COMMANDS
             if (not wanted or each.name.lower() == wanted) and authorize(principal, each)]
    if not found:
        raise BadParameter(f"no command is named {values['name'][:64]!r}", field="name",
                           remedy="leave it out to see all commands")
    return found, len(found)


async def hypervisors(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """Each name once, of one zone or of all."""
    page, word = page_of(values), (values.get("keyword") or "").lower()
    wanted = str(values["zoneid"]) if values.get("zoneid") else None
    names = sorted({row["hypervisor"] for row in (await lists.table("agent")).values()
                    if row["hypervisor"] and wanted in (None, row["zone_id"])})
    found = [{"name": name} for name in names if word in name.lower()]
    return found[page.offset:page.offset + page.limit], len(found)


async def configurations(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """By name, category, or a part of the name."""
    page, word = page_of(values), (values.get("keyword") or "").lower()
    category = values.get("category") or values.get("group")
    found = [dict(row) for row in lists.configuration if word in row["name"]
             and values.get("name") in (None, row["name"]) and (category is None or category.lower() == row["category"].lower())]
    return found[page.offset:page.offset + page.limit], len(found)


async def capability(lists: Lists) -> dict[str, Any]:
    """What this installation can do."""
    stores, _ = await lists.system.rows("image_store", {"removed": None, "state": "Ready", "scope": "REGION"},
                                        limit=1)
    return {
        "cloudstackversion": VERSION, "securitygroupsenabled": False, "dynamicrolesenabled": False,
        "userpublictemplateenabled": True, "supportELB": "false", "projectinviterequired": False,
        "allowusercreateprojects": Role.USER in registry.find("createProject").roles,
        "customdiskofferingminsize": 1, "customdiskofferingmaxsize": 2000,
        "regionsecondaryenabled": bool(stores), "kvmsnapshotenabled": True, "allowuserviewdestroyedvm": False,
        "allowuserexpungerecovervm": False, "allowuserexpungerecovervolume": True,
        "allowuserviewalldomainaccounts": False, "defaultuipagesize": 20,
        "instancesstatsuseronly": False, "instancesdisksstatsretentionenabled": False, **lists.facts}


async def capabilities(lists: Lists, command: ApiCommand, values: dict[str, Any], principal: Principal) -> dict[str, Any]:
    """listCapabilities: one object, no list."""
    return {command.item: await capability(lists)}


def shown_as(command: ApiCommand) -> str:
    """The key in FIELDS of what a command shows: the job itself stands where other answers have their object."""
    return "asyncjobs" if command.name == "queryAsyncJobResult" else command.item


def describe(command: ApiCommand) -> dict[str, Any]:
    """A command as listApis shows it."""
    fields = FIELDS[shown_as(command)]
    more = {"id": "string"} if command.mode == registry.Mode.CREATE else {}
    if command.is_async:
        more["jobid"] = "string"
    deprecated = {"deprecated": True, "replacement": command.deprecated} if command.deprecated else {}
    since = {"since": command.since} if command.since else {}
    return {
        "name": command.name, "description": command.description, "isasync": command.is_async,
        "related": command.related, "roles": list(command.roles), **since, **deprecated,
        "params": [{"name": each.name, "description": each.description, "type": str(each.type), "length": each.length,
                    "required": each.required, "related": related(command, each)} for each in command.parameters],
        "response": [{"name": name, "description": name, "type": kind} for name, kind in {**fields, **more}.items()]}


LISTS: dict[str, Special] = {"listApis": apis, "listHypervisors": hypervisors, "listConfigurations": configurations}
ANSWERS = {"listCapabilities": capabilities}
