"""A consumer on RabbitMQ, kept up by its own task, and the acks of its channel.

Owns noticing that it is gone: cancelled by the broker, channel closed, connection lost, or silent (a canary). Deliveries
belong to the channel they came on: settling one late does nothing. Refuses to wait for a handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from bus import topology
from bus.errors import BrokerAway, PublishUnknown, Unroutable
from bus.rabbit_link import AWAY, Link, declare, ours, quietly_close
from bus.transport import Address, Delivery, OnDelivery, WireMessage

if TYPE_CHECKING:
    from bus.transport_rabbit import RabbitTransport

log = logging.getLogger(__name__)

CANARY = "x-storebus-canary"
"""Header of a probe; its value names the consumer that sent it."""
PROBED = ("work", "commands")
"""Kinds whose queue is probed with a message; of the others the broker is asked whether it counts a consumer."""
SETUP_S = 60.0
SETTLE_S = 0.01
"""How long acks beyond an unsettled delivery wait for it, to travel in one frame."""
MAX_PAUSE_S = 3.0


class RabbitConsumer:
    """See bus.transport.Consumer."""

    def __init__(self, owner: RabbitTransport, address: Address, on_delivery: OnDelivery, prefetch: int) -> None:
        self.owner, self.address, self.on_delivery, self.prefetch = owner, address, on_delivery, prefetch
        self.unique = uuid4().hex
        self.registered = asyncio.Event()
        self.generation = 0
        """Channels so far."""
        self.raw: Any = None
        self._acks: _Acks | None = None
        self._heard = 0.0
        self._sang = asyncio.Event()
        self._task = asyncio.create_task(self._keep(), name=f"consume-{address.kind}-{address.name}")

    @property
    def alive(self) -> bool:
        """See Consumer."""
        return self.registered.is_set()

    async def _keep(self) -> None:
        pause = 0.1
        while True:
            link = self.owner.consuming
            await link.ready.wait()
            why = "its channel was lost"
            try:
                why = await self._consume(link)
            except asyncio.CancelledError:
                if ours():
                    raise
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            if self.registered.is_set():
                pause = 0.1
            self.registered.clear()
            log.warning("consumer of %s %s starts again: %s", self.address.kind, self.address.name, why,
                        extra={"action": "consumer_restarts"})
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE_S)

    async def _consume(self, link: Link) -> str:
        """Register, then return why when the consumer, its channel or its connection is gone."""
        raw = await link.open_channel()
        lost: asyncio.Queue[str] = asyncio.Queue()
        raw.closing.add_done_callback(lambda _: lost.put_nowait("its channel was closed"))
        raw.on_consumer_cancel_callbacks.add(lambda _: lost.put_nowait("the broker cancelled it"))
        acks = self._acks = _Acks(raw)
        try:
            queue = topology.source(self.address, self.unique)
            async with asyncio.timeout(SETUP_S):
                await declare(raw, queue)
                await raw.basic_qos(prefetch_count=self.prefetch)
                await raw.basic_consume(queue.name, lambda message: self._on_message(message, acks),
                                        consumer_tag=self.unique)
            self.raw, self.generation = raw, self.generation + 1
            self._heard = asyncio.get_running_loop().time()
            self.registered.set()
            while True:
                with contextlib.suppress(TimeoutError):
                    return await asyncio.wait_for(lost.get(), self.owner.canary_s)
                if not await self._probe(raw, queue.name):
                    return "it was silent"
        finally:
            self.raw = None
            await acks.close()
            await quietly_close(raw)

    async def _probe(self, raw: Any, queue: str) -> bool:
        """After an idle while: does a message come through, or does the broker still count us? False: register anew."""
        if asyncio.get_running_loop().time() - self._heard < self.owner.canary_s:
            return True
        if self.address.kind in PROBED:
            self._sang.clear()
            answer_s = self.owner.canary_s / 3
            try:
                await self.owner.probe(queue, {CANARY: self.unique}, expiration_s=answer_s)
                await asyncio.wait_for(self._sang.wait(), answer_s)
                return True
            except (BrokerAway, PublishUnknown):
                return True  # the links see to that
            except Unroutable:
                return False
            except TimeoutError:
                # Two or more consumers: another process is the active one, and this one stands by.
                return await _consumers(raw, queue) > 1
        return await _consumers(raw, queue) > 0

    async def _on_message(self, message: Any, acks: _Acks) -> None:
        self._heard = asyncio.get_running_loop().time()
        delivery, properties = message.delivery, message.header.properties
        tag, headers = delivery.delivery_tag, properties.headers or {}
        acks.came(tag)
        canary = headers.get(CANARY)
        if canary is not None:
            if canary == self.unique:
                self._sang.set()
            acks.settle(tag, "ack")
            return

        async def settle(how: str) -> None:
            acks.settle(tag, how)

        count = headers.get("x-delivery-count", 0)
        redelivered = bool(delivery.redelivered)
        attempt = (count if isinstance(count, int) else int(redelivered)) + 1
        await self.on_delivery(Delivery(WireMessage(
            headers={name: value if type(value) is str else _text(value) for name, value in headers.items()},
            body=message.body, user_id=properties.user_id or "", reply_to=properties.reply_to or "",
            correlation_id=properties.correlation_id or "", routing_key=delivery.routing_key or "",
        ), redelivered, max(attempt, 2) if redelivered else attempt, settle))

    async def stop(self) -> None:
        """See Consumer."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.registered.clear()
        self.owner.forget(self)


async def _consumers(raw: Any, queue: str) -> int:
    async with asyncio.timeout(SETUP_S):
        return int((await raw.queue_declare(queue, passive=True)).consumer_count or 0)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class _Acks:
    """What becomes of one channel's deliveries, told to the broker in the order of their tags, many in one frame.

    A turn of the loop after the first one is settled, every run of acked tags that nothing unsettled precedes goes as one
    `multiple` ack. A `multiple` ack never covers a tag that is open or rejected.
    """

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self._tags: dict[int, str] = {}
        """Delivery tag -> "" (open), ack, requeue, dead; in the order in which they came."""
        self._wake = asyncio.Event()
        self._closed = False
        self._task = asyncio.create_task(self._run(), name="acks")

    def came(self, tag: int) -> None:
        self._tags[tag] = ""

    def settle(self, tag: int, how: str) -> None:
        """First word counts; late ones, and those of a channel that is gone, do nothing."""
        if self._tags.get(tag) == "" and not self._closed:
            self._tags[tag] = how
            self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(0)
            try:
                await self._flush(beyond=False)
                if any(self._tags.values()):
                    await asyncio.sleep(SETTLE_S)
                    await self._flush(beyond=True)
            except AWAY:
                return  # the channel is gone: they come again, and repeats are harmless

    async def _flush(self, *, beyond: bool) -> None:
        """Tell the broker. `beyond`: also what is settled after an open delivery, one by one."""
        run, first_open, told = 0, False, []
        frames: list[tuple[str, int, bool]] = []
        for tag, how in self._tags.items():
            if not how:
                first_open = True
                if not beyond:
                    break
                continue
            told.append(tag)
            if how == "ack" and not first_open:
                run = tag
                continue
            if run:
                frames.append(("ack", run, True))
                run = 0
            frames.append((how, tag, False))
        if run:
            frames.append(("ack", run, True))
        for tag in told:
            del self._tags[tag]
        for how, tag, multiple in frames:
            if how == "ack":
                await self.raw.basic_ack(tag, multiple=multiple, wait=False)
            else:
                await self.raw.basic_reject(tag, requeue=how == "requeue", wait=False)

    async def close(self) -> None:
        """Tell what is settled; from now on nothing is."""
        self._closed = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(*AWAY):
            async with asyncio.timeout(1):
                await self._flush(beyond=True)
