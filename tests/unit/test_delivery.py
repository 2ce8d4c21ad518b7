"""The whole bus in one process: relay, partitions' consumer and runtime over the memory transport, which misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from bus.consumer import PartitionConsumer
from bus.envelope import Envelope
from bus.errors import StoreAway
from bus.event_store import AppendRequest, NewRow
from bus.event_store_memory import MemoryEventStore
from bus.relay import Relay
from bus.submission import submission
from bus.transport import Delivery, WireMessage, events, work
from bus.transport_memory import Faults, MemoryTransport
from schema.agent import CancelWork, ReleaseWork, WorkCompleted
from schema.codec import decode, encode
from schema.ids import partition
from schema.message import Order
from schema.volume import CreateVolume
from tests.support.cloud import Cloud, result_of

WAIT_S = 60.0


async def until(happened: object) -> None:
    """Wait, bounded, for a condition given as an async callable."""
    async with asyncio.timeout(WAIT_S):
        while not await happened():  # type: ignore[operator] # an async callable
            await asyncio.sleep(0.01)


def fact(stream: str, number: int) -> AppendRequest:
    return AppendRequest(expected={stream: number - 1}, rows=[NewRow(
        stream=stream, kind="event", type="volume.renamed", id=uuid4(), payload=b"{}", key=stream, correlation=uuid4())])


@contextlib.asynccontextmanager
async def following(relay: Relay) -> AsyncIterator[None]:
    task = asyncio.create_task(relay.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_every_event_reaches_a_subscriber_in_order_though_confirms_are_lost() -> None:
    store, transport = MemoryEventStore(), MemoryTransport(Faults(seed=5, lose_confirm=0.05))
    await transport.start()
    seen: list[int] = []

    async def take(delivery: Delivery) -> None:
        seen.append(Envelope.read(delivery.message.headers, delivery.message.body).position)
        await delivery.ack()

    await transport.consume(events("#"), take)
    for number in range(60):
        await store.append(fact("volume-a", number))

    async def all_seen() -> bool:
        return set(seen) == set(range(1, 61))

    async with following(Relay(store, transport, "events", holder="one")):
        await until(all_seen)
    first = list(dict.fromkeys(seen))
    assert first == sorted(first), "something was overtaken"
    await transport.aclose()


async def test_the_relays_checkpoint_never_passes_what_was_not_confirmed() -> None:
    store, transport = MemoryEventStore(), MemoryTransport()
    await transport.start()
    refuse = {3}
    publish = transport.publish

    async def picky(to: object, message: WireMessage) -> None:
        if Envelope.read(message.headers, message.body).position in refuse:
            raise StoreAway("not now")
        await publish(to, message)  # type: ignore[arg-type] # an address

    transport.publish = picky  # type: ignore[method-assign, assignment] # a fault
    for number in range(6):
        await store.append(fact("volume-a", number))
    async with following(Relay(store, transport, "events", holder="one")):
        await asyncio.sleep(1.0)
        known = await store.load_checkpoint("relay-events")
        assert known is None or known.position < 3

        async def caught_up() -> bool:
            saved = await store.load_checkpoint("relay-events")
            return saved is not None and saved.position == 6

        refuse.clear()
        await until(caught_up)
    await transport.aclose()


async def send(transport: MemoryTransport, key: str, number: int) -> None:
    envelope = Envelope(id=uuid4(), type=f"n{number}", kind="command", body=b"{}", key=key)
    await transport.publish(work(partition(key)), WireMessage(headers=envelope.headers(), body=envelope.body))


async def test_a_message_is_acked_only_after_it_was_handled() -> None:
    store, transport = MemoryEventStore(), MemoryTransport()
    await transport.start()
    entered, release = asyncio.Event(), asyncio.Event()

    async def stuck(envelope: Envelope) -> None:
        entered.set()
        await release.wait()

    first = PartitionConsumer(store, transport, stuck, member="a")
    await first.start()
    await send(transport, "volume-a", 1)
    await asyncio.wait_for(entered.wait(), WAIT_S)
    crash = asyncio.create_task(first.stop())  # its handler never returns, as in a crash
    handled: list[str] = []

    async def fine(envelope: Envelope) -> None:
        handled.append(envelope.type)

    second = PartitionConsumer(store, transport, fine, member="a")
    await crash
    await second.start()

    async def came_again() -> bool:
        return handled == ["n1"]

    await until(came_again)
    await second.stop()
    await transport.aclose()


async def test_a_failing_message_is_held_with_those_behind_it_and_others_go_on() -> None:
    store, transport = MemoryEventStore(), MemoryTransport()
    await transport.start()
    handled: list[str] = []
    broken = True

    async def handle(envelope: Envelope) -> None:
        if envelope.type == "n1" and broken:
            raise RuntimeError("no")
        handled.append(envelope.type)

    consumer = PartitionConsumer(store, transport, handle, member="a")
    await consumer.start()
    await send(transport, "volume-a", 1)
    await send(transport, "volume-a", 2)
    await send(transport, "volume-b", 3)

    async def two_held() -> bool:
        return len(await store.held(key="volume-a")) == 2

    await until(two_held)
    assert handled == ["n3"]
    broken = False
    await consumer.redrive_key("volume-a")
    assert handled == ["n3", "n1", "n2"]
    assert await store.held_keys() == set()
    await consumer.stop()
    await transport.aclose()


@pytest.mark.parametrize("seed", range(4))
async def test_duplicates_and_lost_confirms_change_nothing(seed: int) -> None:
    """Commands through relay, transport and consumer to the runtime, orders to a played agent and reports back."""
    cloud = await Cloud.start()
    transport = MemoryTransport(Faults(seed=seed, duplicate=0.3, lose_confirm=0.1))
    await transport.start()
    cloud.runtime.transport = transport
    consumer = PartitionConsumer(cloud.store, transport, cloud.runtime.handle, member="a")
    await consumer.start()

    async def agent(delivery: Delivery) -> None:
        envelope = Envelope.read(delivery.message.headers, delivery.message.body)
        order = decode(envelope.type, envelope.version, envelope.body)
        await delivery.ack()
        if isinstance(order, Order) and not isinstance(order, (ReleaseWork, CancelWork)):
            report = WorkCompleted(job_id=order.job_id, work_id=order.work_id, attempt=order.attempt, agent=order.agent,
                                   result=result_of(order))
            said = Envelope(id=uuid4(), type=report.TYPE, kind="report", body=encode(report), key=order.reply_key)
            with contextlib.suppress(Exception):  # a lost confirm: it is there all the same
                await transport.publish(work(partition(said.key)), WireMessage(headers=said.headers(), body=said.body))

    from bus.transport import agent as address

    await transport.consume(address("host-1"), agent)
    jobs: list[UUID] = []
    for number in range(8):
        jobs.append(uuid4())
        await cloud.store.append(submission(CreateVolume(name=f"v{number}", size=1), job_id=jobs[-1]))

    async def all_ended() -> bool:
        return all([await cloud.ends(job) for job in jobs])

    async with following(Relay(cloud.store, transport, "work", holder="one")):
        await until(all_ended)
        await asyncio.sleep(0.2)
    for job in jobs:
        assert await cloud.ends(job) == ["job.completed"]
    assert {value for name, (value, _) in (await cloud.store.counters()).items() if "primary" in name} == {8}
    await consumer.stop()
    await transport.aclose()
