"""Seeded agents (late, twice, failing, cancelled) under the flows of volumes: one end each, and counters that equal what lives."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from handlers import quota
from schema.failure import Refused
from schema.ids import derive
from schema.image import ImageFormat
from schema.image_store import AddImageStore
from schema.job import CancelJob
from schema.message import Command
from schema.volume import CreateVolume, DeleteVolume, DestroyVolume, ResizeVolume
from schema.volume_upload import PlaceVolume, UploadVolume
from tests.support.cloud import Cloud
from tests.support.system import FoldedViews
from tests.unit.test_quota import held, sent


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_agents_do_nothing_is_lost_or_counted_twice(seed: int) -> None:
    cloud = await Cloud.start()
    store = derive(await cloud.send(AddImageStore(name="s", provider="S3", details={"bucket": "b"})), "image_store")
    await cloud.settle()
    jobs: list[UUID] = []

    async def cancel(job: UUID) -> None:
        await cloud.send(CancelJob(job_id=job))

    async def rush(*commands: Command) -> list[UUID]:
        new = [await sent(cloud, command) for command in commands]
        await cloud.chaos(seed + len(jobs), new, cancel)
        jobs.extend(new)
        return [derive(job, "volume") for job in new]

    urls = ["s3://b/1", "s3://b/2", "http://web.example/3", "http://web.example/4"]
    volumes = await rush(*(CreateVolume(name="v", size=1) for _ in range(3)), *(
        UploadVolume(url=url, name="u", zone_id=cloud.zone_id, format=ImageFormat.QCOW2) for url in urls))
    await rush(*(ResizeVolume(id=volume, size=3) for volume in volumes[:3]), *(PlaceVolume(id=volume) for volume in volumes[3:6]))
    await check(cloud, store, volumes)
    await rush(*(ResizeVolume(id=volume, size=2, shrink_ok=True) for volume in volumes), DestroyVolume(id=volumes[0], expunge=True),
               *(DeleteVolume(id=volume) for volume in volumes[1::2]))
    await check(cloud, store, volumes)
    for job in jobs:
        assert len(await cloud.ends(job)) == 1
    for volume in volumes:
        try:
            await cloud.runtime.precheck(DeleteVolume(id=volume), UUID(int=seed))
        except Refused:
            continue
        await cloud.send(DeleteVolume(id=volume))
    await cloud.settle()
    assert set((await held(cloud)).values()) <= {0} and await cloud.store.timers() == {}
    assert {name: value for name, (value, _) in (await cloud.store.counters()).items() if value} == {}
    assert not [name for name in await cloud.store.claims() if "adopted" in name]


async def check(cloud: Cloud, store: UUID, volumes: list[UUID]) -> None:
    """What is counted is the sum of what the volumes weigh; what the tables say rests in the store is what the states say."""
    states: list[Any] = [await cloud.runtime._state(f"volume-{volume}") for volume in volumes]
    weights = [quota.weights("volume", state) for state in states if state is not None]
    counted = await held(cloud)
    for resource in ("volume", "primary_storage", "secondary_storage"):
        assert counted.get(resource, 0) == sum(weight.get(resource, 0) for weight in weights), resource
    resting = {str(state.id) for state in states if state is not None and state.image is not None}
    tables = await FoldedViews(cloud.store).tables()  # type: ignore[arg-type] # the store in memory
    assert {row["volume_id"] for row in tables.get("volume_store_ref", {}).values()} == resting
    assert await cloud.value(f"image_store/{store}/residents") == len(resting)
