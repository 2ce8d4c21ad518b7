"""Admission: whether an account may do what a command from the bus asks, before it is accepted.

Owns which user of an account each of the broker's users is, and how a message's fields become what `api.ownership` asks about:
the same questions, and the same answers, as for a request over HTTP. Rule: what nobody described is for root admins; whose
accounts, users, projects and limits are is not changed over the bus by anybody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from api import registry
from api.access import Principal
from api.api_command import Parameter, Type, api_name
from api.authentication import Authentication, System
from api.ownership import Ownership, allowed
from bus.forwarder import NotAdmitted
from schema.failure import BadParameter, Denied, Refused
from schema.identity import Owner, Role
from schema.message import Command

FOR_HTTP = frozenset({"domain", "account", "user", "project", "resource_limit"})
"""What commands about these say of an owner is made by the edge: nobody but root admins sends them by themselves."""


def users(text: str) -> dict[str, str]:
    """`broker-user=account-user,...`. Raises BadParameter."""
    found: dict[str, str] = {}
    for entry in (part.strip() for part in text.split(",")):
        name, equals, user = entry.partition("=")
        if entry and not (name.strip() and equals and user.strip()):
            raise BadParameter(f"{entry[:64]!r} is not broker-user=user", field="STOREBUS_AMQP_USERS",
                               remedy="name the user of each: rabbit-ann=ann, or rabbit-bob=a/b/bob in the domain a/b")
        if entry:
            found[name.strip()] = user.strip()
    return found


class Admission:
    """Asks about the broker's users of one installation. `known`: broker's user -> user, with its domain's path before it."""

    def __init__(self, system: System, authentication: Authentication, ownership: Ownership, known: Mapping[str, str]) -> None:
        self._system, self._authentication, self._ownership, self._known = system, authentication, ownership, known

    async def __call__(self, broker_user: str, command: Command, job_id: UUID) -> Owner:
        """Whose the job is. Raises NotAdmitted when the account may not have it."""
        owner: Owner | None = None
        try:
            principal = await self._principal(broker_user)
            owner = principal.owner
            return await self._owner(principal, command)
        except Refused as refused:
            raise NotAdmitted(refused.failure, owner) from None

    async def _owner(self, principal: Principal, command: Command) -> Owner:
        known = registry.BY_TYPE.get(command.TYPE)
        if known is None or known.noun in FOR_HTTP:
            if principal.role is not Role.ADMIN:
                raise Denied(f"only root admins send {command.TYPE} over the bus", field="type", remedy="use the HTTP API")
            return principal.owner
        allowed(principal, known)
        values: dict[str, Any] = {  # a default says nothing, whoever wrote it out
            api_name(name): getattr(command, name) for name, field in type(command).model_fields.items()
            if getattr(command, name) != field.get_default(call_default_factory=True, validated_data={})}
        parameters = tuple(_parameter(name, each) for name, each in values.items())
        asked = replace(known, for_account=False, home="", parameters=parameters)
        return await self._ownership.check(asked, values, principal)

    async def _principal(self, broker_user: str) -> Principal:
        path, _, name = self._known.get(broker_user, "").strip("/").rpartition("/")
        where = {"name": name, "domain_path": f"/{path}/" if path else "/"}
        rows, _ = await self._system.rows("user", where, limit=2)
        if len(rows) != 1:
            raise Denied(f"the broker's user {broker_user[:64]!r} is nobody's", field="user_id",
                         remedy="name its user in STOREBUS_AMQP_USERS, and make that user")
        return await self._authentication.of(rows[0])


def _parameter(name: str, value: Any) -> Parameter:
    several = isinstance(value, list) and any(isinstance(each, UUID) for each in value)
    return Parameter(name=name, type=Type.UUID if isinstance(value, UUID) else Type.STRING, of_uuids=several)


__all__ = ["Admission", "users"]
