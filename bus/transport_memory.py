"""The transport in one process: the same promises as RabbitMQ's, except that nothing survives the process.

Owns queues, unacked deliveries and the delivery limit. Refuses to reorder: a message that is rejected comes again at its
place. `Faults` is for tests: seeded duplicates, redeliveries and confirms that never come.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import count

from bus.errors import BrokerAway, PublishUnknown, Unroutable
from bus.patterns import matches
from bus.transport import Address, Consumer, Delivery, OnDelivery, WireMessage

DELIVERY_LIMIT = 1000
EVENTS_MAX = 10_000
"""Messages that a subscriber of events may lag behind; older ones are dropped and counted."""
SINGLE_ACTIVE = ("work", "agent", "commands", "dead")
PRIVATE = ("events", "progress")
"""Each consumer has a queue of its own."""


@dataclass
class Faults:
    """Seeded misbehaviour, for tests."""

    seed: int = 0
    duplicate: float = 0.0
    """Share of publishes that arrive twice."""
    lose_confirm: float = 0.0
    """Share of publishes that arrive and whose confirm does not."""

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)  # noqa: S311 - reproducible faults, no secret


@dataclass(slots=True)
class _Message:
    tag: int
    message: WireMessage
    attempts: int = 0


@dataclass
class _Queue:
    name: str
    bound: int = 0
    """Most messages; 0: no bound."""
    ready: deque[_Message] = field(default_factory=deque)
    consumers: list[_Consumer] = field(default_factory=list)
    lost: int = 0

    def put(self, message: _Message) -> None:
        self.ready.append(message)
        if self.bound and len(self.ready) > self.bound:
            self.ready.popleft()
            self.lost += 1

    def put_back(self, messages: list[_Message]) -> None:
        """At their place: by the order in which they came."""
        self.ready = deque(sorted([*messages, *self.ready], key=lambda m: m.tag))


class _Consumer:
    def __init__(self, owner: MemoryTransport, queue: _Queue, on_delivery: OnDelivery, prefetch: int,
                 private: bool) -> None:
        self.owner, self.queue, self.on_delivery, self.prefetch, self.private = owner, queue, on_delivery, prefetch, private
        self.unacked: dict[int, _Message] = {}
        self.stopped = False

    @property
    def alive(self) -> bool:
        """See Consumer."""
        return not self.stopped

    async def stop(self) -> None:
        """See Consumer."""
        if self.stopped:
            return
        self.stopped = True
        self.queue.consumers.remove(self)
        self.queue.put_back(list(self.unacked.values()))
        self.unacked.clear()
        if self.private and not self.queue.consumers:
            self.owner.forget(self.queue)
        else:
            self.owner.turn(self.queue)

    async def settle(self, message: _Message, how: str) -> None:
        """Ack, requeue or dead-letter; late calls do nothing."""
        if self.unacked.pop(message.tag, None) is None:
            return
        if how == "requeue" and message.attempts < DELIVERY_LIMIT:
            self.queue.put_back([message])
        elif how != "ack":
            reason = "rejected" if how == "dead" else "delivery_limit"
            headers = {**message.message.headers, "x-first-death-reason": reason, "x-first-death-queue": self.queue.name}
            self.owner.queue("dead").put(replace_tag(message, self.owner.next_tag(), headers))
            self.owner.turn(self.owner.queue("dead"))
        self.owner.turn(self.queue)


def replace_tag(message: _Message, tag: int, headers: dict[str, str]) -> _Message:
    """The message as it enters another queue."""
    return _Message(tag, replace(message.message, headers=headers))


class MemoryTransport:
    """See bus.transport.Transport."""

    durable = False

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults
        self._queues: dict[str, _Queue] = {}
        self._private: list[tuple[Address, _Queue]] = []
        self._tags = count(1)
        self._open = False

    async def start(self) -> None:
        """See Transport."""
        self._open = True

    @property
    def healthy(self) -> bool:
        """See Transport."""
        return self._open

    def next_tag(self) -> int:
        """Messages are numbered in the order in which they come."""
        return next(self._tags)

    def queue(self, name: str) -> _Queue:
        """The queue of this name, made when it is first used."""
        return self._queues.setdefault(name, _Queue(name))

    def forget(self, queue: _Queue) -> None:
        """A private queue ends with its consumer."""
        self._private = [(address, kept) for address, kept in self._private if kept is not queue]
        self._queues.pop(queue.name, None)

    async def publish(self, to: Address, message: WireMessage) -> None:
        """See Transport."""
        if not self._open:
            raise BrokerAway("the transport is closed")
        routed = replace(message, routing_key=to.name)
        for queue in self._targets(to):
            copies = 2 if self.faults and self.faults.dice.random() < self.faults.duplicate else 1
            for _ in range(copies):
                queue.put(_Message(self.next_tag(), routed))
            self.turn(queue)
        await asyncio.sleep(0)
        if self.faults and self.faults.dice.random() < self.faults.lose_confirm:
            raise PublishUnknown("no confirm came")

    def _targets(self, to: Address) -> list[_Queue]:
        if to.kind == "events":
            return [queue for address, queue in self._private if address.kind == "events" and matches(address.name, to.name)]
        if to.kind == "progress":
            return [queue for address, queue in self._private if address.kind == "progress"]
        if to.kind == "commands":
            return [self.queue("commands")]
        name = f"{to.kind}.{to.name}"
        if to.kind in ("call", "reply") and name not in self._queues:
            raise Unroutable(f"nobody listens at {name}")
        return [self.queue(name)]

    async def consume(self, source: Address, on_delivery: OnDelivery, *, prefetch: int = 64) -> Consumer:
        """See Transport."""
        private = source.kind in PRIVATE
        if private:
            queue = _Queue(f"{source.kind}.{source.name}.{self.next_tag()}", bound=EVENTS_MAX)
            self._private.append((source, queue))
        else:
            queue = self.queue(source.kind if source.kind in ("commands", "dead") else f"{source.kind}.{source.name}")
        consumer = _Consumer(self, queue, on_delivery, prefetch, private or source.kind in ("reply", "call"))
        queue.consumers.append(consumer)
        self.turn(queue)
        return consumer

    def turn(self, queue: _Queue) -> None:
        """Hand out what can be handed out, in a turn of the loop of its own."""
        if queue.ready and queue.consumers:
            asyncio.get_running_loop().call_soon(self._hand_out, queue)

    def _hand_out(self, queue: _Queue) -> None:
        while queue.ready and queue.consumers:
            single = queue.name.split(".", 1)[0] in SINGLE_ACTIVE
            able = queue.consumers[:1] if single else queue.consumers
            consumer = min(able, key=lambda c: len(c.unacked))
            if len(consumer.unacked) >= consumer.prefetch:
                return
            message = queue.ready.popleft()
            message.attempts += 1
            consumer.unacked[message.tag] = message

            async def settle(how: str, message: _Message = message, consumer: _Consumer = consumer) -> None:
                await consumer.settle(message, how)

            delivery = Delivery(message.message, message.attempts > 1, message.attempts, settle)
            task = asyncio.get_running_loop().create_task(_deliver(consumer.on_delivery, delivery))
            task.add_done_callback(_tasks.discard)
            _tasks.add(task)

    async def depth(self, source: Address) -> int:
        """See Transport."""
        name = source.kind if source.kind in ("commands", "dead") else f"{source.kind}.{source.name}"
        return len(self._queues[name].ready) if name in self._queues else 0

    async def aclose(self) -> None:
        """See Transport."""
        self._open = False
        for queue in [*self._queues.values(), *(queue for _, queue in self._private)]:
            for consumer in list(queue.consumers):
                await consumer.stop()


_tasks: set[asyncio.Task[None]] = set()
"""Deliveries being taken in: a task that nobody holds may be collected."""


async def _deliver(on_delivery: OnDelivery, delivery: Delivery) -> None:
    await on_delivery(delivery)
