"""Ownership: whose the things are that a request names, and whose what it makes will be.

Owns which parameters name things that belong to accounts, and how account, domainid and projectid are read. Asks
`api.access.authorize` about each thing and refuses to decide by itself. Rule: a thing that may not be seen is answered with the
text of one that is not there, and a parameter that nobody described here is refused to everybody but root admins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol
from uuid import UUID

from api.access import Principal, Resource, Use, authorize, reach, resource_of
from api.api_command import ApiCommand, Type
from bus.gathering import Gathered
from handlers.identity import TYPES
from schema.failure import BadParameter, Denied, Unsupported
from schema.identity import ROOT_OWNER, Owner, Role
from schema.resource_tag import KINDS

OWNED = frozenset({"event", "volume", "snapshot", "template", "job", "domain", "account", "user", "project", "resource_limit",
                   "resource_tag", "machine", "snapshot_policy"})
"""Read tables whose rows belong to accounts."""
THINGS: Mapping[str, tuple[str, Use]] = {
    "volumeid": ("volume", Use.CHANGE), "snapshotid": ("snapshot", Use.USE), "templateid": ("template", Use.USE),
    "jobid": ("job", Use.CHANGE), "domainid": ("domain", Use.CHANGE), "parentdomainid": ("domain", Use.CHANGE),
    "projectid": ("project", Use.CHANGE), "extractid": ("job", Use.CHANGE), "resourceids": ("", Use.CHANGE),
    "virtualmachineid": ("machine", Use.CHANGE), "projectids": ("project", Use.USE),
    "policyid": ("snapshot_policy", Use.CHANGE),
}
"""Parameter -> the table of the thing that it names, and what is done with it unless the command says otherwise. `id` and
`ids` name things of the command's own noun, `resourceids` those of the parameter `resourcetype`."""
FREE = frozenset({"zoneid", "zoneids", "destzoneid", "destzoneids", "sourcezoneid", "storageid", "diskofferingid",
                  "serviceofferingid", "imagestoreuuid", "ostypeid", "ipaddressid", "customjobid"})
"""Parameters that name what belongs to nobody."""
ROOT_ONLY = frozenset({"customid", "displayvolume"})
"""Parameters that only root admins may give, whatever they name."""
LISTS = {"volume": "listVolumes", "snapshot": "listSnapshots", "template": "listTemplates", "job": "listAsyncJobs",
         "domain": "listDomains", "account": "listAccounts", "user": "listUsers", "project": "listProjects",
         "resource_limit": "listResourceLimits", "resource_tag": "listTags", "machine": "listVirtualMachines",
         "snapshot_policy": "listSnapshotPolicies", "event": "listEvents"}


class Reads(Protocol):
    """What is asked of the read tables."""

    async def rows(self, table: str, where: Mapping[str, Any] | None = None, *, search: str = "",
                   order: str = "created", limit: int = 500, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """One page of a read table, and how many rows match in all."""

    async def job(self, job_id: UUID) -> dict[str, Any] | None:
        """A job's row."""


def absent(table: str, thing_id: UUID | str, where: str) -> BadParameter:
    """The refusal of a thing that is not there, or not for the caller: one text for both."""
    return BadParameter(f"no {table} has the id {thing_id}", field=where, remedy=f"{LISTS[table]} shows them")


def allowed(principal: Principal, command: ApiCommand) -> None:
    """Raises Unsupported when the caller's role does not have the command."""
    if not authorize(principal, command):
        raise Unsupported(f"{command.name} is not available for the account {principal.owner.account}", field="command",
                          remedy="listApis shows the commands that are")


class Ownership:
    """Asks about one installation's things."""

    def __init__(self, system: Reads) -> None:
        self._system = system
        self._things: dict[str, Gathered[dict[str, Any]]] = {}
        """By table: what many callers name is looked up at once."""

    async def check(self, command: ApiCommand, values: dict[str, Any], principal: Principal) -> Owner:
        """Raise unless the caller may do it with every thing that `values` names; the owner of the job and of what it makes.

        Fills in the caller's domain where the command leaves it open. Raises BadParameter for what is not there or not the
        caller's, Denied for a parameter whose meaning is not known here."""
        if command.home and command.home not in values:
            values[command.home] = principal.owner.domain_id
        owner = await self.named(command, values, principal) if command.for_account else None
        if principal.system:
            return owner or ROOT_OWNER
        for name, harmless in command.root_only.items():
            if values.get(name) is not None and values[name] not in harmless and principal.role is not Role.ADMIN:
                raise Denied("only a root admin may give it", field=name, remedy="leave it out")
        if command.noun == "resource_limit" and principal.role is not Role.ADMIN and owner == principal.owner:
            raise Denied("nobody changes the limits of the own account", field="account", remedy="ask an admin above")
        for parameter in command.parameters:
            value = values.get(parameter.name)
            if value is None or (command.for_account and parameter.name in ("account", "domainid", "projectid")):
                continue
            if parameter.name in ROOT_ONLY and principal.role is not Role.ADMIN:
                raise Denied(f"only a root admin may give it to {command.name}", field=parameter.name, remedy="leave it out")
            if parameter.type is not Type.UUID and not parameter.of_uuids and parameter.name not in THINGS:
                continue
            if parameter.name in FREE or parameter.name in ROOT_ONLY:
                continue
            named = self._thing(command, parameter.name)
            if named is None and principal.role is Role.ADMIN:
                continue  # it belongs to nobody: a store, an offering
            if named is None:
                raise Denied(f"only a root admin may give it to {command.name}", field=parameter.name)
            table, use = named
            table = table or KINDS[values["resourcetype"]]
            for each in value if isinstance(value, list) else [value]:
                resource = await self._resource(table, each)
                if resource is not None and "accounttype" in values:
                    resource = Resource(owner=resource.owner, domain=True, role=TYPES.get(values["accounttype"], Role.ADMIN))
                if resource is None or not authorize(principal, command, resource, use):
                    raise absent(table, each, parameter.name)
                if use is Use.CHANGE:  # what is only used may be anybody's; the job is still the caller's
                    owner = owner or resource.owner
        return owner or principal.owner

    async def member(self, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> UUID:
        """The account that is to be added to a project: one of the project's domain. Whoever made the project may, and who may
        act for that account; being of the project is not enough. Raises BadParameter."""
        project = await self._one("project", values["projectid"])
        admin = await self._resource("account", project["admin_id"]) if project is not None else None
        nobody = admin is None and principal.role is not Role.ADMIN
        if project is None or nobody or not authorize(replace(principal, projects=frozenset()), command, admin):
            raise absent("project", values["projectid"], "projectid")
        rows, _ = await self._system.rows("account", {"name": values["account"], "domain_id": project["domain_id"]}, limit=1)
        if not rows:
            raise BadParameter(f"the domain has no account {values['account']!r}", field="account",
                               remedy="listAccounts shows them")
        return UUID(rows[0]["id"])

    async def grantees(self, command: ApiCommand, values: Mapping[str, Any]) -> list[UUID]:
        """The accounts that `accounts` (names in the domain of the thing's owner) and `projectids` name. Raises BadParameter."""
        row = await self._one(command.noun, values["id"])
        domain_id = row["domain_id"] if row is not None else str(ROOT_OWNER.domain_id)
        found: list[UUID] = []
        for name in values.get("accounts") or ():
            rows, _ = await self._system.rows("account", {"name": name, "domain_id": domain_id, "project_id": None}, limit=1)
            if not rows:
                raise BadParameter(f"the owner's domain has no account {name[:255]!r}", field="accounts",
                                   remedy="listAccounts shows them")
            found.append(UUID(rows[0]["id"]))
        for project_id in values.get("projectids") or ():
            project = await self._one("project", project_id)
            if project is None:
                raise absent("project", project_id, "projectids")
            found.append(UUID(project["account_id"]))
        return found

    def _thing(self, command: ApiCommand, name: str) -> tuple[str, Use] | None:
        if name in ("id", "ids") and command.noun in OWNED:
            table, use = command.noun, Use.CHANGE if command.command is not None else Use.SEE
        elif name in THINGS:
            table, use = THINGS[name]
        else:
            return None
        return table, command.uses.get(name, use)

    async def _resource(self, table: str, thing_id: Any) -> Resource | None:
        if table == "job":
            row = await self._system.job(UUID(str(thing_id)))
        else:
            row = await self._one(table, thing_id)
        return resource_of(table, row) if row is not None else None

    async def _one(self, table: str, thing_id: Any) -> dict[str, Any] | None:
        if table not in self._things:
            self._things[table] = Gathered(partial(self._look_up, table))
        return (await self._things[table].get([str(thing_id)])).get(str(thing_id))

    async def _look_up(self, table: str, ids: list[str]) -> dict[str, dict[str, Any]]:
        rows, _ = await self._system.rows(table, {"id": {"in": ids}}, limit=len(ids))
        return {row["id"]: row for row in rows}

    # --- account, domainid, projectid ---

    async def named(self, command: ApiCommand, values: Mapping[str, Any], principal: Principal,
                    use: Use = Use.CHANGE) -> Owner:
        """The account that account, domainid and projectid name; the caller's own when they are left out."""
        account, domain_id, project = values.get("account"), values.get("domainid"), values.get("projectid")
        if project is not None:
            if account is not None:
                raise BadParameter("give either account or projectid", field="account", remedy="leave one of them out")
            row = await self._one("project", project)
            if row is None or not authorize(principal, command, resource_of("project", row), use):
                raise absent("project", project, "projectid")
            return resource_of("project", row).owner
        if account is None:
            if domain_id is not None and domain_id != principal.owner.domain_id:
                raise BadParameter("missing", field="account", remedy="domainid says in which domain the account is")
            return principal.owner
        where = {"name": account, "domain_id": str(domain_id or principal.owner.domain_id)}
        rows, _ = await self._system.rows("account", where, limit=1)
        if not rows and account == ROOT_OWNER.account and where["domain_id"] == str(ROOT_OWNER.domain_id):
            found: Resource | None = Resource(owner=ROOT_OWNER, role=Role.ADMIN)
        else:
            found = resource_of("account", rows[0]) if rows else None
        if found is None or not authorize(principal, command, found, use):
            raise BadParameter(f"the domain has no account {account!r}", field="account", remedy="listAccounts shows them")
        return found.owner

    # --- lists ---

    async def visible(self, command: ApiCommand, values: Mapping[str, Any], principal: Principal,
                      table: str = "") -> dict[str, Any]:
        """The filter of a list: what the caller may see, narrowed by account, domainid, projectid, listall and isrecursive as
        CloudStack does it: without listall an admin sees the own account's things only, unless ids are given."""
        table = table or command.noun
        if table not in OWNED:
            return {}
        narrow: dict[str, Any] = {}
        if values.get("projectid") == "-1":
            narrow = {"project_id": {"in": await self._projects(principal)}}
            if values.get("listall"):
                narrow = {"any": [narrow, {"project_id": None}]}
        elif table == "project" and values.get("account"):
            owner = await self.named(command, values, principal, Use.SEE)
            rows, _ = await self._system.rows("project_account", {"account_id": str(owner.account_id)}, limit=10_000)
            narrow = {"id": {"in": [row["project_id"] for row in rows]}}
        elif values.get("projectid") or values.get("account"):
            owner = await self.named(command, values, principal, Use.SEE)
            narrow = {"account_id": str(owner.account_id)}
        elif values.get("domainid") is not None:
            narrow = await self._domain(command, values, principal)
        elif principal.system or values.get("id") is not None or values.get("ids"):
            pass
        elif values.get("listall"):
            narrow = {} if table in ("domain", "project", "account", "user") else {"project_id": None}
        elif table == "domain":
            narrow = {"domain_id": str(principal.owner.domain_id)}
        elif table != "project":
            narrow = {"account_id": str(principal.owner.account_id)}
        return {"all": [part for part in (reach(principal, table), narrow) if part]}

    async def _projects(self, principal: Principal) -> list[str]:
        rows, _ = await self._system.rows("project", reach(principal, "project"), limit=10_000)
        return [row["id"] for row in rows]

    async def _domain(self, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        domain_id = values["domainid"]
        row = await self._one("domain", domain_id)
        if row is None or not authorize(principal, command, resource_of("domain", row), Use.SEE):
            raise absent("domain", domain_id, "domainid")
        if values.get("isrecursive"):
            return {"domain_path": {"prefix": row["domain_path"]}}
        return {"domain_id": str(domain_id)}


__all__ = ["OWNED", "Ownership", "absent", "allowed"]
