"""How a typed method becomes a request, and an answer what the method promises.

Owns values as parameters (times, lists, maps, booleans), the job's id that makes a command safe to repeat, and the wait for a
synchronous command whose job takes longer than the API waits. Refuses to know any command: the methods are in
`api.client.commands`, which is generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

from api.client.connection import Connection
from api.client.failures import NOT_ENDED
from api.client.job import Job
from api.client.listing import Listing
from schema.failure import Unavailable, Unknown

JOB = "customjobid"


def raw(given: Mapping[str, Any]) -> dict[str, str]:
    """Values as CloudStack's parameters; None is left out."""
    found: dict[str, str] = {}
    for name, value in given.items():
        match value:
            case None:
                continue
            case bool():
                found[name] = "true" if value else "false"
            case datetime():
                at = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
                found[name] = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")
            case Mapping():
                for number, (key, one) in enumerate(raw({str(key): one for key, one in value.items()}).items()):
                    found |= {f"{name}[{number}].key": key, f"{name}[{number}].value": one}
            case list() | tuple() | set() | frozenset():
                found[name] = ",".join(str(one) for one in value)
            case _:
                found[name] = str(value)
    return found


class Calling(Connection):
    """What the generated methods stand on."""

    async def call(self, command: str, parameters: Mapping[str, Any] | None = None, /, *, repeat: bool = False) -> dict[str, Any]:
        """Any command by its name: the body below the envelope. `repeat`: it may be sent again when no answer comes."""
        return await self.ask(command, raw(parameters or {}), repeat=repeat)

    def job(self, job_id: UUID | str, *, item: str = "") -> Job[dict[str, Any]]:
        """The job of this id. `item`: the key of the thing in its result; empty: the whole result."""
        return Job(self, str(job_id), item=item)

    async def _question(self, command: str, parameters: Mapping[str, Any], *, safe: bool = True) -> Any:
        """A question; or a command that is no job, which is asked once (`safe` false)."""
        return await self.ask(command, raw(parameters), repeat=safe)

    async def _thing(self, command: str, item: str, parameters: Mapping[str, Any], *, safe: bool = True) -> Any:
        """A question with one thing, or several, under a key."""
        body = await self._question(command, parameters, safe=safe)
        return body.get(item, body)

    async def _do(self, command: str, item: str, parameters: Mapping[str, Any]) -> Any:
        """A synchronous command; one whose job takes longer is waited for."""
        given, job_id = _with_job(parameters)
        try:
            body = await self.ask(command, given, repeat=True)
        except Unknown as unknown:
            if unknown.failure.cscode != NOT_ENDED:
                raise
            return await Job[Any](self, job_id, item=item).result()
        return body.get(item, body) if item else body

    async def _start(self, command: str, item: str, parameters: Mapping[str, Any]) -> Job[Any]:
        """A command that answers with its job."""
        given, _ = _with_job(parameters)
        body = await self.ask(command, given, repeat=True)
        things = body.get(item)
        if isinstance(things, list) and things:
            body = cast(dict[str, Any], things[0])
        if not body.get("jobid"):
            raise Unavailable(f"{command} was answered without a job", field="command", remedy="is this API of another version?")
        return Job(self, str(body["jobid"]), item=item, thing_id=str(body.get("id", "")))

    def _list(self, command: str, item: str, parameters: Mapping[str, Any], *, pages: bool) -> Listing[Any]:
        """A list."""
        return Listing(self, command, item, raw(parameters), pages=pages)


def _with_job(parameters: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """The parameters with their job's id, which is made here unless the caller chose one."""
    given = raw(parameters)
    job_id = given.setdefault(JOB, str(uuid4()))
    return given, job_id


__all__ = ["JOB", "Calling", "raw"]
