"""Policies of snapshots on a real Postgres: two schedulers and two handlers over one log, a clock that jumps, a day on which it is
changed, handlers that are thrown away between any two timers. One snapshot for each due time; the log and what is kept with it agree.

`Stepped` is the real store whose clock is ahead of the server's: its timers are brought as near as the clock jumps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from bus.envelope import Envelope
from bus.event_store_postgres import PostgresEventStore
from bus.scheduler import Scheduler
from bus.transport import Address, WireMessage
from bus.verify import verify
from handlers.snapshot_policy import PolicyState, stream
from schema.agent import TakeSnapshot
from schema.ids import derive
from schema.image_store import AddImageStore
from schema.snapshot_policy import CreateSnapshotPolicy, policy_of
from schema.volume import CreateVolume
from tests.integration.conftest import LogServer
from tests.services.postgres import fresh_database
from tests.support.cloud import Cloud

pytestmark = pytest.mark.needs_postgres
ZURICH = ZoneInfo("Europe/Zurich")


class Stepped(PostgresEventStore):
    """See the module."""

    ahead = timedelta(0)

    async def now(self) -> datetime:
        return await super().now() + self.ahead

    async def set(self, moment: datetime, owner: asyncpg.Connection[asyncpg.Record]) -> None:
        """The clock jumps there, on or back."""
        jump = moment - await self.now()
        self.ahead += jump
        await owner.execute("UPDATE es.timer SET due_at = due_at - $1::interval", jump)


@dataclass
class Straight:
    """A transport that brings each message to a handler at once, sometimes twice, sometimes to another one."""

    clouds: list[Cloud]
    dice: random.Random
    durable: bool = True

    async def publish(self, to: Address, message: WireMessage) -> None:
        for cloud in self.dice.choices(self.clouds, k=self.dice.choice((1, 1, 2))):
            await cloud.runtime.handle(Envelope.read(message.headers, message.body))


@dataclass
class World:
    """A log, its handlers and schedulers."""

    dsn: str
    log: Stepped
    owner: asyncpg.Connection[asyncpg.Record]
    clouds: list[Cloud]
    volume: UUID
    dice: random.Random

    async def policy(self, interval: str, schedule: str, timezone: str, most: int = 3) -> UUID:
        await self.clouds[0].send(CreateSnapshotPolicy(
            volume_id=self.volume, interval_type=interval, schedule=schedule, timezone=timezone, max_snaps=most))
        await self.turn()
        return policy_of(self.volume, interval)

    async def turn(self) -> None:
        """Two schedulers deliver what is due, both at once, as when one lost its lease and does not know it yet."""
        straight = Straight(self.clouds, self.dice)
        both = [Scheduler(self.log, straight, holder=name) for name in ("a", "b")]  # type: ignore[arg-type] # all that it uses
        await asyncio.gather(*(one._turn() for one in both))

    async def state(self, policy: UUID) -> PolicyState:
        state: PolicyState = self.clouds[0].runtime.folded(stream(policy), (await self.log.read_streams([stream(policy)]))[stream(policy)])
        return state

    async def walk(self, until: datetime, step: timedelta) -> None:
        """The clock goes on in jumps; handlers are thrown away; agents do what is asked."""
        moment = await self.log.now()
        while moment < until:
            moment = min(until, moment + step * self.dice.uniform(0.3, 1.7))
            await self.log.set(moment, self.owner)
            for _ in range(3):
                await self.turn()
            self.clouds[self.dice.randrange(2)] = await self.clouds[0].another()
            await self.clouds[0].settle()

    async def ran(self) -> list[datetime]:
        rows = await self.clouds[0].rows("snapshot_policy.ran")
        return [datetime.fromisoformat(row.payload.decode().split('"due_at":"')[1].split('"')[0]) for row in rows]


@pytest.fixture
async def world(log_server: LogServer, seed: int) -> AsyncIterator[World]:
    dsn = await fresh_database(await log_server.get())
    log = await Stepped.connect(dsn)
    owner = await asyncpg.connect(dsn)
    try:
        cloud = await Cloud.start(log)
        for command in (AddImageStore(name="s", provider="S3", details={"bucket": "b"}), CreateVolume(name="v", size=1)):
            job = await cloud.send(command)
            await cloud.settle()
        assert isinstance(log, Stepped)
        yield World(dsn, log, owner, [cloud, await cloud.another()], derive(job, "volume"), random.Random(seed))
    finally:
        await owner.close()
        await log.aclose()


async def test_one_snapshot_for_each_due_time_over_a_change_of_the_clock(world: World) -> None:
    """From days before Zurich's next change until days after it, every day at a time that the change touches."""
    change = next(moment for moment in (datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=n)
                  for n in range(400 * 24))
                  if moment.astimezone(ZURICH).utcoffset() != (moment - timedelta(hours=1)).astimezone(ZURICH).utcoffset())
    policy = await world.policy("DAILY", "30:02", "Europe/Zurich")
    await world.log.set(change - timedelta(days=3), world.owner)  # months later: what was missed is the first one
    await world.walk(change + timedelta(days=3), timedelta(hours=5))
    ran = await world.ran()
    dates = [each.astimezone(ZURICH).date() for each in ran[1:]]
    assert len(dates) >= 5 and dates == [dates[0] + timedelta(days=n) for n in range(len(dates))]
    jobs = [derive(policy, each.astimezone(UTC).isoformat()) for each in ran]
    assert [await world.clouds[0].ends(job) for job in jobs] == [["job.completed"]] * len(jobs)
    taken = [order for order in await world.clouds[0].orders() if isinstance(order, TakeSnapshot)]
    assert sorted(order.job_id for order in taken) == sorted(jobs)
    state = await world.state(policy)
    assert list(state.snapshots) == [derive(job, "snapshot") for job in jobs[-3:]]
    assert await verify(world.dsn) == []


async def test_a_clock_that_jumps_on_and_back_and_what_was_missed(world: World) -> None:
    policy = await world.policy("HOURLY", "17", "UTC", most=8)
    begun = await world.log.now()
    await world.walk(begun + timedelta(hours=5), timedelta(minutes=23))
    before = await world.ran()
    assert [each.minute for each in before] == [17] * len(before) and len(before) in (4, 5)
    await world.log.set(begun + timedelta(hours=3), world.owner)  # back by two hours: nothing a second time
    await world.walk(begun + timedelta(hours=5), timedelta(minutes=23))
    assert await world.ran() == before
    await world.log.set(begun + timedelta(days=30), world.owner)  # on by a month: one, and then the next
    await world.turn()
    await world.clouds[0].settle()
    await world.turn()
    after = await world.ran()
    assert len(after) == len(before) + 1
    assert (await world.state(policy)).due > begun + timedelta(days=30)  # type: ignore[operator] # it has a next one
    await world.walk(begun + timedelta(days=30, hours=3), timedelta(minutes=23))
    assert len(await world.ran()) in (len(after) + 2, len(after) + 3, len(after) + 4)
    assert len(set(await world.ran())) == len(await world.ran())
    assert await verify(world.dsn) == []


async def test_two_schedulers_that_run_have_one_lease_and_deliver_each_time(world: World) -> None:
    """The loops themselves: one leads; when it goes the other takes over, and the schedule goes on."""
    policy = await world.policy("HOURLY", "17", "UTC", most=8)
    straight = Straight(world.clouds, world.dice)
    schedulers = [Scheduler(world.log, straight, holder=name) for name in ("a", "b")]  # type: ignore[arg-type] # all that it uses
    tasks = [asyncio.create_task(one.run()) for one in schedulers]
    try:
        for number in (1, 2):
            due = (await world.state(policy)).due
            assert due is not None
            await world.log.set(due + timedelta(seconds=1), world.owner)
            for _ in range(800):
                if len(await world.ran()) == number:
                    break
                await asyncio.sleep(0.05)
            assert len(await world.ran()) == number
            await world.clouds[0].settle()
            leads = [one.leads for one in schedulers]
            assert sum(leads) == 1
            tasks[leads.index(True)].cancel()  # it lets go of its lease as it ends
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
