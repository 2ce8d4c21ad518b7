"""A cloud in memory for tests of the deciders: the real runtime and event store, and agents played by the test.

`FakeTransport` is a double: it only remembers what was published. Orders are read from the log, as the relay would.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from bus.envelope import Envelope
from bus.event_store import EventStore, LogFilter, LogRow
from bus.event_store_memory import MemoryEventStore
from bus.transport import Address, WireMessage
from handlers.agent import create_zone, proof
from handlers.runtime import Runtime
from schema.agent import (
    AdoptImage,
    AgentHello,
    CancelWork,
    CreateDisk,
    FetchImage,
    MakeLink,
    MakeSeed,
    MergeImages,
    ProviderSpec,
    ReleaseWork,
    ResizeDisk,
    RevertDisk,
    ScrubObjects,
    TakeSnapshot,
    WorkCancelled,
    WorkCompleted,
    WorkFailed,
    WriteSnapshot,
)
from schema.codec import decode, encode
from schema.failure import Damage, Failure
from schema.ids import derive
from schema.image import GIB, DiskRef, ImageFormat, ImageRef, PrimarySpec
from schema.message import Command, Message, Order

TOKEN = b"test-token"
VAULT_KEY = "the vault's key"
"""To which agents would seal; these seal nothing."""
ABLE = ["parallel_parts", "ranged_read"]
SWIFT_SETTINGS = {
    "properties": {"account": {"type": "string"}, "username": {"type": "string"}, "key": {"type": "string", "format": "password"}},
    "required": ["username", "key"],
}
S3_SETTINGS = {
    "properties": {"bucket": {"type": "string"}, "endpoint": {"type": "string"}, "accesskey": {"type": "string"},
                   "secretkey": {"type": "string", "format": "password"}},
    "required": ["bucket"],
}


@dataclass
class FakeTransport:
    """Remembers what was published."""

    sent: list[tuple[Address, WireMessage]] = field(default_factory=list)

    async def publish(self, to: Address, message: WireMessage) -> None:
        """Remember."""
        self.sent.append((to, message))


@dataclass
class Cloud:
    """A runtime, its log, and what tests ask of them."""

    store: EventStore
    runtime: Runtime
    transport: FakeTransport
    zone_id: UUID
    answered: set[UUID] = field(default_factory=set)

    @classmethod
    async def start(cls, log: EventStore | None = None) -> Cloud:
        """One zone, one agent that is both storage agent and hypervisor; over `log`, or over one in memory."""
        store, transport = log or MemoryEventStore(), FakeTransport()
        runtime = Runtime(store, transport, installation="inst", token=TOKEN, vault_key=VAULT_KEY)  # type: ignore[arg-type] # a double
        zone_id = await create_zone(runtime, "zone-1")
        cloud = cls(store, runtime, transport, zone_id)
        primary = PrimarySpec(id=derive(zone_id, "primary"), name="p", kind="memory", path="/p", zone_id=zone_id,
                              agent="host-1")
        await cloud.handle(AgentHello(
            agent="host-1", zone_id=zone_id, roles=["storage", "hypervisor"], hypervisor="KVM",
            providers=[ProviderSpec(name="s3", scope="REGION", settings=S3_SETTINGS,
                                    capabilities=[*ABLE, "presigned_get"]),
                       ProviderSpec(name="folder", scope="ZONE", settings={"properties": {}}, capabilities=ABLE),
                       ProviderSpec(name="nfs", scope="ZONE", settings={"properties": {"mountpoint": {"type": "string"}}},
                                    capabilities=ABLE),
                       ProviderSpec(name="swift", scope="REGION", settings=SWIFT_SETTINGS, capabilities=ABLE)],
            primaries=[primary], public_key="k", proof=proof(TOKEN, "host-1", "k")), kind="report")
        return cloud

    async def another(self) -> Cloud:
        """A second handlers process over the same log."""
        runtime = Runtime(self.store, self.transport, installation="inst", token=TOKEN, vault_key=VAULT_KEY)  # type: ignore[arg-type] # a double
        return Cloud(self.store, runtime, self.transport, self.zone_id)

    async def handle(self, message: Message, *, kind: str, id: UUID | None = None) -> None:  # noqa: A002 - the envelope's word
        """Deliver a message as the consumer would."""
        await self.runtime.handle(Envelope(id=id or uuid4(), type=message.TYPE, kind=kind, body=encode(message)))

    async def send(self, command: Command, job_id: UUID | None = None) -> UUID:
        """A command that came by AMQP."""
        job_id = job_id or uuid4()
        await self.handle(command, kind="command", id=job_id)
        return job_id

    async def rows(self, *types: str) -> list[LogRow]:
        """Log rows of these types."""
        return (await self.store.read_log(0, filter=LogFilter(types=types), limit=100_000)).rows

    async def orders(self) -> list[Order]:
        """Every order in the log, oldest first."""
        rows = (await self.store.read_log(0, filter=LogFilter(kinds=frozenset({"order"})), limit=100_000)).rows
        found = [decode(row.type, row.type_version, row.payload) for row in rows]
        return [order for order in found if isinstance(order, Order)]

    async def open_orders(self) -> list[Order]:
        """Orders that the played agent has not answered finally."""
        orders = await self.orders()
        released = {(o.work_id, o.attempt) for o in orders if isinstance(o, ReleaseWork)}
        return [o for o in orders if not isinstance(o, (ReleaseWork, CancelWork))
                and (o.work_id, o.attempt) not in released]

    async def submissions(self) -> None:
        """Deliver the jobs that other jobs started, as the relay would."""
        for row in (await self.store.read_log(0, filter=LogFilter(kinds=frozenset({"command"})), limit=1000)).rows:
            if row.id not in self.answered:
                self.answered.add(row.id)
                await self.runtime.handle(Envelope(id=row.id, type=row.type, kind="command", body=row.payload))

    async def complete(self, order: Order) -> None:
        """The agent did it."""
        await self.handle(WorkCompleted(job_id=order.job_id, work_id=order.work_id, attempt=order.attempt,
                                        agent=order.agent, result=result_of(order), bytes=5), kind="report")

    async def fail(self, order: Order, *, retryable: bool = False, damage: Damage | None = None, remains: bool = False) -> None:
        """The agent could not do it; it found `damage`, and what it made `remains`."""
        await self.handle(WorkFailed(job_id=order.job_id, work_id=order.work_id, attempt=order.attempt,
                                     agent=order.agent, failure=Failure(
                                         cause="it broke", retryable=retryable, damage=damage, remains=remains)), kind="report")

    async def stop(self, order: Order) -> None:
        """The agent was told to stop, and did."""
        await self.handle(WorkCancelled(job_id=order.job_id, work_id=order.work_id, attempt=order.attempt,
                                        agent=order.agent), kind="report")

    async def fire(self, job_id: UUID) -> None:
        """The job's timer is due."""
        await self.runtime.handle(Envelope(id=uuid4(), type="timer.job", kind="timer",
                                           body=b'{"job_id":"%s"}' % str(job_id).encode()))

    async def settle(self) -> None:
        """The agents do everything that is asked of them."""
        for _ in range(100):
            await self.submissions()
            orders = await self.open_orders()
            if not orders:
                return
            for order in orders:
                await self.complete(order)
        raise AssertionError("the cloud does not come to rest")

    async def ends(self, job_id: UUID) -> list[str]:
        """The end events in a job's stream."""
        rows = await self.store.read_stream(f"job-{job_id}")
        return [row.type for row in rows if row.type in ("job.completed", "job.failed", "job.cancelled")]

    async def value(self, counter: str) -> int:
        """A counter's value."""
        return (await self.store.counters()).get(counter, (0, None))[0]

    async def chaos(self, seed: int, jobs: list[UUID], cancel: Any) -> None:
        """Seeded agents: late, duplicated, failing and cancelled work until nothing is open."""
        dice = random.Random(seed)
        done: list[Order] = []
        for _ in range(400):
            await self.submissions()
            orders = await self.open_orders()
            waiting = [UUID(t.payload.decode()[11:-2]) for t in (await self.store.timers()).values()]
            if not orders and not waiting:
                return
            if done and dice.random() < 0.2:
                await self.complete(dice.choice(done))  # a duplicate, or one that comes late
            if dice.random() < 0.05:
                await cancel(dice.choice(jobs))
            if orders:
                order = dice.choice(orders)
                done.append(order)
                cancelled = any(isinstance(o, CancelWork) and o.work_id == order.work_id for o in await self.orders())
                throw = dice.random()
                if cancelled and throw < 0.5:
                    await self.stop(order)
                elif throw < 0.2 and "elete" not in type(order).__name__ and "Drop" not in type(order).__name__:
                    await self.fail(order, retryable=dice.random() < 0.5)
                else:
                    await self.complete(order)
            elif waiting:
                await self.fire(dice.choice(waiting))
        raise AssertionError("the cloud does not come to rest")


def result_of(order: Order) -> dict[str, Any]:
    """What the agent answers to a completed order."""
    match order:
        case FetchImage() | WriteSnapshot() | AdoptImage():
            image = ImageRef(store_id=order.store.id, key=order.key, format=ImageFormat.QCOW2, virtual_size=GIB,
                             physical_size=1000, root="00",
                             parent=order.parent.key if isinstance(order, WriteSnapshot) and order.parent else "")
            return {"image": image.model_dump(mode="json")}
        case MergeImages():  # most of what one link has, the next has too
            image = order.links[-1].model_copy(update={
                "store_id": order.store.id, "key": order.key, "physical_size": 1000 + 100 * (len(order.links) - 1),
                "parent": order.parent.key if order.parent else "", "replaces": order.replaces})
            return {"image": image.model_dump(mode="json")}
        case CreateDisk():
            disk = DiskRef(primary=order.primary, volume_id=order.volume_id, path=f"{order.volume_id}.qcow2",
                           virtual_size=order.virtual_size or GIB)
            return {"disk": disk.model_dump(mode="json"), "physical_size": 1}
        case MakeSeed():
            return {"path": f"{order.template_id}.seed.qcow2", "size": order.image.physical_size, "physical_size": 900}
        case ResizeDisk():
            return {"virtual_size": order.virtual_size, "physical_size": 2}
        case RevertDisk():
            return {"disk": order.disk.model_dump(mode="json"), "physical_size": 7}
        case TakeSnapshot():
            return {"virtual_size": GIB}
        case MakeLink():
            name = f"1900000000-{order.work_id.hex}" if order.revocable else ""
            return {"link_id": name, "expires_at": "2030-01-01T00:00:00Z", "work_id": str(order.work_id), "sealed_url": "c2VhbGVk"}
        case ScrubObjects():
            return {"objects": len(order.objects), "bytes": sum(target.size for target in order.objects)}
        case _:
            return {}
