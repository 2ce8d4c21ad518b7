"""Jobs: the fold of `job-<id>` and the one engine that walks a flow's table of steps, forwards and back.

Rules kept here: a job reaches exactly one end; a report counts only for the order that is out (work id and attempt),
so late and duplicate ones change nothing; cancel and completion are decided by who comes first in the job's
stream, and the loser is undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from bus.submission import job_stream
from handlers.decider import Context, Flow, IllegalTransition, Step, Telling, steps_of
from handlers.planner import NoMotion
from schema.agent import CancelWork, ReleaseWork, WorkCancelled, WorkCompleted, WorkFailed
from schema.failure import BadParameter, Failed, Failure
from schema.ids import derive
from schema.image_store import RemoveLeftovers
from schema.job import (
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobFailed,
    JobPlanned,
    JobStarted,
    JobStepCompleted,
    JobStepFailed,
    JobStepStarted,
    JobSubmitted,
    JobUndoStarted,
)
from schema.message import Event, Order
from schema.motion import MotionPlan
from schema.scrub import KINDS, QuarantineCopy, owner_of

WATCH_S = 15.0
"""Seconds after which an order without a final report is sent again: that is how its agent is asked."""
UNDO_ATTEMPTS = 50
"""How often taking something back is tried before the job ends naming what remains."""
ENDS = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """The fold of a job's events."""

    submitted: JobSubmitted
    status: str = "submitted"
    """submitted, running, undoing, completed, failed, cancelled"""
    step: str = ""
    """The step whose order is out, or that waits for its next attempt; undo steps are called `undo.<step>`."""
    work_id: UUID | None = None
    attempt: int = 0
    agent: str = ""
    waiting: bool = False
    """The attempt failed; the next is made when the timer fires."""
    done: tuple[str, ...] = ()
    """Steps completed."""
    undone: tuple[str, ...] = ()
    cancel_requested: bool = False
    failure: Failure | None = None
    """Why it is being undone, or why it failed."""
    undo_cancelled: bool = False
    plans: Mapping[str, MotionPlan] = field(default_factory=dict)
    """How the bytes of each step move."""

    @property
    def ended(self) -> bool:
        """True once nothing more can happen."""
        return self.status in ENDS

    @property
    def outstanding(self) -> bool:
        """An order is out and its final report is awaited."""
        return self.work_id is not None and not self.waiting


def evolve(state: JobState | None, event: Event) -> JobState:
    """The job after `event`."""
    if state is None:
        if isinstance(event, JobSubmitted):
            return JobState(submitted=event)
        raise IllegalTransition("absent", event)
    if state.ended:
        raise IllegalTransition(state.status, event)
    match event:
        case JobStarted() if state.status == "submitted":
            return replace(state, status="running")
        case JobPlanned():
            return replace(state, plans={**state.plans, event.step: event.plan})
        case JobStepStarted():
            return replace(state, step=event.step, work_id=event.work_id, attempt=event.attempt, agent=event.agent,
                           waiting=False)
        case JobStepCompleted():
            undo = event.step.startswith("undo.")
            return replace(state, work_id=None, attempt=0, waiting=False,
                           done=state.done if undo else (*state.done, event.step),
                           undone=(*state.undone, event.step) if undo else state.undone)
        case JobStepFailed():
            return replace(state, waiting=True)
        case JobCancelRequested():
            return replace(state, cancel_requested=True)
        case JobUndoStarted():
            return replace(state, status="undoing", failure=event.failure, undo_cancelled=event.cancelled, work_id=None,
                           attempt=0, waiting=False)
        case JobCompleted():
            return replace(state, status="completed", work_id=None)
        case JobFailed():
            return replace(state, status="failed", failure=event.failure, work_id=None)
        case JobCancelled():
            return replace(state, status="cancelled", failure=event.failure, work_id=None)
        case _:
            raise IllegalTransition(state.status, event)


def timer_id(job_id: UUID, what: str = "work") -> str:
    """The job's timer: one for its submission, one for the order that is out."""
    return f"job-{job_id}/{what}"


class Engine:
    """Walks one job through its flow. Made for one decision; writes only into the context."""

    def __init__(self, context: Context, flow: Flow) -> None:
        self.context, self.flow = context, flow
        self.stream = job_stream(context.job_id)

    @property
    def job(self) -> JobState:
        """The job as decided so far."""
        state: JobState = self.context.state(self.stream)
        return state

    @property
    def steps(self) -> tuple[Step, ...]:
        """The orders of this job, first to last."""
        return steps_of(self.flow, self.context)

    def start(self) -> None:
        """Accept the command. Raises Refused when it cannot be."""
        context = self.context
        self.flow.start(context)
        if context.out.waits_s:
            context.out.set_timers.append((timer_id(context.job_id, "submitted"), context.out.waits_s))
            return
        subject = next((s for s, _ in context.out.rows if s.startswith(self.flow.subject)), "")
        context.emit(self.stream, JobStarted(
            job_id=context.job_id, steps=[step.name for step in self.steps], subject=subject))
        context.out.clear_timers.append(timer_id(context.job_id, "submitted"))
        self.advance()

    def refuse(self, failure: Failure) -> None:
        """The command cannot be: the job ends here, and nothing else is written."""
        context = self.context
        context.emit(self.stream, JobFailed(job_id=context.job_id, failure=failure))
        context.out.clear_timers.append(timer_id(context.job_id, "submitted"))

    def advance(self) -> None:
        """Give out the next order, or end. What has become impossible since the start is undone."""
        try:
            self._advance()
        except NoMotion as impossible:
            self.undo(impossible.failure, cancelled=False)

    def _advance(self) -> None:
        for step in self.steps:
            if step.name in self.job.done:
                continue
            if self._give(step, step.name, attempt=1):
                return
        context = self.context
        result = self.flow.finish(context)
        context.emit(self.stream, JobCompleted(job_id=context.job_id, result=result))
        context.out.clear_timers.append(timer_id(context.job_id))

    def _give(self, step: Step, name: str, attempt: int) -> bool:
        context = self.context
        work_id = derive(context.job_id, name)
        undoing = name.startswith("undo.")
        if not undoing and name not in self.job.plans:  # also for a job of before there were plans
            plan = step.plan(context)
            if plan is not None:
                context.emit(self.stream, JobPlanned(job_id=context.job_id, step=name, plan=plan))
        maker = step.undo if undoing else step.order
        order = maker(context, work_id, attempt)
        if order is None:
            return False
        context.order(self.stream, order)
        context.emit(self.stream, JobStepStarted(
            job_id=context.job_id, step=name, work_id=work_id, attempt=attempt, agent=order.agent))
        context.out.set_timers.append((timer_id(context.job_id), WATCH_S))
        return True

    def report(self, report: WorkCompleted | WorkFailed | WorkCancelled, refusal: Failed | None = None) -> None:
        """A final report. One that is not about the order that is out is released and changes nothing. `refusal`: why the job
        cannot go on although the work was done (what comes next finds no room, or is refused by now): it is undone."""
        job = self.job
        self._release(report)
        if job.ended or not job.outstanding or (report.work_id, report.attempt) != (job.work_id, job.attempt):
            return
        undoing = job.status == "undoing"
        match report:
            case WorkCompleted():
                self._completed(report, undoing, refusal)
            case WorkFailed():
                self._failed(report.failure, undoing)
            case WorkCancelled() if undoing:
                self._failed(_stopped(), undoing)
            case WorkCancelled():
                self.undo(_stopped(), cancelled=True)

    def _release(self, report: WorkCompleted | WorkFailed | WorkCancelled) -> None:
        self.context.order(self.stream, ReleaseWork(
            job_id=report.job_id, work_id=report.work_id, attempt=report.attempt, agent=report.agent,
            reply_key=self.job.submitted.key))

    def _completed(self, report: WorkCompleted, undoing: bool, refusal: Failed | None) -> None:
        context, name = self.context, self.job.step
        context.emit(self.stream, JobStepCompleted(
            job_id=context.job_id, step=name, work_id=report.work_id, bytes=report.bytes))
        if undoing:
            self._undo_next()
            return
        if refusal is not None:
            self.undo(refusal.failure, cancelled=False)
            return
        step = next(s for s in self.steps if s.name == name)
        step.done(context, report.result)
        if self.job.cancel_requested and not step.final:
            self.undo(_stopped(), cancelled=True)
        else:
            self.advance()

    def _failed(self, failure: Failure, undoing: bool) -> None:
        context, job = self.context, self.job
        assert job.work_id is not None
        context.emit(self.stream, JobStepFailed(
            job_id=context.job_id, step=job.step, work_id=job.work_id, attempt=job.attempt, failure=failure))
        self._quarantine(failure)
        self._remove(failure)
        if undoing:
            again = job.attempt < UNDO_ATTEMPTS
        else:
            step = next(s for s in self.steps if s.name == job.step)
            again = failure.retryable and job.attempt < step.attempts and not job.cancel_requested
        if again:
            context.out.set_timers.append((timer_id(context.job_id), min(60.0, 2.0 ** min(job.attempt, 6))))
        elif undoing:
            self._end(f" What remains: {job.step.removeprefix('undo.')} could not be taken back: {failure.cause}")
        elif job.cancel_requested:
            self.undo(_stopped(), cancelled=True)
        else:
            self.undo(failure, cancelled=False)

    def _quarantine(self, failure: Failure) -> None:
        """An object that was found damaged while it was read is read by nobody else: a job of its own sees to that."""
        owner = owner_of(failure.damage.object) if failure.damage is not None else None
        if owner is None or owner[0] not in KINDS or failure.damage is None:
            return
        context, job = self.context, self.job
        context.out.submissions.append((derive(context.job_id, f"quarantine/{job.step}.{job.attempt}"), QuarantineCopy(
            kind=owner[0], thing_id=owner[1], damage=failure.damage)))

    def _remove(self, failure: Failure) -> None:
        """What an attempt left in a store that is away: the next one writes elsewhere, so a job of its own sees to that."""
        context, job = self.context, self.job
        step = next(s for s in self.steps if s.name == job.step.removeprefix("undo."))
        left = step.leaves(context, job.attempt) if failure.remains and job.step == step.name else None
        if left is not None:
            context.out.submissions.append((derive(context.job_id, f"leftovers/{job.step}.{job.attempt}"), RemoveLeftovers(
                id=left[0], objects=[left[1]])))

    def retry(self) -> None:
        """The timer of a failed attempt fired: make the next."""
        job = self.job
        if not job.waiting or job.ended:
            return
        step = next(s for s in self.steps if s.name == job.step.removeprefix("undo."))
        try:
            given = self._give(step, job.step, job.attempt + 1)
        except NoMotion as impossible:
            self.undo(impossible.failure, cancelled=False)
            return
        if not given:
            raise AssertionError("a step that gave an order once must give it again")

    def undo(self, failure: Failure, *, cancelled: bool) -> None:
        """Take back, last first, what was completed; then end."""
        self.context.emit(self.stream, JobUndoStarted(
            job_id=self.context.job_id, failure=failure, cancelled=cancelled))
        self._undo_next()

    def _undo_next(self) -> None:
        for step in reversed(self.steps):
            name = f"undo.{step.name}"
            wanted = step.undo_always or step.name in self.job.done
            if not wanted or name in self.job.undone:
                continue
            if self._give(step, name, attempt=1):
                return
        self._end("")

    def _end(self, remains: str) -> None:
        context, job = self.context, self.job
        assert job.failure is not None
        failure = job.failure.model_copy(update={"cause": job.failure.cause + remains}) if remains else job.failure
        failure = self.flow.told(context, failure) if isinstance(self.flow, Telling) else failure
        self.flow.fail(context, failure)
        ending = JobCancelled if job.undo_cancelled else JobFailed
        context.emit(self.stream, ending(job_id=context.job_id, failure=failure))
        context.out.clear_timers.append(timer_id(context.job_id))

    def cancel(self, by: str) -> None:
        """Somebody wants this job to stop. Raises BadParameter when it cannot be stopped."""
        context, job = self.context, self.job
        if job.ended:
            raise BadParameter(f"the job has ended: it {job.status}", field="jobid")
        if not self.flow.cancellable:
            raise BadParameter("a deletion cannot be stopped; it goes on until the store confirms it", field="jobid")
        if job.status == "undoing" or job.cancel_requested:
            return
        context.emit(self.stream, JobCancelRequested(job_id=context.job_id, by=by))
        if job.status == "submitted":
            context.emit(self.stream, JobCancelled(job_id=context.job_id, failure=_stopped()))
            context.out.clear_timers.append(timer_id(context.job_id, "submitted"))
        elif job.waiting or job.work_id is None:
            self.undo(_stopped(), cancelled=True)
        else:
            context.order(self.stream, CancelWork(
                job_id=context.job_id, work_id=job.work_id, attempt=job.attempt, agent=job.agent,
                reply_key=job.submitted.key))


def _stopped() -> Failure:
    return Failure(cause="The job was cancelled", remedy="Nothing of it remains")


def outstanding_order(rows: list[tuple[str, Order]], job: JobState) -> Order | None:
    """Among a job's order rows, the one that is out (to send it again)."""
    wanted = (job.work_id, job.attempt)
    return next((order for kind, order in reversed(rows)
                 if kind == "order" and (order.work_id, order.attempt) == wanted
                 and not isinstance(order, (CancelWork, ReleaseWork))), None)


def result_of(noun: str, thing: UUID, **more: Any) -> dict[str, Any]:
    """A job's result: which thing it is about; the edge adds the thing's fields from the projections."""
    return {"noun": noun, "id": str(thing), **more}
