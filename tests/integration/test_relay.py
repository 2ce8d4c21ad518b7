"""Relay, scheduler and forwarder: the log reaches the transport in order whatever happens, and the door keeps its rules."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from bus import relay as relay_module
from bus.dead_letters import DeadLetters, may_hold_secret
from bus.envelope import PREFIX, Envelope
from bus.errors import BrokerAway, LogBroken, PublishUnknown, StoreAway
from bus.event_store import AppendRequest, Checkpoint, EventStore, NewRow, Timer
from bus.event_store_memory import MemoryEventStore
from bus.failpoints import Injected, arm
from bus.forwarder import Forwarder, Principal
from bus.relay import Relay
from bus.scheduler import Scheduler
from bus.transport import Address, Consumer, Delivery, Transport, WireMessage, agent, commands, events, work
from bus.transport_memory import Faults, MemoryTransport
from schema.ids import PARTITIONS, partition
from tests.support.transports import LazyRabbit, memory_transport, rabbit_transport


@pytest.fixture(params=["memory", pytest.param("rabbit", marks=pytest.mark.needs_rabbitmq)])
async def transport(request: pytest.FixtureRequest, lazy_rabbit: LazyRabbit) -> AsyncIterator[Transport]:
    opened = memory_transport() if request.param == "memory" else rabbit_transport(await lazy_rabbit.get())
    async with opened as one:
        yield one


class Inbox:
    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    async def __call__(self, delivery: Delivery) -> None:
        self.envelopes.append(Envelope.read(delivery.message.headers, delivery.message.body))
        await delivery.ack()

    @property
    def positions(self) -> list[int]:
        return [envelope.position for envelope in self.envelopes]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(*works: Awaitable[None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def append(store: EventStore, kind: str, *, key: str = "volume-1", address: str = "", type: str = "snapshot.taken",  # noqa: A002
                 count: int = 1) -> int:
    stream = f"test-{uuid4()}"
    job = uuid4()
    rows = [NewRow(stream=stream, kind=kind, type=type, id=uuid4(), payload=b'{"n":1}', key=key, address=address,
                   correlation=job, meta=b'{"principal":"ann"}') for _ in range(count)]
    return (await store.append(AppendRequest(expected={stream: -1}, rows=rows))).last_position


async def consume_all(transport: Transport, inbox: Inbox) -> list[Consumer]:
    return [await transport.consume(work(number), inbox) for number in range(PARTITIONS)]


async def checkpoint(store: EventStore, name: str) -> int:
    known = await store.load_checkpoint(name)
    return known.position if known else 0


async def checkpoint_reaches(store: EventStore, name: str, position: int) -> None:
    async with asyncio.timeout(60):
        while await checkpoint(store, name) < position:
            await asyncio.sleep(0.02)


async def test_each_kind_goes_where_it_belongs(store: EventStore, transport: Transport) -> None:
    parts, orders, told = Inbox(), Inbox(), Inbox()
    name = f"kvm-{uuid4().hex}"
    consumers = [*await consume_all(transport, parts), await transport.consume(agent(name), orders),
                 await transport.consume(events("#"), told)]
    first = await append(store, "command", key="volume-7", type="job.submitted")
    await append(store, "event", type="snapshot.taken")
    await append(store, "order", address=name, type="work.take_snapshot")
    async with running(Relay(store, transport, "work", holder="a").run(), Relay(store, transport, "events", holder="a").run()):
        await until(lambda: bool(parts.envelopes and orders.envelopes and told.envelopes))
        last = await append(store, "event", count=3)
        await until(lambda: len(told.envelopes) == 4)
        await checkpoint_reaches(store, "relay-work", last)
        await checkpoint_reaches(store, "relay-events", last)
    command = parts.envelopes[0]
    assert (command.position, command.kind, command.type, command.key) == (first, "command", "job.submitted", "volume-7")
    assert (command.principal, command.tenant, command.body, command.stream_version) == ("ann", "root", b'{"n":1}', 0)
    assert [envelope.type for envelope in orders.envelopes] == ["work.take_snapshot"]
    assert told.positions == sorted(told.positions) and len(parts.envelopes) == len(orders.envelopes) == 1
    for consumer in consumers:
        await consumer.stop()


async def test_restart_continues_at_the_checkpoint(store: EventStore, transport: Transport) -> None:
    told = Inbox()
    consumer = await transport.consume(events("#"), told)
    last = await append(store, "event", count=50)
    async with running(Relay(store, transport, "events", holder="a").run()):
        await checkpoint_reaches(store, "relay-events", last)
    last = await append(store, "event", count=10)
    async with running(Relay(store, transport, "events", holder="b").run()):  # the lease was let go: no waiting
        await checkpoint_reaches(store, "relay-events", last)
    await until(lambda: len(told.envelopes) >= 60)
    assert told.positions == list(range(1, 61))
    await consumer.stop()


async def test_only_the_leader_sends(store: EventStore, transport: Transport) -> None:
    told = Inbox()
    consumer = await transport.consume(events("#"), told)
    one, two = Relay(store, transport, "events", holder="a"), Relay(store, transport, "events", holder="b")
    async with running(one.run(), two.run()):
        await until(lambda: one.leads or two.leads)
        last = await append(store, "event", count=20)
        await checkpoint_reaches(store, "relay-events", last)
        assert one.leads != two.leads
    await until(lambda: len(told.envelopes) >= 20)
    assert told.positions == list(range(1, 21))
    await consumer.stop()


class Unreliable(MemoryTransport):
    """Refuses, loses and half-confirms, by a seeded dice; what it took, it took in order."""

    def __init__(self, seed: int) -> None:
        super().__init__(Faults(seed=seed, duplicate=0.1, lose_confirm=0.02, lose=0.02))
        self.failures = 0

    async def publish(self, to: Address, message: WireMessage) -> None:
        assert self.faults is not None
        try:
            if self.faults.happens(0.02):
                raise BrokerAway("not now")
            await super().publish(to, message)
        except (BrokerAway, PublishUnknown):
            self.failures += 1
            raise


@pytest.mark.soak(but=("0", "1"))
@pytest.mark.parametrize("seed", range(5))
async def test_nothing_is_skipped_and_first_arrivals_are_in_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, each row arrives, and the checkpoint never passes one that did not."""
    monkeypatch.setattr(relay_module, "SAVE_S", 0.01)
    store, transport, told = MemoryEventStore(), Unreliable(seed), Inbox()
    await transport.start()
    consumer = await transport.consume(events("#"), told)
    last = await append(store, "event", count=600)
    relay = Relay(store, transport, "events", holder="a")
    passed: list[int] = []

    async def watch() -> None:
        while True:
            position = await checkpoint(store, "relay-events")
            arrived = set(told.positions)
            assert all(number in arrived for number in range(1, position + 1)), f"the checkpoint {position} is ahead"
            passed.append(position)
            await asyncio.sleep(0.005)

    async with running(relay.run(), watch()) as tasks:
        await checkpoint_reaches(store, "relay-events", last)
        assert not any(task.done() for task in tasks)
    assert transport.failures > 5 and len(set(passed)) > 2
    assert set(told.positions) == set(range(1, 601))
    await consumer.stop()
    await transport.aclose()


@pytest.mark.parametrize("point", ["relay.before_publish", "relay.after_publish", "relay.after_confirm",
                                   "relay.before_checkpoint"])
async def test_a_crash_at_each_point_loses_nothing(store: EventStore, transport: Transport, point: str) -> None:
    told = Inbox()
    consumer = await transport.consume(events("#"), told)
    await append(store, "event", count=30)
    arm({point: "raise@1"})
    with pytest.raises(Injected):
        await asyncio.wait_for(Relay(store, transport, "events", holder="a").run(), 60)
    async with running(Relay(store, transport, "events", holder="b").run()):
        await checkpoint_reaches(store, "relay-events", 30)
    await until(lambda: len(set(told.positions)) == 30)
    assert list(dict.fromkeys(told.positions)) == list(range(1, 31))
    await consumer.stop()


async def test_a_database_that_is_away_is_waited_out() -> None:
    class Flaky(MemoryEventStore):
        away = True

        async def acquire_lease(self, *args: Any, **kwargs: Any) -> Any:
            if self.away:
                raise StoreAway("away")
            return await super().acquire_lease(*args, **kwargs)

    store, told = Flaky(), Inbox()
    async with memory_transport() as transport:
        await transport.consume(events("#"), told)
        await append(store, "event", count=3)
        async with running(Relay(store, transport, "events", holder="a").run()) as tasks:
            await asyncio.sleep(0.3)
            assert not tasks[0].done() and not told.envelopes
            store.away = False
            await until(lambda: told.positions == [1, 2, 3])


async def test_another_life_of_the_log_stops_the_relay() -> None:
    store = MemoryEventStore()
    store._checkpoints["relay-work"] = Checkpoint(position=0, epoch=99)
    async with memory_transport() as transport:
        with pytest.raises(LogBroken, match="epoch"):
            await asyncio.wait_for(Relay(store, transport, "work", holder="a").run(), 60)


# --- timers ---


async def test_due_timers_arrive_until_they_are_cleared(store: EventStore, transport: Transport,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bus.scheduler.AGAIN_S", 0.3)
    parts = Inbox()
    consumers = await consume_all(transport, parts)
    await store.append(AppendRequest(expected={}, rows=(), set_timers=[
        Timer(id="job-1/submitted", after_s=0.05, key="volume-3", type="job.timer", payload=b'{"job_id":"1"}'),
        Timer(id="job-2/submitted", after_s=3600, key="volume-3", type="job.timer")]))
    async with running(Scheduler(store, transport, holder="a").run()):
        await until(lambda: len([e for e in parts.envelopes if e.body]) >= 3)
        await store.append(AppendRequest(expected={}, rows=(), clear_timers=["job-1/submitted"]))
    timers = [envelope for envelope in parts.envelopes if envelope.body == b'{"job_id":"1"}']
    assert {(e.kind, e.type, e.key) for e in timers} == {("timer", "job.timer", "volume-3")}
    assert len({envelope.id for envelope in timers}) == len(timers)  # each time another message
    # What does not outlive the process asks about everything once, at the start.
    far = [envelope for envelope in parts.envelopes if envelope.body == b"{}"]
    assert bool(far) != transport.durable
    for consumer in consumers:
        await consumer.stop()


async def test_a_timer_that_could_not_be_sent_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bus.scheduler.AGAIN_S", 0.2)
    store, transport, parts = MemoryEventStore(), MemoryTransport(Faults(seed=3, lose=0.5)), Inbox()
    await transport.start()
    await consume_all(transport, parts)
    await store.append(AppendRequest(expected={}, rows=(), set_timers=[
        Timer(id=f"t{n}", after_s=0, key=f"k{n}", type="job.timer") for n in range(40)]))
    async with running(Scheduler(store, transport, holder="a").run()):
        await until(lambda: {envelope.key for envelope in parts.envelopes} == {f"k{n}" for n in range(40)})
    await transport.aclose()


# --- the door ---

SNAPSHOT = UUID(int=5)
GOOD: dict[str, str] = {f"{PREFIX}specversion": "1.0", f"{PREFIX}type": "snapshot.delete", f"{PREFIX}source": "me"}
BODY = json.dumps({"id": str(SNAPSHOT)}).encode()


def anybody(user: str) -> Principal:
    return Principal(user or "system", "root")


def bad_inputs() -> dict[str, tuple[dict[str, str], bytes, str]]:
    """Name -> headers, body, what the reason says."""
    canary = "canary-4711"
    return {
        "not JSON": (GOOD, b"\x00\xff{", "body"),
        "unknown type": (GOOD | {f"{PREFIX}type": "no.such"}, BODY, "no message is named"),
        "an event": (GOOD | {f"{PREFIX}type": "snapshot.requested"}, b"{}", "snapshot.requested"),
        "from the future": (GOOD | {f"{PREFIX}sbversion": "99"}, BODY, "version"),
        "no id": ({k: v for k, v in GOOD.items() if "id" not in k} | {f"{PREFIX}id": "x"}, BODY, "UUID"),
        "oversized": (GOOD, b'{"id":"' + b"1" * (256 * 1024) + b'"}', "bytes"),
        "deep": (GOOD, b"[" * 100_000, "body"),
        "NUL in a header": (GOOD | {f"{PREFIX}sbversion": "1\0"}, BODY, "number"),
        "wrong field": (GOOD, b'{"id":"not-a-uuid"}', "id"),
        "clear secret": (GOOD | {f"{PREFIX}type": "image_store.add"},
                         json.dumps({"provider": "s3", "details": {"secretkey": canary}}).encode(), "details.secretkey"),
        "password in a URL": (GOOD | {f"{PREFIX}type": "image_store.add"},
                              json.dumps({"provider": "s3", "url": f"https://me:{canary}@s3/"}).encode(), "url"),
        "secret in a body that cannot be read": (GOOD, f'{{"secretkey": "{canary}"'.encode(), "may hold a secret"),
        "secret beside another mistake": (GOOD | {f"{PREFIX}type": "image_store.add"},
                                          json.dumps({"details": {"secretkey": canary}}).encode(), "provider"),
    }


async def test_what_does_not_pass_the_door_is_parked_with_its_reason(store: EventStore, transport: Transport) -> None:
    parts = Inbox()
    consumers = await consume_all(transport, parts)
    forwarder = Forwarder(store, transport, anybody)
    await forwarder.start()
    wanted = bad_inputs()
    for name, (headers, body, _) in wanted.items():
        await transport.publish(commands("x.y"), WireMessage(
            headers={f"{PREFIX}id": str(uuid4()), f"{PREFIX}subject": name, "x-secret": "canary-4711"} | headers, body=body))
        await transport.publish(commands("snapshot.delete"), WireMessage(
            headers=GOOD | {f"{PREFIX}id": str(uuid4())}, body=BODY))
    await until(lambda: forwarder.parked == len(wanted) and len(parts.envelopes) == len(wanted))
    letters = {letter.headers[f"{PREFIX}subject"]: letter for letter in await store.held(key="")}
    assert set(letters) == set(wanted)
    for name, (_, body, reason) in wanted.items():
        assert reason in letters[name].reason, f"{name}: {letters[name].reason}"
        assert letters[name].source == "commands"
        assert b"canary" not in letters[name].body and "canary" not in f"{letters[name].reason}{letters[name].headers}"
        if "secret" not in name and "password" not in name:
            assert letters[name].body == body[:256 * 1024]
    assert not await store.held_keys()
    await forwarder.stop()
    for consumer in consumers:
        await consumer.stop()


async def test_the_door_believes_nobody_about_who_it_is(transport: Transport) -> None:
    store, parts = MemoryEventStore(), Inbox()
    users = {"guest": Principal("guest@rabbit", "acme"), "": Principal("local", "acme")}
    consumers = await consume_all(transport, parts)
    forwarder = Forwarder(store, transport, users.get)
    await forwarder.start()
    job = uuid4()
    lies = {"sbprincipal": "root", "sbtenant": "root", "sbkey": "volume-1", "sbkind": "order", "sbposition": "7",
            "sbreplay": "true", "sbcorrelation": str(uuid4()), "time": "yesterday"}
    await transport.publish(commands("snapshot.delete"), WireMessage(
        headers=GOOD | {PREFIX + name: value for name, value in lies.items()} | {
            f"{PREFIX}id": str(job), "traceparent": "x" * 5000}, body=BODY))
    await until(lambda: bool(parts.envelopes))
    [envelope] = parts.envelopes
    assert (envelope.id, envelope.kind, envelope.key) == (job, "command", f"snapshot-{SNAPSHOT}")
    assert (envelope.tenant, envelope.position, envelope.replay, envelope.correlation) == ("acme", 0, False, job)
    assert envelope.principal in ("guest@rabbit", "local") and envelope.traceparent == "" and envelope.time != "yesterday"
    users.clear()
    await transport.publish(commands("snapshot.delete"), WireMessage(headers=GOOD | {f"{PREFIX}id": str(job)}, body=BODY))
    await until(lambda: forwarder.parked == 1)
    assert "not mapped" in (await store.held(key=""))[0].reason
    await forwarder.stop()
    for consumer in consumers:
        await consumer.stop()


async def test_a_command_waits_at_the_door_while_the_broker_or_database_is_away() -> None:
    store, transport, parts = MemoryEventStore(), MemoryTransport(Faults(seed=1, lose=0.3)), Inbox()
    await transport.start()
    await consume_all(transport, parts)
    forwarder = Forwarder(store, transport, anybody)
    await forwarder.start()
    sent = [uuid4() for _ in range(10)]
    for job in sent:
        with contextlib.suppress(PublishUnknown):
            await transport.publish(commands("snapshot.delete"), WireMessage(
                headers=GOOD | {f"{PREFIX}id": str(job)}, body=BODY))
    await until(lambda: forwarder.forwarded >= 5 and not forwarder._running)
    assert {envelope.id for envelope in parts.envelopes} <= set(sent)
    assert len({envelope.id for envelope in parts.envelopes}) == forwarder.forwarded
    await forwarder.stop()
    await transport.aclose()


async def test_dead_letters_of_the_broker_come_to_the_database(store: EventStore, transport: Transport) -> None:
    letters = DeadLetters(store, transport)
    await letters.start()
    mark = uuid4().hex

    async def reject(delivery: Delivery) -> None:
        await delivery.reject(requeue=False)

    consumer = await transport.consume(work(partition("k")), reject)
    await transport.publish(work(partition("k")), WireMessage(
        headers={f"{PREFIX}id": mark, f"{PREFIX}type": "a"}, body=b"{}"))
    async with asyncio.timeout(60):
        while not (found := [held for held in await store.held(key="") if held.headers.get(f"{PREFIX}id") == mark]):
            await asyncio.sleep(0.02)
    assert "rejected" in found[0].reason and found[0].source == "work" and found[0].body == b"{}"
    await consumer.stop()
    await letters.stop()


@pytest.mark.parametrize(("body", "secret"), [
    (b'{"id":"1"}', False), (b'{"details":{"accesskey":"AK"}}', False), (b'{"a":[{"password":"x"}]}', True),
    (b'{"secretkey":"vault:6f1c2a52-6a3c-4b64-9d0c-1b0f6a4f5f1e"}', False), (b'{"secretkey":5}', True),
    (b'{"url":"http://u:p@h/"}', True), (b"not json", False), (b"my Password is x", True), (b"[" * 50_000, False),
])
def test_bodies_that_might_hold_a_secret(body: bytes, secret: bool) -> None:
    assert may_hold_secret(body) is secret
