"""What this installation can do, and the API itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api import registry
from api.access import Principal, authorize
from api.listing import Listed, Lists, Special
from api.registry import ApiCommand
from api.responses import FIELDS
from schema.failure import BadParameter

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


async def capability(lists: Lists) -> dict[str, Any]:
    """What this installation can do."""
    stores, _ = await lists.system.rows("image_store", {"removed": None, "state": "Ready", "scope": "REGION"},
                                        limit=1)
    return {
        "cloudstackversion": VERSION, "securitygroupsenabled": False, "dynamicrolesenabled": False,
        "userpublictemplateenabled": True, "supportELB": "false", "projectinviterequired": False,
        "allowusercreateprojects": False, "customdiskofferingminsize": 1, "customdiskofferingmaxsize": 2000,
        "regionsecondaryenabled": bool(stores), "kvmsnapshotenabled": True, "allowuserviewdestroyedvm": False,
        "allowuserexpungerecovervm": False, "allowuserexpungerecovervolume": True,
        "allowuserviewalldomainaccounts": False, "defaultuipagesize": 20, **lists.facts}


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
    return {
        "name": command.name, "description": command.description, "isasync": command.is_async,
        "related": command.related, "roles": list(command.roles), **deprecated,
        "params": [{"name": each.name, "description": each.description, "type": str(each.type), "length": each.length,
                    "required": each.required, "related": ""} for each in command.parameters],
        "response": [{"name": name, "description": name, "type": kind} for name, kind in {**fields, **more}.items()]}


LISTS: dict[str, Special] = {"listApis": apis}
ANSWERS = {"listCapabilities": capabilities}
