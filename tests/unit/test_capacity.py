"""Capacity: room is reserved in the append that orders the work, settled to the real bytes, released when nothing came."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from handlers import capacity, placement
from handlers.directory import Directory, Store
from schema.agent import AgentAnnounced, ProviderSpec, TakeSnapshot, WorkCompleted, WriteSnapshot
from schema.failure import NoRoom, Unavailable
from schema.ids import derive
from schema.image import GIB, ImageFormat, StoreSpec
from schema.image_store import AddImageStore, UpdateImageStore
from schema.job import CancelJob
from schema.snapshot import CreateSnapshot, DeleteSnapshot
from schema.template import DeleteTemplate, RegisterTemplate
from schema.volume import CreateVolume
from tests.support.cloud import Cloud

MIB = 1 << 20
DISK = 200 * MIB
NEED = capacity.backup(GIB, DISK)


async def a_store(cloud: Cloud, name: str = "s", room: int = 0) -> UUID:
    store = derive(await cloud.send(AddImageStore(name=name, provider="s3", details={"bucket": name})), "image_store")
    await cloud.settle()
    if room:
        await cloud.send(UpdateImageStore(id=store, capacity_bytes=room))
    return store


async def volumes(cloud: Cloud, count: int) -> list[UUID]:
    jobs = [await cloud.send(CreateVolume(name=f"v{number}", size=1)) for number in range(count)]
    await cloud.settle()
    return [derive(job, "volume") for job in jobs]


async def taken(cloud: Cloud, **more: Any) -> None:
    """The agents take all snapshots that are asked for, at once."""
    async def done(order: TakeSnapshot) -> None:
        await cloud.handle(WorkCompleted(
            job_id=order.job_id, work_id=order.work_id, attempt=order.attempt, agent=order.agent,
            result={"virtual_size": GIB, "physical_size": DISK} | more), kind="report")

    await asyncio.gather(*(done(order) for order in await cloud.open_orders() if isinstance(order, TakeSnapshot)))


async def counters(cloud: Cloud, store: UUID) -> tuple[int, int]:
    return await cloud.value(capacity.used(store)), await cloud.value(capacity.reserved(store))


async def failures(cloud: Cloud) -> list[str]:
    return [row.payload.decode() for row in await cloud.rows("job.failed")]


@pytest.mark.parametrize("measured", [False, True])
async def test_fifty_backups_at_once_and_room_for_three(measured: bool) -> None:
    cloud = await Cloud.start()
    room = 3 * NEED + NEED // 2
    store = await a_store(cloud, room=0 if measured else room)
    jobs = [await cloud.send(CreateSnapshot(volume_id=volume)) for volume in await volumes(cloud, 50)]
    await taken(cloud, **({"free_bytes": room} if measured else {}))
    writing = [order for order in await cloud.open_orders() if isinstance(order, WriteSnapshot)]
    assert len(writing) == 3
    assert await counters(cloud, store) == (3 * NEED, 3 * NEED)
    await cloud.settle()
    ends = [(await cloud.ends(job))[0] for job in jobs]
    assert (ends.count("job.completed"), ends.count("job.failed")) == (3, 47)
    for text in await failures(cloud):
        assert "no room for" in text
        assert ("is full" if measured else "capacitybytes") in text
    assert await counters(cloud, store) == (3 * 1000, 0)  # the played agent's objects have 1000 bytes
    assert await cloud.value(f"image_store/{store}/residents") == 3


async def test_what_fails_is_cancelled_or_deleted_gives_its_room_back() -> None:
    cloud = await Cloud.start()
    store = await a_store(cloud, room=10 * GIB)
    one, two, three = await volumes(cloud, 3)
    failing, stopping, lasting = [await cloud.send(CreateSnapshot(volume_id=volume)) for volume in (one, two, three)]
    await taken(cloud)
    assert await counters(cloud, store) == (3 * NEED, 3 * NEED)
    orders = {order.job_id: order for order in await cloud.open_orders()}
    await cloud.fail(orders[failing])
    await cloud.send(CancelJob(job_id=stopping))
    await cloud.stop(orders[stopping])
    await cloud.settle()
    assert await counters(cloud, store) == (1000, 0)
    await cloud.send(DeleteSnapshot(id=derive(lasting, "snapshot")))
    assert await counters(cloud, store) == (1000, 0)  # until the store confirms
    await cloud.settle()
    assert await counters(cloud, store) == (0, 0)
    job = await cloud.send(RegisterTemplate(name="t", url="http://x/y", format=ImageFormat.QCOW2))
    assert await counters(cloud, store) == (capacity.DOWNLOAD, capacity.DOWNLOAD)
    await cloud.settle()
    assert await counters(cloud, store) == (1000, 0)
    await cloud.send(DeleteTemplate(id=derive(job, "template")))
    await cloud.settle()
    assert await counters(cloud, store) == (0, 0)


async def test_a_full_store_is_refused_at_the_door_and_another_is_taken() -> None:
    cloud = await Cloud.start()
    full = await a_store(cloud, room=500)
    first = await cloud.send(RegisterTemplate(name="t", url="http://x/y", format=ImageFormat.QCOW2))
    await cloud.settle()
    assert await counters(cloud, full) == (1000, 0)  # larger than what was free: that is only known now
    assert await cloud.ends(first) == ["job.completed"]
    again = RegisterTemplate(name="u", url="http://x/y", format=ImageFormat.QCOW2)
    with pytest.raises(NoRoom, match="the capacity of s is used"):
        await cloud.runtime.precheck(again, uuid4())
    assert await cloud.ends(await cloud.send(again)) == ["job.failed"]
    other = await a_store(cloud, "other", room=5000)
    assert await cloud.ends(await cloud.send(again)) == []
    await cloud.settle()
    assert await counters(cloud, other) == (1000, 0)
    await cloud.send(UpdateImageStore(id=full, capacity_bytes=0))  # no limit again
    await cloud.send(RegisterTemplate(name="w", url="http://x/y", format=ImageFormat.QCOW2))
    await cloud.settle()
    assert await counters(cloud, full) == (2000, 0)


async def test_room_taken_by_another_process_meanwhile_leads_to_another_choice() -> None:
    cloud = await Cloud.start()
    rooms = {await a_store(cloud, "a", room=3 * GIB), await a_store(cloud, "b", room=2 * GIB)}
    other = await cloud.another()
    jobs = [(cloud, other)[number % 2].send(RegisterTemplate(name=f"t{number}", url="http://x/y", format=ImageFormat.QCOW2))
            for number in range(6)]
    await asyncio.gather(*jobs)
    assert sum([(await counters(cloud, store))[0] for store in rooms]) == 5 * GIB
    assert len(await cloud.rows("job.failed")) == 1


async def test_a_read_only_store_takes_nothing_new_and_gives_back() -> None:
    cloud = await Cloud.start()
    store = await a_store(cloud)
    job = await cloud.send(RegisterTemplate(name="t", url="http://x/y", format=ImageFormat.QCOW2))
    await cloud.settle()
    template, (volume,) = derive(job, "template"), await volumes(cloud, 1)
    await cloud.send(UpdateImageStore(id=store, read_only=True))
    for command in (RegisterTemplate(name="u", url="http://x/y", format=ImageFormat.QCOW2), CreateSnapshot(volume_id=volume)):
        with pytest.raises(Unavailable, match=r"read-only \(s\) and takes no new objects"):
            await cloud.runtime.precheck(command, uuid4())
    restored = await cloud.send(CreateVolume(name="r", template_id=template))
    await cloud.settle()
    assert await cloud.ends(restored) == ["job.completed"]
    deleted = await cloud.send(DeleteTemplate(id=template))
    await cloud.settle()
    assert await cloud.ends(deleted) == ["job.completed"]
    await cloud.send(UpdateImageStore(id=store, read_only=False))
    await cloud.runtime.precheck(CreateSnapshot(volume_id=volume), uuid4())


async def test_a_store_that_is_away_keeps_a_deletion_pending_and_counted_until_it_confirms() -> None:
    cloud = await Cloud.start()
    store = await a_store(cloud)
    job = await cloud.send(RegisterTemplate(name="t", url="http://x/y", format=ImageFormat.QCOW2))
    await cloud.settle()
    deleting = await cloud.send(DeleteTemplate(id=derive(job, "template")))
    for attempt in range(1, 6):
        (order,) = await cloud.open_orders()
        assert order.attempt == attempt
        await cloud.fail(order, retryable=True)
        assert await cloud.ends(deleting) == []
        assert await cloud.rows("template.deleted") == []
        assert await cloud.value(f"image_store/{store}/residents") == 1
        assert await counters(cloud, store) == (1000, 0)
        await cloud.fire(deleting)
    await cloud.settle()
    assert await cloud.ends(deleting) == ["job.completed"]
    assert len(await cloud.rows("template.deleted")) == 1
    assert await counters(cloud, store) == (0, 0)


# --- the choice itself ----------------------------------------------------------------------------------------------------

ZONE, OTHER = uuid4(), uuid4()


def directory(*stores: Store, used: dict[UUID, int] | None = None, carries: tuple[str, ...] = ("s3", "folder")) -> Directory:
    agent = AgentAnnounced(agent="a", zone_id=ZONE, roles=["storage"], public_key="k", providers=[
        ProviderSpec(name=name, scope="REGION", settings={}) for name in carries])
    return Directory(zones={ZONE: "z", OTHER: "o"}, stores={store.spec.id: store for store in stores}, agents={"a": agent},
                     used=used or {})


def store_named(name: str, provider: str = "s3", **more: Any) -> Store:
    spec = StoreSpec(id=uuid4(), name=name, provider=provider, url="x", prefix="p")
    return replace(Store(spec=spec, zone_id=None, scope="REGION", state="Ready"), **more)


def test_the_choice_is_by_scope_type_state_and_room() -> None:
    here, there = (store_named(name, "folder", scope="ZONE", zone_id=zone) for name, zone in (("here", ZONE), ("there", OTHER)))
    assert placement.image_store(directory(here, there), ZONE) is here
    s3 = store_named("s3")
    assert placement.image_store(directory(here, s3), ZONE, provider="S3") is s3
    with pytest.raises(Unavailable, match="no image store of the provider swift"):
        placement.image_store(directory(here, s3), ZONE, provider="swift")
    small, large = store_named("small", capacity=100), store_named("large", capacity=1000)
    used = {small.spec.id: 0, large.spec.id: 950}
    assert placement.image_store(directory(small, large), ZONE) is large
    assert placement.image_store(directory(small, large, used=used), ZONE) is small
    assert placement.image_store(directory(small, large, used=used), ZONE, prefer=large.spec.id, need=50) is large
    assert placement.image_store(directory(small, large, used=used), ZONE, prefer=large.spec.id, need=51) is small
    with pytest.raises(NoRoom, match="101 bytes: the capacity of large, small"):
        placement.image_store(directory(small, large, used=used), ZONE, need=101)
    assert placement.image_store(directory(small, s3), ZONE) is s3  # without a capacity
    testing, marked = store_named("t", state="Testing"), store_named("m", read_only=True)
    assert placement.image_store(directory(testing, marked, s3), ZONE) is s3
    with pytest.raises(Unavailable, match="no storage agent carries"):
        placement.image_store(directory(s3, carries=("folder",)), ZONE)
