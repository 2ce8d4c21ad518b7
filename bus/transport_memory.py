"""The transport in one process: the same promises as RabbitMQ's, except that nothing survives the process.

Owns queues, unacked deliveries and the delivery limit. Refuses to reorder: a message that is rejected comes again at its
place. `Faults` is for tests: seeded duplicates, redeliveries out of order, and confirms that never come. Rule: every queue is
bounded; a full one refuses (BrokerAway), a subscriber's drops its oldest and counts it.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

from bus.errors import BrokerAway, PublishUnknown, Unroutable
from bus.patterns import matches
from bus.transport import Address, Consumer, Delivery, OnDelivery, WireMessage, check_fits

DELIVERY_LIMIT = 1000
EVENTS_MAX = 10_000
"""Messages that a subscriber of events may lag behind; older ones are dropped and counted."""
QUEUE_MAX = 200_000
"""Messages that any other queue may hold; beyond, a publish is refused for now."""
SINGLE_ACTIVE = ("work", "agent")
BOUNDED = ("events", "progress")
"""Each consumer has a queue of its own, which drops its oldest."""
NEEDS_CONSUMER = ("call", "reply")
"""A publish is unroutable while nobody listens, and the queue ends with its last consumer."""
ONE = ("commands", "dead", "lost")
"""One queue for all names of this kind."""


@dataclass
class Faults:
    """Seeded misbehaviour, for tests."""

    seed: int = 0
    duplicate: float = 0.0
    """Share of publishes that arrive twice."""
    lose_confirm: float = 0.0
    """Share of publishes that arrive and whose confirm does not."""
    lose: float = 0.0
    """Share of publishes that do not arrive and whose confirm does not come either."""
    reorder: float = 0.0
    """Share of requeued messages that come again at the end instead of at their place."""

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)  # noqa: S311 - reproducible faults, no secret

    def happens(self, share: float) -> bool:
        """Throw the dice."""
        return share > 0 and self.dice.random() < share


@dataclass(slots=True)
class _Message:
    tag: int
    message: WireMessage
    expires: float | None = None
    attempts: int = 0


@dataclass
class _Queue:
    name: str
    kind: str
    ready: list[_Message] = field(default_factory=list)
    """By tag. Taken from `first` on, which is cut away in large steps: both ends are cheap."""
    first: int = 0
    consumers: list[_Consumer] = field(default_factory=list)
    lost: int = 0
    turning: bool = False

    def __len__(self) -> int:
        return len(self.ready) - self.first

    def put(self, message: _Message) -> bool:
        """At the end. True when the oldest had to go."""
        self.ready.append(message)
        if self.kind in BOUNDED and len(self) > EVENTS_MAX:
            self.take()
            self.lost += 1
            return True
        return False

    def take(self) -> _Message:
        """The first one."""
        message = self.ready[self.first]
        self.first += 1
        if self.first > 1000 and self.first * 2 > len(self.ready):
            del self.ready[:self.first]
            self.first = 0
        return message

    def put_back(self, message: _Message) -> None:
        """At its place: by the order in which they came."""
        self.ready.insert(bisect_left(self.ready, message.tag, lo=self.first, key=lambda m: m.tag), message)


class _Consumer:
    def __init__(self, owner: MemoryTransport, queue: _Queue, on_delivery: OnDelivery, prefetch: int) -> None:
        self.owner, self.queue, self.on_delivery, self.prefetch = owner, queue, on_delivery, prefetch
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
        unacked, self.unacked = self.unacked, {}
        for message in unacked.values():
            self.queue.put_back(message)
        if not self.queue.consumers and self.queue.kind in (*BOUNDED, *NEEDS_CONSUMER):
            self.owner.forget(self.queue)
        else:
            self.owner.turn(self.queue)

    async def settle(self, message: _Message, attempt: int, how: str) -> None:
        """Ack, requeue or dead-letter the delivery that was the `attempt`-th; late calls do nothing."""
        if message.attempts != attempt or self.unacked.pop(message.tag, None) is None:
            return
        if how == "requeue" and message.attempts <= DELIVERY_LIMIT:
            if self.owner.faults is not None and self.owner.faults.happens(self.owner.faults.reorder):
                message.tag = self.owner.next_tag()
            self.queue.put_back(message)
        elif how != "ack" and self.queue.kind not in (*BOUNDED, *NEEDS_CONSUMER):
            self.owner.bury(message.message, self.queue, "rejected" if how == "dead" else "delivery_limit")
        self.owner.turn(self.queue)


class MemoryTransport:
    """See bus.transport.Transport."""

    durable = False

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults
        self._queues: dict[str, _Queue] = {}
        self._private: dict[_Consumer, tuple[Address, _Queue]] = {}
        self._tags = count(1)
        self._open = False
        self._taking_in: set[asyncio.Task[None]] = set()
        self._lost = 0

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

    def _queue(self, address: Address) -> _Queue:
        name = address.kind if address.kind in ONE else f"{address.kind}.{address.name}"
        known = self._queues.get(name)
        if known is None:
            known = self._queues[name] = _Queue(name, address.kind)
        return known

    def forget(self, queue: _Queue) -> None:
        """A private queue ends with its last consumer."""
        self._private = {consumer: (address, kept) for consumer, (address, kept) in self._private.items()
                         if kept is not queue}
        if self._queues.get(queue.name) is queue:
            del self._queues[queue.name]

    def bury(self, message: WireMessage, queue: _Queue, reason: str) -> None:
        """Make it a dead letter."""
        dead = self._queue(Address("dead"))
        headers = {**message.headers, "x-first-death-reason": reason, "x-first-death-queue": queue.name}
        dead.put(_Message(self.next_tag(), replace(message, headers=headers)))
        self.turn(dead)

    # --- publish ------------------------------------------------------------------------------------------------

    async def publish(self, to: Address, message: WireMessage) -> None:
        """See Transport."""
        if not self._open:
            raise BrokerAway("the transport is closed")
        check_fits(to, message)
        routed = replace(message, routing_key=to.name)
        expires = None
        if message.expiration_s is not None:
            expires = asyncio.get_running_loop().time() + message.expiration_s
        arrives = self.faults is None or not self.faults.happens(self.faults.lose)
        for queue in self._targets(to) if arrives else ():
            copies = 2 if self.faults and self.faults.happens(self.faults.duplicate) else 1
            for _ in range(copies):
                self._lost += queue.put(_Message(self.next_tag(), routed, expires))
            self.turn(queue)
        await asyncio.sleep(0)
        if not arrives or (self.faults and self.faults.happens(self.faults.lose_confirm)):
            raise PublishUnknown("no confirm came")

    async def send(self, to: Address, message: WireMessage) -> asyncio.Future[None]:
        """See Transport."""
        confirm = asyncio.ensure_future(self.publish(to, message))
        confirm.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to hear of it
        return confirm

    def _targets(self, to: Address) -> list[_Queue]:
        if to.kind in BOUNDED:
            return [queue for address, queue in self._private.values()
                    if address.kind == to.kind and (to.kind == "progress" or matches(address.name, to.name))]
        if to.kind in NEEDS_CONSUMER and f"{to.kind}.{to.name}" not in self._queues:
            raise Unroutable(f"nobody listens at {to.kind} {to.name}")
        queue = self._queue(to)
        if len(queue) >= QUEUE_MAX:
            raise BrokerAway(f"the queue {queue.name} is full ({QUEUE_MAX} messages)", remedy="start its consumer")
        return [queue]

    # --- consume ------------------------------------------------------------------------------------------------

    async def consume(self, source: Address, on_delivery: OnDelivery, *, prefetch: int = 64) -> Consumer:
        """See Transport."""
        private = source.kind in BOUNDED
        queue = _Queue(f"{source.kind}.{source.name}", source.kind) if private else self._queue(source)
        consumer = _Consumer(self, queue, on_delivery, prefetch)
        if private:
            self._private[consumer] = (source, queue)
        queue.consumers.append(consumer)
        self.turn(queue)
        return consumer

    def turn(self, queue: _Queue) -> None:
        """Hand out what can be handed out, in a turn of the loop of its own."""
        if len(queue) and queue.consumers and not queue.turning:
            queue.turning = True
            asyncio.get_running_loop().call_soon(self._hand_out, queue)

    def _hand_out(self, queue: _Queue) -> None:
        queue.turning = False
        loop = asyncio.get_running_loop()
        while len(queue) and queue.consumers:
            able = queue.consumers[:1] if queue.kind in SINGLE_ACTIVE else queue.consumers
            consumer = min(able, key=lambda c: len(c.unacked))
            if len(consumer.unacked) >= consumer.prefetch:
                return
            message = queue.take()
            if message.expires is not None and message.expires <= loop.time():
                continue
            message.attempts += 1
            consumer.unacked[message.tag] = message

            settle = partial(consumer.settle, message, message.attempts)
            delivery = Delivery(message.message, message.attempts > 1, message.attempts, settle)
            task = loop.create_task(_deliver(consumer.on_delivery, delivery))
            self._taking_in.add(task)  # a task that nobody holds may be collected
            task.add_done_callback(self._taking_in.discard)

    async def depth(self, source: Address) -> int:
        """See Transport."""
        if source.kind == "lost":
            return self._lost
        name = source.kind if source.kind in ONE else f"{source.kind}.{source.name}"
        return len(self._queues[name]) if name in self._queues else 0

    async def aclose(self) -> None:
        """See Transport."""
        self._open = False
        for queue in [*self._queues.values(), *(queue for _, queue in self._private.values())]:
            for consumer in list(queue.consumers):
                await consumer.stop()


async def _deliver(on_delivery: OnDelivery, delivery: Delivery) -> None:
    await on_delivery(delivery)
