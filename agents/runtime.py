"""The agent's runtime: journal the order, ack it, do it, journal the report, send it until it is released.

Owns the life of an order on this host. A delivery is never held through a copy; an order that comes twice is answered with
what became of it, which is how handlers ask; a crash at any line loses nothing: the journal says what to do next. One
process for each agent name on a host, by a lock on its folder. Refuses to know what an order does (`operations`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol
from uuid import UUID

from agents import transfer_record
from agents.census import Census, Found
from agents.grants import Grants
from agents.journal import DONE, OPEN, REFUSED, RELEASED, Entry, Journal
from agents.leftovers import cleaning
from agents.mover import MoverDied
from agents.progress import ProgressBoard
from bus.envelope import Envelope
from bus.errors import BrokerAway, PublishUnknown, Unroutable
from bus.failpoints import hit
from bus.transport import Consumer, Delivery, Transport, WireMessage, work
from bus.transport import agent as agent_address
from bus.transport import progress as progress_address
from schema.agent import AgentHello, CancelWork, ProviderSpec, ReleaseWork, WorkAccepted, WorkCancelled, WorkCompleted, WorkFailed
from schema.codec import decode, encode
from schema.failure import Failed, Failure, Refused, WorkRetryable
from schema.ids import derive, partition
from schema.image import PrimarySpec
from schema.message import Message, Order, Report
from schema.motion import MotionSpec
from schema.version import installed_version

log = logging.getLogger(__name__)

HELLO_S = 60.0
REMIND_S = 15.0
"""How often a final report that nobody released is sent again."""
MOVER_TRIES = 3
PREFETCH = 32
CLEAN_PAUSES_S = (0.5, 1.0, 2.0)
"""Between tries to clean up after a run; then its report says that something remains, and the log sees to that."""


class Worker(Protocol):
    """Does one order: agents.mover.Mover, or a stand-in of tests."""

    async def run(self, order: Order, payload: bytes, secrets: Mapping[str, str],
                  on_progress: Callable[[str, int, int], None]) -> dict[str, Any]:
        """{"result": ..., "bytes": n}; raises Failed, MoverDied."""

    async def aclose(self) -> None:
        """Stop at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What an agent is."""

    name: str
    zone_id: UUID
    roles: tuple[str, ...]
    hypervisor: str = ""
    providers: tuple[ProviderSpec, ...] = ()
    primaries: tuple[PrimarySpec, ...] = ()
    motions: tuple[MotionSpec, ...] = ()
    """See agents.motion.registry.announced."""
    state_dir: Path
    token: bytes
    transfers: int = 4

    @property
    def records(self) -> Path:
        """Folder of the records by which the mover resumes transfers."""
        return self.state_dir / "transfers"


@dataclass(eq=False)
class _Run:
    """One attempt that is being done, and what was asked of it meanwhile."""

    order: Order
    payload: bytes
    cancelled: bool = False
    """Somebody asked it to stop; it reports that it did, or that it had ended before."""
    superseded: bool = False
    """A later attempt waits for its end; nobody waits for its report."""
    dirty: bool = False
    """A run of it was cut off and may have left something."""
    finishing: bool = False
    """The work is over and its report is being written: too late to stop."""
    task: asyncio.Task[None] | None = None

    def stop(self, *, cancelled: bool = False) -> None:
        """Interrupt it, once: a second interruption would hit the cleaning."""
        asked = self.cancelled or self.superseded
        self.cancelled, self.superseded = self.cancelled or cancelled, self.superseded or not cancelled
        if not asked and not self.finishing and self.task is not None:
            self.task.cancel()

    async def ended(self) -> None:
        """Wait for its end, also when the waiting one is itself asked to stop. Bounded by the mover's patience."""
        assert self.task is not None
        try:
            await asyncio.wait([self.task])
        except asyncio.CancelledError:
            await asyncio.wait([self.task])
            raise


@dataclass
class AgentRuntime:
    """One agent."""

    config: AgentConfig
    transport: Transport
    worker: Worker
    grants: Grants
    census: Census | None = None
    """Asked at each hello; None: what the configuration says is all."""
    _runs: dict[str, _Run] = field(default_factory=dict)
    _board: ProgressBoard = field(default_factory=ProgressBoard)

    def __post_init__(self) -> None:
        self._journal = Journal(self.config.state_dir / "orders.db")
        self._slots = asyncio.Semaphore(self.config.transfers)
        self._lock: IO[str] | None = None
        self._consumer: Consumer | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        """Of all runs, those too whose place in `_runs` a later attempt has taken."""
        self._stopping = False
        self._news = asyncio.Event()
        self._inbox: asyncio.Queue[Delivery] = asyncio.Queue(maxsize=4 * PREFETCH)

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Lock, resume, say hello, take orders. Raises Refused when this agent runs already."""
        await asyncio.to_thread(self._take_lock)
        opened = await self._journal.entries(OPEN)
        await asyncio.to_thread(transfer_record.sweep, self.config.records, {f"{one.work_id}.{one.attempt}" for one in opened})
        for entry in opened:
            self._begin(_Run(_order(entry), entry.payload, cancelled=entry.cancelled, dirty=True))
        self._loops = [asyncio.create_task(loop(), name=f"agent-{name}") for name, loop in (
            ("inbox", self._take_in), ("hello", self._hello), ("remind", self._remind), ("progress", self._tell))]
        self._consumer = await self.transport.consume(agent_address(self.config.name), self._inbox.put, prefetch=PREFETCH)

    def _take_lock(self) -> None:
        self.config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = (self.config.state_dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(f"the agent {self.config.name} runs already on this host", field="STOREBUS_AGENT_NAME",
                          remedy="give this one another name") from None

    async def stop(self) -> None:
        """Stop. What is being done stays open in the journal and is done again at the next start."""
        if self._consumer is not None:
            await self._consumer.stop()
        for loop in self._loops:
            loop.cancel()
        self._stopping = True
        await self.worker.aclose()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*self._loops, *tasks, return_exceptions=True)
        await self.grants.aclose()
        await asyncio.to_thread(self._journal.close)
        if self._lock is not None:
            self._lock.close()

    # --- orders in ----------------------------------------------------------------------------------------------

    async def _take_in(self) -> None:
        while True:
            delivery = await self._inbox.get()
            try:
                await self._take(delivery)
            except Refused as refused:
                log.error("an order was not understood: %s", refused, extra={"action": "order_refused"})
                await delivery.reject(requeue=False)
            except Exception:
                log.exception("an order could not be journaled", extra={"action": "journal_failed"})
                await asyncio.sleep(1.0)
                await delivery.reject(requeue=True)

    async def _take(self, delivery: Delivery) -> None:
        envelope = Envelope.read(delivery.message.headers, delivery.message.body)
        order = decode(envelope.type, envelope.version, envelope.body)
        if not isinstance(order, Order):
            raise Refused(f"{envelope.type} is not an order", field="type")
        if order.agent != self.config.name:
            raise Refused(f"the order is for the agent {order.agent}", field="agent")
        match order:
            case ReleaseWork():
                await self._journal.release(str(order.work_id), order.attempt)
                await delivery.ack()
            case CancelWork():
                known = await self._journal.cancel(order)
                await delivery.ack()
                await self._cancel(order, known)
            case _:
                before = await self._journal.take(order, envelope.body)
                hit("agent.after_journal_before_ack")
                await delivery.ack()
                if before is None:
                    self._begin(_Run(order, envelope.body))
                else:
                    await self._answer(order, envelope.body, before)

    async def _answer(self, order: Order, payload: bytes, known: Entry) -> None:
        """An order that is known is answered with what became of it."""
        if known.attempt > order.attempt or known.state == RELEASED:
            log.info("an order came late: %s", order.work_name, extra={"action": "late_order"})
        elif known.state == DONE:
            await self._send_kept(known)
        elif known.state == REFUSED:
            await self._send(order, WorkCancelled(**_about(order)))
        elif known.work_id in self._runs:
            await self._send(order, WorkAccepted(**_about(order)))
        else:  # journaled, but what came between kept it from being begun
            self._begin(_Run(order, payload, cancelled=known.cancelled, dirty=True))

    async def _cancel(self, order: CancelWork, known: Entry) -> None:
        """`known` is the journal's word after it was told to stop this attempt."""
        run = self._runs.get(known.work_id)
        if known.attempt > order.attempt or known.state == RELEASED:
            log.info("a cancel came late: %s", order.work_name, extra={"action": "late_cancel"})
        elif known.state == DONE:
            await self._send_kept(known)
        elif known.state == OPEN:
            if run is None:
                self._begin(_Run(_order(known), known.payload, cancelled=True, dirty=True))
            else:
                run.stop(cancelled=True)  # it reports when its bytes have stopped
        else:
            if run is not None:
                run.stop()  # an earlier attempt
            await self._send(order, WorkCancelled(**_about(order)))

    # --- work ---------------------------------------------------------------------------------------------------

    def _begin(self, run: _Run) -> None:
        work_id = str(run.order.work_id)
        before = self._runs.get(work_id)
        self._runs[work_id] = run
        run.task = asyncio.create_task(self._work(run, before), name=f"work-{run.order.work_name}")
        self._tasks.add(run.task)
        run.task.add_done_callback(self._tasks.discard)
        run.task.add_done_callback(lambda _: self._runs.pop(work_id) if self._runs.get(work_id) is run else None)

    async def _work(self, run: _Run, before: _Run | None) -> None:
        order = run.order
        try:
            report = await self._done(run, before)
        except asyncio.CancelledError:
            if self._stopping or not (run.cancelled or run.superseded):
                raise  # the agent stops; the journal has it open
            _uncancelled()
            report = WorkCancelled(**_about(order))
        except Failed as failed:
            report = WorkFailed(**_about(order), failure=failed.failure)
        except Exception as error:
            log.exception("work ended in a way that nobody foresaw", extra={"action": "work_broke"})
            report = WorkFailed(**_about(order), failure=Failure(
                cause=f"internal error: {type(error).__name__}", remedy="see the agent's log"))
        if not isinstance(report, WorkCompleted) and (run.dirty or (isinstance(report, WorkFailed) and report.failure.remains)):
            report = await self._clean(run, report)
        run.finishing = True
        hit("agent.after_work_before_report")
        await self._finish(order, report)

    async def _done(self, run: _Run, before: _Run | None) -> Report:
        order = run.order
        if before is not None:  # an earlier attempt of this work still ends: its bytes stop first
            before.stop()
            await before.ended()
        if run.cancelled:
            return WorkCancelled(**_about(order))
        await self._send(order, WorkAccepted(**_about(order)))
        async with self._slots:
            self._board.begin(order, asyncio.get_running_loop().time())
            completed = False
            try:
                secrets = await self.grants.secrets(order)
                answer = await self._try(run, order, run.payload, secrets)
                completed = True
            finally:
                self._board.end(order, completed=completed)
        return WorkCompleted(**_about(order), result=answer["result"], bytes=answer["bytes"])

    async def _try(self, run: _Run, order: Order, payload: bytes, secrets: Mapping[str, str]) -> dict[str, Any]:
        """Let the mover do an order, again when it dies of it. Raises Failed, CancelledError when it was stopped."""
        deaths = 0
        while deaths < MOVER_TRIES:
            hit("agent.before_work")
            try:
                return await self.worker.run(
                    order, payload, secrets, lambda stage, done, total: self._board.update(order, stage, done, total))
            except MoverDied as died:
                run.dirty = True
                if order is run.order and (run.cancelled or run.superseded):
                    raise asyncio.CancelledError from None
                deaths += not died.deliberate
                log.warning("the mover died during %s", order.TYPE, extra={"action": "mover_died"})
                await asyncio.sleep(0.2)
        raise WorkRetryable(f"the process that moves bytes died {MOVER_TRIES} times", remedy="see the agent's log")

    async def _clean(self, run: _Run, report: Report) -> Report:
        """Remove what a run that was cut off may have left: it had no chance to do so itself. The report to give then."""
        order = cleaning(run.order)
        if order is None:
            return report
        failure = Failure(cause="it was not tried")
        for pause in CLEAN_PAUSES_S:
            try:
                await self._try(run, order, encode(order), await self.grants.secrets(order))
                return _cleaned(run, report)
            except Failed as failed:
                failure = failed.failure
                log.warning("what an interrupted run left is not removed yet: %s", failure.cause, extra={"action": "clean_waits"})
                await asyncio.sleep(pause)
        said = report.failure if isinstance(report, WorkFailed) else Failure(cause="the work was stopped")
        return WorkFailed(**_about(run.order), failure=said.model_copy(update={
            "cause": f"{said.cause}. What it left could not be removed yet: {failure.cause}", "remains": True}))

    async def _finish(self, order: Order, report: Report) -> None:
        """Journaled before it is sent: from here on it is sent until it is released."""
        body = encode(report)
        while True:
            try:
                wanted = await self._journal.finish(order, report.TYPE, body)
                break
            except sqlite3.Error:  # a full disk: nothing may be said that a restart would not know
                log.exception("a report could not be journaled", extra={"action": "journal_failed"})
                await asyncio.sleep(1.0)
        with contextlib.suppress(OSError):  # the next start sweeps
            await asyncio.to_thread(transfer_record.forget, self.config.records, order.work_name)
        if wanted:
            await self._send(order, report)
        hit("agent.after_report_before_release")

    # --- reports out --------------------------------------------------------------------------------------------

    async def _send(self, order: Order, report: Report) -> None:
        await self._publish(report, encode(report), order.reply_key)

    async def _send_kept(self, entry: Entry) -> None:
        await self._publish(decode(entry.report_type, 1, entry.report), entry.report, entry.reply_key)

    async def _publish(self, report: Message, body: bytes, key: str) -> None:
        """Send a report; what cannot be sent now is reminded of later, or asked for by the job's timer."""
        about = report if isinstance(report, Report) else None
        named = derive(about.work_id, f"{about.attempt}/{report.TYPE}") if about else derive(self.config.zone_id, key)
        envelope = Envelope(id=named, type=report.TYPE, version=report.VERSION, kind="report", body=body, key=key,
                            correlation=about.job_id if about else None)
        try:
            await self.transport.publish(work(partition(key)), WireMessage(headers=envelope.headers(), body=body))
        except (BrokerAway, PublishUnknown, Unroutable) as away:
            log.info("a report waits: %s", away, extra={"action": "report_waits"})

    async def _remind(self) -> None:
        while True:  # at once: what an earlier process of this agent had to say comes first
            await _shielded(self._remind_once)
            await asyncio.sleep(REMIND_S)

    async def _remind_once(self) -> None:
        for entry in await self._journal.entries(DONE):
            await self._send_kept(entry)

    async def _hello(self) -> None:
        pause = 0.5
        while True:  # often at first: handlers may start after agents
            self._news.clear()
            await _shielded(self._hello_once)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), pause)
            pause = min(pause * 2, HELLO_S)

    async def _hello_once(self) -> None:
        config = self.config
        found = await self.census.take() if self.census is not None else Found(primaries=list(config.primaries), usage=[])
        hello = AgentHello(
            agent=config.name, zone_id=config.zone_id, roles=list(config.roles), hypervisor=config.hypervisor,
            providers=list(config.providers), primaries=found.primaries, public_key=self.grants.public_key,
            proof=self.grants.proof(config.token), motions=list(config.motions), usage=found.usage, machines=found.machines,
            version=installed_version())
        await self._publish(hello, encode(hello), f"agent-{config.name}")

    def tell_news(self) -> None:
        """Something that the census finds has changed: the next hello is now."""
        self._news.set()

    async def _tell(self) -> None:
        """One message a second with the progress of everything."""
        while True:
            await asyncio.sleep(1.0)
            told = self._board.tick(asyncio.get_running_loop().time())
            if not told:
                continue
            body = json.dumps([one.model_dump(mode="json", exclude_none=True) for one in told]).encode()
            message = WireMessage(headers={}, body=body, expiration_s=5.0)
            try:
                await self.transport.publish(progress_address(), message)
            except (BrokerAway, PublishUnknown, Unroutable):
                continue  # the next one says it all


async def _shielded(call: Callable[[], Awaitable[None]]) -> None:
    """Run something that is repeated anyway; a failure is logged and waits for the next time."""
    try:
        await call()
    except Exception:
        log.exception("it is tried again later", extra={"action": "agent_loop_failed"})


def _uncancelled() -> None:
    """This task was interrupted and goes on: what it awaits from here on must not take it for cancelled."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def _cleaned(run: _Run, report: Report) -> Report:
    """The report of a run after which nothing remains any more."""
    if not isinstance(report, WorkFailed) or not report.failure.remains:
        return report
    if run.cancelled:
        return WorkCancelled(**_about(run.order))
    return WorkFailed(**_about(run.order), failure=report.failure.model_copy(update={"remains": False}))


def _about(order: Order) -> dict[str, Any]:
    return {"job_id": order.job_id, "work_id": order.work_id, "attempt": order.attempt, "agent": order.agent}


def _order(entry: Entry) -> Order:
    order = decode(entry.type, entry.version, entry.payload)
    assert isinstance(order, Order)
    return order
