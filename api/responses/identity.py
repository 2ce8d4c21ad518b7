"""Domains, accounts, users, projects and limits as CloudStack's response objects."""

from __future__ import annotations

from typing import Any

from api.responses.shown import OWNED, Names, Row, Show, domain_names, filled, owned, when
from schema.identity import Role, domain_path

FIELDS: dict[str, dict[str, str]] = {
    "domain": {
        "id": "string", "name": "string", "level": "integer", "parentdomainid": "string", "path": "string",
        "state": "string", "created": "date"},
    "account": {
        "id": "string", "name": "string", "accounttype": "integer", "roletype": "string", "rolename": "string",
        "domainid": "string", "domain": "string", "domainpath": "string", "state": "string", "created": "date", "user": "list"},
    "user": {
        "id": "string", "username": "string", "firstname": "string", "lastname": "string", "email": "string",
        "timezone": "string", "account": "string", "accountid": "string", "accounttype": "integer", "roletype": "string",
        "rolename": "string", "domainid": "string", "domain": "string", "domainpath": "string", "state": "string",
        "apikey": "string", "created": "date"},
    "userkeys": {"apikey": "string", "secretkey": "string"},
    "project": {
        "id": "string", "name": "string", "displaytext": "string", "domainid": "string", "domain": "string",
        "domainpath": "string", "state": "string", "created": "date"},
    "resourcelimit": {
        "resourcetype": "string", "resourcetypename": "string", "max": "long", **OWNED},
}


ROLE_NUMBERS = {Role.USER: 0, Role.ADMIN: 1, Role.DOMAIN: 2, Role.RESOURCE: 3}


ROLE_NAMES = {Role.USER: "User", Role.ADMIN: "Root Admin", Role.DOMAIN: "Domain Admin", Role.RESOURCE: "Resource Admin"}
"""Of accounts, in CloudStack's words."""


LIMITED = {"volume": "2", "snapshot": "3", "template": "4", "primary_storage": "10", "secondary_storage": "11"}
"""What is limited -> CloudStack's number of it."""


def _role(row: Row) -> dict[str, Any]:
    role = Role(row["role"])
    return {"accounttype": ROLE_NUMBERS[role], "roletype": ROLE_NAMES[role].replace(" ", ""), "rolename": ROLE_NAMES[role]}


def domain(row: Row, names: Names) -> dict[str, Any]:
    """A domain."""
    path = row["domain_path"]
    return filled(id=row["id"], name=row["name"], level=path.count("/") - 1, parentdomainid=row["parent_id"],
                   path=domain_path(path), state="Active", created=when(row["created"]))


def account(row: Row, names: Names) -> dict[str, Any]:
    """An account with its users."""
    users = [user(each, names) for each in names.users.get(row["id"], [])]
    return filled(id=row["id"], name=row["name"], domainid=row["domain_id"], state="enabled", created=when(row["created"]),
                   user=users, **_role(row), **domain_names(row["domain_path"]))


def user(row: Row, names: Names) -> dict[str, Any]:
    """A user. Its secret key is shown once, by registerUserKeys; here is none."""
    return filled(
        id=row["id"], username=row["name"], firstname=row["first_name"], lastname=row["last_name"], email=row["email"],
        timezone=row["timezone"], account=row["account"], accountid=row["account_id"], domainid=row["domain_id"],
        state="enabled", apikey=row["api_key"], created=when(row["created"]), **_role(row), **domain_names(row["domain_path"]))


def project(row: Row, names: Names) -> dict[str, Any]:
    """A project."""
    return filled(id=row["id"], name=row["name"], displaytext=row["display_text"], domainid=row["domain_id"], state="Active",
                   created=when(row["created"]), **domain_names(row["domain_path"]))


def resource_limit(row: Row, names: Names) -> dict[str, Any]:
    """How much an account may hold; of storage in GiB."""
    most = row["max"] >> 30 if row["name"] in ("primary_storage", "secondary_storage") and row["max"] > 0 else row["max"]
    return filled(resourcetype=LIMITED[row["name"]], resourcetypename=row["name"], max=most, **owned(row))


OBJECTS: dict[str, Show] = {"domain": domain, "account": account, "user": user, "project": project,
                            "resource_limit": resource_limit}
TABLES = {"domain": "domain", "account": "account", "user": "user", "project": "project"}
