"""Access: who asks, and what it may. One pure function decides, for commands, for lists and for whoever shows events.

Owns Principal, Resource and `authorize`, whose default is no, and what `authorize` means as a condition on the rows of a
list. Refuses to know HTTP, tables and how a principal proved who it is. Rule: what a caller may not see looks as if it were
not there, so nobody but `authorize` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol
from uuid import UUID

from schema.identity import ROOT_ACCOUNT, ROOT_DOMAIN, ROOT_OWNER, ROOT_USER, Owner, Role

RANK = {Role.USER: 0, Role.RESOURCE: 1, Role.DOMAIN: 2, Role.ADMIN: 3}
"""Nobody acts on an account whose role is above its own."""


class Use(StrEnum):
    """What is done with a thing."""

    SEE = "see"
    USE = "use"  # read it to make something else: a template for a volume
    CHANGE = "change"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks."""

    user_id: UUID
    name: str
    """The user's name: it stands in events."""
    role: Role
    owner: Owner
    """Its account."""
    projects: frozenset[UUID] = field(default_factory=frozenset)
    """Accounts of the projects that it may use."""
    system: bool = False
    """The unauthenticated listener on loopback: it sees everything without asking for it."""


SYSTEM = Principal(user_id=ROOT_USER, name="admin", role=Role.ADMIN, owner=ROOT_OWNER, system=True)
"""Who asks over the listener without authentication, as CloudStack's integration port does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What is asked for, as far as access goes."""

    owner: Owner
    role: Role = Role.USER
    """Of an account or a user: its own role."""
    public: bool = False
    """Everybody may see and use it."""
    granted: frozenset[UUID] = field(default_factory=frozenset)
    """Accounts that may see and use it."""
    domain: bool = False
    """It is a domain: whoever is in it sees it, and only its admins act on it."""


class Action(Protocol):
    """What is asked: an `ApiCommand` is one."""

    @property
    def name(self) -> str:
        """The command's name."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that may ask for it at all."""


def authorize(principal: Principal, action: Action, resource: Resource | None = None, use: Use = Use.CHANGE) -> bool:
    """Whether `principal` may do `action`, and with `resource` what `use` says. Without a resource: whether it may ask at all.

    A root admin may do everything; a domain admin what concerns its domain and those below; everybody what concerns the own
    account and the own projects. A resource admin only sees what a domain admin may change. Nobody changes an account above it.
    """
    if principal.role.value not in action.roles:
        return False
    if resource is None:
        return True
    if RANK[resource.role] > RANK[principal.role] and use is not Use.SEE:
        return False
    if principal.role is Role.ADMIN:
        return True
    if use is not Use.CHANGE and (
            resource.public or not resource.granted.isdisjoint({principal.owner.account_id, *principal.projects})):
        return True
    if resource.domain:
        if use is Use.SEE and resource.owner.domain_id == principal.owner.domain_id:
            return True
    elif resource.owner.account_id in {principal.owner.account_id, *principal.projects}:
        return True
    reaches = principal.role is Role.DOMAIN or (principal.role is Role.RESOURCE and use is Use.SEE)
    return reaches and resource.owner.path.startswith(principal.owner.path)


def reach(principal: Principal, table: str = "") -> dict[str, Any]:
    """The rows of things with owners for which `authorize` says yes to seeing them, as the filter of a list."""
    if principal.role is Role.ADMIN:
        return {}
    accounts = sorted({principal.owner.account_id, *principal.projects})
    own: dict[str, Any] = {"account_id": {"in": [str(each) for each in accounts]}}
    if table == "domain":
        own = {"domain_id": str(principal.owner.domain_id)}
    if principal.role is Role.USER:
        return own
    return {"any": [own, {"domain_path": {"prefix": principal.owner.path}}]}


def resource_of_row(meta: Mapping[str, str]) -> Resource:
    """What a row of the log is about, by its `meta`: whose it is. What is nobody's belongs to ROOT's admin."""
    if "account" not in meta:
        return Resource(owner=ROOT_OWNER)
    return Resource(owner=ROOT_OWNER.model_copy(update={"account_id": UUID(meta["account"]), "path": meta["domain"]}))


def resource_of(table: str, row: Mapping[str, Any]) -> Resource:
    """A row of a read table as a resource. Raises KeyError for a table whose rows belong to nobody."""
    owner = Owner(
        account_id=UUID(row["account_id"]) if row.get("account_id") else ROOT_ACCOUNT, account=row.get("account") or "",
        domain_id=UUID(row["domain_id"]) if row.get("domain_id") else ROOT_DOMAIN, path=row["domain_path"] or "/",
        project_id=UUID(row["project_id"]) if row.get("project_id") else None)
    return Resource(
        owner=owner, role=Role(row["role"]) if table in ("account", "user") else Role.USER,
        public=table == "template" and bool(row.get("is_public")) and not row.get("removed"),
        granted=frozenset(UUID(each) for each in row.get("granted") or ()), domain=table == "domain")


__all__ = ["SYSTEM", "Action", "Principal", "Resource", "Use", "authorize", "reach", "resource_of", "resource_of_row"]
