"""A plain AMQP client that knows only the AsyncAPI document, and a replay into a real queue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import jsonschema
import pytest

from bus.client import Bus
from bus.envelope import Envelope
from bus.event_store import EventStore
from bus.forwarder import Forwarder
from bus.relay import Relay
from bus.submission import job_stream, submission, submit
from bus.transport import Delivery, Transport, queue, work
from schema.codec import decode
from schema.ids import PARTITIONS
from schema.message import Command
from schema.snapshot import DeleteSnapshot
from tests.support.stores import memory_store
from tests.support.transports import LazyRabbit, rabbit_transport

pytestmark = pytest.mark.needs_rabbitmq
DOCUMENT = json.loads((Path(__file__).parents[2] / "docs/reference/asyncapi.json").read_text())


@pytest.fixture
async def log() -> AsyncIterator[EventStore]:
    async with memory_store() as opened:
        yield opened


@pytest.fixture
async def broker(lazy_rabbit: LazyRabbit) -> AsyncIterator[Transport]:
    async with rabbit_transport(await lazy_rabbit.get()) as opened:
        yield opened


@pytest.fixture
async def accepting(log: EventStore, broker: Transport) -> AsyncIterator[None]:
    """The door, the outbox, and a stand-in for handlers that accepts each command into the log."""
    async def accept(delivery: Delivery) -> None:
        envelope = Envelope.read(delivery.message.headers, delivery.message.body)
        command = decode(envelope.type, envelope.version, envelope.body)
        assert isinstance(command, Command)
        await submit(log, submission(command, job_id=envelope.id, principal=envelope.principal, kind="event"))
        await delivery.ack()

    forwarder = Forwarder(log, broker)
    consumers = [await broker.consume(work(number), accept) for number in range(PARTITIONS)]
    await forwarder.start()
    relay = asyncio.create_task(Relay(log, broker, "events", holder="test").run())
    yield
    relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)
    await forwarder.stop()
    for consumer in consumers:
        await consumer.stop()


def schema_of(reference: str) -> dict[str, Any]:
    return {"$ref": reference, "components": DOCUMENT["components"]}


async def test_a_client_that_knows_only_the_document(lazy_rabbit: LazyRabbit, log: EventStore, accepting: None) -> None:
    """Every command's examples are taken, and its events arrive, valid by the document."""
    url = (await lazy_rabbit.get()).url
    user = url.partition("://")[2].partition(":")[0]
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        wanted = DOCUMENT["channels"]["job.submitted"]
        source = wanted["bindings"]["amqp"]["exchange"]
        inbox = await channel.declare_queue(exclusive=True, arguments={"x-max-length": 1000, "x-overflow": "drop-head"})
        await inbox.bind(await channel.get_exchange(source["name"]), wanted["address"].replace("{tenant}", "*"))
        sent: dict[str, str] = {}
        for name, operation in DOCUMENT["operations"].items():
            if operation["action"] != "receive":
                continue
            to = DOCUMENT["channels"][name]
            exchange = await channel.get_exchange(to["bindings"]["amqp"]["exchange"]["name"])
            message = DOCUMENT["components"]["messages"][name]
            for example in message["examples"]:
                job = str(uuid4())
                headers = {**example["headers"], "cloudEvents_id": job}
                for _ in range(2):  # a lost confirm: the same id again is the same job
                    await exchange.publish(aio_pika.Message(
                        json.dumps(example["payload"]).encode(), headers=headers, user_id=user,
                        content_type=message["contentType"], delivery_mode=operation["bindings"]["amqp"]["deliveryMode"],
                    ), to["address"], mandatory=operation["bindings"]["amqp"]["mandatory"])
                sent[job] = name
        assert len(sent) > 15
        got: dict[str, str] = {}
        async with asyncio.timeout(60):
            async with inbox.iterator() as events:
                async for event in events:
                    async with event.process():
                        headers, body = dict(event.headers), json.loads(event.body)
                        jsonschema.validate(headers, schema_of("#/components/schemas/EventHeaders"))
                        jsonschema.validate(body, schema_of(
                            DOCUMENT["components"]["messages"]["job.submitted"]["payload"]["$ref"]))
                        assert event.routing_key == "job.submitted.root"
                        assert body["principal"] == user
                        got[str(headers["cloudEvents_sbcorrelation"])] = body["command"]
                    if len(got) == len(sent):
                        break
    assert got == sent
    assert await log.head() == len(sent)


async def test_bus_publishes_onto_the_exchange(log: EventStore, broker: Transport, accepting: None) -> None:
    bus = Bus(store=log, transport=broker)
    job = await bus.publish(DeleteSnapshot(id=uuid4()))
    found = await bus.detect("job.submitted", timeout_s=10)
    assert found is None or found.correlation == job.id
    async with asyncio.timeout(60):
        while not await log.read_stream(job_stream(job.id)):
            await asyncio.sleep(0.02)


async def test_a_replay_to_a_queue_delivers_what_its_dry_run_counted(log: EventStore, broker: Transport) -> None:
    for _ in range(700):
        await submit(log, submission(DeleteSnapshot(id=uuid4()), job_id=uuid4(), kind="event"))
    name = f"again-{uuid4()}"
    replay = Bus(store=log, transport=broker).replay("job.#", from_=11)
    counted = await replay.count()
    sent = await replay.to_queue(name)
    assert counted.count == sent.count == 690
    arrived: list[tuple[int, UUID, bool]] = []
    done = asyncio.Event()

    async def take(delivery: Delivery) -> None:
        envelope = Envelope.read(delivery.message.headers, delivery.message.body)
        arrived.append((envelope.position, envelope.id, envelope.replay))
        await delivery.ack()
        if len(arrived) == counted.count:
            done.set()

    consumer = await broker.consume(queue(name), take)
    await asyncio.wait_for(done.wait(), 60)
    await asyncio.sleep(0.2)
    assert [position for position, _, _ in arrived] == list(range(11, 701))
    assert all(replayed for _, _, replayed in arrived)
    assert len({each[1] for each in arrived}) == counted.count
    await consumer.stop()
