"""The agent's runtime: journal the order, ack it, do it, journal the report, send it until it is released.

Owns the life of an order on this host. A delivery is never held through a copy; an order that comes twice is answered with
what became of it, which is how handlers ask; a crash at any line loses nothing: the journal says what to do next. One
process for each agent name on a host, by a lock on its folder. Refuses to know what an order does (`operations`).
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol
from uuid import UUID

from agents.grants import Grants
from agents.journal import DONE, OPEN, REFUSED, Entry, Journal
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
from schema.failure import Failed, Failure, Refused
from schema.ids import derive, partition
from schema.image import PrimarySpec
from schema.message import Message, Order, Report

log = logging.getLogger(__name__)

HELLO_S = 60.0
REMIND_S = 15.0
"""How often a final report that nobody released is sent again."""
MOVER_TRIES = 3


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
    state_dir: Path
    token: bytes
    transfers: int = 4


@dataclass
class AgentRuntime:
    """One agent."""

    config: AgentConfig
    transport: Transport
    worker: Worker
    grants: Grants
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _board: ProgressBoard = field(default_factory=ProgressBoard)

    def __post_init__(self) -> None:
        self._journal = Journal(self.config.state_dir / "journal.db")
        self._slots = asyncio.Semaphore(self.config.transfers)
        self._lock: IO[str] | None = None
        self._consumer: Consumer | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._inbox: asyncio.Queue[Delivery] = asyncio.Queue()

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Lock, resume, say hello, take orders. Raises Refused when this agent runs already."""
        await asyncio.to_thread(self._take_lock)
        for entry in await self._journal.entries():
            if entry.state == OPEN:
                self._begin(_order(entry), entry.payload)
        self._loops = [asyncio.create_task(work(), name=f"agent-{name}") for name, work in (
            ("inbox", self._take_in), ("hello", self._hello), ("remind", self._remind), ("progress", self._tell))]
        self._consumer = await self.transport.consume(agent_address(self.config.name), self._inbox.put, prefetch=32)

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
        tasks = list(self._tasks.values())
        await self.worker.aclose()
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
        match order:
            case ReleaseWork():
                await self._journal.release(str(order.work_id), order.attempt)
                await delivery.ack()
            case CancelWork():
                await self._cancel(order)
                await delivery.ack()
            case Order():
                known = await self._journal.take(order, envelope.body, json.dumps({"key": order.reply_key}))
                hit("agent.after_journal_before_ack")
                await delivery.ack()
                await self._answer(order, envelope.body, known)
            case _:
                raise Refused(f"{envelope.type} is not an order", field="type")

    async def _answer(self, order: Order, payload: bytes, known: Entry | None) -> None:
        """A new order is accepted and begun; one that is known is answered with what became of it."""
        if known is None:
            await self._send(order, WorkAccepted(**_about(order)))
            self._begin(order, payload)
        elif known.attempt > order.attempt:
            log.info("an older attempt came late: %s", order.work_name, extra={"action": "old_attempt"})
        elif known.state == DONE:
            await self._send_kept(known)
        elif known.state == REFUSED:
            await self._send(order, WorkCancelled(**_about(order)))
        else:
            await self._send(order, WorkAccepted(**_about(order)))

    async def _cancel(self, order: CancelWork) -> None:
        work_id = str(order.work_id)
        known = await self._journal.find(work_id)
        if known is None or known.state == REFUSED:
            await self._journal.refuse(work_id, order.attempt, json.dumps({"key": order.reply_key}))
            await self._send(order, WorkCancelled(**_about(order)))
        elif known.state == DONE:
            await self._send_kept(known)
        else:
            await self._journal.cancel(work_id)
            task = self._tasks.get(work_id)
            if task is not None:
                task.cancel()

    # --- work ---------------------------------------------------------------------------------------------------

    def _begin(self, order: Order, payload: bytes) -> None:
        work_id = str(order.work_id)
        before = self._tasks.get(work_id)
        self._tasks[work_id] = task = asyncio.create_task(self._work(order, payload, before), name=f"work-{order.work_name}")
        task.add_done_callback(lambda done: self._tasks.pop(work_id, None) if self._tasks.get(work_id) is done else None)

    async def _work(self, order: Order, payload: bytes, before: asyncio.Task[None] | None) -> None:
        if before is not None:  # an earlier attempt of this work still ends
            before.cancel()
            await asyncio.gather(before, return_exceptions=True)
        try:
            report = await self._done(order, payload)
        except asyncio.CancelledError:
            known = await self._journal.find(str(order.work_id))
            if known is None or not known.cancelled:
                raise  # the agent stops; the journal has it open
            report = WorkCancelled(**_about(order))
        hit("agent.after_work_before_report")
        await asyncio.shield(asyncio.ensure_future(self._finish(order, report)))

    async def _done(self, order: Order, payload: bytes) -> Report:
        known = await self._journal.find(str(order.work_id))
        if known is not None and known.cancelled:
            return await self._clean_cancelled(order, payload)
        async with self._slots:
            self._board.begin(order, asyncio.get_running_loop().time())
            try:
                return await self._try(order, payload)
            except Failed as failed:
                return WorkFailed(**_about(order), failure=failed.failure)
            finally:
                self._board.end(order)

    async def _clean_cancelled(self, order: Order, payload: bytes) -> Report:
        """Cancelled, then this process died: the leftovers of that run are this agent's to remove."""
        from agents.leftovers import cleaning

        clean = cleaning(order)
        if clean is not None:
            await self.worker.run(clean, encode(clean), await self.grants.secrets(order), lambda *_: None)
        return WorkCancelled(**_about(order))

    async def _try(self, order: Order, payload: bytes) -> Report:
        secrets = await self.grants.secrets(order)
        for _ in range(MOVER_TRIES):
            hit("agent.before_work")
            try:
                answer = await self.worker.run(
                    order, payload, secrets, lambda stage, done, total: self._board.update(order, stage, done, total))
            except MoverDied:
                log.warning("the mover died during %s: it is done again", order.TYPE, extra={"action": "mover_died"})
                await asyncio.sleep(0.2)
                continue
            return WorkCompleted(**_about(order), result=answer["result"], bytes=answer["bytes"])
        return WorkFailed(**_about(order), failure=Failure(
            cause=f"the process that moves bytes died {MOVER_TRIES} times", remedy="see the agent's log", retryable=True))

    async def _finish(self, order: Order, report: Report) -> None:
        """Journaled before it is sent: from here on it is sent until it is released."""
        body = encode(report)
        await self._journal.finish(str(order.work_id), report.TYPE, body)
        await self._send(order, report)
        hit("agent.after_report_before_release")

    # --- reports out --------------------------------------------------------------------------------------------

    async def _send(self, order: Order, report: Report) -> None:
        await self._publish(report, encode(report), order.reply_key)

    async def _send_kept(self, entry: Entry) -> None:
        report = decode(entry.report_type, 1, entry.report)
        await self._publish(report, entry.report, json.loads(entry.headers)["key"])

    async def _publish(self, report: Message, body: bytes, key: str) -> None:
        """Send a report; what cannot be sent now is reminded of later, or asked for by the job's timer."""
        work_id = getattr(report, "work_id", None) or self.config.zone_id
        envelope = Envelope(id=derive(work_id, f"{getattr(report, 'attempt', 0)}/{report.TYPE}"), type=report.TYPE, kind="report",
                            body=body, key=key, correlation=getattr(report, "job_id", None))
        try:
            await self.transport.publish(work(partition(key)), WireMessage(headers=envelope.headers(), body=body))
        except (BrokerAway, PublishUnknown, Unroutable) as away:
            log.info("a report waits: %s", away, extra={"action": "report_waits"})

    async def _remind(self) -> None:
        while True:
            await asyncio.sleep(REMIND_S)
            await _shielded(self._remind_once)

    async def _remind_once(self) -> None:
        for entry in await self._journal.entries():
            if entry.state == DONE:
                await self._send_kept(entry)

    async def _hello(self) -> None:
        config = self.config
        hello = AgentHello(
            agent=config.name, zone_id=config.zone_id, roles=list(config.roles), hypervisor=config.hypervisor,
            providers=list(config.providers), primaries=list(config.primaries), public_key=self.grants.public_key,
            proof=self.grants.proof(config.token))
        pause = 0.5
        while True:  # often at first: handlers may start after agents
            await _shielded(lambda: self._publish(hello, encode(hello), f"agent-{config.name}"))
            await asyncio.sleep(pause)
            pause = min(pause * 2, HELLO_S)

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


def _about(order: Order) -> dict[str, Any]:
    return {"job_id": order.job_id, "work_id": order.work_id, "attempt": order.attempt, "agent": order.agent}


def _order(entry: Entry) -> Order:
    order = decode(entry.type, 1, entry.payload)
    assert isinstance(order, Order)
    return order
