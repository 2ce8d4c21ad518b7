"""The planner alone, on made-up clouds; then what it decides, in the logs of real jobs."""

from __future__ import annotations

import json
from uuid import UUID, uuid4

import pytest

from bus.event_store import LogRow
from handlers import planner
from handlers.directory import Directory, Store
from handlers.planner import Move, NoMotion
from schema.agent import AgentAnnounced, AgentHello, CreateDisk, FetchImage, ProviderSpec, WriteSnapshot
from schema.codec import decode
from schema.failure import Unavailable
from schema.ids import derive
from schema.image import ImageFormat, PrimarySpec, StoreSpec
from schema.image_store import AddImageStore
from schema.job import JobPlanned
from schema.message import Order
from schema.motion import BACKUP, COPY, FETCH, MERGE, RESTORE, MotionSpec
from schema.snapshot import CreateSnapshot
from schema.template import RegisterTemplate
from schema.volume import CreateVolume
from tests.support.cloud import ABLE, S3_SETTINGS, TOKEN, Cloud
from tests.support.cloud import proof as proof_of

ZONE, OTHER = UUID(int=1), UUID(int=2)
DIRECT = MotionSpec(name="direct", moves=[FETCH, BACKUP, RESTORE], reads=["ranged_read"], writes=["parallel_parts"])
SLOW = MotionSpec(name="staged", moves=[BACKUP, RESTORE], passes=2, start=30)
PAIRS = MotionSpec(name="store-to-store", moves=[COPY], reads=["ranged_read"], writes=["parallel_parts"], passes=2)
PRIMARY = PrimarySpec(id=UUID(int=3), name="local", kind="folder", path="/p", zone_id=ZONE, agent="kvm-1")
LINKS = PAIRS.model_copy(update={"moves": [COPY, MERGE]})


def store(name: str = "vault", provider: str = "s3", zone: UUID | None = None) -> Store:
    spec = StoreSpec(id=derive(ZONE, name), name=name, provider=provider, url="", prefix="inst")
    return Store(spec=spec, zone_id=zone, scope="ZONE" if zone else "REGION", state="Ready")


def s3(*capabilities: str) -> ProviderSpec:
    return ProviderSpec(name="S3", scope="REGION", settings={}, capabilities=list(capabilities or ABLE))


def world(*agents: AgentAnnounced) -> Directory:
    directory = Directory()
    for agent in agents:
        directory.apply(agent)
    return directory


def storage(name: str = "st-1", *, zone: UUID = ZONE, providers: list[ProviderSpec] | None = None,
            motions: list[MotionSpec] | None = None) -> AgentAnnounced:
    return AgentAnnounced(agent=name, zone_id=zone, roles=["storage"], public_key="k",
                          providers=[s3()] if providers is None else providers, motions=motions)


def kvm(*motions: MotionSpec, providers: list[ProviderSpec] | None = None) -> AgentAnnounced:
    return AgentAnnounced(agent="kvm-1", zone_id=ZONE, roles=["hypervisor"], hypervisor="KVM", public_key="k",
                          providers=[s3()] if providers is None else providers, motions=list(motions))


def backup(size: int = 10 << 30) -> Move:
    return planner.backup(PRIMARY, store(), size=size, basis="at most the disk's size", field="volumeid")


# --- the choice ------------------------------------------------------------------------------------------------------


def test_the_cheapest_legal_strategy_wins_and_the_dearer_ones_are_told() -> None:
    plan = planner.plan(world(kvm(SLOW, DIRECT), storage(motions=[PAIRS])), backup())
    assert (plan.strategy, plan.agent, plan.move) == ("direct", "kvm-1", BACKUP)
    assert (plan.source.name, plan.target.name, plan.source.id) == ("local", "vault", PRIMARY.id)
    assert (plan.cost.bytes, plan.cost.seconds) == (10 << 30, 52)  # 10 GiB at 200 MiB/s, rounded up
    told = {one.strategy: one for one in plan.refused}
    assert told["staged"].missing == ""
    assert "about 133 s against about 52 s" in told["staged"].cause
    assert told["store-to-store"].missing == f"store-to-store for {BACKUP}"
    assert plan.reason == "the cheapest of 2 that can: about 52 s"


def test_what_is_dearer_for_much_may_be_cheaper_for_little() -> None:
    quick, wide = MotionSpec(name="quick", moves=[BACKUP], rate=50 << 20), MotionSpec(name="wide", moves=[BACKUP], rate=500 << 20, start=20)
    directory = world(kvm(quick, wide))
    assert planner.plan(directory, backup(100 << 20)).strategy == "quick"
    assert planner.plan(directory, backup(100 << 30)).strategy == "wide"


def test_every_byte_is_counted_as_often_as_it_crosses_the_network() -> None:
    plan = planner.plan(world(storage(motions=[PAIRS])), planner.copy(store("a"), store("b"), size=1000, field="id"))
    assert (plan.strategy, plan.agent, plan.cost.bytes) == ("store-to-store", "st-1", 2000)


def test_links_are_merged_by_whoever_reaches_their_store() -> None:
    plan = planner.plan(world(storage(zone=OTHER, motions=[LINKS]), storage("st-2", motions=[LINKS])),
                        planner.merge(store(zone=ZONE), store(zone=ZONE), size=1000, field="id"))
    assert (plan.strategy, plan.agent, plan.cost.bytes) == ("store-to-store", "st-2", 2000)


def test_an_unknown_size_is_not_made_up() -> None:
    plan = planner.plan(world(storage(motions=[DIRECT])), planner.fetch("https://user-token@images.example:8443/i?sig=secret", store()))
    assert plan.cost.bytes is None
    assert plan.cost.seconds is None
    assert plan.source.name == "images.example"
    assert "secret" not in plan.model_dump_json()
    assert "token" not in plan.model_dump_json()


def test_two_handlers_choose_the_same_agent_whatever_the_order_of_the_log() -> None:
    agents = [storage(f"st-{number}", motions=[DIRECT]) for number in range(9)]
    move = planner.fetch("http://x/y", store())
    assert {planner.plan(world(*order), move).agent for order in (agents, agents[::-1], agents[4:] + agents[:4])} == {"st-0"}


def test_a_store_of_a_zone_is_worked_on_from_there() -> None:
    directory = world(storage("st-1", zone=OTHER, motions=[DIRECT]), storage("st-2", motions=[DIRECT]))
    assert planner.plan(directory, planner.fetch("http://x/y", store(zone=ZONE))).agent == "st-2"


def test_what_an_agent_says_anew_replaces_what_it_said() -> None:
    directory = world(storage(motions=[DIRECT]))
    move = planner.fetch("http://x/y", store())
    assert planner.plan(directory, move).agent == "st-1"
    directory.apply(storage(motions=[]))
    with pytest.raises(NoMotion):
        planner.plan(directory, move)
    directory.apply(storage(motions=[DIRECT]))
    directory.apply(storage(motions=[DIRECT]))
    assert directory.carriers.of("s3", None) == ["st-1"]
    directory.apply(storage(zone=OTHER, providers=[], motions=[DIRECT]))
    assert not any(directory.carriers.names.values())


def test_an_agent_of_before_there_were_plans_moves_directly() -> None:
    old = AgentAnnounced(agent="kvm-1", zone_id=ZONE, roles=["hypervisor"], hypervisor="KVM", public_key="k")
    assert planner.plan(world(old, storage()), backup()).strategy == "direct"
    with pytest.raises(NoMotion, match="lacks parallel_parts"):  # what its store can do is known from others
        planner.plan(world(old, storage(providers=[s3("ranged_read")])), backup())


# --- refusals --------------------------------------------------------------------------------------------------------

RESTORED = planner.restore(store(), PRIMARY, size=5, basis="", field="templateid")


@pytest.mark.parametrize(("directory", "move", "missing", "where"), [
    (world(), backup(), f"direct for {BACKUP}", "every agent"),
    (world(storage()), backup(), "an agent", "the primary store local"),
    (world(kvm(), storage()), backup(), f"direct for {BACKUP}", "the agent kvm-1 (KVM)"),
    (world(kvm(DIRECT.model_copy(update={"moves": [BACKUP]})), storage()), RESTORED, f"direct for {RESTORE}",
     "the agent kvm-1 (KVM)"),
    (world(kvm(DIRECT, providers=[])), backup(), "the provider s3", "the agent kvm-1 (KVM)"),
    (world(kvm(DIRECT, providers=[s3("ranged_read")])), backup(), "parallel_parts", "the image store vault (s3)"),
    (world(kvm(DIRECT, providers=[s3("parallel_parts")])), RESTORED, "ranged_read", "the image store vault (s3)"),
    (world(storage(motions=[PAIRS]), storage("st-2", providers=[ProviderSpec(name="swift", scope="REGION", settings={})], motions=[PAIRS])),
     planner.copy(store("a"), store("b", "swift"), size=1, field="id"), "the provider s3 and swift", "the storage agents"),
    (world(storage(zone=OTHER, motions=[PAIRS]), storage("st-2", motions=[])), planner.copy(store("a", zone=ZONE), store("b"), size=1,
     field="id"), f"store-to-store for {COPY}", f"the storage agents of the zone {ZONE}"),
    (world(storage(motions=[PAIRS])), planner.merge(store(), store(), size=1, field="id"), f"store-to-store for {MERGE}",
     "every agent"),
    (world(storage(motions=[LINKS], providers=[s3("ranged_read")])), planner.merge(store(), store(), size=1, field="id"),
     "parallel_parts", "the image store vault (s3)"),
    (world(storage(providers=[]), kvm(DIRECT)), planner.fetch("http://x/y", store()), "the provider s3",
     "the storage agents"),
    (world(storage(zone=OTHER)), planner.fetch("http://x/y", store(zone=ZONE)), "the provider s3",
     f"the storage agents of the zone {ZONE}"),
    (world(storage(motions=[]), kvm(DIRECT)), planner.fetch("http://x/y", store()), f"direct for {FETCH}",
     "the storage agents"),
    (world(storage(motions=[DIRECT, PAIRS])), planner.copy(store("a"), store("b", "swift"), size=1, field="id"),
     "the provider s3 and swift", "the storage agents"),
])
def test_a_refusal_says_what_is_missing_where(directory: Directory, move: Move, missing: str, where: str) -> None:
    with pytest.raises(NoMotion) as refusal:
        planner.plan(directory, move)
    assert (missing, where) in {(one.missing, one.where) for one in refusal.value.refused}
    failure = refusal.value.failure
    assert failure.field == move.field
    assert failure.remedy
    assert failure.code == Unavailable.code
    for one in refusal.value.refused:
        assert f"{one.strategy}: {one.cause}" in failure.cause


# --- in jobs ---------------------------------------------------------------------------------------------------------


async def job_events(cloud: Cloud, job: UUID) -> list[str]:
    return [row.type for row in await cloud.store.read_stream(f"job-{job}") if row.kind == "event"]


async def plans(cloud: Cloud, job: UUID) -> list[JobPlanned]:
    rows = [row for row in await cloud.store.read_stream(f"job-{job}") if row.type == JobPlanned.TYPE]
    return [event for row in rows if isinstance(event := decode(row.type, row.type_version, row.payload), JobPlanned)]


async def prepared() -> tuple[Cloud, UUID]:
    """A cloud with a store and a volume."""
    cloud = await Cloud.start()
    await cloud.send(AddImageStore(name="vault", provider="S3", details={"bucket": "b"}))
    await cloud.settle()
    made = await cloud.send(CreateVolume(name="v", size=1))
    await cloud.settle()
    assert await plans(cloud, made) == []  # an empty disk moves nothing
    return cloud, derive(made, "volume")


async def say(cloud: Cloud, motions: list[MotionSpec] | None, *, capabilities: list[str] = ABLE) -> None:
    """The cloud's agent announces itself again."""
    primary = PrimarySpec(id=derive(cloud.zone_id, "primary"), name="p", kind="memory", path="/p", zone_id=cloud.zone_id,
                          agent="host-1")
    await cloud.handle(AgentHello(
        agent="host-1", zone_id=cloud.zone_id, roles=["storage", "hypervisor"], hypervisor="KVM",
        providers=[ProviderSpec(name="s3", scope="REGION", settings=S3_SETTINGS, capabilities=capabilities)],
        primaries=[primary], public_key="k", proof=proof_of(TOKEN, "host-1", "k"), motions=motions), kind="report")


async def test_each_job_that_moves_bytes_holds_its_plan_before_its_order() -> None:
    cloud, volume = await prepared()
    registered = await cloud.send(RegisterTemplate(name="t", url="http://images.example/y", format=ImageFormat.QCOW2))
    await cloud.settle()
    taken = await cloud.send(CreateSnapshot(volume_id=volume))
    await cloud.settle()
    again = await cloud.send(CreateSnapshot(volume_id=volume))
    await cloud.settle()
    restored = await cloud.send(CreateVolume(name="r", snapshot_id=derive(again, "snapshot"), zone_id=cloud.zone_id))
    await cloud.settle()
    assert await job_events(cloud, registered) == [
        "job.submitted", "job.started", "job.planned", "job.step_started", "job.step_completed", "job.completed"]
    found = {job: (await plans(cloud, job))[0] for job in (registered, taken, again, restored)}
    assert [(one.step, one.plan.move) for one in found.values()] == [
        ("fetch", FETCH), ("backup", BACKUP), ("backup", BACKUP), ("create", RESTORE)]
    assert found[taken].plan.cost.basis == "at most the disk's size"
    assert found[again].plan.cost.basis.endswith(f"what changed since {derive(taken, 'snapshot')}")
    assert found[restored].plan.cost.bytes == 2000  # the two objects of its chain
    for job, one in found.items():
        movers = [order for order in await cloud.orders() if order.job_id == job
                  and isinstance(order, (FetchImage, WriteSnapshot, CreateDisk))]
        assert [(order.motion, order.agent) for order in movers] == [(one.plan.strategy, one.plan.agent)]


async def test_a_chosen_strategy_reaches_the_agent() -> None:
    cloud, volume = await prepared()
    await say(cloud, [DIRECT, MotionSpec(name="express", moves=[BACKUP], rate=1 << 30)])
    taken = await cloud.send(CreateSnapshot(volume_id=volume))
    await cloud.settle()
    assert await cloud.ends(taken) == ["job.completed"]
    [order] = [order for order in await cloud.orders() if isinstance(order, WriteSnapshot)]
    assert order.motion == "express"
    assert [one.strategy for one in (await plans(cloud, taken))[0].plan.refused] == ["direct"]


async def test_what_cannot_move_is_refused_at_the_door_and_writes_nothing_else() -> None:
    cloud, volume = await prepared()
    await say(cloud, [DIRECT], capabilities=["ranged_read"])
    before = await cloud.store.counters()
    for command in (CreateSnapshot(volume_id=volume),
                    RegisterTemplate(name="t", url="http://x/y", format=ImageFormat.QCOW2)):
        with pytest.raises(NoMotion, match=r"the image store vault \(s3\) lacks parallel_parts"):
            await cloud.runtime.precheck(command, uuid4())
        job = await cloud.send(command)
        assert await job_events(cloud, job) == ["job.submitted", "job.failed"]
    assert await cloud.store.counters() == before


@pytest.mark.parametrize("in_background", [False, True])
async def test_what_becomes_impossible_on_the_way_is_undone(in_background: bool) -> None:
    cloud, volume = await prepared()
    taken = await cloud.send(CreateSnapshot(volume_id=volume, async_backup=in_background))
    await say(cloud, [])  # the agent lost its motion after the snapshot was ordered, before its backup
    await cloud.settle()
    assert await cloud.ends(taken) == (["job.completed"] if in_background else ["job.failed"])
    if in_background:
        assert await cloud.ends(derive(taken, "backup-job")) == ["job.failed"]
    assert not [order for order in await cloud.orders() if isinstance(order, WriteSnapshot)]
    await say(cloud, [DIRECT])
    again = await cloud.send(CreateSnapshot(volume_id=volume))  # the volume is free
    await cloud.settle()
    assert await cloud.ends(again) == ["job.completed"]


async def test_a_retry_keeps_its_plan() -> None:
    cloud, volume = await prepared()
    taken = await cloud.send(CreateSnapshot(volume_id=volume))
    [take] = await cloud.open_orders()
    await cloud.complete(take)
    [first] = await cloud.open_orders()
    await cloud.fail(first, retryable=True)
    await say(cloud, [MotionSpec(name="express", moves=[BACKUP])])
    await cloud.fire(taken)
    await cloud.settle()
    assert await cloud.ends(taken) == ["job.completed"]
    assert {order.motion for order in await cloud.orders() if isinstance(order, WriteSnapshot)} == {"direct"}
    assert len(await plans(cloud, taken)) == 1


def as_before(row: LogRow) -> LogRow:
    """The row without what is new in it."""
    body = json.loads(row.payload)
    body.pop("motion", None)
    return row._replace(payload=json.dumps(body).encode())


async def test_a_job_of_before_there_were_plans_goes_on() -> None:
    """Its log has no job.planned, and its orders no motion: as an earlier version wrote them."""
    cloud, _ = await prepared()
    job = await cloud.send(RegisterTemplate(name="t", url="http://x/y", format=ImageFormat.QCOW2))
    rows = cloud.store.streams[f"job-{job}"]
    older = [as_before(row) for row in rows if row.type != JobPlanned.TYPE]
    assert len(older) == len(rows) - 1
    rows[:] = [row._replace(version=version) for version, row in enumerate(older)]
    cloud = await cloud.another()
    [first] = [order for order in await cloud.open_orders() if isinstance(order, FetchImage)]
    assert first.motion == "direct"
    await cloud.fail(first, retryable=True)
    await cloud.fire(job)
    await cloud.settle()
    assert await cloud.ends(job) == ["job.completed"]
    assert len(await plans(cloud, job)) == 1


def test_orders_of_before_there_were_plans_move_directly() -> None:
    for cls in (FetchImage, WriteSnapshot, CreateDisk):
        assert issubclass(cls, Order)
        assert cls.model_fields["motion"].default == "direct"
    said = {"agent": "a", "zone_id": str(ZONE), "roles": [], "public_key": "k"}
    old = decode(AgentAnnounced.TYPE, 1, json.dumps(said).encode())
    assert isinstance(old, AgentAnnounced)
    assert old.motions is None
