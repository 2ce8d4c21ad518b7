"""The consumer of partition queues: each key's messages one after another, different keys side by side, acked when done.

Owns what happens to a message that fails: three tries within two seconds, then it and the later messages of its key are
held in Postgres and acked; a timer tries them again, an operator sees them. Postgres away never counts as a failure: what
is in hand waits, and the prefetch stops the rest. Refuses to know what a message says: it is given `handle`. Rule: a
delivery is acked only when `handle` has returned or the message is held.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from bus.collector import collect_seldom
from bus.dead_letters import keep, text
from bus.envelope import Envelope
from bus.errors import AppendUnknown, BrokerAway, PublishUnknown, StoreAway
from bus.event_store import EventStore, HeldMessage
from bus.failpoints import hit
from bus.partitions import share
from bus.transport import Consumer, Delivery, Transport, work
from schema.failure import Refused
from schema.ids import partition

log = logging.getLogger(__name__)

Handle = Callable[[Envelope], Awaitable[None]]
T = TypeVar("T")
ROLE = "handlers"
PREFETCH = 128
TOGETHER = 256
"""Messages handled at the same time."""
TRIES = 3
TRY_AGAIN_S = (0.2, 1.0)
HANDLE_S = 60.0
"""A handler that takes longer is stopped, and the message is tried again: its append happened or it did not."""
RETRY_HELD_S = 30.0
BEAT_S, BEAT_TTL_S = 1.5, 5.0
STOP_S = 5.0
MAX_PAUSE_S = 5.0
AWAY = (StoreAway, AppendUnknown, BrokerAway, PublishUnknown)
"""Not the message's fault. An append whose outcome is unknown is decided again: it is in or it is not."""


class _Part:
    """One partition as long as we consume it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.consumer: Consumer | None = None
        self.gone = False
        """Its deliveries are somebody else's now."""


class _Taken(NamedTuple):
    part: _Part
    envelope: Envelope
    delivery: Delivery


class PartitionConsumer:
    """Consumes this member's share of the partitions. Started and stopped with its process."""

    def __init__(self, store: EventStore, transport: Transport, handle: Handle, *, member: str) -> None:
        self.store, self.transport, self.handle, self.member = store, transport, handle, member
        self.handled = self.failed = self.parked = 0
        """Messages so far: handled; failed for good and held; dead letters."""
        self._parts: dict[int, _Part] = {}
        self._keys: dict[str, deque[_Taken]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._held: set[str] = set()
        self._room = asyncio.Semaphore(TOGETHER)
        self._started = self._stopping = False

    @property
    def ready(self) -> bool:
        """Every consumer of our share is registered."""
        return self._started and all(part.consumer is not None and part.consumer.alive for part in self._parts.values())

    @property
    def partitions(self) -> set[int]:
        """Our share."""
        return set(self._parts)

    @property
    def held_keys(self) -> set[str]:
        """Keys whose messages are held, as far as known here."""
        return set(self._held)

    async def start(self) -> None:
        """Take our share, then keep it right."""
        collect_seldom()
        await self._rebalance()
        self._started = True
        self._loops = [asyncio.create_task(self._keep_share(), name="partitions"),
                       asyncio.create_task(self._retry_held(), name="held")]

    async def stop(self) -> None:
        """Take no more; what is being handled is finished and acked (bounded), the rest comes again elsewhere."""
        self._stopping, self._started = True, False
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        pending: set[asyncio.Task[None]] = set()
        if self._workers:
            _, pending = await asyncio.wait(self._workers, timeout=STOP_S)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for part in self._parts.values():
            await self._leave(part)
        self._parts.clear()
        self._keys.clear()
        try:
            # Our share is free for the others at once.
            await asyncio.wait_for(self.store.beat(ROLE, self.member, info={}, ttl_s=0), 1)
        except Exception as error:
            log.debug("the membership runs out by itself: %s", error, extra={"action": "member_kept"})

    # --- our share ----------------------------------------------------------------------------------------------

    async def _keep_share(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self._rebalance()
            except AWAY as away:
                log.warning("partitions stay as they are: %s", away, extra={"action": "rebalance_waits"})
            except Exception:
                log.exception("partitions stay as they are", extra={"action": "rebalance_failed"})

    async def _rebalance(self) -> None:
        await self.store.beat(ROLE, self.member, info={}, ttl_s=BEAT_TTL_S)
        wanted = share(self.member, await self.store.members(ROLE))
        for number in set(self._parts) - wanted:
            await self._leave(self._parts.pop(number))
        # A key may have been held, or freed, by whoever had its partition before, or by an operator. What is held here
        # meanwhile is in the answer or added after it: holding a key is one step with remembering it.
        self._held |= await self.store.held_keys()
        for number in sorted(wanted - set(self._parts)):
            part = self._parts[number] = _Part(number)
            part.consumer = await self.transport.consume(work(number), self._taker(part), prefetch=PREFETCH)

    async def _leave(self, part: _Part) -> None:
        part.gone = True
        if part.consumer is not None:
            await part.consumer.stop()

    # --- one message --------------------------------------------------------------------------------------------

    def _taker(self, part: _Part) -> Callable[[Delivery], Awaitable[None]]:
        async def take(delivery: Delivery) -> None:
            if self._stopping or part.gone:
                return
            try:
                envelope = Envelope.read(delivery.message.headers, delivery.message.body)
            except Exception as error:  # whatever bytes can do to a parser
                reason = error.failure.text if isinstance(error, Refused) else f"it cannot be read: {type(error).__name__}"
                self._run(self._park(part, delivery, reason))
                return
            key = envelope.key or str(envelope.id)
            waiting = self._keys.get(key)
            if waiting is not None:
                waiting.append(_Taken(part, envelope, delivery))
                return
            self._keys[key] = deque([_Taken(part, envelope, delivery)])
            self._run(self._work(key))

        return take

    def _run(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._workers.add(task)
        task.add_done_callback(self._workers.discard)

    async def _work(self, key: str, *, held_first: bool = False) -> None:
        """The messages of one key, in order, until none is left. No other task works on this key meanwhile."""
        waiting = self._keys[key]
        try:
            if held_first:
                await self.redrive_key(key)
            while waiting and not self._stopping:
                taken = waiting.popleft()
                if taken.part.gone:
                    continue
                async with self._room:
                    await self._guarded(key, taken)
        except AWAY as away:
            # Only a held message's turn; live ones wait inside. It comes with the next turn.
            log.warning("held messages of %s stay: %s", key, away, extra={"action": "held_waits"})
        finally:
            if waiting and not self._stopping:
                self._run(self._work(key))
            else:
                del self._keys[key]

    async def _guarded(self, key: str, taken: _Taken) -> None:
        """A failure that is none of the message's leaves it unacked, and its partition is taken anew, in order."""
        try:
            await self._one(key, taken)
        except Exception:
            log.exception("partition %d is taken anew", taken.part.number, extra={"action": "partition_again"})
            if self._parts.get(taken.part.number) is taken.part:
                del self._parts[taken.part.number]  # the next beat takes it
            await self._leave(taken.part)

    async def _one(self, key: str, taken: _Taken) -> None:
        if key in self._held and await self._patiently(lambda: self._still_held(key)):
            await self._hold(key, taken, "an earlier message of its key is held")
            await taken.delivery.ack()
            return
        error = await self._try(taken.envelope)
        if error is None:
            self.handled += 1
        elif isinstance(error, Refused):
            await self._park(taken.part, taken.delivery, text(error.failure.text, 2000))
            return
        else:
            self.failed += 1
            await self._hold(key, taken, _text(error))
        hit("consumer.after_handle_before_ack")
        await taken.delivery.ack()

    async def _try(self, envelope: Envelope) -> Exception | None:
        """Handle it; what it failed with after three tries (or was refused with), None when it is done."""
        tries, pause = 0, 0.1
        while True:
            try:
                hit("consumer.before_handle")
                async with asyncio.timeout(HANDLE_S):
                    await self.handle(envelope)
                return None
            except AWAY as away:
                log.warning("%s waits: %s", envelope.type, away, extra={"action": "message_waits"})
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_S)
            except Refused as refused:
                return refused
            except Exception as error:
                tries += 1
                if tries >= TRIES:
                    log.exception("%s failed %d times and is held", envelope.type, tries, extra={"action": "held"})
                    return error
                await asyncio.sleep(TRY_AGAIN_S[tries - 1])

    async def _park(self, part: _Part, delivery: Delivery, reason: str) -> None:
        """A message that no try can help becomes a dead letter; its key goes on."""
        log.warning("a message is parked: %s", reason, extra={"action": "parked"})
        await self._patiently(lambda: keep(self.store, headers=delivery.message.headers, body=delivery.message.body,
                                           reason=reason, source="work", partition=part.number, trusted=True))
        self.parked += 1
        await delivery.ack()

    async def _hold(self, key: str, taken: _Taken, reason: str) -> None:
        message = taken.delivery.message
        headers = {text(name, 128): text(value, 8192) for name, value in message.headers.items()}
        self._held.add(key)
        await self._patiently(lambda: self.store.hold(key=key, partition=taken.part.number, headers=headers,
                                                      body=message.body, reason=reason))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The answer of the database, however long it is away."""
        pause = 0.1
        while True:
            try:
                return await call()
            except AWAY as away:
                log.warning("the database is waited for: %s", away, extra={"action": "store_waits"})
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_S)

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
                    if partition(key) in self._parts and key not in self._keys:
                        self._keys[key] = deque()
                        self._run(self._work(key, held_first=True))
            except AWAY as away:
                log.warning("held messages stay: %s", away, extra={"action": "held_waits"})
            except Exception:
                log.exception("held messages stay", extra={"action": "held_failed"})

    async def redrive_key(self, key: str) -> int:
        """Try the held messages of a key in order until one fails again; how many are no longer held."""
        done = 0
        while batch := await self.store.held(key=key, limit=100):
            for held in batch:
                if not await redrive(self.store, self.handle, held):
                    return done
                done += 1
        self._held.discard(key)
        return done


async def redrive(store: EventStore, handle: Handle, held: HeldMessage) -> bool:
    """Try one held message once more; True when it is no longer held: handled, or refused and a dead letter now.

    Raises StoreAway and the like when nothing can be said about it.
    """
    try:
        async with asyncio.timeout(HANDLE_S):
            await handle(Envelope.read(held.headers, held.body))
    except AWAY:
        raise
    except Refused as refused:
        if not held.key:
            await store.held_failed(held.id, text(refused.failure.text, 2000))
            return False
        await keep(store, headers=held.headers, body=held.body, reason=refused.failure.text, source=held.source,
                   partition=held.partition, trusted=True)
    except Exception as error:
        await store.held_failed(held.id, _text(error))
        return False
    await store.drop_held(held.id)
    return True


def _text(error: Exception) -> str:
    return text(f"{type(error).__name__}: {error}", 2000)
