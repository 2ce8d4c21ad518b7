"""The transport on RabbitMQ: the one file that imports aio_pika and aiormq.

Owns connections and their recovery: two links (publish, consume), each kept up by one task that re-declares the topology;
each consumer kept up by one task that notices a cancelled consumer, a closed channel and a lost connection. Deliveries
belong to the channel they came on: settling one late does nothing. Refuses aio-pika's own recovery, which does not
notice a cancelled consumer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import zlib
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import aio_pika
import aiormq
from aiormq.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError, PublishError
from pamqp.commands import Basic

from bus import topology
from bus.errors import BrokerAway, PublishUnknown, Unroutable
from bus.transport import Address, Consumer, Delivery, OnDelivery, WireMessage

log = logging.getLogger(__name__)

PUBLISH_CHANNELS = 4
WINDOW = 512
"""Unconfirmed publishes of one channel."""
PUBLISH_S = 30.0
START_S = 10.0
HEARTBEAT_S = 10
CANARY_S = 30.0
AWAY = (AMQPError, OSError, RuntimeError, TimeoutError, asyncio.CancelledError)


class _Link:
    """One connection, kept up. `ready` is set while it stands and its topology is declared."""

    def __init__(self, url: str, name: str, on_open: Callable[[Any], Awaitable[None]]) -> None:
        self.url, self.name, self.on_open = url, name, on_open
        self.connection: Any = None
        self.ready = asyncio.Event()
        self.why = "not connected yet"
        self._task = asyncio.create_task(self._keep(), name=f"amqp-{name}")

    async def _keep(self) -> None:
        pause = 0.1
        while True:
            try:
                self.connection = await aio_pika.connect(
                    self.url, heartbeat=HEARTBEAT_S, timeout=10, client_properties={"connection_name": f"storebus-{self.name}"})
                lost = asyncio.Event()
                underlay = self.connection.transport.connection
                underlay.closing.add_done_callback(lambda _, lost=lost: lost.set())
                await self._declare()
                await self.on_open(self.connection)
                self.ready.set()
                pause = 0.1
                await lost.wait()
                self.why = "the connection was lost"
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self.why = f"{type(error).__name__}: {error}"
                log.debug("RabbitMQ (%s) is away: %s", self.name, self.why, extra={"action": "broker_away"})
            self.ready.clear()
            await self._drop()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            pause = min(pause * 2, 3.0)

    async def _declare(self) -> None:
        channel = await self.connection.channel()
        raw = await channel.get_underlay_channel()
        for name, kind in topology.EXCHANGES.items():
            await raw.exchange_declare(name, exchange_type=kind, durable=True)
        for queue in topology.standing():
            await declare(raw, queue)
        await channel.close()

    async def _drop(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            with contextlib.suppress(*AWAY):
                await asyncio.wait_for(connection.close(), 5)

    async def close(self) -> None:
        self.ready.clear()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._drop()


async def declare(raw: Any, queue: topology.Queue) -> None:
    """Declare a queue and bind it."""
    await raw.queue_declare(queue.name, durable=queue.durable, exclusive=queue.exclusive,
                            auto_delete=queue.auto_delete, arguments=dict(queue.arguments))
    if queue.exchange:
        await raw.queue_bind(queue.name, queue.exchange, routing_key=queue.key)


class _RabbitConsumer:
    """One consumer, kept up by its own task."""

    def __init__(self, owner: RabbitTransport, address: Address, on_delivery: OnDelivery, prefetch: int) -> None:
        self.owner, self.address, self.on_delivery, self.prefetch = owner, address, on_delivery, prefetch
        self.unique = uuid4().hex
        self.registered = asyncio.Event()
        self._raw: Any = None
        self._tag = ""
        self._heard = 0.0
        self._task = asyncio.create_task(self._keep(), name=f"consume-{address.kind}-{address.name}")

    @property
    def alive(self) -> bool:
        """See Consumer."""
        return self.registered.is_set()

    async def _keep(self) -> None:
        pause = 0.1
        while True:
            await self.owner.consuming.ready.wait()
            try:
                await self._consume()
                pause = 0.1
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.warning("consumer of %s %s starts again: %s", self.address.kind, self.address.name, error,
                            extra={"action": "consumer_restarts"})
            self.registered.clear()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 3.0)

    async def _consume(self) -> None:
        """Register, then return when the consumer, its channel or its connection is gone."""
        channel = await self.owner.consuming.connection.channel(publisher_confirms=False)
        self._raw = raw = await channel.get_underlay_channel()
        lost = asyncio.Event()
        raw.closing.add_done_callback(lambda _: lost.set())
        raw.on_consumer_cancel_callbacks.add(lambda _: lost.set())
        try:
            queue = topology.source(self.address, self.unique)
            await declare(raw, queue)
            await raw.basic_qos(prefetch_count=self.prefetch)
            acks = _Acks(raw)
            self._heard = asyncio.get_running_loop().time()
            ok = await raw.basic_consume(queue.name, lambda message: self._on_message(message, raw, acks))
            self._tag = ok.consumer_tag
            self.registered.set()
            while not lost.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(lost.wait(), CANARY_S)
                if not lost.is_set() and not await self._canary(queue.name):
                    return
        finally:
            self._raw = None
            with contextlib.suppress(*AWAY):
                await asyncio.wait_for(channel.close(), 5)

    async def _canary(self, name: str) -> bool:
        """After an idle while: does the broker still count a consumer here? False: register anew."""
        if asyncio.get_running_loop().time() - self._heard < CANARY_S:
            return True
        answer = await asyncio.wait_for(self._raw.queue_declare(name, passive=True), 10)
        return bool(answer.consumer_count)

    async def _on_message(self, message: Any, raw: Any, acks: _Acks) -> None:
        self._heard = asyncio.get_running_loop().time()
        properties = message.header.properties
        headers = properties.headers or {}
        tag = message.delivery.delivery_tag
        acks.came(tag)

        async def settle(how: str) -> None:
            if how == "ack":
                acks.ack(tag)
            else:
                await acks.reject(tag, requeue=how == "requeue")

        count = headers.get("x-delivery-count", 0)
        redelivered = bool(message.delivery.redelivered)
        await self.on_delivery(Delivery(WireMessage(
            headers={name: value.decode(errors="replace") if isinstance(value, bytes) else str(value)
                     for name, value in headers.items()},
            body=message.body, user_id=properties.user_id or "", reply_to=properties.reply_to or "",
            correlation_id=properties.correlation_id or "", routing_key=message.delivery.routing_key or "",
        ), redelivered, (int(count) if isinstance(count, int) else int(redelivered)) + 1, settle))

    async def stop(self) -> None:
        """See Consumer."""
        raw = self._raw
        if raw is not None and self.registered.is_set():
            with contextlib.suppress(*AWAY):
                await asyncio.wait_for(raw.basic_cancel(self._tag), 5)
        self.registered.clear()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.owner.forget(self)


class _Acks:
    """Acks of one channel, many in one frame: the highest tag below which everything is settled, once a turn of the loop."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self._open: dict[int, bool] = {}
        """Delivery tag -> settled; in the order in which they came."""
        self._due = 0
        self._flushing: asyncio.Task[None] | None = None

    def came(self, tag: int) -> None:
        self._open[tag] = False

    def ack(self, tag: int) -> None:
        if tag in self._open and not self._open[tag]:
            self._open[tag] = True
            if self._flushing is None or self._flushing.done():
                self._flushing = asyncio.get_running_loop().create_task(self._flush())

    async def reject(self, tag: int, *, requeue: bool) -> None:
        if tag in self._open and not self._open.pop(tag):
            with contextlib.suppress(*AWAY):
                await self.raw.basic_reject(tag, requeue=requeue)

    async def _flush(self) -> None:
        await asyncio.sleep(0)
        settled = [tag for tag, done in self._open.items() if done]
        first_open = next((tag for tag, done in self._open.items() if not done), None)
        prefix = [tag for tag in settled if first_open is None or tag < first_open]
        beyond = [tag for tag in settled if first_open is not None and tag > first_open]
        for tag in settled:
            del self._open[tag]
        with contextlib.suppress(*AWAY):  # the channel is gone: they come again, and repeats are harmless
            if prefix:
                await self.raw.basic_ack(prefix[-1], multiple=True, wait=False)
            for tag in beyond:
                await self.raw.basic_ack(tag, wait=False)
        if any(self._open.values()):
            self._flushing = asyncio.get_running_loop().create_task(self._flush())


class RabbitTransport:
    """See bus.transport.Transport. `url` holds a password: it is never logged."""

    durable = True

    def __init__(self, url: str) -> None:
        self._url = url
        self._channels: list[Any] = []
        self._windows: list[asyncio.Semaphore] = []
        self._consumers: set[_RabbitConsumer] = set()
        self._targets: set[str] = set()
        self.publishing: _Link
        self.consuming: _Link
        self._started = False

    async def start(self) -> None:
        """See Transport. When the broker is away it raises BrokerAway and goes on trying by itself."""
        if not self._started:
            self.publishing = _Link(self._url, "publish", self._open_channels)
            self.consuming = _Link(self._url, "consume", _nothing)
            self._started = True
        try:
            async with asyncio.timeout(START_S):
                await self.publishing.ready.wait()
                await self.consuming.ready.wait()
        except TimeoutError:
            raise self._away() from None

    def _away(self) -> BrokerAway:
        return BrokerAway(f"RabbitMQ does not answer: {self.publishing.why}", field="STOREBUS_AMQP_URL",
                          remedy="start it, or check the URL; it is tried again by itself")

    async def _open_channels(self, connection: Any) -> None:
        channels = []
        for _ in range(PUBLISH_CHANNELS):
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            channels.append(await channel.get_underlay_channel())
        self._targets.clear()
        self._windows = [asyncio.Semaphore(WINDOW) for _ in channels]
        self._channels = channels

    @property
    def healthy(self) -> bool:
        """See Transport."""
        return (self._started and self.publishing.ready.is_set() and self.consuming.ready.is_set()
                and all(consumer.alive for consumer in self._consumers))

    async def publish(self, to: Address, message: WireMessage) -> None:
        """See Transport."""
        if not self._started or not self.publishing.ready.is_set():
            raise self._away() if self._started else BrokerAway("the transport was not started")
        # Order matters within a queue; all events share a channel because one subscriber may take several keys.
        lane = to.kind if to.kind == "events" else f"{to.kind}.{to.name}"
        number = zlib.crc32(lane.encode()) % len(self._channels)
        raw, window = self._channels[number], self._windows[number]
        if to.kind == "queue":
            await self._declare_target(raw, to)
        exchange, key, mandatory = topology.target(to)
        transient = to.kind in ("progress", "call", "reply")
        properties = Basic.Properties(
            content_type="application/json", delivery_mode=1 if transient else 2, headers=dict(message.headers),
            message_id=uuid4().hex,  # new for each attempt: returns are matched by it
            reply_to=message.reply_to or None, correlation_id=message.correlation_id or None,
            expiration=str(int(message.expiration_s * 1000)) if message.expiration_s else None)
        async with window:
            await _published(raw.basic_publish(message.body, exchange=exchange, routing_key=key, properties=properties,
                                               mandatory=mandatory, timeout=PUBLISH_S, wait=False), to)

    async def _declare_target(self, raw: Any, to: Address) -> None:
        if to.name not in self._targets:
            try:
                await declare(raw, topology.source(to, ""))
            except (AMQPError, OSError, RuntimeError) as error:
                raise BrokerAway(f"the queue {to.name} cannot be declared: {error}", field="queue") from None
            self._targets.add(to.name)

    async def consume(self, source: Address, on_delivery: OnDelivery, *, prefetch: int = 64) -> Consumer:
        """See Transport. Returns at once when the broker is away: the consumer registers when it is back."""
        consumer = _RabbitConsumer(self, source, on_delivery, prefetch)
        self._consumers.add(consumer)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(consumer.registered.wait(), START_S)
        return consumer

    def forget(self, consumer: _RabbitConsumer) -> None:
        """A consumer was stopped."""
        self._consumers.discard(consumer)

    async def depth(self, source: Address) -> int:
        """See Transport."""
        if not self._started or not self.consuming.ready.is_set():
            raise self._away()
        try:
            channel = await self.consuming.connection.channel(publisher_confirms=False)
            raw = await channel.get_underlay_channel()
            answer = await raw.queue_declare(topology.source(source, "").name, passive=True)
            await channel.close()
        except aiormq.exceptions.ChannelNotFoundEntity:
            return 0
        except (AMQPError, OSError, RuntimeError) as error:
            raise BrokerAway(f"RabbitMQ does not answer: {error}") from None
        return int(answer.message_count or 0)

    async def aclose(self) -> None:
        """See Transport."""
        if not self._started:
            return
        for consumer in list(self._consumers):
            await consumer.stop()
        await self.publishing.close()
        await self.consuming.close()
        self._started = False


async def _published(publish: Awaitable[Any], to: Address) -> None:
    """Wait for the confirm; every way it can fail says whether the message may be there."""
    try:
        await publish
    except PublishError:
        raise Unroutable(f"no queue takes {to.kind} {to.name}") from None
    except DeliveryError:
        raise BrokerAway(f"the broker refused {to.kind} {to.name} for now (nack)") from None
    except ChannelInvalidStateError:
        raise BrokerAway("the channel to RabbitMQ is closed") from None
    except (AMQPError, OSError, RuntimeError, TimeoutError) as error:
        raise PublishUnknown(f"no confirm came for {to.kind} {to.name}: {type(error).__name__}") from None


async def _nothing(connection: Any) -> None:
    """The consuming link opens its channels as consumers come."""
