"""The consumer of partition queues: each key's messages one after another, different keys side by side, acked when done.

Owns what happens to a message that fails: three tries within two seconds, then it and the later messages of its key are
held in Postgres and acked; a timer tries them again, an operator sees them. Postgres away never counts as a failure.
Refuses to know what a message says: it is given `handle`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from bus.envelope import Envelope
from bus.errors import AppendUnknown, BrokerAway, Conflict, PublishUnknown, StoreAway
from bus.event_store import EventStore, HeldMessage
from bus.failpoints import hit
from bus.partitions import share
from bus.transport import Consumer, Delivery, Transport, work
from schema.failure import Refused
from schema.ids import partition

log = logging.getLogger(__name__)

Handle = Callable[[Envelope], Awaitable[None]]
ROLE = "handlers"
PREFETCH = 128
TRIES = 3
TRY_AGAIN_S = (0.2, 1.0)
RETRY_HELD_S = 30.0
BEAT_S, BEAT_TTL_S = 3.0, 10.0


class PartitionConsumer:
    """Consumes this member's share of the partitions. Started and stopped with its process."""

    def __init__(self, store: EventStore, transport: Transport, handle: Handle, *, member: str) -> None:
        self.store, self.transport, self.handle, self.member = store, transport, handle, member
        self._consumers: dict[int, Consumer] = {}
        self._keys: dict[str, deque[tuple[int, Envelope, Delivery]]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._held: set[str] = set()
        self.handled = 0

    @property
    def ready(self) -> bool:
        """Every consumer of our share is registered."""
        return bool(self._consumers) and all(consumer.alive for consumer in self._consumers.values())

    async def start(self) -> None:
        """Take our share, then keep it right."""
        self._held = await self.store.held_keys()
        await self._rebalance()
        self._loops = [asyncio.create_task(self._keep_share(), name="partitions"),
                       asyncio.create_task(self._retry_held(), name="held")]

    async def stop(self) -> None:
        """Take no more; what is being handled is finished (bounded), the rest comes again elsewhere."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for consumer in self._consumers.values():
            await consumer.stop()
        self._keys.clear()
        if self._workers:
            _, pending = await asyncio.wait(self._workers, timeout=5)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    # --- our share ----------------------------------------------------------------------------------------------

    async def _keep_share(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self._rebalance()
            except (StoreAway, BrokerAway) as away:
                log.warning("partitions stay as they are: %s", away, extra={"action": "rebalance_waits"})
            except Exception:
                log.exception("partitions stay as they are", extra={"action": "rebalance_failed"})

    async def _rebalance(self) -> None:
        await self.store.beat(ROLE, self.member, info={}, ttl_s=BEAT_TTL_S)
        wanted = share(self.member, await self.store.members(ROLE))
        for number in set(self._consumers) - wanted:
            await self._consumers.pop(number).stop()
        for number in sorted(wanted - set(self._consumers)):
            self._consumers[number] = await self.transport.consume(
                work(number), lambda delivery, number=number: self._take(number, delivery), prefetch=PREFETCH)  # type: ignore[misc] # mypy cannot infer a lambda with a default

    # --- one message --------------------------------------------------------------------------------------------

    async def _take(self, number: int, delivery: Delivery) -> None:
        try:
            envelope = Envelope.read(delivery.message.headers, delivery.message.body)
        except Refused as refused:
            task = asyncio.create_task(self._park(number, delivery, refused.failure.text))
            self._workers.add(task)
            task.add_done_callback(self._workers.discard)
            return
        key = envelope.key or str(envelope.id)
        waiting = self._keys.get(key)
        if waiting is not None:
            waiting.append((number, envelope, delivery))
            return
        self._keys[key] = deque([(number, envelope, delivery)])
        task = asyncio.create_task(self._work(key))
        self._workers.add(task)
        task.add_done_callback(self._workers.discard)

    async def _work(self, key: str) -> None:
        """The messages of one key, in order, until none is left."""
        waiting = self._keys[key]
        while waiting:
            number, envelope, delivery = waiting[0]
            try:
                await self._one(key, number, envelope, delivery)
            except Exception:
                # Not acked: it comes again with the next consumer of this partition.
                log.exception("a message was left unacked", extra={"action": "left_unacked", "key": key})
            if self._keys.get(key) is not waiting:
                return  # stopped meanwhile
            waiting.popleft()
        del self._keys[key]

    async def _one(self, key: str, number: int, envelope: Envelope, delivery: Delivery) -> None:
        if key in self._held and await self._still_held(key):
            await self._hold(key, number, delivery, "an earlier message of its key is held")
            await delivery.ack()
            return
        reason = await self._try(envelope)
        if reason is not None:
            await self._hold(key if not isinstance(reason, Refused) else "", number, delivery, _text(reason))
        self.handled += 1
        hit("consumer.after_handle_before_ack")
        await delivery.ack()

    async def _try(self, envelope: Envelope) -> Exception | None:
        """Handle it; what it failed with after three tries, None when it is done."""
        tries, pause = 0, 0.1
        while True:
            try:
                hit("consumer.before_handle")
                await self.handle(envelope)
                return None
            except (StoreAway, AppendUnknown, BrokerAway, PublishUnknown) as away:
                # Not the message's fault. An append whose outcome is unknown is decided again: it is in or it is not.
                log.warning("%s waits: %s", envelope.type, away, extra={"action": "message_waits"})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
            except Refused as refused:
                return refused
            except Exception as error:
                tries += 1
                if tries >= TRIES:
                    log.exception("%s failed %d times and is held", envelope.type, tries, extra={"action": "held"})
                    return error
                await asyncio.sleep(TRY_AGAIN_S[min(tries, len(TRY_AGAIN_S)) - 1])

    async def _park(self, number: int, delivery: Delivery, reason: str) -> None:
        await self._hold("", number, delivery, reason)
        await delivery.ack()

    async def _hold(self, key: str, number: int, delivery: Delivery, reason: str) -> None:
        headers = {name: str(value) for name, value in delivery.message.headers.items()}
        for _ in range(1_000_000):
            try:
                await self.store.hold(key=key, partition=number, headers=headers, body=delivery.message.body,
                                      reason=reason)
                break
            except StoreAway:
                await asyncio.sleep(1.0)
        if key:
            self._held.add(key)

    async def _still_held(self, key: str) -> bool:
        if await self.store.held(key=key, limit=1):
            return True
        self._held.discard(key)
        return False

    # --- held messages ------------------------------------------------------------------------------------------

    async def _retry_held(self) -> None:
        while True:
            await asyncio.sleep(RETRY_HELD_S)
            try:
                for key in await self.store.held_keys():
                    if partition(key) in self._consumers and key not in self._keys:
                        await self.redrive_key(key)
            except (StoreAway, BrokerAway) as away:
                log.warning("held messages stay: %s", away, extra={"action": "held_waits"})

    async def redrive_key(self, key: str) -> int:
        """Try the held messages of a key in order until one fails again; how many were handled."""
        done = 0
        for held in await self.store.held(key=key):
            if not await redrive(self.store, self.handle, held):
                break
            done += 1
        return done


async def redrive(store: EventStore, handle: Handle, held: HeldMessage) -> bool:
    """Try one held message once more; True when it was handled (and is no longer held)."""
    try:
        await handle(Envelope.read(held.headers, held.body))
    except (StoreAway, AppendUnknown, BrokerAway, PublishUnknown, Conflict):
        return False
    except Exception as error:
        await store.held_failed(held.id, _text(error))
        return False
    await store.drop_held(held.id)
    return True


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]
