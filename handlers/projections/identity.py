"""Domains, accounts, users, projects and limits in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from handlers.projections.columns import Change, owned
from schema import identity

TABLES = ("domain", "account", "user", "project", "project_account", "resource_limit")


def domain(event: Any, at: str) -> Iterator[Change]:
    """What an event of this noun changes."""
    if isinstance(event, identity.DomainCreated):
        yield "domain", str(event.domain_id), {
            "name": event.name, "parent_id": str(event.parent_id) if event.parent_id else None,
            "domain_id": str(event.domain_id), "domain_path": event.path, "created": at}


def account(event: Any, at: str) -> Iterator[Change]:
    """What an event of this noun changes."""
    if isinstance(event, identity.AccountCreated):
        yield "account", str(event.owner.account_id), {
            "name": event.owner.account, "role": event.role, "created": at, **owned(event.owner)}
        for resource, most in event.limits.items():
            yield _limited(event.owner, resource, most, at)


def user(event: Any, at: str) -> Iterator[Change]:
    """What an event of this noun changes."""
    match event:
        case identity.UserCreated():
            yield "user", str(event.user_id), {
                "name": event.username, "role": event.role, "password": event.password, "email": event.email,
                "first_name": event.first_name, "last_name": event.last_name, "timezone": event.timezone, "created": at,
                **owned(event.owner)}
        case identity.UserKeysRegistered():
            yield "user", str(event.user_id), {"api_key": event.api_key, "secret_key": event.secret_key}
        case _:
            pass


def project(event: Any, at: str) -> Iterator[Change]:
    """What an event of this noun changes."""
    key = str(event.project_id)
    match event:
        case identity.ProjectCreated():
            yield "project", key, {"name": event.name, "display_text": event.display_text, "created": at,
                                   "admin_id": str(event.admin.account_id),
                                   **owned(event.owner)}
            yield from _member(key, event.admin.account_id, event.admin.account, at)
            for resource, most in event.limits.items():
                yield _limited(event.owner, resource, most, at)
        case identity.ProjectAccountAdded():
            yield from _member(key, event.account_id, event.account, at)
        case _:
            pass


def limit(event: Any, at: str) -> Iterator[Change]:
    """What an event of this noun changes."""
    if isinstance(event, identity.ResourceLimitUpdated):
        yield _limited(event.owner, event.resource, event.max, at)


def _limited(owner: identity.Owner, resource: str, most: int, at: str) -> Change:
    return "resource_limit", f"{owner.account_id}/{resource}", {"name": resource, "max": most, "created": at, **owned(owner)}


def _member(project: str, account_id: UUID, name: str, at: str) -> Iterator[Change]:
    yield "project_account", f"{project}/{account_id}", {
        "project_id": project, "account_id": str(account_id), "name": name, "created": at}


FOLDS = {"domain": domain, "account": account, "user": user, "project": project, "resource_limit": limit}
"""Noun -> fold."""
