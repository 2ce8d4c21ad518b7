"""Jobs: one command's life, the stream `job-<command id>`, told in the order it happens."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from schema.failure import Failure
from schema.identity import Owner
from schema.message import Command, Event
from schema.motion import MotionPlan


class CancelJob(Command, type="job.cancel"):
    """Stop a running job. What it already made is undone; a job that has ended is refused."""

    job_id: UUID

    def key(self, job_id: UUID) -> str:
        """Beside the job that it stops."""
        return f"job-{self.job_id}"


class JobSubmitted(Event, type="job.submitted"):
    """The command was accepted: from here on it reaches exactly one end."""

    job_id: UUID
    command: str
    """Wire name of the command, e.g. `snapshot.create`."""
    version: int = 1
    body: dict[str, Any]
    """The command as sent, secrets replaced by vault references."""
    key: str
    principal: str = "system"
    tenant: str = "root"
    parent: UUID | None = None
    """The job that asked for this one."""
    owner: Owner | None = None
    """The account that what it makes or changes belongs to; None: the ROOT domain's own admin."""


class JobStarted(Event, type="job.started"):
    """A handler accepted the command; the things it makes exist from here on."""

    job_id: UUID
    steps: list[str]
    """Names of the flow's steps, in order."""
    subject: str = ""
    """Stream of the thing that the job is about."""


class JobPlanned(Event, type="job.planned"):
    """How the bytes of a step will move was decided: before its order, and once for all its attempts."""

    job_id: UUID
    step: str
    plan: MotionPlan


class JobStepStarted(Event, type="job.step_started"):
    """A step's order was given to an agent."""

    job_id: UUID
    step: str
    work_id: UUID
    attempt: int
    agent: str


class JobStepCompleted(Event, type="job.step_completed"):
    """A step is done; its result is an event of the thing concerned."""

    job_id: UUID
    step: str
    work_id: UUID
    bytes: int = 0
    """Bytes acknowledged by the destination."""


class JobStepFailed(Event, type="job.step_failed"):
    """One attempt of a step failed; the flow tries again or undoes what was done."""

    job_id: UUID
    step: str
    work_id: UUID
    attempt: int
    failure: Failure


class JobCancelRequested(Event, type="job.cancel_requested"):
    """Somebody asked for the job to stop."""

    job_id: UUID
    by: str


class JobUndoStarted(Event, type="job.undo_started"):
    """What the job did is being taken back, and then it ends with `failure`."""

    job_id: UUID
    failure: Failure
    cancelled: bool = False


class JobCompleted(Event, type="job.completed"):
    """End: it worked."""

    job_id: UUID
    result: dict[str, Any] = {}


class JobFailed(Event, type="job.failed"):
    """End: it did not, and nothing of it remains."""

    job_id: UUID
    failure: Failure


class JobCancelled(Event, type="job.cancelled"):
    """End: it was stopped, and nothing of it remains."""

    job_id: UUID
    failure: Failure
