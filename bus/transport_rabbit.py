"""The transport on RabbitMQ: what a process has of it. Consumers live in `rabbit_consumer`, publish channels in
`rabbit_publish`, connections in `rabbit_link`.

Owns which channel a message takes, and what a lost queue means. Refuses to
retry for the caller, except where the broker has lost a standing queue: that is declared again and the message sent once more.
Rule: a message is only called safe by the broker's own confirm.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from urllib.parse import unquote, urlsplit

from aiormq.exceptions import ChannelNotFoundEntity

from bus import topology
from bus.errors import BrokerAway, Unroutable
from bus.rabbit_consumer import RabbitConsumer
from bus.rabbit_link import AWAY, Link, declare, declare_exchanges, declare_standing
from bus.rabbit_publish import PUBLISH_S, PublishChannel
from bus.transport import Address, Consumer, OnDelivery, WireMessage, check_fits

log = logging.getLogger(__name__)

PUBLISH_CHANNELS = 4
START_S = 10.0
CLOSE_S = 5.0
CANARY_S = 30.0


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
        self._channels: list[PublishChannel] = []
        self._consumers: set[RabbitConsumer] = set()
        self._mending: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.publishing: Link
        self.consuming: Link
        self._started = False

    async def start(self) -> None:
        """See Transport. When the broker is away it raises BrokerAway and goes on trying by itself."""
        if not self._started:
            self.publishing = Link(self._url, "publish", self._open_channels)
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

    async def _open_channels(self, link: Link) -> None:
        async with link.channel() as raw:
            await declare_exchanges(raw)
            await declare_standing(raw)
        channels = []
        for _ in range(PUBLISH_CHANNELS):
            raw = await link.open_channel(confirms=True)
            link.lost_with(raw)
            channels.append(PublishChannel(link, raw, self._login))
        self._channels = channels
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="amqp-watch")

    async def _watch(self) -> None:
        """Give up a connection on which publishes are no longer confirmed; a new one starts from nothing."""
        while True:
            await asyncio.sleep(1.0)
            why = next(filter(None, (channel.overdue() for channel in self._channels)), "")
            if why:
                self.publishing.give_up(why)
                for channel in self._channels:
                    channel.fail(why)

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
            await (await self._send(to, message))
        except Unroutable:
            # The queue is gone (a wiped broker), or was never there (an agent's first order, a replay's target).
            if not await self._mend(to):
                raise
            await (await self._send(to, message))

    async def send(self, to: Address, message: WireMessage) -> asyncio.Future[None]:
        """See Transport."""
        check_fits(to, message)
        return await self._send(to, message)

    async def _send(self, to: Address, message: WireMessage) -> asyncio.Future[None]:
        exchange, key, mandatory = topology.target(to)
        # Order matters within a queue; all events share a channel because one subscriber may take several keys.
        return await self._channel(to.kind if to.kind in ("events", "cloudstack") else f"{to.kind}.{to.name}").send(
            exchange, key, message.body, message.headers, mandatory=mandatory, durable=to.kind not in topology.TRANSIENT,
            reply_to=message.reply_to, correlation_id=message.correlation_id,
            expiration_ms=None if message.expiration_s is None else int(message.expiration_s * 1000))

    def _channel(self, order: str) -> PublishChannel:
        """What bears this name goes in order."""
        if not self._started or not self.publishing.ready.is_set():
            raise self._away() if self._started else BrokerAway("the transport was not started")
        return self._channels[zlib.crc32(order.encode()) % len(self._channels)]

    async def probe(self, queue: str, headers: dict[str, str], *, expiration_s: float) -> None:
        """A canary straight into a queue, by its name."""
        await (await self._channel("canary").send("", queue, b"", headers, mandatory=True, durable=False,
                                                  expiration_ms=int(expiration_s * 1000)))

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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*(channel.landed() for channel in self._channels))
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
