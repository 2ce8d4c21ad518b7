"""Resizing: what the offering allows, what is counted meanwhile, and how it ends."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.leftovers import cleaning
from api.edge import Edge
from schema.agent import ResizeDisk
from schema.failure import Refused
from schema.ids import derive
from schema.image import GIB
from schema.job import CancelJob
from schema.offering import CreateDiskOffering
from schema.volume import CreateVolume, DestroyVolume, ResizeVolume
from tests.support.cloud import Cloud
from tests.support.system import FakeSystem
from tests.unit.test_quota import held, sent


async def offered(cloud: Cloud, **more: Any) -> UUID:
    return derive(await cloud.send(CreateDiskOffering(name="o", **more)), "disk_offering")


async def volume_of(cloud: Cloud, offering: UUID | None = None, size: int | None = 2) -> UUID:
    job = await sent(cloud, CreateVolume(name="v", size=size, disk_offering_id=str(offering) if offering else None))
    await cloud.settle()
    assert await cloud.ends(job) == ["job.completed"]
    return derive(job, "volume")


async def state(cloud: Cloud, volume: UUID) -> Any:
    return await cloud.runtime._state(f"volume-{volume}")


async def test_a_volume_grows_and_both_sizes_are_counted_by_the_larger() -> None:
    cloud = await Cloud.start()
    volume = await volume_of(cloud)
    job = await sent(cloud, ResizeVolume(id=volume, size=5))
    [order] = await cloud.open_orders()
    assert isinstance(order, ResizeDisk) and (order.virtual_size, order.shrink, order.disk.virtual_size) == (5 * GIB, False, 2 * GIB)
    assert (await held(cloud))["primary_storage"] == 5 * GIB
    with pytest.raises(Refused, match="Resizing"):
        await cloud.runtime.precheck(DestroyVolume(id=volume), uuid4())
    await cloud.settle()
    assert await cloud.ends(job) == ["job.completed"]
    now = await state(cloud, volume)
    assert (now.status, now.size, now.disk.virtual_size, now.resizing) == ("Ready", 5 * GIB, 5 * GIB, None)
    job = await sent(cloud, ResizeVolume(id=volume, size=1, shrink_ok=True))
    assert (await held(cloud))["primary_storage"] == 5 * GIB
    await cloud.settle()
    assert await cloud.ends(job) == ["job.completed"] and (await held(cloud))["primary_storage"] == GIB


@pytest.mark.parametrize("end", ["fail", "stop", "late"])
async def test_one_that_does_not_succeed_leaves_the_size_that_was(end: str) -> None:
    cloud = await Cloud.start()
    volume = await volume_of(cloud)
    job = await sent(cloud, ResizeVolume(id=volume, size=5))
    [order] = await cloud.open_orders()
    if end == "fail":
        await cloud.fail(order)
    else:
        await cloud.send(CancelJob(job_id=job))
        await (cloud.stop(order) if end == "stop" else cloud.complete(order))
    if end == "late":  # it was done before the agent heard: it is taken back
        [back] = await cloud.open_orders()
        assert isinstance(back, ResizeDisk) and (back.virtual_size, back.shrink) == (2 * GIB, True)
        assert (await held(cloud))["primary_storage"] == 5 * GIB
        await cloud.settle()
    assert await cloud.ends(job) == ["job.failed" if end == "fail" else "job.cancelled"]
    now = await state(cloud, volume)
    assert (now.status, now.size, now.disk.virtual_size) == ("Ready", 2 * GIB, 2 * GIB)
    assert (await held(cloud))["primary_storage"] == 2 * GIB
    again = cleaning(order)  # what an agent does that was killed while it resized
    assert isinstance(again, ResizeDisk) and (again.virtual_size, again.shrink) == (2 * GIB, True)


async def test_offerings_rule_resizes_too() -> None:
    cloud = await Cloud.start()
    two, four, custom = (await offered(cloud, disk_size=2), await offered(cloud, disk_size=4), await offered(cloud, customized=True))
    fixed, free = await volume_of(cloud, two, size=None), await volume_of(cloud, custom, size=3)
    for command, said in ((ResizeVolume(id=fixed, size=3), "must be customizable"),
                          (ResizeVolume(id=fixed, size=3, disk_offering_id=four), "has a size of its own"),
                          (ResizeVolume(id=fixed, disk_offering_id=uuid4()), "no disk offering has the id"),
                          (ResizeVolume(id=free), "missing"), (ResizeVolume(id=free, size=3), "bytes already"),
                          (ResizeVolume(id=free, size=2), "shrink"), (ResizeVolume(id=free, size=2001), "2001 GiB"),
                          (ResizeVolume(id=free, size=4, min_iops=3, max_iops=2), "more than maxiops"),
                          (ResizeVolume(id=uuid4(), size=4), "no volume has the id")):
        head = await cloud.store.head()
        with pytest.raises(Refused, match=said):
            await cloud.runtime.precheck(command, uuid4())
        assert await cloud.store.head() == head
    await sent(cloud, ResizeVolume(id=fixed, disk_offering_id=four))
    await cloud.settle()
    assert ((await state(cloud, fixed)).size, (await state(cloud, fixed)).offering) == (4 * GIB, four)
    await sent(cloud, ResizeVolume(id=fixed, disk_offering_id=custom))  # only the offering: there is no order
    assert await cloud.open_orders() == [] and ((await state(cloud, fixed)).size, (await state(cloud, fixed)).offering) == (
        4 * GIB, custom)
    await sent(cloud, ResizeVolume(id=fixed, size=6))
    await cloud.settle()
    assert (await state(cloud, fixed)).size == 6 * GIB


async def test_through_the_edge() -> None:
    system = await FakeSystem.start()
    edge = Edge(system)
    volume = await volume_of(system.cloud)
    answer = await edge.call({"command": "resizeVolume", "id": str(volume), "size": "1"})
    assert answer.status == 431 and answer.error.startswith("shrinkok")
    answer = await edge.call({"command": "resizeVolume", "id": str(volume), "size": "3", "minIops": "1", "maxIops": "2"})
    await system.cloud.submissions()
    [shown] = (await edge.call({"command": "listVolumes", "id": str(volume)})).body["listvolumesresponse"]["volume"]
    assert (shown["state"], shown["jobstatus"], shown["jobid"]) == ("Resizing", 0, answer.body["resizevolumeresponse"]["jobid"])
    await system.cloud.settle()
    job = await edge.call({"command": "queryAsyncJobResult", "jobid": answer.body["resizevolumeresponse"]["jobid"]})
    result = job.body["queryasyncjobresultresponse"]["jobresult"]["volume"]
    assert (result["size"], result["state"], result["miniops"], result["maxiops"]) == (3 * GIB, "Ready", 1, 2)
