"""A command becomes a job: the one append that accepts it, the same from HTTP, the CLI and Python.

Owns the form of the submission row and the meaning of its id: the id of the command is the id of the job, so the same
id with the same body is the same job, and with another body it is refused. Refuses to know any command by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from bus.errors import Conflict
from bus.event_store import NO_STREAM, Appended, AppendRequest, EventStore, LogRow, NewRow, Timer
from schema.codec import canonical, encode
from schema.failure import BadParameter
from schema.identity import Owner
from schema.ids import stream
from schema.job import JobSubmitted
from schema.message import Command

LOOK_AGAIN_S = 15.0
"""A submission that no handler took up is delivered again after this time, until one does."""
TIMER_TYPE = "timer.job"


def job_stream(job_id: UUID) -> str:
    """The stream that tells the job's life."""
    return stream("job", job_id)


def submitted(command: Command, *, job_id: UUID, principal: str = "system", tenant: str = "root",
              parent: UUID | None = None, owner: Owner | None = None) -> JobSubmitted:
    """The fact that `command` was accepted as the job `job_id`."""
    body: dict[str, Any] = command.model_dump(mode="json", exclude_none=True)
    return JobSubmitted(job_id=job_id, command=command.TYPE, version=command.VERSION, body=body,
                        key=command.key(job_id), principal=principal, tenant=tenant, parent=parent, owner=owner)


def submission(command: Command, *, job_id: UUID, principal: str = "system", tenant: str = "root",
               kind: str = "command", parent: UUID | None = None, traceparent: str = "",
               owner: Owner | None = None) -> AppendRequest:
    """The append that accepts a command. It expects that the job does not exist yet.

    `kind` is "command" where the relay has to bring it to a handler, "event" where a handler has it already. Its
    timer delivers `{"job_id": ...}` to the command's key, so a submission that got lost on its way is looked at again.
    """
    fact = submitted(command, job_id=job_id, principal=principal, tenant=tenant, parent=parent, owner=owner)
    meta = {"principal": principal} | ({"traceparent": traceparent} if traceparent else {})
    if owner is not None:
        meta |= {"account": str(owner.account_id), "domain": owner.path}
    row = NewRow(
        stream=job_stream(job_id), kind=kind, type=fact.TYPE, type_version=fact.VERSION, id=job_id,
        payload=encode(fact), key=fact.key, tenant=tenant, correlation=job_id, causation=parent, meta=canonical(meta),
    )
    timer = Timer(id=f"{row.stream}/submitted", after_s=LOOK_AGAIN_S, key=fact.key, type=TIMER_TYPE,
                  payload=canonical({"job_id": str(job_id)}))
    return AppendRequest(expected={row.stream: NO_STREAM}, rows=(row,), set_timers=(timer,))


def same_submission(row: LogRow, command: str, version: int, body: Mapping[str, Any]) -> bool:
    """True when `row`, version 0 of a job's stream, accepted this very command."""
    if row.type != JobSubmitted.TYPE:
        return False
    known = json.loads(row.payload)
    return (known["command"], known.get("version", 1), known["body"]) == (command, version, dict(body))


async def submit(store: EventStore, request: AppendRequest) -> Appended:
    """Append a submission. An id that was submitted before with the same body is the same job: no error.

    Raises BadParameter when the id was submitted with another body; StoreAway or AppendUnknown as the store does.
    """
    try:
        return await store.append(request)
    except Conflict:
        row = request.rows[0]
        first = await store.read_stream(row.stream, limit=1)
        if not first:
            raise
        asked = json.loads(row.payload)
        if same_submission(first[0], asked["command"], asked["version"], asked["body"]):
            return Appended(first[0].position)
        raise BadParameter(f"job {row.id} was submitted with another command or other parameters", field="id",
                           remedy="use a new id for a new command") from None


__all__ = ["LOOK_AGAIN_S", "TIMER_TYPE", "job_stream", "same_submission", "submission", "submit", "submitted"]
