"""Domains, accounts, users and projects: their states, and the flows that make them.

Rules kept here: a name is held once in its domain; a root admin's account is only in ROOT; a user's keys are replaced as a
pair. Who may ask for any of it is decided before it comes here (`api.access`). ROOT with its admin is `founded` when an
installation starts, and counts as there before that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from handlers import quota
from handlers.decider import Context, Flow, IllegalTransition, Step
from handlers.job import result_of
from schema.failure import BadParameter, Failure
from schema.identity import (
    ROOT_ACCOUNT,
    ROOT_DOMAIN,
    ROOT_OWNER,
    ROOT_USER,
    AccountCreated,
    AddAccountToProject,
    CreateAccount,
    CreateDomain,
    CreateProject,
    CreateUser,
    DomainCreated,
    Owner,
    ProjectAccountAdded,
    ProjectCreated,
    RegisterUserKeys,
    ResourceLimitUpdated,
    Role,
    UpdateResourceLimit,
    UserCreated,
    UserKeysRegistered,
)
from schema.ids import derive, stream
from schema.message import Command, Event, Secret

TYPES: Mapping[int, Role] = {0: Role.USER, 1: Role.ADMIN, 2: Role.DOMAIN, 3: Role.RESOURCE}
"""CloudStack's account types."""
NAME = re.compile(r"[^\x00-\x1f\x7f/]{1,255}")
"""Names: what `/` separates in a path may not be in one."""
EMAIL = 255


# --- states -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainState:
    """The fold of a domain's events."""

    id: UUID
    name: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """The fold of an account's events."""

    owner: Owner
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class UserState:
    """The fold of a user's events."""

    id: UUID
    owner: Owner
    role: Role
    api_key: str = ""
    secret_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectState:
    """The fold of a project's events."""

    id: UUID
    owner: Owner
    accounts: frozenset[UUID] = field(default_factory=frozenset)


ROOT_FACTS: tuple[tuple[str, Event], ...] = (
    (stream("domain", ROOT_DOMAIN), DomainCreated(domain_id=ROOT_DOMAIN, name="ROOT", path="/")),
    (stream("account", ROOT_ACCOUNT), AccountCreated(owner=ROOT_OWNER, role=Role.ADMIN)),
)
"""Facts of every installation."""
ROOT_USER_FACT = UserCreated(user_id=ROOT_USER, username="admin", owner=ROOT_OWNER, role=Role.ADMIN, first_name="Root",
                             last_name="Admin")


def evolve_domain(state: DomainState | None, event: Event) -> DomainState:
    """The domain after `event`."""
    if state is None and isinstance(event, DomainCreated):
        return DomainState(id=event.domain_id, name=event.name, path=event.path)
    raise IllegalTransition("there" if state else "absent", event)


def evolve_account(state: AccountState | None, event: Event) -> AccountState:
    """The account after `event`."""
    if state is None and isinstance(event, AccountCreated):
        return AccountState(owner=event.owner, role=event.role)
    raise IllegalTransition("there" if state else "absent", event)


def evolve_user(state: UserState | None, event: Event) -> UserState:
    """The user after `event`."""
    if state is None and isinstance(event, UserCreated):
        return UserState(id=event.user_id, owner=event.owner, role=event.role)
    if state is not None and isinstance(event, UserKeysRegistered):
        return replace(state, api_key=event.api_key, secret_key=event.secret_key)
    raise IllegalTransition("there" if state else "absent", event)


def evolve_project(state: ProjectState | None, event: Event) -> ProjectState:
    """The project after `event`."""
    if state is None and isinstance(event, ProjectCreated):
        return ProjectState(id=event.project_id, owner=event.owner, accounts=frozenset({event.admin.account_id}))
    if state is not None and isinstance(event, ProjectAccountAdded):
        return replace(state, accounts=state.accounts | {event.account_id})
    raise IllegalTransition("there" if state else "absent", event)


def evolve_limit(state: dict[str, int] | None, event: Event) -> dict[str, int]:
    """An account's changed limits after `event`: resource -> max."""
    if isinstance(event, ResourceLimitUpdated):
        return {**(state or {}), event.resource: event.max}
    raise IllegalTransition("there" if state else "absent", event)


# --- what flows share -------------------------------------------------------------------------------------------------


def _domain(context: Context, domain_id: UUID, where: str) -> DomainState:
    state: DomainState | None = context.state(stream("domain", domain_id))
    if state is None and domain_id == ROOT_DOMAIN:
        return DomainState(id=ROOT_DOMAIN, name="ROOT", path="/")
    if state is None:
        raise BadParameter(f"no domain has the id {domain_id}", field=where, remedy="listDomains shows them")
    return state


def _account(context: Context, account_id: UUID) -> AccountState:
    state: AccountState | None = context.state(stream("account", account_id))
    if state is None and account_id == ROOT_ACCOUNT:
        return AccountState(owner=ROOT_OWNER, role=Role.ADMIN)
    if state is None:
        raise BadParameter(f"no account has the id {account_id}", field="account", remedy="listAccounts shows them")
    return state


def _named(name: str, where: str) -> str:
    if not NAME.fullmatch(name) or name != name.strip():
        raise BadParameter("must have 1 to 255 characters, none of them / or a control character, and no space at its ends",
                           field=where)
    return name


def _secret(reference: str, where: str) -> str:
    if not Secret.is_reference(reference):
        raise BadParameter("a secret may not travel in a command", field=where,
                           remedy="send it through the API or the command line, which put it into the vault")
    return reference


def _user(context: Context, command: CreateAccount | CreateUser, owner: Owner, role: Role) -> UUID:
    """Emit the user of a command."""
    user_id = context.new_id("user")
    username = _named(command.username, "username")
    if "@" not in command.email or len(command.email) > EMAIL:
        raise BadParameter(f"must be an address with an @ and at most {EMAIL} characters", field="email")
    if owner.domain_id == ROOT_DOMAIN and username.lower() == ROOT_USER_FACT.username:
        raise BadParameter(f"the domain already has a user {username!r}", field="username", remedy="choose another name")
    context.claim(f"user.name/{owner.domain_id}/{username.lower()}", str(user_id), BadParameter(
        f"the domain already has a user {username!r}", field="username", remedy="choose another name"))
    context.emit(stream("user", user_id), UserCreated(
        user_id=user_id, username=username, owner=owner, role=role, password=_secret(command.password, "password"),
        email=command.email, first_name=command.first_name, last_name=command.last_name, timezone=command.timezone))
    return user_id


def _limited(context: Context, account_id: UUID) -> dict[str, int]:
    """Give a new account its limits; what they are."""
    for resource, most in context.limits.account.items():
        context.count(quota.counter(account_id, resource), ceiling=most)
    return dict(context.limits.account)


class _Now:
    """A flow without orders: one append and it is over."""

    subject, placed, cancellable = "domain", False, False
    steps: tuple[Step, ...] = ()

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: there is nothing to wait for."""


# --- flows ------------------------------------------------------------------------------------------------------------


class CreateDomainFlow(_Now):
    """A domain below another."""

    def streams(self, job_id: UUID, command: CreateDomain) -> list[str]:
        """The new domain and the one above."""
        return [stream("domain", derive(job_id, "domain")), stream("domain", command.parent_domain_id)]

    def start(self, context: Context) -> None:
        """The parent is there, the name is free in it."""
        command = context.command
        assert isinstance(command, CreateDomain)
        parent = _domain(context, command.parent_domain_id, "parentdomainid")
        name, domain_id = _named(command.name, "name"), context.new_id("domain")
        context.claim(f"domain.name/{parent.id}/{name.lower()}", str(domain_id), BadParameter(
            f"the domain already holds a domain {name!r}", field="name", remedy="choose another name"))
        context.emit(stream("domain", domain_id), DomainCreated(
            domain_id=domain_id, name=name, parent_id=parent.id, path=f"{parent.path}{name}/"))

    def finish(self, context: Context) -> dict[str, Any]:
        """The domain."""
        return result_of("domain", context.new_id("domain"))


class CreateAccountFlow(_Now):
    """An account with its first user."""

    subject = "account"

    def streams(self, job_id: UUID, command: CreateAccount) -> list[str]:
        """The account, its user, its domain."""
        return [stream("account", derive(job_id, "account")), stream("user", derive(job_id, "user")),
                stream("domain", command.domain_id)]

    def start(self, context: Context) -> None:
        """The domain is there, the names are free in it, the type fits."""
        command = context.command
        assert isinstance(command, CreateAccount)
        domain = _domain(context, command.domain_id, "domainid")
        role = TYPES.get(command.account_type or 0)
        if role is None:
            raise BadParameter(f"{command.account_type} is not one of {', '.join(map(str, TYPES))}", field="accounttype")
        if role is Role.ADMIN and domain.id != ROOT_DOMAIN:
            raise BadParameter("a root admin's account is in the domain ROOT", field="accounttype",
                               remedy="use 2 for a domain admin")
        name, account_id = _named(command.account or command.username, "account"), context.new_id("account")
        taken = BadParameter(f"the domain already has an account {name!r}", field="account", remedy="choose another name")
        if domain.id == ROOT_DOMAIN and name.lower() == ROOT_OWNER.account:
            raise taken
        context.claim(f"account.name/{domain.id}/{name.lower()}", str(account_id), taken)
        owner = Owner(account_id=account_id, account=name, domain_id=domain.id, path=domain.path)
        context.emit(stream("account", account_id), AccountCreated(
            owner=owner, role=role, limits=_limited(context, account_id) if role is not Role.ADMIN else {}))
        _user(context, command, owner, role)

    def finish(self, context: Context) -> dict[str, Any]:
        """The account."""
        return result_of("account", context.new_id("account"))


class CreateUserFlow(_Now):
    """Another user of an account."""

    subject = "user"

    def streams(self, job_id: UUID, command: CreateUser) -> list[str]:
        """The user and its account."""
        return [stream("user", derive(job_id, "user")), stream("account", command.account_id)]

    def start(self, context: Context) -> None:
        """The account is there, the name is free in its domain."""
        command = context.command
        assert isinstance(command, CreateUser)
        account = _account(context, command.account_id)
        _user(context, command, account.owner, account.role)

    def finish(self, context: Context) -> dict[str, Any]:
        """The user."""
        return result_of("user", context.new_id("user"))


class RegisterKeysFlow(_Now):
    """New keys for a user."""

    subject = "user"

    def streams(self, job_id: UUID, command: RegisterUserKeys) -> list[str]:
        """The user."""
        return [stream("user", command.id)]

    def start(self, context: Context) -> None:
        """The user is there."""
        command = context.command
        assert isinstance(command, RegisterUserKeys)
        state: UserState | None = context.state(stream("user", command.id))
        if state is None:
            raise BadParameter(f"no user has the id {command.id}", field="id", remedy="listUsers shows them")
        context.emit(stream("user", command.id), UserKeysRegistered(
            user_id=command.id, api_key=command.api_key, secret_key=_secret(command.secret_key, "secretkey")))

    def finish(self, context: Context) -> dict[str, Any]:
        """Success: the keys themselves are told by who made them."""
        return {"success": True}


class CreateProjectFlow(_Now):
    """A project, with an account of its own that owns what belongs to it."""

    subject = "project"

    def streams(self, job_id: UUID, command: CreateProject) -> list[str]:
        """The project and the account whose it is."""
        return [stream("project", derive(job_id, "project")), stream("account", command.account_id)]

    def start(self, context: Context) -> None:
        """The name is free in the account's domain."""
        command = context.command
        assert isinstance(command, CreateProject)
        admin = _account(context, command.account_id).owner
        name, project_id = _named(command.name, "name"), context.new_id("project")
        context.claim(f"project.name/{admin.domain_id}/{name.lower()}", str(project_id), BadParameter(
            f"the domain already has a project {name!r}", field="name", remedy="choose another name"))
        owner = Owner(account_id=context.new_id("account"), account=name, domain_id=admin.domain_id, path=admin.path,
                      project_id=project_id)
        context.emit(stream("project", project_id), ProjectCreated(
            project_id=project_id, name=name, display_text=command.display_text or name, owner=owner, admin=admin,
            limits=_limited(context, owner.account_id)))

    def finish(self, context: Context) -> dict[str, Any]:
        """The project."""
        return result_of("project", context.new_id("project"))


class AddAccountFlow(_Now):
    """Another account of a project."""

    subject = "project"

    def streams(self, job_id: UUID, command: AddAccountToProject) -> list[str]:
        """The project and the account."""
        return [stream("project", command.project_id), stream("account", command.account_id)]

    def start(self, context: Context) -> None:
        """Both are there, and in one domain or one below the other."""
        command = context.command
        assert isinstance(command, AddAccountToProject)
        project: ProjectState | None = context.state(stream("project", command.project_id))
        if project is None:
            raise BadParameter(f"no project has the id {command.project_id}", field="projectid",
                               remedy="listProjects shows them")
        account = _account(context, command.account_id).owner
        if command.account_id in project.accounts:
            raise BadParameter(f"the account {account.account} is of the project already", field="account")
        context.emit(stream("project", project.id), ProjectAccountAdded(
            project_id=project.id, account_id=account.account_id, account=account.account))

    def finish(self, context: Context) -> dict[str, Any]:
        """Success, without an object."""
        return {"success": True}


class UpdateLimitFlow(_Now):
    """Another limit for an account or a project."""

    subject = "resource_limit"

    def streams(self, job_id: UUID, command: UpdateResourceLimit) -> list[str]:
        """The account's limits."""
        return [stream("resource_limit", command.owner.account_id)]

    def start(self, context: Context) -> None:
        """A resource that is limited, and no less than is held already."""
        command = context.command
        assert isinstance(command, UpdateResourceLimit)
        if command.resource not in quota.RESOURCES:
            raise BadParameter(f"{command.resource[:64]!r} is not one of {', '.join(quota.RESOURCES)}", field="resourcetype")
        if not -1 <= command.max < 1 << 63:
            raise BadParameter("must be -1 (no limit) or more", field="max")
        if command.owner == ROOT_OWNER:
            raise BadParameter("the admin of ROOT has no limits", field="account", remedy="name another account")
        name = quota.counter(command.owner.account_id, command.resource)
        context.count(name, ceiling=command.max if command.max >= 0 else None,
                      lift=command.max < 0, otherwise=BadParameter(
                          "the account holds more than that already", field="max", remedy="delete something first"))
        context.emit(stream("resource_limit", command.owner.account_id), ResourceLimitUpdated(
            owner=command.owner, resource=command.resource, max=command.max))

    def finish(self, context: Context) -> dict[str, Any]:
        """Success, without an object."""
        return {"success": True}


FLOWS: dict[type[Command], Flow] = {
    CreateDomain: CreateDomainFlow(),
    CreateAccount: CreateAccountFlow(),
    CreateUser: CreateUserFlow(),
    RegisterUserKeys: RegisterKeysFlow(),
    CreateProject: CreateProjectFlow(),
    AddAccountToProject: AddAccountFlow(),
    UpdateResourceLimit: UpdateLimitFlow(),
}
"""Every command about these nouns, and what it leads to."""
