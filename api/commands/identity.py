"""Commands of domains, accounts, users and projects, as `api.registry` collects them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.api_command import DETAILS, ID, JOB_ID, NAME, OWNER, ApiCommand, Mode, Type, derived, listing, parameter
from schema.failure import BadParameter
from schema.identity import (
    AddAccountToProject,
    CreateAccount,
    CreateDomain,
    CreateProject,
    CreateUser,
    RegisterUserKeys,
    UpdateResourceLimit,
)

ADMINS = ("A", "D")
PERSON = {"username": "the name to log in by", "password": "the password; only a salted hash of it is kept",
          "email": "the address", "firstname": "the first name", "lastname": "the last name", "timezone": "the time zone",
          "account": "the account's name; the user's when it is left out",
          "accounttype": "0 user, 1 root admin, 2 domain admin, 3 resource admin"}


def _user(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    return {"username": values["username"], "password": values["password"], "email": values["email"],
            "first_name": values["firstname"], "last_name": values["lastname"], "timezone": values.get("timezone", ""),
            "account_id": values["accountid"]}


def _keys(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    return {"id": values["id"], "api_key": values["apikey"], "secret_key": values["secretkey"]}


def _project(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    return {"name": values["name"], "display_text": values.get("displaytext", ""), "account_id": values["accountid"]}


def _member(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    return {"project_id": values["projectid"], "account_id": values["accountid"]}


LIMITED = {2: "volume", 3: "snapshot", 4: "template", 10: "primary_storage", 11: "secondary_storage"}
"""CloudStack's numbers of what is limited."""
TYPE = parameter("resourcetype", Type.INTEGER, required=True,
                 text="2 volumes, 3 snapshots, 4 templates, 10 primary and 11 secondary storage (GiB)")


def _limit(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    kind, most = values["resourcetype"], values.get("max", -1)
    if kind not in LIMITED:
        raise BadParameter(f"{kind} is not one of {', '.join(map(str, LIMITED))}", field="resourcetype")
    return {"owner": values["owner"], "resource": LIMITED[kind], "max": most << 30 if kind > 9 and most > 0 else most}


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="login", mode=Mode.SYNC, parameters=(
            parameter("username", required=True, text=PERSON["username"]),
            parameter("password", required=True, text="the password"),
            parameter("domain", text="the domain's path: / is ROOT, a/b is b in a"), parameter("domainid", Type.UUID)),
        description="Begins a session on a listener with identity: a cookie, and a sessionkey to send with each request."),
    ApiCommand(name="logout", mode=Mode.SYNC, description="Ends the session."),
    ApiCommand(
        name="createDomain", mode=Mode.SYNC, item="domain", noun="domain", command=CreateDomain, roles=ADMINS, now=True,
        parameters=derived(CreateDomain, texts={"parentdomainid": "the UUID of the domain above it"}), home="parentdomainid",
        related="listDomains", description="Makes a domain."),
    ApiCommand(
        name="listDomains", mode=Mode.LIST, item="domain", noun="domain",
        parameters=listing(ID, NAME, DETAILS, parameter("listall", Type.BOOLEAN)), filters={"id": "id", "name": "name"},
        description="Lists domains."),
    ApiCommand(
        name="createAccount", mode=Mode.SYNC, item="account", noun="account", command=CreateAccount, roles=ADMINS, now=True,
        parameters=derived(CreateAccount, texts=PERSON), home="domainid", related="listAccounts",
        description="Makes an account with its first user."),
    ApiCommand(
        name="listAccounts", mode=Mode.LIST, item="account", noun="account",
        parameters=listing(ID, NAME, DETAILS, parameter("domainid", Type.UUID), parameter("listall", Type.BOOLEAN),
                           parameter("isrecursive", Type.BOOLEAN)),
        filters={"id": "id", "name": "name"}, description="Lists accounts and their users."),
    ApiCommand(
        name="createUser", mode=Mode.SYNC, item="user", noun="user", command=CreateUser, roles=ADMINS, now=True,
        parameters=(*(parameter(name, required=name != "timezone", text=PERSON[name])
                      for name in ("username", "password", "email", "firstname", "lastname", "timezone")),
                    *OWNER[:2], JOB_ID),
        for_account=True, prepare=_user, related="listUsers", description="Makes another user of an account."),
    ApiCommand(
        name="listUsers", mode=Mode.LIST, item="user", noun="user",
        parameters=listing(ID, parameter("username", text="the user's name"), parameter("account"),
                           parameter("domainid", Type.UUID), parameter("listall", Type.BOOLEAN),
                           parameter("isrecursive", Type.BOOLEAN)),
        filters={"id": "id", "username": "name"}, description="Lists users."),
    ApiCommand(
        name="getUser", mode=Mode.SYNC, item="user", noun="user", related="listUsers",
        parameters=(parameter("userapikey", required=True, text="an API key of the user"),),
        description="The user of an API key."),
    ApiCommand(
        name="registerUserKeys", mode=Mode.SYNC, item="userkeys", noun="user", command=RegisterUserKeys, now=True,
        parameters=(parameter("id", Type.UUID, required=True, text="the UUID of the user"), JOB_ID), prepare=_keys,
        related="listUsers",
        description="Gives a user new keys and shows them, this once. The old ones are worth nothing from then on."),
    ApiCommand(
        name="createProject", mode=Mode.SYNC, item="project", noun="project", command=CreateProject, now=True,
        parameters=(parameter("name", required=True), parameter("displaytext"), *OWNER[:2], JOB_ID), for_account=True,
        prepare=_project, related="listProjects",
        description="Makes a project, which several accounts share. It is there at once: it answers with the project."),
    ApiCommand(
        name="addAccountToProject", mode=Mode.ASYNC, noun="project", command=AddAccountToProject, now=True,
        parameters=(parameter("projectid", Type.UUID, required=True, text="the UUID of the project"),
                    parameter("account", required=True, text="the account's name, in the project's domain"), JOB_ID),
        prepare=_member, related="listProjects", description="Lets another account use what belongs to a project."),
    ApiCommand(
        name="updateResourceLimit", mode=Mode.SYNC, noun="resource_limit", command=UpdateResourceLimit, roles=ADMINS, now=True,
        parameters=(TYPE, parameter("max", Type.LONG, text="how much; -1: no limit"), *OWNER, JOB_ID), for_account=True,
        prepare=_limit, related="listResourceLimits", description="Says how much an account or a project may hold."),
    ApiCommand(
        name="listResourceLimits", mode=Mode.LIST, item="resourcelimit", noun="resource_limit",
        parameters=listing(parameter("resourcetype", Type.INTEGER, text=TYPE.description),
                           parameter("resourcetypename", text="volume, snapshot, template, primary_storage or secondary_storage"),
                           access=True),
        filters={"resourcetypename": "name"}, description="Lists how much accounts may hold."),
    ApiCommand(
        name="listProjects", mode=Mode.LIST, item="project", noun="project",
        parameters=listing(ID, NAME, DETAILS, parameter("displaytext"),
                           parameter("account", text="an account that is of the project"), parameter("domainid", Type.UUID),
                           parameter("listall", Type.BOOLEAN), parameter("isrecursive", Type.BOOLEAN)),
        filters={"id": "id", "name": "name", "displaytext": "display_text"}, description="Lists projects."),
)
