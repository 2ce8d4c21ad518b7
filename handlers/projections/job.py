"""Jobs in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change, owned
from schema import identity, job

TABLES = ("job",)


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    key = str(event.job_id)
    match event:
        case job.JobSubmitted():
            yield "job", key, {"command": event.command, "status": "submitted", "principal": event.principal,
                               "body": event.body, "cancel_requested": False, "created": at,
                               "parent": str(event.parent) if event.parent else None,
                               **owned(event.owner or identity.ROOT_OWNER)}
        case job.JobStarted():
            yield "job", key, {"status": "running", "subject": event.subject}
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
