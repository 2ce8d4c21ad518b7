"""Commands end to end: AMQP publish -> handler -> log -> event at a foreign subscriber. And the same at low load.

Both sides: one RabbitMQ node, one Postgres with fsync and synchronous_commit on, two worker processes, the same loader and
subscriber. Ours are the shipped roles `handlers` and `log`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import aio_pika
import asyncpg

from bench.measure import Result, interleaved
from bus.client import Bus
from bus.envelope import Envelope
from bus.event_store import AppendRequest, NewRow
from bus.event_store_postgres import PostgresEventStore
from bus.transport import WireMessage, commands
from bus.transport_rabbit import RabbitTransport
from schema.codec import encode
from schema.ids import derive
from schema.image import DiskRef, PrimarySpec
from schema.volume import UpdateVolume, VolumeReady, VolumeRequested
from tests.services.postgres import TestServer, fresh_database
from tests.services.rabbitmq import RabbitMQ

VOLUMES = 256
COMMANDS = 4000
WARM_UP = 500
"""Commands before the clock starts, on both sides: plans, caches, connections."""
PEER = "bench_peer"


async def volumes(dsn: str) -> list[UUID]:
    """Volumes that exist, in the log."""
    store = await PostgresEventStore.connect(dsn)
    zone = uuid4()
    primary = PrimarySpec(id=uuid4(), name="p", kind="folder", path="/p", zone_id=zone, agent="nobody")
    made = [uuid4() for _ in range(VOLUMES)]

    async def one(volume: UUID) -> None:
        stream = f"volume-{volume}"
        facts = [VolumeRequested(volume_id=volume, name="v", zone_id=zone, primary=primary, virtual_size=0, job_id=volume),
                 VolumeReady(volume_id=volume, disk=DiskRef(primary=primary, volume_id=volume, path="x", virtual_size=1))]
        await store.append(AppendRequest(expected={stream: -1}, rows=[NewRow(
            stream=stream, kind="event", type=fact.TYPE, id=derive(volume, fact.TYPE), payload=encode(fact), key=stream,
            correlation=volume) for fact in facts]))

    await asyncio.gather(*(one(volume) for volume in made))
    await store.aclose()
    return made


async def _consumers(url: str, names: list[str]) -> int:
    """The fewest consumers that any of these queues has; 0 while one does not exist."""
    connection = await aio_pika.connect(url)
    try:
        channel = await connection.channel()
        return min([(await channel.declare_queue(name, passive=True)).declaration_result.consumer_count or 0 for name in names])
    except aio_pika.exceptions.ChannelNotFoundEntity:
        return 0
    finally:
        await connection.close()


async def _consuming(url: str, names: list[str], wanted: int, processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until each queue has `wanted` consumers. Raises RuntimeError when a process ended, TimeoutError after 60 s."""
    async with asyncio.timeout(60):
        while await _consumers(url, names) < wanted:
            if any(process.poll() is not None for process in processes):
                raise RuntimeError("a process under measurement ended by itself")
            await asyncio.sleep(0.3)
    await asyncio.sleep(0.5)


@asynccontextmanager
async def roles(rabbit: RabbitMQ, dsn: str) -> AsyncIterator[None]:
    """The shipped roles as processes."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"STOREBUS_AMQP_URL": rabbit.url, "STOREBUS_DATABASE_URL": dsn, "STOREBUS_DATA_DIR": folder,
                                    "STOREBUS_LOG_LEVEL": "WARNING"}
        ends = [subprocess.Popen([sys.executable, "-m", "api.cli", "serve", role], env=environment, stderr=subprocess.DEVNULL)
                for role in ("handlers", "log")]
        try:
            await _consuming(rabbit.url, [f"storebus.work.p{number:02d}" for number in range(16)] + ["storebus.commands.in"], 1, ends)
            yield
        finally:
            for process in ends:
                process.terminate()
            for process in ends:
                process.wait(20)


@asynccontextmanager
async def peers(rabbit: RabbitMQ, dsn: str) -> AsyncIterator[None]:
    """Two FastStream workers."""
    environment = os.environ | {"PEER_AMQP": rabbit.url, "PEER_DSN": dsn}
    ends = [subprocess.Popen([sys.executable, "-m", "bench.peer_worker"], env=environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        await _consuming(rabbit.url, [f"{PEER}.commands"], len(ends), ends)
        yield
    finally:
        for process in ends:
            process.terminate()
        for process in ends:
            process.wait(20)


@asynccontextmanager
async def subscriber(url: str, exchange: str, pattern: str, count: int) -> AsyncIterator[asyncio.Event]:
    """A foreign subscriber: set when it has seen `count` events."""
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.set_qos(500)
    queue = await channel.declare_queue(exclusive=True, arguments={"x-max-length": 1_000_000})
    await queue.bind(exchange, pattern)
    done, seen = asyncio.Event(), 0

    async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        nonlocal seen
        await message.ack()
        seen += 1
        if seen >= count:
            done.set()

    await queue.consume(take)
    try:
        yield done
    finally:
        await connection.close()


async def through(rabbit: RabbitMQ, exchange: str, pattern: str, publish: object, count: int = COMMANDS) -> float:
    """Commands a second from the first publish to the last event seen."""
    async with subscriber(rabbit.url, exchange, pattern, count) as done:
        window = asyncio.Semaphore(256)

        async def one(number: int) -> None:
            async with window:
                await publish(number)  # type: ignore[operator] # a coroutine function

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(count)))
        await asyncio.wait_for(done.wait(), 180)
        return count / (time.perf_counter() - began)


async def ours(rabbit: RabbitMQ, dsn: str, made: list[UUID]) -> float:
    """Storebus."""
    transport = RabbitTransport(rabbit.url)
    await transport.start()
    run = uuid4().hex[:6]

    async def publish(number: int) -> None:
        command = UpdateVolume(id=made[number % VOLUMES], name=f"{run}-{number}")
        envelope = Envelope(id=uuid4(), type=command.TYPE, kind="command", body=encode(command))
        await transport.publish(commands(command.TYPE), WireMessage(headers=envelope.headers(), body=envelope.body))

    try:
        await through(rabbit, "storebus.events", "volume.renamed.#", publish, WARM_UP)
        return await through(rabbit, "storebus.events", "volume.renamed.#", publish)
    finally:
        await transport.aclose()


async def peer(rabbit: RabbitMQ, made: list[UUID]) -> float:
    """FastStream."""
    import json

    transport = RabbitTransport(rabbit.url)  # the same loader
    await transport.start()
    run = uuid4().hex[:6]

    async def publish(number: int) -> None:
        body = json.dumps({"id": str(uuid4()), "volume": str(made[number % VOLUMES]), "name": f"{run}-{number}"}).encode()
        channel = transport._channel(str(number % 4))
        await (await channel.send("", f"{PEER}.commands", body, {}, mandatory=True))

    try:
        await through(rabbit, f"{PEER}.events", "renamed.#", publish, WARM_UP)
        return await through(rabbit, f"{PEER}.events", "renamed.#", publish)
    finally:
        await transport.aclose()


async def run_load(rabbit: RabbitMQ, server: TestServer) -> Result:
    """Both, interleaved, each with only its own processes running."""
    dsn = await fresh_database(server)
    made = await volumes(dsn)
    peer_dsn = await fresh_database(server)
    connection = await asyncpg.connect(peer_dsn)
    from bench.peer_worker import TABLES

    await connection.execute(TABLES)
    await connection.executemany("INSERT INTO peer_volume VALUES ($1, 0, 'v')", [(volume,) for volume in made])
    await connection.close()

    async def mine() -> float:
        async with roles(rabbit, dsn):
            return await ours(rabbit, dsn, made)

    async def theirs() -> float:
        async with peers(rabbit, peer_dsn):
            return await peer(rabbit, made)

    a, b = await interleaved(mine, theirs)
    return Result("commands end to end", "commands/s", a, b, "FastStream, 2 processes", 2, 3, notes=[
        (f"{COMMANDS} UpdateVolume on {VOLUMES} volumes, 256 publishes in flight; ours: `serve handlers` + `serve log`, dedup, expected "
        "versions, chain, ordered per volume; peer: uvloop, quorum queue, prefetch 100, one transaction for each command with dedup "
        "and version check, the same 4 rows, one confirmed publish for each event")])


async def run_latency(rabbit: RabbitMQ, server: TestServer) -> Result:
    """p50 from publish to subscriber at 20 commands a second, against a bare broker round trip plus insert."""
    dsn = await fresh_database(server)
    made = await volumes(dsn)
    async with roles(rabbit, dsn):
        a, b = await interleaved(lambda: _latency(rabbit, dsn, made), lambda: _bare(rabbit, dsn))
    result = Result("publish -> subscriber, low load, p50", "ms", a, b, "a bare broker round trip plus insert", 1 / 5, 1 / 5, higher_is_better=False)
    result.notes.append("ours: Bus.publish over AMQP, forwarder, handlers, append, Bus.subscribe from the log")
    return result


async def _latency(rabbit: RabbitMQ, dsn: str, made: list[UUID], count: int = 60) -> float:
    took: list[float] = []
    async with Bus.connect(amqp_url=rabbit.url, database_url=dsn) as bus, bus.subscribe("volume.renamed", from_="now") as events:
        seen: dict[str, asyncio.Event] = {}

        async def watch() -> None:
            async for event in events:
                if event.data["name"] in seen:
                    seen[event.data["name"]].set()

        watcher = asyncio.create_task(watch())
        for number in range(count):
            name = uuid4().hex
            seen[name] = asyncio.Event()
            began = time.perf_counter()
            await bus.publish(UpdateVolume(id=made[number % VOLUMES], name=name))
            await asyncio.wait_for(seen[name].wait(), 20)
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    return statistics.median(took) * 1000


async def _bare(rabbit: RabbitMQ, dsn: str, count: int = 60) -> float:
    connection, database = await aio_pika.connect(rabbit.url), await asyncpg.connect(dsn)
    await database.execute("CREATE TABLE IF NOT EXISTS bare_insert (id uuid PRIMARY KEY, body bytea)")
    channel = await connection.channel()
    queue = await channel.declare_queue(f"bare-{uuid4()}", durable=True, arguments={"x-queue-type": "quorum"})
    seen = asyncio.Event()

    async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        await database.execute("INSERT INTO bare_insert VALUES ($1, $2)", uuid4(), message.body)
        await message.ack()
        seen.set()

    await queue.consume(take)
    took = []
    for _ in range(count):
        seen.clear()
        began = time.perf_counter()
        await channel.default_exchange.publish(aio_pika.Message(b"x" * 300, delivery_mode=2), queue.name)
        await seen.wait()
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.05)
    await queue.delete(if_unused=False, if_empty=False)
    await connection.close()
    await database.close()
    return statistics.median(took) * 1000


