"""What every transport promises, on the memory one and on a real RabbitMQ. An outside author's transport passes it too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

import pytest

from bus.errors import BrokerAway, Unroutable
from bus.transport import (
    Address,
    Delivery,
    Transport,
    WireMessage,
    agent,
    call,
    commands,
    dead,
    events,
    lost,
    progress,
    queue,
    reply,
    work,
)
from tests.support.transports import LazyRabbit, memory_transport, rabbit_transport

WAIT_S = 60.0


@pytest.fixture(scope="module")
async def rabbit() -> AsyncIterator[LazyRabbit]:
    holder = LazyRabbit()
    yield holder
    await holder.stop()


@pytest.fixture(params=["memory", pytest.param("rabbit", marks=pytest.mark.needs_rabbitmq)])
async def transport(request: pytest.FixtureRequest, rabbit: LazyRabbit) -> AsyncIterator[Transport]:
    opened = memory_transport() if request.param == "memory" else rabbit_transport(await rabbit.get())
    async with opened as one:
        yield one


class Inbox:
    """Takes deliveries in, in order; settles them when told."""

    def __init__(self, ack: bool = True) -> None:
        self.ack, self.taken = ack, list[Delivery]()
        self._came = asyncio.Event()

    async def __call__(self, delivery: Delivery) -> None:
        self.taken.append(delivery)
        self._came.set()
        if self.ack:
            await delivery.ack()

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.message.body for delivery in self.taken]

    async def has(self, count: int) -> list[Delivery]:
        async with asyncio.timeout(WAIT_S):
            while len(self.taken) < count:
                self._came.clear()
                await self._came.wait()
        return self.taken


def message(body: int | str = "", **headers: str) -> WireMessage:
    return WireMessage(headers=headers, body=str(body).encode())


def unused() -> Address:
    """A single-active queue that no other test uses."""
    return agent(uuid4().hex)


async def quiet(seconds: float = 0.3) -> None:
    await asyncio.sleep(seconds)


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await true():
            await asyncio.sleep(0.05)


async def test_a_message_arrives_as_it_was_sent(transport: Transport) -> None:
    inbox, where = Inbox(), unused()
    consumer = await transport.consume(where, inbox)
    body = bytes(range(256)) * 1024
    await transport.publish(where, WireMessage(
        headers={"cloudEvents_id": "ä-1", "traceparent": "00-1"}, body=body, reply_to="back", correlation_id="c1"))
    [delivery] = await inbox.has(1)
    assert delivery.message.body == body
    assert dict(delivery.message.headers) == {"cloudEvents_id": "ä-1", "traceparent": "00-1"}
    assert (delivery.message.reply_to, delivery.message.correlation_id) == ("back", "c1")
    assert delivery.message.routing_key == where.name
    assert (delivery.redelivered, delivery.attempt) == (False, 1)
    assert consumer.alive and transport.healthy
    await consumer.stop()
    assert not consumer.alive


async def test_published_before_anybody_consumes(transport: Transport) -> None:
    """A confirmed message waits: for an agent that never connected, for a partition, for a replay's target."""
    for where in (unused(), queue(f"target-{uuid4().hex}")):
        for number in range(5):
            await transport.publish(where, message(number))
        inbox = Inbox()
        consumer = await transport.consume(where, inbox)
        assert [d.message.body for d in await inbox.has(5)] == [b"0", b"1", b"2", b"3", b"4"]
        await consumer.stop()


async def test_order_holds_with_many_in_flight(transport: Transport) -> None:
    inbox = Inbox()
    consumer = await transport.consume(work(3), inbox, prefetch=50)
    await asyncio.gather(*(transport.publish(work(3), message(number)) for number in range(1000)))
    await inbox.has(1000)
    assert inbox.bodies == [str(number).encode() for number in range(1000)]
    await consumer.stop()


async def test_partitions_are_apart(transport: Transport) -> None:
    one, two = Inbox(), Inbox()
    consumers = [await transport.consume(work(1), one), await transport.consume(work(2), two)]
    await asyncio.gather(transport.publish(work(1), message("1")), transport.publish(work(2), message("2")))
    await one.has(1)
    await two.has(1)
    await quiet()
    assert (one.bodies, two.bodies) == ([b"1"], [b"2"])
    for consumer in consumers:
        await consumer.stop()


async def test_unacked_comes_again_when_its_consumer_is_gone(transport: Transport) -> None:
    first, second, where = Inbox(ack=False), Inbox(), unused()
    consumer = await transport.consume(where, first)
    for number in range(4):
        await transport.publish(where, message(number))
    taken = list(await first.has(4))
    await taken[1].ack()
    await quiet(0.1)
    await consumer.stop()
    await taken[2].ack()  # too late: its consumer is gone
    again = await transport.consume(where, second)
    await second.has(3)
    await quiet()
    assert second.bodies == [b"0", b"2", b"3"]
    assert all(delivery.redelivered and delivery.attempt == 2 for delivery in second.taken)
    await again.stop()


async def test_at_most_prefetch_are_unacked(transport: Transport) -> None:
    inbox, where = Inbox(ack=False), unused()
    consumer = await transport.consume(where, inbox, prefetch=3)
    for number in range(10):
        await transport.publish(where, message(number))
    await inbox.has(3)
    await quiet()
    assert len(inbox.taken) == 3
    for done in range(10):
        await inbox.taken[done].ack()
        await inbox.has(min(done + 4, 10))
        assert len(inbox.taken) <= done + 4
    assert inbox.bodies == [str(number).encode() for number in range(10)]
    await consumer.stop()


async def test_acks_out_of_order_ack_what_they_say(transport: Transport) -> None:
    first, second, where = Inbox(ack=False), Inbox(), unused()
    consumer = await transport.consume(where, first, prefetch=20)
    for number in range(12):
        await transport.publish(where, message(number))
    taken = list(await first.has(12))
    for number in (11, 2, 5, 0, 3, 7, 1):
        await taken[number].ack()
        await asyncio.sleep(0.005)
    await quiet(0.1)
    await consumer.stop()
    again = await transport.consume(where, second)
    await second.has(5)
    await quiet()
    assert second.bodies == [b"4", b"6", b"8", b"9", b"10"]
    await again.stop()


async def test_settled_in_one_turn_of_the_loop(transport: Transport) -> None:
    """Acks and rejects said together: what was rejected is not acked by its neighbours."""
    first, where = Inbox(ack=False), unused()
    graves = Inbox()
    grave = await transport.consume(dead(), graves)
    consumer = await transport.consume(where, first, prefetch=20)
    mark = uuid4().hex
    for number in range(6):
        await transport.publish(where, message(f"{mark}-{number}"))
    taken = list(await first.has(6))
    await asyncio.gather(*(
        taken[n].reject(requeue=False) if n in (0, 3) else taken[n].ack() for n in range(6)))
    await graves.has(2)
    await quiet()
    assert sorted(graves.bodies) == [f"{mark}-0".encode(), f"{mark}-3".encode()]
    assert graves.taken[0].message.headers["x-first-death-reason"] == "rejected"
    await consumer.stop()
    await grave.stop()
    late = Inbox()
    again = await transport.consume(where, late)
    await quiet()
    assert not late.taken
    await again.stop()


async def test_requeued_comes_again_at_its_place(transport: Transport) -> None:
    inbox, where = Inbox(ack=False), unused()
    consumer = await transport.consume(where, inbox, prefetch=1)
    for number in range(3):
        await transport.publish(where, message(number))
    await (await inbox.has(1))[0].reject(requeue=True)
    await inbox.has(2)
    assert inbox.bodies == [b"0", b"0"]
    assert (inbox.taken[1].redelivered, inbox.taken[1].attempt) == (True, 2)
    await inbox.taken[0].ack()  # late: that delivery was settled; the second one is still open
    await quiet()
    assert len(inbox.taken) == 2
    await inbox.taken[1].ack()
    await (await inbox.has(3))[2].ack()
    await (await inbox.has(4))[3].ack()
    assert inbox.bodies == [b"0", b"0", b"1", b"2"]
    await consumer.stop()


async def test_over_the_delivery_limit_it_is_a_dead_letter(transport: Transport) -> None:
    where, mark, graves = unused(), uuid4().hex.encode(), Inbox()
    count = 0

    async def refuse(delivery: Delivery) -> None:
        nonlocal count
        count += 1
        await delivery.reject(requeue=True)

    grave = await transport.consume(dead(), graves)
    consumer = await transport.consume(where, refuse, prefetch=1)
    await transport.publish(where, WireMessage(headers={}, body=mark))
    [letter] = await graves.has(1)
    assert letter.message.body == mark
    assert letter.message.headers["x-first-death-reason"] == "delivery_limit"
    assert count == 1001
    await consumer.stop()
    await grave.stop()


async def test_one_active_consumer_then_the_next(transport: Transport) -> None:
    one, two, where = Inbox(), Inbox(), unused()
    first = await transport.consume(where, one)
    second = await transport.consume(where, two)
    for number in range(20):
        await transport.publish(where, message(number))
    await one.has(20)
    await first.stop()
    for number in range(20, 40):
        await transport.publish(where, message(number))
    await two.has(20)
    assert one.bodies + two.bodies == [str(number).encode() for number in range(40)]
    await second.stop()


async def test_commands_meet_in_one_queue(transport: Transport) -> None:
    inbox = Inbox()
    consumer = await transport.consume(commands(), inbox)
    await transport.publish(commands("snapshot.create"), message("s"))
    await transport.publish(commands("image_store.add"), message("i"))
    taken = await inbox.has(2)
    assert {(d.message.routing_key, d.message.body) for d in taken} == {
        ("snapshot.create", b"s"), ("image_store.add", b"i")}
    await consumer.stop()


async def test_events_reach_every_subscriber_by_pattern(transport: Transport) -> None:
    every, some, none = Inbox(), Inbox(), Inbox()
    consumers = [await transport.consume(events("#"), every), await transport.consume(events("snapshot.*.root"), some),
                 await transport.consume(events("volume.#"), none)]
    for number in range(5):
        await transport.publish(events("snapshot.taken.root"), message(number))
    await transport.publish(events("template.ready.acme"), message("t"))
    await every.has(6)
    await some.has(5)
    await quiet()
    assert every.bodies == [b"0", b"1", b"2", b"3", b"4", b"t"]
    assert some.bodies == [b"0", b"1", b"2", b"3", b"4"]
    assert not none.taken
    for consumer in consumers:
        await consumer.stop()


async def test_events_without_subscribers_are_fine(transport: Transport) -> None:
    await transport.publish(events("snapshot.taken.root"), message())
    await transport.publish(progress(), message())


async def test_a_slow_subscriber_loses_the_oldest_and_that_is_counted(transport: Transport) -> None:
    slow, before = Inbox(ack=False), await transport.depth(lost())
    consumer = await transport.consume(events("flood.#"), slow, prefetch=1)
    for start in range(0, 10_500, 500):
        await asyncio.gather(*(transport.publish(events("flood.it.root"), message(start + n)) for n in range(500)))
    assert (await slow.has(1))[0].message.body == b"0"

    async def counted() -> bool:
        return await transport.depth(lost()) - before >= 499

    await until(counted)
    slow.ack = True
    await slow.taken[0].ack()
    await slow.has(10_001)
    bodies = [int(body) for body in slow.bodies]
    assert bodies[1] in (499, 500) and bodies[-1] == 10_499
    assert bodies[1:] == list(range(bodies[1], 10_500))
    await consumer.stop()


async def test_progress_reaches_every_watcher(transport: Transport) -> None:
    one, two = Inbox(), Inbox()
    consumers = [await transport.consume(progress(), one), await transport.consume(progress(), two)]
    await transport.publish(progress(), message("half"))
    await one.has(1)
    await two.has(1)
    for consumer in consumers:
        await consumer.stop()


async def test_calls_and_replies_need_somebody_there(transport: Transport) -> None:
    service, back = uuid4().hex, uuid4().hex
    with pytest.raises(Unroutable):
        await transport.publish(call(service), message())
    with pytest.raises(Unroutable):
        await transport.publish(reply(back), message())
    served, answered = Inbox(), Inbox()
    consumers = [await transport.consume(call(service), served), await transport.consume(reply(back), answered)]
    await transport.publish(call(service), message("q"))
    await served.has(1)
    await transport.publish(reply(back), message("a"))
    await answered.has(1)
    for consumer in consumers:
        await consumer.stop()

    async def gone() -> bool:
        try:
            await transport.publish(call(service), message())
        except Unroutable:
            return True
        return False

    await until(gone)


async def test_calls_are_shared_among_servers(transport: Transport) -> None:
    service, one, two = uuid4().hex, Inbox(), Inbox()
    consumers = [await transport.consume(call(service), one), await transport.consume(call(service), two)]
    for number in range(20):
        await transport.publish(call(service), message(number))
    async with asyncio.timeout(WAIT_S):
        while len(one.taken) + len(two.taken) < 20:
            await asyncio.sleep(0.01)
    assert sorted(one.bodies + two.bodies) == sorted(str(number).encode() for number in range(20))
    for consumer in consumers:
        await consumer.stop()


async def test_expired_messages_are_not_delivered(transport: Transport) -> None:
    inbox, where = Inbox(), unused()
    await transport.publish(where, WireMessage(headers={}, body=b"old", expiration_s=0.05))
    await quiet()
    await transport.publish(where, message("new"))
    consumer = await transport.consume(where, inbox)
    await inbox.has(1)
    await quiet(0.1)
    assert inbox.bodies == [b"new"]
    await consumer.stop()


async def test_what_cannot_travel_is_refused_and_harms_nobody(transport: Transport) -> None:
    inbox, where = Inbox(), unused()
    consumer = await transport.consume(where, inbox)
    with pytest.raises(Unroutable):
        await transport.publish(where, WireMessage(headers={"traceparent": "x" * 200_000}, body=b""))
    with pytest.raises(Unroutable):
        await transport.publish(agent("x" * 300), message())
    await transport.publish(where, message("after"))
    await inbox.has(1)
    assert inbox.bodies == [b"after"]
    await consumer.stop()


async def test_depth_counts_what_waits(transport: Transport) -> None:
    where = unused()
    assert await transport.depth(where) == 0
    for number in range(7):
        await transport.publish(where, message(number))

    async def seven() -> bool:
        return await transport.depth(where) == 7

    await until(seven)


async def test_a_closed_transport_takes_nothing(transport: Transport) -> None:
    await transport.aclose()
    assert not transport.healthy
    with pytest.raises(BrokerAway):
        await transport.publish(work(0), message())
