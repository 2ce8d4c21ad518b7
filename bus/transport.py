"""The transport's contract: how messages move. Implementations: `transport_rabbit`, `transport_memory`.

Owns addresses and deliveries and what is true after each call. Refuses to know what a message says. One contract
suite runs on both implementations: `tests/contract/test_transport.py`.

Semantics that both keep: publish returns once the message is safe (confirmed); a delivery that is not acked comes again
after its consumer is gone, with `redelivered` set; at most `prefetch` deliveries of one consumer are unacked; one
partition queue has one active consumer at a time and keeps its order; a message rejected with requeue comes again at
its place and counts as a delivery; over the delivery limit it is a dead letter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from bus.errors import Unroutable


@dataclass(frozen=True, slots=True)
class Address:
    """Where to publish, or what to consume. Made by the functions below."""

    kind: str
    """work, agent, commands, events, progress, queue, call, reply, dead, lost"""
    name: str = ""


def work(partition: int) -> Address:
    """A partition queue: commands, reports and timers of the keys that fall there."""
    return Address("work", f"{partition:02d}")


def agent(name: str) -> Address:
    """An agent's order queue."""
    return Address("agent", name)


def commands(routing_key: str = "") -> Address:
    """The public exchange for commands: publish with `<noun>.<command>`; consume (no name) as the forwarder."""
    return Address("commands", routing_key)


def events(routing_key: str) -> Address:
    """The public event exchange. Publish: `<noun>.<event>.<tenant>`. Consume: a topic pattern; a bounded private queue."""
    return Address("events", routing_key)


def cloudstack(routing_key: str) -> Address:
    """CloudStack's own event exchange, for who listens to it already: published to only."""
    return Address("cloudstack", routing_key)


def progress() -> Address:
    """Transient progress of all agents."""
    return Address("progress")


def queue(name: str) -> Address:
    """A named durable queue (the target of a replay); declared when first used, kept 24 h without consumers."""
    return Address("queue", name)


def call(service: str) -> Address:
    """Requests to a service of `bus.call`; transient."""
    return Address("call", service)


def reply(name: str) -> Address:
    """A caller's private, transient reply queue."""
    return Address("reply", name)


def dead() -> Address:
    """Dead letters of the broker: over the delivery limit."""
    return Address("dead")


def lost() -> Address:
    """What full subscriber queues dropped; its depth is the count (bounded)."""
    return Address("lost")


@dataclass(frozen=True, slots=True, kw_only=True)
class WireMessage:
    """Headers and body. `user_id` is the broker's validated user, only ever set on what was received."""

    headers: Mapping[str, str]
    body: bytes
    user_id: str = ""
    reply_to: str = ""
    correlation_id: str = ""
    expiration_s: float | None = None
    routing_key: str = ""
    """As received."""


KEY_MAX, HEADERS_MAX = 200, 64 * 1024
"""Bytes of an address's name, and of all headers: AMQP carries each in one piece."""


def check_fits(to: Address, message: WireMessage) -> None:
    """Raises Unroutable for what no broker could carry; it would take the connection down and harm others."""
    if len(to.name.encode()) > KEY_MAX:
        raise Unroutable(f"the name of an address has at most {KEY_MAX} bytes", field="name")
    if sum(map(len, message.headers.values())) > HEADERS_MAX:
        raise Unroutable(f"the headers of a message have at most {HEADERS_MAX} bytes", field="headers")


@dataclass(slots=True)
class Delivery:
    """One message handed to one consumer. Exactly one of ack and reject is called, once; late calls do nothing."""

    message: WireMessage
    redelivered: bool
    attempt: int
    """1 for the first delivery."""
    _settle: Callable[[str], Awaitable[None]] = field(repr=False)

    async def ack(self) -> None:
        """It is handled (or safely kept elsewhere); forget it."""
        await self._settle("ack")

    async def reject(self, *, requeue: bool) -> None:
        """Not handled: bring it again, or (requeue=False) make it a dead letter."""
        await self._settle("requeue" if requeue else "dead")


OnDelivery = Callable[[Delivery], Awaitable[None]]
"""Called for one delivery after another of a consumer, in order, without waiting for the one before to be settled:
it must only take the message in (put it on a queue). It must not raise."""


class Consumer(Protocol):
    """A running consumer, kept alive by the transport through reconnects until it is stopped."""

    async def stop(self) -> None:
        """Take no more; unsettled deliveries come again elsewhere."""

    @property
    def alive(self) -> bool:
        """True while the broker has this consumer registered (readiness)."""


class Transport(Protocol):
    """Publish and consume. Raises BrokerAway, PublishUnknown, Unroutable."""

    durable: bool
    """True when messages survive this process (RabbitMQ); False for memory."""

    async def start(self) -> None:
        """Connect and declare the topology; bounded, raises BrokerAway."""

    async def publish(self, to: Address, message: WireMessage) -> None:
        """Returns once the broker has it safe. Many may be in flight; each call waits for its own confirm only."""

    async def send(self, to: Address, message: WireMessage) -> asyncio.Future[None]:
        """Hand it over without waiting for the confirm, which is the future: for one who sends many, in their order.

        Waits for room only. What the future raises is the caller's to see to, a lost queue (Unroutable) too: `publish` mends it.
        """

    async def consume(self, source: Address, on_delivery: OnDelivery, *, prefetch: int = 64) -> Consumer:
        """Start a consumer. For `work` and `agent` single-active; for `events` and `reply` a private queue."""

    async def depth(self, source: Address) -> int:
        """Messages waiting, as far as the broker says (it may lag); for metrics and for people."""

    @property
    def healthy(self) -> bool:
        """Connected, and every consumer of this process registered."""

    async def aclose(self) -> None:
        """Stop consumers, wait for confirms (bounded), disconnect."""
