"""What a decision is made of. Pure: no clock, no random ids, no I/O; time and ids arrive in the message.

Owns Context (what a decider may see, and where it writes what it decides), Step and Flow (a job as a literal table of
steps, each with its undo). Refuses to know how streams are loaded or appended: that is `runtime`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from bus.event_store import Claim, CounterChange, Timer
from bus.submission import job_stream
from handlers import quota
from handlers.directory import Directory
from handlers.survey import Survey
from schema.failure import Failed, Failure
from schema.identity import ROOT_OWNER, Owner
from schema.ids import derive
from schema.message import Command, Event, Order
from schema.motion import MotionPlan


class State(Protocol):
    """The fold of one stream. `None` stands for a stream that does not exist."""


Evolve = Callable[[Any, Event], Any]
"""(state or None, event) -> state. Pure; raises IllegalTransition naming both."""


class IllegalTransition(Failed):
    """An event that the state does not allow: the log or the decider is wrong, so the stream stops here."""

    def __init__(self, state: str, event: Event) -> None:
        super().__init__(f"{event.TYPE} is not possible in state {state}")


@dataclass(slots=True)
class Decision:
    """What one message led to, in the order it goes into the log."""

    rows: list[tuple[str, Event | Order]] = field(default_factory=list)
    """(stream, message)"""
    submissions: list[tuple[UUID, Command]] = field(default_factory=list)
    """Jobs that this decision starts: (job id, command)."""
    take: list[Claim] = field(default_factory=list)
    release: list[Claim] = field(default_factory=list)
    counters: list[CounterChange] = field(default_factory=list)
    refusals: dict[str, Failed] = field(default_factory=dict)
    """Claim or counter name -> what to tell the caller when it cannot be had."""
    set_timers: list[tuple[str, float]] = field(default_factory=list)
    """(timer id, seconds from now)"""
    timers: list[Timer] = field(default_factory=list)
    """Timers that are no job's."""
    clear_timers: list[str] = field(default_factory=list)
    waits_s: float = 0.0
    """The command cannot start yet: its job stays submitted, and is looked at again after so many seconds. What was emitted says
    what it waits for."""


@dataclass(slots=True, kw_only=True)
class Context:
    """One decision: what is known, and what is decided so far. `evolve` runs on each emitted event, so later lines of
    the same decision see its effect."""

    job_id: UUID
    command: Command
    states: dict[str, Any]
    """Stream -> its state (None: does not exist). Exactly the streams that the decision declared."""
    directory: Directory
    evolve: Mapping[str, Evolve]
    """Noun -> evolve"""
    installation: str
    limits: Limits
    survey: Survey = field(default_factory=Survey)
    """What rests in the image stores: up to date for a flow that `Surveying` marks, else empty or old."""
    vault_key: str = ""
    """Base64 key to which an agent seals a secret that it makes; empty: no vault is here."""
    asked_for: Owner | None = None
    """Whose what it makes would be, where there is no job yet: a command that is only tried."""
    out: Decision = field(default_factory=Decision)

    @property
    def owner(self) -> Owner:
        """The account that what this job makes belongs to."""
        job = self.states.get(job_stream(self.job_id))
        return (job.submitted.owner if job is not None else self.asked_for) or ROOT_OWNER

    def new_id(self, role: str) -> UUID:
        """The id of the thing that plays `role` in this job: the same at each retry."""
        return derive(self.job_id, role)

    def state(self, stream: str) -> Any:
        """The state of a declared stream."""
        return self.states[stream]

    def planned(self, step: str) -> MotionPlan:
        """How the bytes of a step of this job move: decided before its first order, and recorded."""
        plan: MotionPlan = self.states[job_stream(self.job_id)].plans[step]
        return plan

    def emit(self, stream: str, event: Event) -> None:
        """Decide that `event` happened in `stream`."""
        noun = stream.split("-", 1)[0]
        before = self.states[stream]
        after = self.states[stream] = self.evolve[noun](before, event)
        for resource, delta, owner in quota.changes(noun, before, after):
            self.count(quota.counter(owner.account_id, resource), delta,
                       otherwise=quota.reached(owner, resource) if delta > 0 else None)
        self.out.rows.append((stream, event))

    def order(self, stream: str, order: Order) -> None:
        """Decide that an agent is to do something."""
        self.out.rows.append((stream, order))

    def claim(self, name: str, value: str, otherwise: Failed) -> None:
        """Take a name; if somebody holds another value of it, the command is refused with `otherwise`."""
        self.out.take.append(Claim(name=name, value=value, holder=str(self.job_id)))
        self.out.refusals[name] = otherwise

    def unclaim(self, name: str, value: str, holder: UUID) -> None:
        """Give a name back."""
        self.out.release.append(Claim(name=name, value=value, holder=str(holder)))

    def count(self, name: str, delta: int = 0, *, ceiling: int | None = None, lift: bool = False,
              otherwise: Failed | None = None) -> None:
        """Change a counter; if it does not fit, the command is refused with `otherwise`."""
        self.out.counters.append(CounterChange(name=name, delta=delta, ceiling=ceiling, lift_ceiling=lift))
        if otherwise is not None:
            self.out.refusals[name] = otherwise


ACCOUNT_LIMITS = {"volume": 20, "snapshot": 20, "template": 20, "primary_storage": 200 << 30, "secondary_storage": 400 << 30}
"""CloudStack's defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Ceilings that come from settings."""

    max_image_bytes: int = 50 << 30
    max_virtual_size: int = 2000 << 30
    max_volume_gib: int = 2000
    volume_expunge_delay_s: int = 86_400
    """Seconds for which a destroyed volume can be recovered."""
    link_lifetime_s: int = 14_400
    """Seconds for which a URL of an extraction is good, where nobody says so."""
    max_chain: int = 8
    """Links of a chain of incremental snapshots, the full one among them; 1: every backup is full."""
    collapse_percent: int = 10
    """Hidden snapshots are merged when so much of the bytes that are moved may be given back; 0: always, 100: never."""
    public_templates: bool = True
    """Accounts outside of ROOT may make their templates public."""
    account: Mapping[str, int] = field(default_factory=lambda: dict(ACCOUNT_LIMITS))
    """Resource (see `quota.RESOURCES`) -> how much of it a new account may hold; what is not named has no limit."""
    compression: str = ""
    """How full backups are compressed: zstd, or empty for not at all."""


OrderMaker = Callable[[Context, UUID, int], "Order | None"]
"""(context, work id, attempt) -> the order, or None when there is nothing to do."""
PlanMaker = Callable[[Context], "MotionPlan | None"]
"""context -> how the step's bytes will move, or None when it moves none. Raises planner.NoMotion."""
Leaves = Callable[[Context, int], "tuple[UUID, str] | None"]
"""(context, attempt) -> the image store and the object's key that the attempt writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One order of a flow."""

    name: str
    order: OrderMaker
    done: Callable[[Context, Mapping[str, Any]], None] = lambda context, result: None
    """Its result becomes events."""
    plan: PlanMaker = lambda context: None
    """How its bytes move. A flow whose step has one asks it in `start` too, so that what cannot be is refused there."""
    undo: OrderMaker = lambda context, work_id, attempt: None
    """Takes back what a completed step did; given this step's own undo work id."""
    final: bool = False
    """Once it is done the job has succeeded: a cancel that was asked for meanwhile came too late, since nothing takes it back."""
    undo_always: bool = False
    """Its undo runs even when the step itself did not complete in this job."""
    attempts: int = 5
    """How often a retryable failure is tried in all: half a minute in which a store or a broker may start again."""
    leaves: Leaves = lambda context, attempt: None
    """Where an attempt may leave something behind when its store is away."""


@runtime_checkable
class Following(Protocol):
    """A flow that must see streams which only other streams name (the snapshots that a snapshot is built on)."""

    def follow(self, command: Any, states: Mapping[str, Any]) -> list[str]:
        """Streams that what is loaded names; asked again with them, until nothing new is named."""


@runtime_checkable
class Surveying(Protocol):
    """A flow that must know what rests in the image stores."""

    @property
    def surveys(self) -> bool:
        """True."""


@runtime_checkable
class Varying(Protocol):
    """A flow whose steps follow from what it is about: a copy for each of several zones. Once its job has started they stay the
    same, but for steps at the end that have become needless."""

    def steps_of(self, context: Context) -> tuple[Step, ...]:
        """The orders, first to last; asked after `start`."""


@runtime_checkable
class Telling(Protocol):
    """A flow that says more about its failure than its cause: what of it was done and stays."""

    def told(self, context: Context, failure: Failure) -> Failure:
        """The failure as it is told. Asked before `fail`."""


def steps_of(flow: Flow, context: Context) -> tuple[Step, ...]:
    """The steps of a flow in this job."""
    return flow.steps_of(context) if isinstance(flow, Varying) else flow.steps


class Flow(Protocol):
    """A command's life as a table. Everything is given by the context; nothing is remembered here."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The orders, first to last."""

    @property
    def subject(self) -> str:
        """The noun that the job is about."""

    @property
    def placed(self) -> bool:
        """True when it chooses a store, an agent or a primary store: the directory is brought up to date first."""

    @property
    def cancellable(self) -> bool:
        """Whether it can be stopped."""

    def streams(self, job_id: UUID, command: Any) -> list[str]:
        """Every stream that a decision about this job reads or writes, besides the job's own."""

    def start(self, context: Context) -> None:
        """Check, and emit what exists from here on. Raises Refused naming field, cause, remedy: nothing is written."""

    def finish(self, context: Context) -> dict[str, Any]:
        """All steps are done: emit the end, return the job's result."""

    def fail(self, context: Context, failure: Failure) -> None:
        """Everything was undone: emit the end of what `start` made."""
