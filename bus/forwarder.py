"""The forwarder: commands of foreign clients, checked at the door, into the partition queues.

Owns the door: JSON, known type, size, a principal for the broker's user, no clear secret. What does not pass is parked with
its reason, and the next message is looked at. Stateless; several may run. Refuses to believe a caller about who it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from bus.envelope import MAX_BODY, PREFIX, Envelope
from bus.errors import BrokerAway, PublishUnknown, StoreAway
from bus.event_store import EventStore
from bus.failpoints import hit
from bus.sealing import clear_secrets
from bus.transport import Consumer, Delivery, Transport, WireMessage, commands, work
from schema.codec import decode
from schema.failure import BadParameter, Denied, Refused
from schema.ids import partition
from schema.message import Command

log = logging.getLogger(__name__)

PREFETCH = 256


class Principal(NamedTuple):
    """Who a broker's user is to Storebus."""

    name: str
    tenant: str


Identify = Callable[[str], Principal | None]
"""Broker's validated user -> principal; None: not one of ours."""


def everyone(user: str) -> Principal:
    """Every user that the broker let in, under its own name. An empty one is the broker's administrator of this host."""
    return Principal(user or "system", "root")


class Forwarder:
    """Started and stopped with its process."""

    def __init__(self, store: EventStore, transport: Transport, identify: Identify = everyone) -> None:
        self.store, self.transport, self.identify = store, transport, identify
        self._consumer: Consumer | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to take commands."""
        self._consumer = await self.transport.consume(commands(), self._take, prefetch=PREFETCH)

    async def stop(self) -> None:
        """Take no more; what is in hand is finished or comes again."""
        if self._consumer is not None:
            await self._consumer.stop()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _take(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._forward(delivery))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _forward(self, delivery: Delivery) -> None:
        pause = 0.1
        while True:
            try:
                await self._once(delivery)
                return
            except (BrokerAway, PublishUnknown, StoreAway) as away:
                log.warning("a command waits at the door: %s", away, extra={"action": "forwarder_waits"})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    async def _once(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            envelope, key = self.check(message)
        except Refused as refused:
            secret = isinstance(refused, Denied) and refused.failure.field != "user_id"
            await self.store.hold(key="", partition=-1, headers=_safe(message.headers),
                                  body=b"" if secret else message.body[:MAX_BODY], reason=refused.failure.text,
                                  source="commands")
            await delivery.ack()
            return
        await self.transport.publish(work(partition(key)), WireMessage(headers=envelope.headers(), body=envelope.body))
        hit("forwarder.after_publish_before_ack")
        await delivery.ack()

    def check(self, message: WireMessage) -> tuple[Envelope, str]:
        """The envelope to send on, and its key. Raises Refused naming what is wrong."""
        who = self.identify(message.user_id)
        if who is None:
            raise Denied(f"the broker's user {message.user_id!r} is not mapped to a principal", field="user_id",
                         remedy="map it, or publish as a user that is")
        envelope = Envelope.read(message.headers, message.body)
        command = decode(envelope.type, envelope.version, envelope.body)
        if not isinstance(command, Command):
            raise BadParameter(f"{envelope.type} is not a command", field=f"{PREFIX}type",
                               remedy="`storebus asyncapi` lists the commands")
        clear = clear_secrets(command.model_dump(mode="json", exclude_none=True))
        if clear:
            raise Denied("a secret may not travel in a command; its body was not kept", field=clear[0],
                         remedy="send it through the API or the command line, which put it into the vault")
        key = command.key(envelope.id)
        # Who it is, where it goes and what it follows are ours to say, whatever the headers said.
        return replace(envelope, kind="command", key=key, stream="", stream_version=-1, position=0, replay=False,
                       principal=who.name, tenant=who.tenant, correlation=envelope.id), key


def _safe(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers as text, bounded: they come from a stranger."""
    items = list(headers.items())[:64]
    return {str(name)[:128]: str(value)[:1024] for name, value in items}
