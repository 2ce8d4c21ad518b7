"""The transport on RabbitMQ: publishing, and what a process has of it. Consumers live in `rabbit_consumer`, connections
in `rabbit_link`.

Owns what a caller is told about a publish: safe, not sent (BrokerAway, Unroutable), or unknown (PublishUnknown). Refuses to
retry for the caller, except where the broker has lost a standing queue: that is declared again and the message sent once more.
Rule: a message is only called safe by the broker's own confirm.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Awaitable
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from aiormq.exceptions import AMQPError, ChannelInvalidStateError, ChannelNotFoundEntity, DeliveryError, PublishError
from pamqp.commands import Basic

from bus import topology
from bus.errors import BrokerAway, PublishUnknown, Unroutable
from bus.rabbit_consumer import RabbitConsumer
from bus.rabbit_link import AWAY, Link, declare, declare_exchanges, declare_standing, ours
from bus.transport import Address, Consumer, OnDelivery, WireMessage, check_fits

log = logging.getLogger(__name__)

PUBLISH_CHANNELS = 4
WINDOW = 512
"""Unconfirmed publishes of one channel."""
PUBLISH_S = 15.0
"""Longest wait for a confirm, and for room to send."""
SILENT_S = 8.0
"""Without any confirm for so long, a channel with unconfirmed publishes is given up. A quorum queue whose leader was not
elected yet when the broker came back drops a publish, and then waits for it: no later one on that channel is confirmed."""
BLOCKED_S = 5.0
"""Longest wait while the broker takes nothing (memory or disk alarm)."""
START_S = 10.0
CLOSE_S = 5.0
CANARY_S = 30.0


class _Lane:
    """One publish channel and its window of unconfirmed publishes."""

    def __init__(self, link: Link, raw: Any) -> None:
        self.link, self.raw = link, raw
        self.window = asyncio.Semaphore(WINDOW)
        self.flying = 0
        self._heard = 0.0
        self._loop = asyncio.get_running_loop()

    @property
    def silent_s(self) -> float:
        """For how long publishes have been waiting without any confirm."""
        return self._loop.time() - self._heard if self.flying else 0.0

    async def publish(self, body: bytes, exchange: str, key: str, properties: Basic.Properties, mandatory: bool) -> None:
        """Returns with the confirm. Every way it can fail says whether the message may be there."""
        sent = False
        try:
            async with asyncio.timeout(PUBLISH_S):
                if self.link.blocked:
                    async with asyncio.timeout(BLOCKED_S):
                        await self.raw.connection.ready()
                async with self.window:
                    sent = True
                    await self._confirmed(self.raw.basic_publish(
                        body, exchange=exchange, routing_key=key, properties=properties, mandatory=mandatory, wait=False))
        except PublishError:
            raise Unroutable(f"no queue takes {exchange or 'the default exchange'}: {key}") from None
        except DeliveryError:
            raise BrokerAway("the broker refused the message for now (nack)") from None
        except ChannelInvalidStateError:
            raise BrokerAway("the channel to RabbitMQ is closed") from None
        except asyncio.CancelledError:
            if ours():
                raise
            raise PublishUnknown("the channel closed before a confirm came") from None
        except TimeoutError:
            if not sent:
                raise BrokerAway("the broker takes no messages for now", remedy="free its memory or disk") from None
            self.link.give_up(f"no confirm came within {PUBLISH_S:.0f} s")
            raise PublishUnknown(f"no confirm came within {PUBLISH_S:.0f} s") from None
        except (AMQPError, OSError, RuntimeError) as error:
            raise PublishUnknown(f"no confirm came: {type(error).__name__}") from None

    async def _confirmed(self, publish: Awaitable[Any]) -> None:
        if not self.flying:
            self._heard = self._loop.time()
        self.flying += 1
        try:
            await publish
            self._heard = self._loop.time()
        finally:
            self.flying -= 1


class RabbitTransport:
    """See bus.transport.Transport. `url` holds a password: it is never logged.

    `canary_s`: after how many idle seconds a partition's consumer is probed.
    """

    durable = True

    def __init__(self, url: str, *, canary_s: float = CANARY_S) -> None:
        self._url = url
        self._login = unquote(urlsplit(url).username or "guest")
        """Sent with every message: the broker refuses a message that claims to be somebody else's."""
        self.canary_s = canary_s
        self._lanes: list[_Lane] = []
        self._consumers: set[RabbitConsumer] = set()
        self._flying = 0
        self._landed = asyncio.Event()
        self._mending: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.publishing: Link
        self.consuming: Link
        self._started = False

    async def start(self) -> None:
        """See Transport. When the broker is away it raises BrokerAway and goes on trying by itself."""
        if not self._started:
            self.publishing = Link(self._url, "publish", self._open_lanes)
            self.consuming = Link(self._url, "consume", _prepare)
            self._started = True
        try:
            async with asyncio.timeout(START_S):
                await self.publishing.ready.wait()
                await self.consuming.ready.wait()
        except TimeoutError:
            raise self._away() from None

    def _away(self) -> BrokerAway:
        link = self.publishing if not self.publishing.ready.is_set() else self.consuming
        return BrokerAway(f"RabbitMQ does not answer: {link.why}", field="STOREBUS_AMQP_URL",
                          remedy="start it, or check the URL; it is tried again by itself")

    async def _open_lanes(self, link: Link) -> None:
        async with link.channel() as raw:
            await declare_exchanges(raw)
            await declare_standing(raw)
        lanes = []
        for _ in range(PUBLISH_CHANNELS):
            raw = await link.open_channel(confirms=True)
            link.lost_with(raw)
            lanes.append(_Lane(link, raw))
        self._lanes = lanes
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="amqp-watch")

    async def _watch(self) -> None:
        """Give up a connection on which publishes are no longer confirmed; a new one starts from nothing."""
        while True:
            await asyncio.sleep(1.0)
            if any(lane.silent_s > SILENT_S and not lane.link.blocked for lane in self._lanes):
                self.publishing.give_up(f"no confirm came for {SILENT_S:.0f} s")

    @property
    def healthy(self) -> bool:
        """See Transport."""
        return (self._started and self.publishing.ready.is_set() and self.consuming.ready.is_set()
                and all(consumer.alive for consumer in self._consumers))

    # --- publish ------------------------------------------------------------------------------------------------

    async def publish(self, to: Address, message: WireMessage) -> None:
        """See Transport."""
        check_fits(to, message)
        try:
            await self._send(to, message)
        except Unroutable:
            # The queue is gone (a wiped broker), or was never there (an agent's first order, a replay's target).
            if not await self._mend(to):
                raise
            await self._send(to, message)

    async def _send(self, to: Address, message: WireMessage) -> None:
        # Order matters within a queue; all events share a channel because one subscriber may take several keys.
        lane = to.kind if to.kind == "events" else f"{to.kind}.{to.name}"
        exchange, key, mandatory = topology.target(to)
        await self._publish_raw(lane, message, exchange, key, mandatory, to.kind in topology.TRANSIENT)

    async def _publish_raw(self, lane: str, message: WireMessage, exchange: str, key: str, mandatory: bool,
                           transient: bool) -> None:
        if not self._started or not self.publishing.ready.is_set():
            raise self._away() if self._started else BrokerAway("the transport was not started")
        properties = Basic.Properties(
            content_type="application/json", delivery_mode=1 if transient else 2, headers=dict(message.headers),
            user_id=self._login, message_id=uuid4().hex,  # new for each attempt: returned messages are matched by it
            reply_to=message.reply_to or None, correlation_id=message.correlation_id or None,
            expiration=str(int(message.expiration_s * 1000)) if message.expiration_s is not None else None)
        self._flying += 1
        try:
            await self._lanes[zlib.crc32(lane.encode()) % len(self._lanes)].publish(
                message.body, exchange, key, properties, mandatory)
        finally:
            self._flying -= 1
            if not self._flying:
                self._landed.set()

    async def probe(self, queue: str, headers: dict[str, str], *, expiration_s: float) -> None:
        """A canary straight into a queue, by its name."""
        await self._publish_raw("canary", WireMessage(headers=headers, body=b"", expiration_s=expiration_s), "", queue,
                                mandatory=True, transient=True)

    async def _mend(self, to: Address) -> bool:
        """Declare what should be there; False when only its consumer can (calls, replies)."""
        if to.kind in ("work", "commands"):
            if self._mending is None or self._mending.done():
                self._mending = asyncio.create_task(self._declare_again(), name="amqp-mend")
            await asyncio.shield(self._mending)
            return True
        if to.kind in ("agent", "queue"):
            await self._declare_one(topology.source(to, ""))
            return True
        return False

    async def _declare_again(self) -> None:
        log.warning("standing queues were gone and are declared again", extra={"action": "topology_mended"})
        try:
            async with asyncio.timeout(PUBLISH_S), self.publishing.channel() as raw:
                await declare_exchanges(raw)
                await declare_standing(raw)
        except AWAY as error:
            raise BrokerAway(f"the queues cannot be declared: {type(error).__name__}") from None

    async def _declare_one(self, queue: topology.Queue) -> None:
        try:
            async with asyncio.timeout(PUBLISH_S), self.publishing.channel() as raw:
                await declare(raw, queue)
        except AWAY as error:
            raise BrokerAway(f"the queue {queue.name} cannot be declared: {error}", field="queue") from None

    # --- consume ------------------------------------------------------------------------------------------------

    async def consume(self, source: Address, on_delivery: OnDelivery, *, prefetch: int = 64) -> Consumer:
        """See Transport. Returns at once when the broker is away: the consumer registers when it is back."""
        consumer = RabbitConsumer(self, source, on_delivery, prefetch)
        self._consumers.add(consumer)
        if self.consuming.ready.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(consumer.registered.wait(), START_S)
        return consumer

    def forget(self, consumer: RabbitConsumer) -> None:
        """A consumer was stopped."""
        self._consumers.discard(consumer)

    async def depth(self, source: Address) -> int:
        """See Transport."""
        if not self._started or not self.consuming.ready.is_set():
            raise self._away() if self._started else BrokerAway("the transport was not started")
        try:
            async with asyncio.timeout(START_S), self.consuming.channel() as raw:
                answer = await raw.queue_declare(topology.source(source, "").name, passive=True)
        except ChannelNotFoundEntity:
            return 0
        except AWAY as error:
            raise BrokerAway(f"RabbitMQ does not answer: {type(error).__name__}") from None
        return int(answer.message_count or 0)

    async def aclose(self) -> None:
        """See Transport."""
        if not self._started:
            return
        self._started = False
        await asyncio.gather(*(consumer.stop() for consumer in list(self._consumers)))
        self._landed.clear()
        if self._flying:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._landed.wait(), CLOSE_S)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        await self.publishing.close()
        await self.consuming.close()


async def _prepare(link: Link) -> None:
    """The consuming link opens its channels as consumers come; what they bind to must be there."""
    async with link.channel() as raw:
        await declare_exchanges(raw)
