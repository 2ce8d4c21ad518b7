"""The edge: what HTTP and the command line share. A request in CloudStack's words in, a CloudStack answer out.

Owns the order of things (find the command, read its parameters, refuse early, accept with one append, answer) and the
envelopes. Refuses to know sockets and terminals. Every wait is bounded: a synchronous command whose job takes longer
is answered with an error that names the job, and the job goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from uuid import UUID, uuid4

from api import answers, credentials, deprecation, registry
from api.access import SYSTEM, Principal, authorize, resource_of
from api.answers.job import found
from api.answers.template import in_zones
from api.listing import Lists
from api.ownership import Ownership, absent, allowed
from api.parameters import parse
from api.registry import ApiCommand, Mode
from api.responses.job import plan, told
from bus.errors import AppendUnknown, StoreAway
from bus.event_store import EventStore
from bus.sealing import sealed
from handlers import quota
from handlers.agent import Heard
from schema.failure import BadParameter, Failed, Failure, Unknown, Unsupported
from schema.identity import ROOT_OWNER, AddAccountToProject, Owner
from schema.ids import derive
from schema.message import Command
from schema.motion import MotionPlan
from schema.template import PermitTemplate

log = logging.getLogger(__name__)

WAIT_S = 30.0
"""How long a synchronous command waits for its job."""
SHOW_S = 2.0
"""How long registerTemplate waits for the template to appear in the lists."""
ACCEPT_TRIES = 4
PLACEHOLDER = "vault:00000000-0000-0000-0000-000000000000"
"""Stands for a secret while a command is checked, so that a refused one leaves nothing in the vault."""
Later = Callable[[], Awaitable[dict[str, Any]]]
"""What is left of an answer once the command is accepted: a wait."""
_NAMED: set[tuple[str, str]] = set()
"""Unknown parameters that were warned about, each once; bounded by NAMED_MOST."""
NAMED_MOST = 1000


class System(Protocol):
    """What the edge needs of an installation; `api.system.System` is one."""

    @property
    def store(self) -> EventStore:
        """The log."""

    async def precheck(self, command: Command, job_id: UUID, owner: Owner | None = None) -> None:
        """Raise what would refuse the command now. `owner`: whose what it makes would be."""

    async def plan(self, command: Command, job_id: UUID, owner: Owner | None = None) -> list[tuple[str, MotionPlan]]:
        """(step, how its bytes would move), if the command came now."""

    async def seal_secrets(self, command: Command, job_id: UUID) -> Command:
        """The command with clear secrets replaced by vault references."""

    async def submit(self, command: Command, *, job_id: UUID, principal: str = "admin", owner: Owner | None = None) -> int:
        """Accept the command; its position."""

    async def run_now(self, command: Command, job_id: UUID, *, principal: str = "admin",
                      owner: Owner | None = None) -> dict[str, Any]:
        """Run a command that needs no agent, and wait until lists show it."""

    async def rows(self, table: str, where: Mapping[str, Any] | None = None, *, search: str = "",
                   order: str = "created", limit: int = 500, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """One page of a read table, and how many rows match in all."""

    async def counters(self, names: Sequence[str]) -> dict[str, int]:
        """The values of these counters; one that was never counted is absent."""

    async def job(self, job_id: UUID) -> dict[str, Any] | None:
        """A job's row with its progress; None when there is none."""

    async def link(self, link_id: UUID) -> dict[str, Any] | None:
        """A link's state, and its URL while it is good."""

    async def heard(self, agents: Iterable[str]) -> dict[str, Heard]:
        """When these agents were heard last, and what they said of their room."""

    async def wait_for_end(self, job_id: UUID, *, timeout_s: float) -> dict[str, Any] | None:
        """The job's row once it has ended; None when the time is over."""


class MaybeAccepted(Unknown):
    """The database went away while a command was being accepted: the job may exist."""

    code = 503
    cscode = 4380


class NotEnded(Unknown):
    """A synchronous command's job goes on after its caller's time is over."""

    cscode = 4560


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: `body` holds exactly one key, the envelope's."""

    status: int
    body: dict[str, Any]
    command: str = ""
    """The command's name; empty when there is no such command."""
    error: str = ""

    @property
    def worth_a_line(self) -> bool:
        """Whether the log tells of it: what was refused, and what changes something. Polling and lists are metrics."""
        known = registry.BY_NAME.get(self.command.lower())
        return bool(self.error) or (known is not None and known.command is not None)


class Edge:
    """One installation as its callers see it."""

    def __init__(self, system: System, *, wait_s: float = WAIT_S, show_s: float = SHOW_S,
                 facts: Mapping[str, Any] | None = None, configuration: Sequence[Mapping[str, Any]] = ()) -> None:
        """`facts`: what listCapabilities says besides what is so everywhere. `configuration`: what listConfigurations lists."""
        self.system, self.wait_s, self.show_s = system, wait_s, show_s
        self.lists = Lists(system, answers.LISTS, facts, configuration)
        self.ownership = Ownership(system)

    async def call(self, raw: Mapping[str, str], *, principal: Principal = SYSTEM,
                   turn: AbstractAsyncContextManager[Any] | None = None) -> Answer:
        """Answer one request of `principal`; `raw` holds its parameters, `command` among them. It is worked on in its `turn`, and
        what a job is waited for, outside of it. Never raises what a caller caused."""
        spelled = next((value for name, value in raw.items() if name.lower() == "command"), "")
        command: ApiCommand | None = None
        try:
            command = registry.find(spelled)
            allowed(principal, command)
            deprecation.warn(command)
            async with turn or nullcontext():
                found = await self._run(command, raw, principal)
            body = found if isinstance(found, dict) else await found()
        except Failed as failed:
            return _refused(command, command.spelled(failed.failure) if command is not None else failed.failure)
        except Exception:
            log.exception("a request failed", extra={"action": "request_failed", "command": command and command.name})
            return _refused(command, Failure(cause="an internal error; the log of the API role tells more"))
        return Answer(200, {command.envelope: body}, command.name)

    async def _run(self, command: ApiCommand, raw: Mapping[str, str], principal: Principal) -> dict[str, Any] | Later:
        parsed = parse(command.parameters, raw)
        values = parsed.values
        if command.name == "planCommand":
            return {command.item: await self._plan(values["of"], raw, principal)}
        _warn(command.name, parsed.unknown)
        if command.mode is Mode.LIST:
            return await self.lists.answer(command, values, principal)
        if command.command is not None:
            return await self._write(command, values, principal)
        if command.name not in answers.ANSWERS:
            raise Unsupported(f"{command.name} is for listeners with identity: this one knows no users", field="command",
                              remedy="ask without keys, or set STOREBUS_IDENTITY")
        return await answers.ANSWERS[command.name](self.lists, command, values, principal)

    async def job(self, job_id: UUID) -> dict[str, Any]:
        """A job with its progress or result. Raises BadParameter when there is none."""
        return await found(self.lists, job_id)

    async def _plan(self, of: str, raw: Mapping[str, str], principal: Principal) -> list[dict[str, Any]]:
        """How the bytes of a command would move. Its parameters stand beside `of`, so it may have none of that name."""
        command = registry.find(of)
        if command.command is None:
            raise BadParameter(f"{command.name} changes nothing: there is nothing to plan", field="of",
                               remedy="name a command that makes something, like createVolume")
        allowed(principal, command)
        parsed = parse(command.parameters, {name: value for name, value in raw.items() if name.lower() != "of"})
        _warn(command.name, parsed.unknown)
        parsed.values.pop("customjobid", None)
        owner = await self.ownership.check(command, parsed.values, principal)
        job_id = uuid4()
        message = command.build(parsed.values, job_id)
        plans = await self.system.plan(await sealed(message, _placeholder, job_id=job_id), job_id, owner)
        return [plan(step, planned) for step, planned in plans]

    # --- commands ---

    async def _write(self, command: ApiCommand, values: dict[str, Any], principal: Principal) -> dict[str, Any] | Later:
        given = values.pop("customjobid", None)
        job_id = given or uuid4()
        owner = await self.ownership.check(command, values, principal)
        known = await self.system.job(job_id) if given is not None else None
        if known is not None and not authorize(principal, command, resource_of("job", known)):
            raise absent("job", job_id, "customjobid")
        who: dict[str, Any] = {"principal": principal.name} | ({} if owner == ROOT_OWNER else {"owner": owner})
        if command.for_account:
            values |= {"accountid": owner.account_id, "owner": owner, "role": principal.role}
        elif command.command is AddAccountToProject:
            values["accountid"] = await self.ownership.member(command, values, principal)
        elif command.command is not None and issubclass(command.command, PermitTemplate):
            values["accountids"] = await self.ownership.grantees(command, values)
        shown = await credentials.prepare(command, values, job_id)
        message = command.build(values, job_id)
        # A command that is sent again with its job's id is the same job: it is not judged by what it did itself.
        if known is None:
            await self.system.precheck(await sealed(message, _placeholder, job_id=job_id), job_id, owner)
            if owner != ROOT_OWNER and (command.mode is Mode.CREATE or command.listed):
                await self._room(owner, command.noun)
        message = await self.system.seal_secrets(message, job_id)
        if command.now:
            await self.system.run_now(message, job_id, **who)
            return shown or await self._done(command, message, job_id)
        await self._accept(message, job_id, who)
        if command.mode is Mode.ASYNC:
            return {"jobid": str(job_id)}
        if command.mode is Mode.CREATE:
            return {"id": str(values.get("customid") or derive(job_id, command.noun)), "jobid": str(job_id)}
        if command.listed:
            return partial(self._appeared, command, message, job_id)
        return partial(self._ended, command, job_id)

    async def _room(self, owner: Owner, noun: str) -> None:
        """Raise LimitReached when the account holds as many as it may: early, in the answer. The append decides."""
        rows, _ = await self.system.rows("resource_limit", {"id": f"{owner.account_id}/{noun}"}, limit=1)
        name = quota.counter(owner.account_id, noun)
        if rows and 0 <= rows[0]["max"] <= (await self.system.store.counter_values([name])).get(name, 0):
            raise quota.reached(owner, noun)

    async def _accept(self, message: Command, job_id: UUID, who: Mapping[str, Any]) -> None:
        """Submit; when it is unknown whether it was committed, submit again: the same id is the same job."""
        unknown = False
        for attempt in range(ACCEPT_TRIES):
            try:
                await self.system.submit(message, job_id=job_id, **who)
                return
            except AppendUnknown:
                unknown = True
                await asyncio.sleep(0.2 * (attempt + 1))
            except StoreAway:
                if not unknown:
                    raise
                await asyncio.sleep(0.2 * (attempt + 1))
        raise MaybeAccepted(f"the database went away while the command was being accepted as job {job_id}",
                            remedy=f"ask queryAsyncJobResult jobid={job_id}, or send it again with customjobid={job_id}")

    async def _done(self, command: ApiCommand, message: Command, job_id: UUID) -> dict[str, Any]:
        """The answer of a command that ran here."""
        if command.mode is Mode.ASYNC:
            return {"jobid": str(job_id)}
        if not command.item:
            return {"success": True}
        made = "id" not in type(message).model_fields
        thing_id = str(command.makes(message) if command.makes is not None else derive(job_id, command.noun) if made
                       else message.model_dump()["id"])
        return {command.item: await self.lists.object(command.noun, thing_id) or {"id": thing_id}}

    async def _ended(self, command: ApiCommand, job_id: UUID) -> dict[str, Any]:
        """The answer of a synchronous command that needs an agent."""
        row = await self.system.wait_for_end(job_id, timeout_s=self.wait_s)
        if row is None:
            raise NotEnded(f"job {job_id} has not ended after {self.wait_s:g} s",
                           remedy=f"it goes on: ask queryAsyncJobResult jobid={job_id}, or stop it with cancelJob")
        if row["status"] != "completed":
            raise _ended_badly(row)
        if not command.item:
            return {"success": True}
        thing_id = str(derive(job_id, command.noun))
        more = {name: value for name, value in (row["result"] or {}).items() if name not in ("noun", "id")}
        return {command.item: (await self.lists.object(command.noun, thing_id) or {"id": thing_id}) | more}

    async def _appeared(self, command: ApiCommand, message: Command, job_id: UUID) -> dict[str, Any]:
        """The answer of registerTemplate: a list with the thing as it is now, and its job; only in the zone that is named."""
        thing_id = str(command.makes(message) if command.makes is not None else derive(job_id, command.noun))
        zone_id = getattr(message, "zone_id", None)
        deadline = asyncio.get_running_loop().time() + self.show_s
        while True:
            found = [each for each in await in_zones(self.lists, thing_id) if zone_id is None or each["zoneid"] == str(zone_id)]
            row = await self.system.job(job_id) if not found else None
            if row is not None and row["status"] in ("failed", "cancelled"):
                raise _ended_badly(row)
            if found or asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(0.03)
        if not found:  # accepted, and its handler is away: it is not in the lists yet
            fields = {registry.api_name(name): value for name, value in message.model_dump(
                mode="json", exclude_none=True).items() if value not in ("", []) and name != "traits"}
            found = [{**fields, "id": thing_id, "isready": False, "status": "Processing"}]
        return {"count": len(found), command.item: [{"jobstatus": 0, **each, "jobid": str(job_id)} for each in found]}


async def _placeholder(value: str, *, name: str) -> str:
    return PLACEHOLDER


class JobFailed(Failed):
    """A job that a synchronous command waited for did not succeed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.cause, field=failure.field, remedy=failure.remedy)
        self.failure = failure


def _ended_badly(row: Mapping[str, Any]) -> JobFailed:
    return JobFailed(Failure.model_validate(row.get("failure") or {"cause": f"the job {row['status']}"}))


def _refused(command: ApiCommand | None, failure: Failure) -> Answer:
    """An error's envelope; what is no command, or not supported, has its own key."""
    key = command.envelope if command is not None and failure.code != Unsupported.code else "errorresponse"
    body = {"uuidList": [], "errorcode": failure.code, "cserrorcode": failure.cscode, "errortext": failure.text,
            **told(failure)}
    return Answer(failure.code, {key: body}, command.name if command else "", failure.text)


def _warn(command: str, unknown: list[str]) -> None:
    for name in unknown:
        if (command, name) not in _NAMED and len(_NAMED) < NAMED_MOST:
            _NAMED.add((command, name))
            log.warning("a parameter is not known and was ignored",
                        extra={"action": "parameter_ignored", "command": command, "parameter": repr(name[:64])})


def refusal(failure: Failure, spelled: str = "") -> Answer:
    """The answer to a request that is refused before its command (`spelled`, if it is one) is looked at."""
    return _refused(registry.BY_NAME.get(spelled.lower()), failure)


__all__ = ["Answer", "Edge", "JobFailed", "MaybeAccepted", "NotEnded", "System", "refusal"]
