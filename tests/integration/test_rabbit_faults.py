"""What RabbitMQ and the network do to a process, and that it is steady again by itself: nothing confirmed is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import pytest

from bus import topology
from bus.errors import BrokerAway, PublishUnknown
from bus.rabbit_consumer import RabbitConsumer
from bus.transport import Address, Delivery, WireMessage, agent, commands, events, work
from bus.transport_rabbit import RabbitTransport
from tests.services.rabbitmq import RabbitMQ
from tests.support.transports import LazyRabbit

pytestmark = [pytest.mark.needs_rabbitmq, pytest.mark.timeout(360)]
STEADY_S = 120.0


@pytest.fixture(scope="module")
async def node() -> AsyncIterator[RabbitMQ]:
    """A node of its own: it is killed and wiped."""
    holder = LazyRabbit()
    yield await holder.get()
    await holder.stop()


@contextlib.asynccontextmanager
async def connected(url: str, canary_s: float = 30.0) -> AsyncIterator[RabbitTransport]:
    transport = RabbitTransport(url, canary_s=canary_s)
    try:
        await transport.start()
        yield transport
    finally:
        await transport.aclose()


class Log:
    """What arrived, each once, and how often a confirmed publish was tried."""

    def __init__(self) -> None:
        self.bodies: list[str] = []
        self._came = asyncio.Event()

    async def __call__(self, delivery: Delivery) -> None:
        self.bodies.append(delivery.message.body.decode())
        self._came.set()
        await delivery.ack()

    async def until(self, wanted: set[str]) -> None:
        missing, looked = set(wanted), 0
        async with asyncio.timeout(STEADY_S):
            while True:
                missing.difference_update(self.bodies[looked:])
                looked = len(self.bodies)
                if not missing:
                    return
                self._came.clear()
                await self._came.wait()


async def send(transport: RabbitTransport, to: Address, body: str) -> None:
    """As every caller does: again, until it is confirmed."""
    async with asyncio.timeout(STEADY_S):
        while True:
            try:
                await transport.publish(to, WireMessage(headers={}, body=body.encode()))
                return
            except (BrokerAway, PublishUnknown):
                await asyncio.sleep(0.1)


async def until(true: Callable[[], bool], seconds: float = STEADY_S) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.05)


async def ctl(node: RabbitMQ, *arguments: str) -> str:
    return await asyncio.to_thread(node.ctl, *arguments)


async def test_a_consumer_that_the_broker_cancelled(node: RabbitMQ) -> None:
    """Its queue is deleted under it: the queue and the consumer are there again, nobody had to ask."""
    async with connected(node.url) as transport:
        log, other = Log(), Log()
        consumer = await transport.consume(work(5), log)
        await transport.consume(events("#"), other)
        await send(transport, work(5), "before")
        await log.until({"before"})
        await ctl(node, "delete_queue", f"{topology.WORK}.p05")
        assert isinstance(consumer, RabbitConsumer)
        await until(lambda: consumer.generation > 1 and transport.healthy)
        await send(transport, work(5), "after")
        await log.until({"after"})


async def test_a_queue_that_is_gone_is_declared_by_who_publishes(node: RabbitMQ) -> None:
    async with connected(node.url) as transport:
        await ctl(node, "delete_queue", f"{topology.WORK}.p06")
        await ctl(node, "delete_queue", f"{topology.COMMANDS}.in")
        await asyncio.gather(*(transport.publish(work(6), WireMessage(headers={}, body=b"x")) for _ in range(50)))
        await transport.publish(commands("a.b"), WireMessage(headers={}, body=b"x"))
        log = Log()
        await transport.consume(work(6), log)
        await until(lambda: len(log.bodies) == 50)


async def test_an_exchange_that_is_gone(node: RabbitMQ) -> None:
    """The broker closes the channel: what was in flight is unknown, and the next connection has declared it again."""
    async with connected(node.url) as transport:
        import aio_pika
        connection = await aio_pika.connect(node.url)
        await (await connection.channel()).exchange_delete(topology.WORK)
        await connection.close()
        with pytest.raises((PublishUnknown, BrokerAway)):
            await transport.publish(work(1), WireMessage(headers={}, body=b"lost"))
        log = Log()
        await send(transport, work(1), "found")
        await transport.consume(work(1), log)
        await log.until({"found"})


async def test_every_connection_is_closed_by_the_operator(node: RabbitMQ) -> None:
    async with connected(node.url) as transport:
        logs = [Log() for _ in range(16)]
        for number, log in enumerate(logs):
            await transport.consume(work(number), log)
        opened = transport.publishing.opened, transport.consuming.opened
        sending = [asyncio.create_task(send(transport, work(n % 16), f"m{n}")) for n in range(800)]
        await ctl(node, "close_all_connections", "maintenance")
        await asyncio.gather(*sending)
        await until(lambda: (transport.publishing.opened, transport.consuming.opened) > opened and transport.healthy)
        for number, log in enumerate(logs):
            await log.until({f"m{n}" for n in range(800) if n % 16 == number})


async def test_a_broker_that_is_killed_keeps_what_it_confirmed(node: RabbitMQ) -> None:
    async with connected(node.url) as transport:
        to = agent(uuid4().hex)
        stop = asyncio.Event()
        confirmed: list[str] = []

        async def client(name: int) -> None:
            for number in range(1_000_000):
                if stop.is_set():
                    return
                await send(transport, to, f"{name}-{number}")
                confirmed.append(f"{name}-{number}")
                await asyncio.sleep(0.01)

        clients = [asyncio.create_task(client(name)) for name in range(20)]
        await until(lambda: len(confirmed) > 500)
        # RabbitMQ 3.10 leaves a quorum queue without a leader for ever when it is killed within a second of its declaration.
        await asyncio.sleep(3.0)
        await asyncio.to_thread(node.kill)
        await until(lambda: not transport.healthy)
        with pytest.raises((BrokerAway, PublishUnknown)):
            await transport.publish(to, WireMessage(headers={}, body=b""))
        await asyncio.to_thread(node.start)
        before = len(confirmed)
        await until(lambda: len(confirmed) > before + 200)
        stop.set()
        await asyncio.gather(*clients)
        log = Log()
        await transport.consume(to, log, prefetch=200)
        await log.until(set(confirmed))
        for name in range(20):
            mine = [body for body in log.bodies if body.startswith(f"{name}-")]
            assert sorted(set(mine), key=lambda body: int(body.split("-")[1])) == list(dict.fromkeys(mine))


async def test_a_wiped_broker_has_its_topology_again(node: RabbitMQ) -> None:
    async with connected(node.url) as transport:
        log, told = Log(), Log()
        await transport.consume(work(2), log)
        await transport.consume(events("snapshot.#"), told)
        await asyncio.to_thread(node.wipe)
        await send(transport, work(2), "new")
        await until(lambda: transport.healthy)
        await send(transport, events("snapshot.taken.root"), "event")
        await log.until({"new"})
        await told.until({"event"})
        queues = await ctl(node, "-q", "list_queues", "name", "type")
        for queue in topology.standing():
            assert queue.name in queues
        assert f"{topology.WORK}.p02\tquorum" in queues


async def test_a_nack_says_that_nothing_was_sent(node: RabbitMQ) -> None:
    async with connected(node.url) as transport:
        to = agent(f"full-{uuid4().hex}")
        await transport.publish(to, WireMessage(headers={}, body=b"first"))
        await ctl(node, "set_policy", "full", r"^storebus\.agent\.full", '{"max-length":1}', "--apply-to", "queues")
        try:
            with pytest.raises(BrokerAway, match="nack"):
                for _ in range(50):
                    await transport.publish(to, WireMessage(headers={}, body=b"more"))
                    await asyncio.sleep(0.1)
            sending = asyncio.create_task(send(transport, to, "last"))
            await asyncio.sleep(0.3)
            assert not sending.done()  # full it stays until somebody takes
            log = Log()
            await transport.consume(to, log)
            await sending
            await log.until({"first", "last"})
        finally:
            await ctl(node, "clear_policy", "full")


async def test_a_broker_that_takes_nothing_for_now(node: RabbitMQ) -> None:
    """A memory alarm: publishers are told in time, and go on when it is over."""
    async with connected(node.url) as transport:
        await ctl(node, "set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            first = asyncio.create_task(transport.publish(work(9), WireMessage(headers={}, body=b"stuck")))
            await asyncio.sleep(1.0)
            with pytest.raises((BrokerAway, PublishUnknown)):
                async with asyncio.timeout(60):
                    await transport.publish(work(9), WireMessage(headers={}, body=b"told"))
        finally:
            await ctl(node, "set_vm_memory_high_watermark", "absolute", "512MB")
        await asyncio.gather(first, return_exceptions=True)
        log = Log()
        await transport.consume(work(9), log)
        await send(transport, work(9), "after")
        await log.until({"after"})


async def test_a_consumer_that_is_gone_in_silence(node: RabbitMQ) -> None:
    """The broker counts it, the client has forgotten it: only a message that does not come through shows it."""
    async with connected(node.url, canary_s=1.0) as transport:
        log = Log()
        consumer = await transport.consume(work(11), log)
        await asyncio.sleep(2.5)  # idle: probed, found well, and left alone
        assert consumer.generation == 1  # type: ignore[attr-defined] # RabbitConsumer's own
        consumer.raw.consumers.clear()  # type: ignore[attr-defined] # what aiormq does with a consumer it loses
        await until(lambda: consumer.generation == 2, 30)  # type: ignore[attr-defined] # as above
        await send(transport, work(11), "heard")
        await log.until({"heard"})
        assert set(log.bodies) == {"heard"}


class Cable:
    """A network between the process and the broker: cut it, or let it hang."""

    def __init__(self, port: int) -> None:
        self.port, self.stalled = port, False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Cable:
        self._server = await asyncio.start_server(self._plug, "127.0.0.1", 0)
        self.url = f"amqp://guest:guest@127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _plug(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.close()
            return
        for source, target in ((reader, inner_writer), (inner_reader, writer)):
            self._writers.add(target)
            task = asyncio.create_task(self._pump(source, target))
            self._tasks.add(task)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                while self.stalled:
                    await asyncio.sleep(0.05)
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(target)
            target.close()
            with contextlib.suppress(OSError):
                await target.wait_closed()

    def cut(self) -> None:
        self.stalled = False
        for writer in list(self._writers):
            writer.transport.abort()


async def test_a_cable_that_is_cut_again_and_again(node: RabbitMQ) -> None:
    async with Cable(node.port) as cable, connected(cable.url) as transport:
        to, log = agent(uuid4().hex), Log()
        await transport.consume(to, log)
        wanted: set[str] = set()
        for turn in range(5):
            sending = [asyncio.create_task(send(transport, to, f"{turn}-{n}")) for n in range(300)]
            wanted |= {f"{turn}-{n}" for n in range(300)}
            await asyncio.sleep(0.03 * turn)
            cable.cut()
            await asyncio.gather(*sending)
        await log.until(wanted)
        await until(lambda: transport.healthy)


async def test_a_cable_that_hangs(node: RabbitMQ) -> None:
    """Half-open: no packet says so. The heartbeat does, and everything is there again."""
    async with Cable(node.port) as cable, connected(cable.url) as transport:
        log = Log()
        await transport.consume(work(12), log)
        await send(transport, work(12), "before")
        await log.until({"before"})
        cable.stalled = True
        with pytest.raises((PublishUnknown, BrokerAway)):
            await transport.publish(work(12), WireMessage(headers={}, body=b"hangs"))
        assert not transport.publishing.ready.is_set()
        cable.cut()
        await send(transport, work(12), "after")
        await log.until({"after"})
        await until(lambda: transport.healthy)


async def test_started_before_the_broker(node: RabbitMQ) -> None:
    """start() says that it is away and goes on trying: a consumer started meanwhile registers when it is there."""
    await asyncio.to_thread(node.kill)
    transport = RabbitTransport(node.url)
    try:
        with pytest.raises(BrokerAway, match="STOREBUS_AMQP_URL"):
            await transport.start()
        log = Log()
        consumer = await transport.consume(work(13), log)
        assert not consumer.alive and not transport.healthy
        with pytest.raises(BrokerAway):
            await transport.publish(work(13), WireMessage(headers={}, body=b""))
        await asyncio.to_thread(node.start)
        await until(lambda: transport.healthy)
        await send(transport, work(13), "hello")
        await log.until({"hello"})
    finally:
        await transport.aclose()
