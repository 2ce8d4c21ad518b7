"""The runtime: load, decide, append. The only writer of the log besides the edge's submission.

Owns the loop around the pure deciders: which streams are loaded, what a lost race means (read again, decide again,
bounded), how a decision becomes one append. Refuses to decide anything itself. After `handle` returns, everything
the message led to is committed, so its delivery may be acked.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any
from uuid import UUID

from bus.envelope import Envelope
from bus.errors import ClaimTaken, Conflict, CounterFull
from bus.event_store import NO_STREAM, AppendRequest, EventStore, LogFilter, LogRow, NewRow, Timer
from bus.gathering import Gathered
from bus.relay import envelope_of
from bus.submission import TIMER_TYPE, job_stream, submission, submitted
from bus.transport import Transport, WireMessage
from bus.transport import agent as agent_address
from handlers import capacity, later, link, scrub, snapshot_due, snapshot_policy, survey
from handlers.agent import announce, free_bytes
from handlers.decider import Context, Decision, Flow, Following, IllegalTransition, Limits, Surveying, steps_of
from handlers.directory import PATTERNS, Directory
from handlers.job import Engine, JobState, outstanding_order, timer_id
from handlers.recorded import command_of, fold, order_of, submitted_by
from handlers.survey import Survey
from handlers.table import EVOLVE, FLOWS
from schema.agent import AgentHello, CancelWork, WorkAccepted, WorkCancelled, WorkCompleted, WorkFailed
from schema.codec import canonical, decode, encode
from schema.failure import BadParameter, Failed, NoRoom, Refused, Unavailable
from schema.identity import ROOT_OWNER, Owner
from schema.ids import derive
from schema.job import CancelJob, JobCompleted, JobStarted, JobSubmitted
from schema.link import EndLink
from schema.message import Command, Order
from schema.motion import MotionPlan
from schema.scrub import ScheduleScrub

log = logging.getLogger(__name__)

RACES = 12
"""How often one message is decided again after another append came first."""
CACHED_STREAMS = 20_000
"""States kept in memory; the least recently used go first."""
EARLY_S = 2.0
"""By so much a timer may come before its time."""
FOLLOWED = 200
"""How far from stream to stream a flow may follow: the longest chain of snapshots, with room."""

Decide = Callable[[Context, Engine], None]
_version = itemgetter(0)


class IdReused(Refused):
    """A command id was sent again with another body."""


class Runtime:
    """Handles one message after another, several at once. `handle` is what the bus's consumer calls."""

    def __init__(self, store: EventStore, transport: Transport, *, installation: str, token: bytes,
                 limits: Limits | None = None, vault_key: str = "") -> None:
        self.store, self.transport = store, transport
        self.installation, self.token, self.limits = installation, token, limits or Limits()
        self.vault_key = vault_key
        self.directory, self.survey = Directory(), Survey()
        self._states: OrderedDict[str, tuple[int, Any]] = OrderedDict()
        self._folded = Gathered(self._fold)
        self._caught_up = Gathered(self._read_on)

    # --- messages ------------------------------------------------------------------------------------------------

    async def handle(self, envelope: Envelope) -> None:
        """Take one message in, whatever its kind. Raises when it could not be handled (the consumer holds it)."""
        if envelope.kind == "timer":
            body = json.loads(envelope.body)
            if envelope.type == scrub.TIMER:
                await self._scrub_due(UUID(body["store_id"]), body["run"])
            elif envelope.type == link.TIMER:
                await self._link_due(UUID(body["link_id"]))
            elif envelope.type == later.TIMER:
                await later.fire(self, body)
            elif envelope.type == snapshot_policy.TIMER:
                await snapshot_due.due(self, UUID(body["policy_id"]))
            else:
                await self._timer(UUID(body["job_id"]))
            return
        message = decode(envelope.type, envelope.version, envelope.body)
        match message:
            case JobSubmitted():
                await self._command(message, logged=True, envelope=envelope)
            case Command():
                await self._command(submitted_by(envelope, message), logged=False, envelope=envelope)
            case AgentHello():
                await announce(self, message)
            case WorkAccepted():
                pass  # its timer goes on; only a final report changes the job
            case WorkCompleted() | WorkFailed() | WorkCancelled():
                await self._report(message, envelope)
            case _:
                raise BadParameter(f"{message.TYPE} is no message for a handler", field="type")

    async def run_now(self, command: Command, job_id: UUID, principal: str,
                      owner: Owner | None = None) -> tuple[dict[str, Any], int]:
        """Run a command that needs no agent, here, in one append: (result, position). Raises what refuses it."""
        envelope = Envelope(id=job_id, type=command.TYPE, version=command.VERSION, kind="command",
                            body=encode(command), principal=principal)
        fact = submitted(command, job_id=job_id, principal=principal or "system", owner=owner)
        position = await self._command(fact, logged=False, envelope=envelope)
        state = await self._state(job_stream(job_id))
        assert state is not None
        if state.failure is not None:
            raise _as_error(state.failure)
        return {"success": True}, position

    async def begin(self, command: Command, job_id: UUID, owner: Owner | None = None) -> None:
        """Begin a job as the installation itself, by what the log says now. Begun or ended, it is that job still."""
        self.forget(await self._streams(job_id, command))
        await self._command(submitted(command, job_id=job_id, owner=owner), logged=False, envelope=Envelope(
            id=job_id, type=TIMER_TYPE, kind="timer", body=b"{}", correlation=job_id))

    async def precheck(self, command: Command, job_id: UUID, owner: Owner | None = None) -> None:
        """Raise what would refuse the command now; nothing is written. The real decision comes later."""
        await self._tried(command, job_id, owner)

    async def plan(self, command: Command, job_id: UUID, owner: Owner | None = None) -> list[tuple[str, MotionPlan]]:
        """(step, how its bytes would move) of the command, if it came now; nothing is written. Raises what would refuse it."""
        context = await self._tried(command, job_id, owner)
        steps = steps_of(FLOWS[type(command)], context) if type(command) in FLOWS else ()
        plans = [(step.name, step.plan(context)) for step in steps]
        return [(name, plan) for name, plan in plans if plan is not None]

    async def _tried(self, command: Command, job_id: UUID, owner: Owner | None) -> Context:
        """What the command's start would decide, thrown away afterwards."""
        streams = await self._streams(job_id, command)
        self.forget(streams)  # nothing is appended here that would show a stale state
        await asyncio.gather(self.catch_up(), self._load(streams))
        await self._look_around(FLOWS.get(type(command)))
        states = {name: state for name, (_, state) in (await self._follow(command, streams, fresh=True)).items()}
        context = replace(self._context(job_id, command, states), asked_for=owner)
        if isinstance(command, CancelJob):
            self._cancel(context, command, JobSubmitted(
                job_id=job_id, command=command.TYPE, body={}, key=command.key(job_id)), own=False)
        else:
            FLOWS[type(command)].start(context)
        return context

    # --- the four kinds of decision ------------------------------------------------------------------------------

    async def _command(self, fact: JobSubmitted, *, logged: bool, envelope: Envelope) -> int:
        """Start (or refuse) a job. `logged`: its JobSubmitted is already in the log at version 0."""
        command = command_of(fact)
        stream = job_stream(fact.job_id)
        self._states.setdefault(stream, (0, EVOLVE["job"](None, fact)) if logged else (NO_STREAM, None))
        refusal: Failed | None = None
        remembered: set[str] | None = set()

        def decide(context: Context, engine: Engine) -> None:
            if remembered is not None:
                remembered.update(context.states)
            if context.state(stream) is None:
                context.emit(stream, fact)
            elif engine.job.status != "submitted":
                return
            if refusal is not None:
                engine.refuse(refusal.failure)
            elif isinstance(command, CancelJob):
                self._cancel(context, command, fact)
            else:
                engine.start()

        for _ in range(RACES):
            try:
                return await self._decide(fact.job_id, command, decide, envelope, expect_same=fact)
            except (ClaimTaken, CounterFull) as full:
                refusal = getattr(full, "refusal", None) or full
                if isinstance(refusal, NoRoom):
                    refusal = None  # the room went to another: choose again, by what is free now
            except IdReused:
                raise
            except (Refused, Unavailable, NoRoom) as error:
                refusal = error if remembered is None else None  # what is remembered may be old: others write too
                self.forget(remembered or ())
                remembered = None
        raise Conflict(f"{command.TYPE} lost {RACES} races", stream=stream)

    def _cancel(self, context: Context, command: CancelJob, fact: JobSubmitted, *, own: bool = True) -> None:
        mine = job_stream(fact.job_id)
        target = context.state(job_stream(command.job_id))
        if target is None:
            raise BadParameter(f"no job has the id {command.job_id}", field="jobid", remedy="listAsyncJobs shows them")
        original = command_of(target.submitted)
        if isinstance(original, CancelJob):
            raise BadParameter("a cancellation cannot be cancelled", field="jobid")
        inner = replace(context, job_id=command.job_id, command=original)
        Engine(inner, FLOWS[type(original)]).cancel(fact.principal)
        if not own:
            return
        context.emit(mine, JobStarted(job_id=fact.job_id, steps=[], subject=job_stream(command.job_id)))
        context.emit(mine, JobCompleted(job_id=fact.job_id, result={"success": True}))
        context.out.clear_timers.append(timer_id(fact.job_id, "submitted"))

    async def _report(self, report: WorkCompleted | WorkFailed | WorkCancelled, envelope: Envelope) -> None:
        job = await self._state(job_stream(report.job_id))
        if job is None:
            raise BadParameter(f"a report about the unknown job {report.job_id}", field="job_id")
        command = command_of(job.submitted)
        refusal: Failed | None = None
        remembered: set[str] = set()

        def decide(context: Context, engine: Engine) -> None:
            remembered.update(context.states)
            engine.report(report, refusal)

        for fresh in (False, True, True):
            try:
                await self._decide(report.job_id, command, decide, envelope)
                return
            except CounterFull as full:
                refusal = getattr(full, "refusal", None) if refusal is None else None
                if refusal is None:
                    raise
            except Refused as error:  # what is remembered may be old; what the log refuses too has become impossible
                if refusal is not None:
                    raise
                refusal = error if fresh else None
                self.forget(remembered)

    async def _timer(self, job_id: UUID) -> None:
        """A wait is over: start a command that got lost, make the next attempt, or ask the agent again."""
        stream = job_stream(job_id)
        self._states.pop(stream, None)
        job: JobState | None = await self._state(stream)
        if job is None or job.ended:
            await self.store.append(AppendRequest(
                expected={}, rows=(), clear_timers=(timer_id(job_id), timer_id(job_id, "submitted"))))
            return
        envelope = Envelope(id=job_id, type=TIMER_TYPE, kind="timer", body=b"{}", correlation=job_id)
        if job.status == "submitted":
            await self._command(job.submitted, logged=True, envelope=envelope)
        elif job.waiting:
            await self._decide(job_id, command_of(job.submitted), lambda _, engine: engine.retry(), envelope)
        elif job.outstanding:
            await self._ask(job_id, job)

    async def _ask(self, job_id: UUID, job: JobState) -> None:
        """Send the order that is out once more: the agent answers what became of it."""
        rows = [row for row in await self.store.read_stream(job_stream(job_id), limit=10_000) if row.kind == "order"]
        orders = [(row.kind, order_of(row)) for row in rows]
        order = outstanding_order(orders, job)
        for row, (_, made) in zip(rows, orders, strict=True):
            cancels = job.cancel_requested and isinstance(made, CancelWork) and made.work_id == job.work_id
            if made is order or cancels:
                sent = envelope_of(row)
                await self.transport.publish(agent_address(row.address), WireMessage(
                    headers=sent.headers(), body=sent.body))

    @staticmethod
    def folded(stream: str, rows: list[LogRow]) -> Any:
        """The state that a stream's rows make."""
        return fold(stream, rows)[1]

    async def scrub_schedule(self, store_id: UUID) -> tuple[int, str | None]:
        """(seconds, share) of a store's schedule as the log has it now; (0, None) when it has none."""
        name = scrub.schedule_stream(store_id)
        self.forget([name])
        state = await self._state(name)
        return (state.every_s, state.share) if state is not None and state.every_s else (0, None)

    async def _scrub_due(self, store_id: UUID, run: int) -> None:
        """The time of a store's scrub has come. Not before its time: a transport that does not outlive the process delivers
        every timer at the start. However long it is overdue, it is one scrub; the next is counted from now."""
        rows = await self.store.read_stream(scrub.schedule_stream(store_id), limit=100_000)
        schedule = fold(scrub.schedule_stream(store_id), rows)[1]
        if schedule is not None and schedule.run == run:
            left = schedule.every_s - (datetime.now(UTC) - rows[-1].recorded_at).total_seconds()
            if left > EARLY_S:
                await self.store.append(AppendRequest(expected={}, rows=(), set_timers=(scrub.due_timer(store_id, run, left),)))
                return
        command = ScheduleScrub(id=store_id, every_s=schedule.every_s if schedule else 0,
                                share=schedule.share if schedule else "5%", due=run)
        await self.begin(command, derive(store_id, f"scrub-due/{run}"))

    async def _link_due(self, link_id: UUID) -> None:
        """What is left of a link is to go. As with a scrub, not before its time."""
        name = link.stream(link_id)
        rows = await self.store.read_stream(name, limit=1000)
        state = fold(name, rows)[1]
        if state is None or state.status != "Given":
            await self.store.append(AppendRequest(expected={}, rows=(), clear_timers=(link.timer_id(link_id),)))
            return
        left = state.lifetime_s + link.MARGIN_S - (datetime.now(UTC) - rows[-1].recorded_at).total_seconds()
        if left > EARLY_S:
            await self.store.append(AppendRequest(expected={}, rows=(), set_timers=(link.due_timer(link_id, left),)))
            return
        await self.begin(EndLink(id=link_id), derive(link_id, "due"))

    # --- load, decide, append ------------------------------------------------------------------------------------

    async def _decide(self, job_id: UUID, command: Command, decide: Decide, envelope: Envelope, *,
                      expect_same: JobSubmitted | None = None) -> int:
        """One decision, again after each lost race. Returns the position of what it wrote (0: it wrote nothing)."""
        streams = await self._streams(job_id, command)
        if isinstance(command, CancelJob) or FLOWS[type(command)].placed:
            await self.catch_up()
        await self._look_around(FLOWS.get(type(command)))
        for attempt in range(RACES):
            loaded = await self._follow(command, streams)
            if expect_same is not None:
                _same(loaded[job_stream(job_id)][1], expect_same)
            context = self._context(job_id, command, {name: state for name, (_, state) in loaded.items()})
            flow = FLOWS.get(type(command))
            try:
                decide(context, Engine(context, flow))  # type: ignore[arg-type] # CancelJob has no flow; its engine only holds the job
            except Exception as error:
                if attempt or (isinstance(error, Failed) and not isinstance(error, IllegalTransition)):
                    raise
                self.forget(loaded)  # what was remembered, or guessed for a new job, is older than what other processes wrote
                continue
            if not (context.out.rows or context.out.clear_timers or context.out.timers):
                return 0
            request = self._request(job_id, context, {name: version for name, (version, _) in loaded.items()}, envelope)
            try:
                appended = await self.store.append(request)
            except (ClaimTaken, CounterFull) as full:
                full.refusal = context.out.refusals.get(full.stream)  # type: ignore[union-attr] # read in _command
                self.forget(loaded)
                raise
            except Conflict:
                self.forget(loaded)
                continue
            self._remember(context, request)
            return appended.last_position
        raise Conflict(f"{command.TYPE} of job {job_id} lost {RACES} races", stream=job_stream(job_id))

    async def _streams(self, job_id: UUID, command: Command) -> list[str]:
        if isinstance(command, CancelJob):
            self.forget([job_stream(command.job_id)])
            target = await self._state(job_stream(command.job_id))
            inner = command_of(target.submitted) if target is not None else command
            more = [] if isinstance(inner, CancelJob) else FLOWS[type(inner)].streams(command.job_id, inner)
            return [job_stream(job_id), job_stream(command.job_id), *more]
        return [job_stream(job_id), *FLOWS[type(command)].streams(job_id, command)]

    def _context(self, job_id: UUID, command: Command, states: dict[str, Any]) -> Context:
        return Context(job_id=job_id, command=command, states=states,
                       directory=self.directory, evolve=EVOLVE, installation=self.installation, limits=self.limits,
                       survey=self.survey, vault_key=self.vault_key)

    def _request(self, job_id: UUID, context: Context, expected: dict[str, int], envelope: Envelope) -> AppendRequest:
        out: Decision = context.out
        versions = dict(expected)
        correlation = envelope.correlation or job_id
        rows: list[NewRow] = []
        timers = [*out.timers, *(Timer(id=name, after_s=after, key=context.command.key(job_id), type=TIMER_TYPE,
                        payload=canonical({"job_id": name.removeprefix("job-").split("/")[0]}))
                  for name, after in out.set_timers)]
        for stream, message in out.rows:
            versions[stream] = version = versions[stream] + 1
            rows.append(NewRow(
                stream=stream, kind=message.KIND, type=message.TYPE, type_version=message.VERSION,
                id=derive(job_id, f"{stream}/{version}"), payload=encode(message), key=context.command.key(job_id),
                address=message.agent if isinstance(message, Order) else "", tenant=envelope.tenant,
                correlation=correlation, causation=envelope.id,
                meta=_meta(envelope, getattr(context.states.get(stream), "owner", None) or context.owner)))
        owner = None if context.owner == ROOT_OWNER else context.owner
        for new_job, command in out.submissions:
            more = submission(command, job_id=new_job, principal=envelope.principal, tenant=envelope.tenant,
                              parent=job_id, owner=owner)
            expected = {**expected, **more.expected}
            rows.extend(replace(row, correlation=correlation) for row in more.rows)
            timers.extend(more.set_timers)
        return AppendRequest(expected=expected, rows=rows, take=out.take, release=out.release, counters=out.counters,
                             set_timers=timers, clear_timers=out.clear_timers)

    # --- what is known -------------------------------------------------------------------------------------------

    async def _follow(self, command: Command, streams: list[str], *, fresh: bool = False) -> dict[str, tuple[int, Any]]:
        """These streams and those that they lead to (`fresh`: as the log has them now, whatever is remembered)."""
        loaded = await self._load(streams)
        if isinstance(command, CancelJob):
            target = loaded[job_stream(command.job_id)][1]
            command = command_of(target.submitted) if target is not None else command
        flow = FLOWS.get(type(command))
        if not isinstance(flow, Following):
            return loaded
        for _ in range(FOLLOWED):
            more = [name for name in flow.follow(command, {name: state for name, (_, state) in loaded.items()})
                    if name not in loaded]
            if not more:
                return loaded
            if fresh:
                self.forget(more)
            loaded |= await self._load(more)
        raise Conflict(f"{command.TYPE} leads to more than {FOLLOWED} streams behind one another", stream=streams[0])

    async def _load(self, streams: list[str]) -> dict[str, tuple[int, Any]]:
        # Taken before anything is waited for: another decision may forget what is known meanwhile.
        found = {name: self._states[name] for name in streams if name in self._states}
        missing = [name for name in streams if name not in found]
        if missing:
            for name, read in (await self._folded.get(missing)).items():
                found[name] = self._states[name] = max(read, self._states.get(name, (NO_STREAM, None)), key=_version)
        for name in found.keys() & self._states.keys():
            self._states.move_to_end(name)
        while len(self._states) > CACHED_STREAMS:
            self._states.popitem(last=False)
        return found

    async def _fold(self, streams: list[str]) -> dict[str, tuple[int, Any]]:
        return {name: fold(name, rows) for name, rows in (await self.store.read_streams(streams)).items()}

    async def _state(self, stream: str) -> Any:
        return (await self._load([stream]))[stream][1]

    def forget(self, streams: Iterable[str]) -> None:
        """Read these from the log when they are asked for next."""
        for name in streams:
            self._states.pop(name, None)

    def _remember(self, context: Context, request: AppendRequest) -> None:
        """After a commit the decision's own states are the truth, unless somebody else moved the cache meanwhile."""
        written = {row.stream for row in request.rows}
        for name in written & set(context.states):
            count = sum(1 for row in request.rows if row.stream == name)
            version = request.expected[name] + count
            if self._states.get(name, (NO_STREAM, None))[0] < version:
                self._states[name] = (version, context.states[name])
        for _, message in context.out.rows:
            self.directory.apply(message)

    async def catch_up(self) -> None:
        """Bring the directory up to the head of the log. Who asks while it is read waits for the next reading, one for all."""
        await self._caught_up.get([""])

    async def _read_on(self, _: list[str]) -> dict[str, None]:
        wanted = LogFilter(types=PATTERNS, kinds=frozenset({"event"}))
        for _turn in range(100_000):
            page = await self.store.read_log(self.directory.position, filter=wanted, limit=1000)
            for row in page.rows:
                self.directory.apply(decode(row.type, row.type_version, row.payload))
            self.directory.position = page.scanned_to
            if page.at_head:
                break
        await self._room()
        return {}

    async def _room(self) -> None:
        """What is used of the stores that have a capacity, as the counters say now; what is free on primary stores."""
        self.directory.free = await free_bytes(self.store, self.directory)
        limited = [store_id for store_id, store in self.directory.stores.items() if store.capacity is not None]
        values = await self.store.counter_values([capacity.used(store_id) for store_id in limited]) if limited else {}
        self.directory.used = {store_id: values.get(capacity.used(store_id), 0) for store_id in limited}

    async def _look_around(self, flow: Flow | None) -> None:
        """Bring the survey up to the head of the log, for a flow that needs it."""
        if not isinstance(flow, Surveying):
            return
        wanted = LogFilter(types=survey.TYPES, kinds=frozenset({"event"}))
        for _ in range(100_000):
            at = self.survey.position
            page = await self.store.read_log(at, filter=wanted, limit=1000)
            for row in page.rows:
                if row.position > self.survey.position:  # another decision may have read the same page
                    self.survey.apply(decode(row.type, row.type_version, row.payload), row.position)
                    self.survey.position = row.position
            self.survey.position = max(self.survey.position, page.scanned_to)
            if page.scanned_to == at:
                return


def _meta(envelope: Envelope, owner: Owner) -> bytes:
    """What a row says besides: who asked, and whose the thing is, unless it is the installation's own."""
    whose = {} if owner == ROOT_OWNER else {"account": str(owner.account_id), "domain": owner.path}
    return canonical({"principal": envelope.principal, "traceparent": envelope.traceparent} | whose)


def _same(state: JobState | None, fact: JobSubmitted) -> None:
    if state is not None and (state.submitted.command, state.submitted.body) != (fact.command, fact.body):
        raise IdReused(f"the id {fact.job_id} was used for another command", field="id",
                           remedy="a command id may only be sent again with the same body")


def _as_error(failure: Any) -> Failed:
    error = Refused(failure.cause, field=failure.field, remedy=failure.remedy)
    error.failure = failure
    return error
