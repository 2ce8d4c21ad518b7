"""The forwarder: commands of foreign clients, checked at the door, into the partition queues.

Owns the door: JSON, known type, size, a principal for the broker's user, no clear secret. What does not pass is parked with
its reason, and the next message is looked at. Stateless; several may run. Refuses to believe a caller about who it is.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from bus.dead_letters import keep
from bus.envelope import PREFIX, Envelope
from bus.errors import AppendUnknown, BrokerAway, PublishUnknown, StoreAway, Unroutable
from bus.event_store import EventStore
from bus.failpoints import hit
from bus.sealing import clear_secrets, refuse_password_in_url
from bus.submission import submission, submit
from bus.transport import Consumer, Delivery, Transport, WireMessage, commands, work
from schema.codec import decode, encode
from schema.failure import BadParameter, Denied, Failure, Refused
from schema.identity import Owner
from schema.ids import derive, partition
from schema.job import JobFailed
from schema.message import Command

log = logging.getLogger(__name__)

PREFETCH = 256
TRIES = 5
"""How often a message is tried that fails in a way nobody thought of."""
MAX_PAUSE_S = 5.0
STOP_S = 2.0
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Principal(NamedTuple):
    """Who a broker's user is to Storebus."""

    name: str
    tenant: str


Admit = Callable[[str, Command, UUID], Awaitable[Owner]]
"""(broker's validated user, command, job id) -> whose the job is. Raises NotAdmitted."""
Identify = Callable[[str], Principal | None]
"""Broker's validated user -> principal; None: not one of ours."""


def everyone(user: str) -> Principal | None:
    """Every user that the broker let in, under its own name. A message without one says nothing of its sender: nobody."""
    return Principal(user, "root") if user else None


def only(users: Mapping[str, str]) -> Identify:
    """The broker's users named, each with its tenant, and nobody else."""
    return lambda user: Principal(user, users[user]) if user in users else None


class NotAdmitted(Refused):
    """An account may not have its command done: its job ends at once with `failure`. `owner`: the account; None: nobody's."""

    def __init__(self, failure: Failure, owner: Owner | None) -> None:
        super().__init__(failure.cause, field=failure.field, remedy=failure.remedy)
        self.failure, self.owner = failure, owner


class Forwarder:
    """Started and stopped with its process."""

    def __init__(self, store: EventStore, transport: Transport, identify: Identify = everyone,
                 admit: Admit | None = None) -> None:
        """`admit`: asked about each command that passed; what it lets in is accepted here, in its account's name."""
        self.store, self.transport, self.identify, self.admit = store, transport, identify, admit
        self.forwarded = self.parked = 0
        self._consumer: Consumer | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def ready(self) -> bool:
        """Its consumer is registered."""
        return self._consumer is not None and self._consumer.alive

    async def start(self) -> None:
        """Begin to take commands."""
        self._stopping = False
        self._consumer = await self.transport.consume(commands(), self._take, prefetch=PREFETCH)

    async def stop(self) -> None:
        """Take no more; what is in hand is finished (bounded) or comes again."""
        self._stopping = True
        if self._running:
            await asyncio.wait(self._running, timeout=STOP_S)
        if self._consumer is not None:
            await self._consumer.stop()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _take(self, delivery: Delivery) -> None:
        if self._stopping:
            return
        task = asyncio.create_task(self._forward(delivery))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _forward(self, delivery: Delivery) -> None:
        pause, tries = 0.1, 0
        while True:
            try:
                await self._once(delivery)
                return
            except (BrokerAway, PublishUnknown, StoreAway, AppendUnknown, Unroutable) as away:
                log.warning("a command waits at the door: %s", away, extra={"action": "forwarder_waits"})
            except Exception:
                log.exception("a command cannot be forwarded", extra={"action": "forwarder_failed"})
                tries += 1
                if tries >= TRIES:
                    await delivery.reject(requeue=False)
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE_S)

    async def _once(self, delivery: Delivery) -> None:
        message, reason = delivery.message, ""
        try:
            envelope = self.check(message)
        except Refused as refused:
            reason = refused.failure.text
        except Exception as error:  # whatever a stranger's bytes can do to a parser
            reason = f"the message cannot be read: {type(error).__name__}"
        else:
            if self.admit is not None:
                reason = await self._admitted(self.admit, envelope, message.user_id)
                if not reason:
                    self.forwarded += 1
                    await delivery.ack()
                    return
        if not reason:
            await self.transport.publish(work(partition(envelope.key)), WireMessage(
                headers=envelope.headers(), body=envelope.body))
            hit("forwarder.after_publish_before_ack")
            self.forwarded += 1
            await delivery.ack()
            return
        await keep(self.store, headers=message.headers, body=message.body, reason=reason, source="commands")
        self.parked += 1
        log.warning("a command was refused at the door: %s", reason, extra={"action": "command_parked"})
        await delivery.ack()

    async def _admitted(self, admit: Admit, envelope: Envelope, user: str) -> str:
        """Accept the command as its account's job, or as one that ends at once with why not. Else what is wrong with its id."""
        command = decode(envelope.type, envelope.version, envelope.body)
        assert isinstance(command, Command)
        refused: Failure | None = None
        owner: Owner | None = None
        try:
            owner = await admit(user, command, envelope.id)
        except NotAdmitted as no:
            refused, owner = no.failure, no.owner
        request = submission(command, job_id=envelope.id, principal=envelope.principal, tenant=envelope.tenant, owner=owner,
                             kind="command" if refused is None else "event", traceparent=envelope.traceparent)
        if refused is not None:
            end = JobFailed(job_id=envelope.id, failure=refused)
            row = replace(request.rows[0], kind="event", type=end.TYPE, type_version=end.VERSION, payload=encode(end),
                          id=derive(envelope.id, "refused"), causation=envelope.id)
            request = replace(request, rows=(*request.rows, row), set_timers=())
            log.warning("a command was refused at the door: %s", refused.text, extra={"action": "command_refused"})
        try:
            await submit(self.store, request)
        except BadParameter as taken:
            return taken.failure.text
        return ""

    def check(self, message: WireMessage) -> Envelope:
        """The envelope to send on. Raises Refused naming what is wrong."""
        who = self.identify(message.user_id)
        if who is None:
            raise Denied(f"the broker's user {message.user_id[:64]!r} is not mapped to a principal", field="user_id",
                         remedy="map it, or publish as a user that is")
        envelope = Envelope.read(message.headers, message.body)
        command = decode(envelope.type, envelope.version, envelope.body)
        if not isinstance(command, Command):
            raise BadParameter(f"{envelope.type} is not a command", field=f"{PREFIX}type",
                               remedy="`storebus asyncapi` lists the commands")
        body = command.model_dump(mode="json", exclude_none=True)
        clear = clear_secrets(body, command.SECRETS)
        if clear:
            raise Denied("a secret may not travel in a command", field=clear[0],
                         remedy="send it through the API or the command line, which put it into the vault")
        refuse_password_in_url(body)
        # Who it is, where it goes and what it follows are ours to say, whatever the headers said.
        return replace(envelope, kind="command", key=command.key(envelope.id), stream="", stream_version=-1, position=0,
                       replay=False, principal=who.name, tenant=who.tenant, correlation=envelope.id, causation=None,
                       time=_time(envelope.time), traceparent=_traceparent(envelope.traceparent))


def _time(value: str) -> str:
    """The caller's time when it is one; else empty, and the envelope says now."""
    try:
        return datetime.fromisoformat(value).isoformat()
    except ValueError:
        return ""


def _traceparent(value: str) -> str:
    return value if TRACEPARENT.fullmatch(value) else ""
