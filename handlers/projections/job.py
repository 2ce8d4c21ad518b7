"""Jobs in the read tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from handlers.projections.columns import Change, owned
from schema import identity, job, vocabulary
from schema.ids import derive
from schema.message import Command

TABLES = ("job",)
_KNOWN = vocabulary()


def event_name(command: str, version: int, body: Mapping[str, Any]) -> str:
    """CloudStack's name of what a command's job does; of a command that nobody knows any more, its wire name in capitals."""
    known = _KNOWN.get((command, version))
    return known.event(body) if known is not None and issubclass(known, Command) else command.upper().replace("_", ".")


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    key = str(event.job_id)
    match event:
        case job.JobSubmitted():
            yield "job", key, {"command": event.command, "status": "submitted", "principal": event.principal,
                               "body": event.body, "cancel_requested": False, "created": at,
                               "parent": str(event.parent) if event.parent else None,
                               "event": event_name(event.command, event.version, event.body),
                               **owned(event.owner or identity.ROOT_OWNER)}
        case job.JobStarted():
            noun, _, thing = event.subject.partition("-")
            yield "job", key, {"status": "running", "subject": event.subject, "started": at,
                               "makes": bool(noun) and thing == str(derive(event.job_id, noun))}
        case job.JobStepStarted():
            yield "job", key, {"step": event.step, "work": f"{event.work_id}.{event.attempt}"}
        case job.JobStepFailed():
            yield "job", key, {"failure": event.failure.model_dump(mode="json")}
        case job.JobStepCompleted():
            yield "job", key, {"failure": None}
        case job.JobCancelRequested():
            yield "job", key, {"cancel_requested": True}
        case job.JobUndoStarted():
            yield "job", key, {"status": "undoing", "failure": event.failure.model_dump(mode="json")}
        case job.JobCompleted():
            yield "job", key, {"status": "completed", "result": event.result, "completed": at}
        case job.JobFailed():
            yield "job", key, {"status": "failed", "failure": event.failure.model_dump(mode="json"), "completed": at}
        case job.JobCancelled():
            yield "job", key, {"status": "cancelled", "failure": event.failure.model_dump(mode="json"), "completed": at}
        case _:
            pass
