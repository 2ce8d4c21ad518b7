"""The partition consumer on the memory transport: order per key, held keys, a database that goes away."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest

from bus import consumer as module
from bus.consumer import PartitionConsumer, redrive
from bus.envelope import Envelope
from bus.errors import AppendUnknown, StoreAway
from bus.event_store_memory import MemoryEventStore
from bus.failpoints import arm
from bus.partitions import share
from bus.transport import WireMessage, work
from bus.transport_memory import Faults, MemoryTransport
from schema.failure import BadParameter
from schema.ids import PARTITIONS, partition


class World:
    """A store, a transport, and a handler that notes what it was given and may be told to fail."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.store, self.transport = MemoryEventStore(), MemoryTransport(faults)
        self.seen: list[tuple[str, int]] = []
        self.fails: Callable[[str, int], Exception | None] = lambda key, number: None
        self.running: dict[str, int] = defaultdict(int)
        self.most = 0

    async def handle(self, envelope: Envelope) -> None:
        key, number = envelope.key, int(envelope.body)
        self.running[key] += 1
        assert self.running[key] == 1, "two messages of one key at once"
        self.most = max(self.most, sum(self.running.values()))
        await asyncio.sleep(0.001)
        try:
            error = self.fails(key, number)
            if error is not None:
                raise error
            self.seen.append((key, number))
        finally:
            self.running[key] -= 1

    async def send(self, key: str, number: int) -> None:
        envelope = Envelope(id=uuid4(), type="test.it", kind="command", key=key, body=str(number).encode())
        await self.transport.publish(work(partition(key)), WireMessage(headers=envelope.headers(), body=envelope.body))

    def of(self, key: str) -> list[int]:
        return [number for name, number in self.seen if name == key]

    @asynccontextmanager
    async def consuming(self, member: str = "one") -> AsyncIterator[PartitionConsumer]:
        await self.transport.start()
        consumer = PartitionConsumer(self.store, self.transport, self.handle, member=member)
        await consumer.start()
        try:
            yield consumer
        finally:
            await consumer.stop()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def settled(transport: MemoryTransport) -> bool:
    depths = [await transport.depth(work(number)) for number in range(PARTITIONS)]
    return not any(depths)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRY_AGAIN_S", (0.01, 0.01))
    monkeypatch.setattr(module, "BEAT_S", 0.05)


async def test_each_key_in_order_many_keys_side_by_side() -> None:
    world = World()
    async with world.consuming() as consumer:
        await asyncio.gather(*(world.send(f"k{key}", number) for number in range(20) for key in range(40)))
        await until(lambda: len(world.seen) == 800)
        assert consumer.ready and consumer.partitions == set(range(PARTITIONS))
    assert all(world.of(f"k{key}") == list(range(20)) for key in range(40))
    assert 10 < world.most <= module.TOGETHER


async def test_duplicates_and_redeliveries_keep_the_order_of_first_arrivals() -> None:
    world = World(Faults(seed=7, duplicate=0.3))
    async with world.consuming():
        for number in range(200):
            await world.send("k", number)
        await until(lambda: bool(world.seen) and world.seen[-1] == ("k", 199))
    assert list(dict.fromkeys(world.of("k"))) == list(range(200))
    assert len(world.seen) > 200


async def test_acked_only_when_handled() -> None:
    """A consumer that stops in the middle leaves what it did not finish to the next one."""
    world = World()
    gate = asyncio.Event()

    async def slow(envelope: Envelope) -> None:
        await gate.wait()

    await world.transport.start()
    first = PartitionConsumer(world.store, world.transport, slow, member="one")
    await first.start()
    for number in range(3):
        await world.send("k", number)
    await until(lambda: bool(first._keys))
    stopping = asyncio.create_task(first.stop())
    await asyncio.sleep(0.05)
    gate.set()  # the one in hand is finished and acked, the others are not begun
    await stopping
    async with world.consuming("two"):
        await until(lambda: len(world.seen) == 2)
    assert world.of("k") == [1, 2]


async def test_a_message_that_fails_three_times_blocks_its_key_only() -> None:
    world = World()
    tries = 0

    def fails(key: str, number: int) -> Exception | None:
        nonlocal tries
        if (key, number) == ("bad", 1):
            tries += 1
            return ValueError("boom")
        return None

    world.fails = fails
    async with world.consuming() as consumer:
        for number in range(4):
            await world.send("bad", number)
            await world.send("good", number)
        await until(lambda: len(world.seen) == 5)
        async with asyncio.timeout(60):
            while len(await world.store.held(key="bad")) < 3:
                await asyncio.sleep(0.01)
        assert (world.of("bad"), world.of("good"), tries) == ([0], [0, 1, 2, 3], 3)
        held = await world.store.held(key="bad")
        assert [int(each.body) for each in held] == [1, 2, 3]
        assert "ValueError: boom" in held[0].reason and "earlier" in held[1].reason
        assert consumer.held_keys == {"bad"}
        # It fails again, then the operator mends it: oldest first, and new ones wait behind.
        assert await consumer.redrive_key("bad") == 0
        assert (await world.store.held(key="bad"))[0].attempts == 2
        world.fails = lambda key, number: None
        await world.send("bad", 4)
        async with asyncio.timeout(60):
            while len(await world.store.held(key="bad")) < 4:
                await asyncio.sleep(0.01)
        assert await consumer.redrive_key("bad") == 4
        await world.send("bad", 5)
        await until(lambda: world.of("bad") == [0, 1, 2, 3, 4, 5])
        assert not await world.store.held_keys() and await settled(world.transport)


async def test_held_messages_are_tried_again_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_HELD_S", 0.1)
    world = World()
    broken = True
    world.fails = lambda key, number: RuntimeError("not yet") if broken else None
    async with world.consuming():
        for number in range(3):
            await world.send("k", number)
        async with asyncio.timeout(60):
            while len(await world.store.held(key="k")) < 3:
                await asyncio.sleep(0.01)
        broken = False
        await until(lambda: world.of("k") == [0, 1, 2])
        async with asyncio.timeout(60):
            while await world.store.held_keys():
                await asyncio.sleep(0.01)


async def test_a_key_held_by_another_process_is_respected() -> None:
    world = World()
    await world.store.hold(key="k", partition=partition("k"), headers={}, body=b"0", reason="elsewhere")
    async with world.consuming():
        await world.send("k", 1)
        async with asyncio.timeout(60):
            while len(await world.store.held(key="k")) < 2:
                await asyncio.sleep(0.01)
    assert not world.seen


async def test_refused_or_unreadable_is_a_dead_letter_and_blocks_nobody() -> None:
    world = World()
    world.fails = lambda key, number: BadParameter("no such volume", field="volume") if number == 0 else None
    async with world.consuming() as consumer:
        await world.send("k", 0)
        await world.send("k", 1)
        await world.transport.publish(work(partition("k")), WireMessage(headers={"nothing": "known"}, body=b"\x00\xff"))
        await until(lambda: world.of("k") == [1] and consumer.parked == 2)
    letters = await world.store.held(key="")
    assert sorted(letter.reason.split(":")[0] for letter in letters) == ["cloudEvents_id", "volume"]
    assert not await world.store.held_keys()


class Flaky(MemoryEventStore):
    """A store that is away when told."""

    away = False

    async def hold(self, **kwargs: object) -> int:
        if self.away:
            raise StoreAway("away")
        return await super().hold(**kwargs)  # type: ignore[arg-type] # as above


async def test_the_database_away_is_nobodys_fault() -> None:
    world = World()
    world.store = Flaky()
    outage = True
    calls = 0

    def fails(key: str, number: int) -> Exception | None:
        nonlocal calls
        calls += 1
        if outage:
            return StoreAway("away") if calls % 2 else AppendUnknown("cut")
        return None

    world.fails = fails
    async with world.consuming() as consumer:
        for number in range(3):
            await world.send("k", number)
        await until(lambda: calls > 4)
        assert not await world.store.held() and consumer.failed == 0
        outage = False
        await until(lambda: world.of("k") == [0, 1, 2])
        # And a message that must be held waits for the database too.
        world.store.away = True
        world.fails = lambda key, number: KeyError("bug") if number == 3 else None
        await world.send("k", 3)
        await world.send("k", 4)
        await asyncio.sleep(0.2)
        assert not await world.store.held()
        world.store.away = False
        async with asyncio.timeout(60):
            while [int(each.body) for each in await world.store.held(key="k")] != [3, 4]:
                await asyncio.sleep(0.01)


async def test_a_failure_of_our_own_leaves_it_unacked_and_takes_the_partition_anew() -> None:
    world = World()
    async with world.consuming() as consumer:
        arm({"consumer.after_handle_before_ack": "raise@2"})
        for number in range(4):
            await world.send("k", number)
        await until(lambda: world.of("k")[-1:] == [3] and consumer.ready and len(consumer.partitions) == PARTITIONS)
    assert list(dict.fromkeys(world.of("k"))) == [0, 1, 2, 3]
    assert world.of("k").count(1) == 2  # handled, not acked, came again
    assert await settled(world.transport)


async def test_members_divide_the_partitions_and_take_over() -> None:
    world = World()
    async with world.consuming("one") as one:
        async with world.consuming("two") as two:
            await until(lambda: not one.partitions & two.partitions)
            assert one.partitions | two.partitions == set(range(PARTITIONS))
            assert one.partitions and two.partitions
            for number in range(100):
                await world.send(f"k{number}", 0)
            await until(lambda: len({key for key, _ in world.seen}) == 100)
        await until(lambda: len(one.partitions) == PARTITIONS)  # at once: two said good-bye


async def test_redrive_of_one_message() -> None:
    world = World()
    identity = UUID(int=7)
    envelope = Envelope(id=identity, type="test.it", kind="command", key="k", body=b"1")
    number = await world.store.hold(key="k", partition=0, headers=envelope.headers(), body=b"1", reason="x")
    world.fails = lambda key, number: ValueError("still")
    assert not await redrive(world.store, world.handle, (await world.store.held())[0])
    world.fails = lambda key, number: StoreAway("away")
    with pytest.raises(StoreAway):
        await redrive(world.store, world.handle, (await world.store.held())[0])
    held = (await world.store.held())[0]
    assert (held.id, held.attempts, held.reason) == (number, 2, "ValueError: still")
    world.fails = lambda key, number: None
    assert await redrive(world.store, world.handle, held)
    assert world.of("k") == [1] and not await world.store.held()


def test_shares_cover_everything_once_and_move_little() -> None:
    names = [f"handlers@host/{number}" for number in range(5)]
    shares = [share(name, names) for name in names]
    assert sorted(number for each in shares for number in each) == list(range(PARTITIONS))
    after = [share(name, names[:4]) for name in names[:4]]
    assert all(before <= now for before, now in zip(shares, after, strict=False))
