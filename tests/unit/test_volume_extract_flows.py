"""Extracting volumes: the copy lives as long as its link, whoever dies or deletes what; the volume is free again once it is written."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from schema.agent import DeleteImages, DropSnapshot, MakeLink, RevokeLink, TakeSnapshot, WriteSnapshot
from schema.failure import Refused
from schema.ids import derive
from schema.image_store import AddImageStore, DeleteImageStore
from schema.job import CancelJob
from schema.link import EndLink
from schema.snapshot import CreateSnapshot, DeleteSnapshot
from schema.volume import CreateVolume, DeleteVolume
from schema.volume_copy import ExtractVolume
from tests.support.cloud import Cloud
from tests.support.system import FoldedViews
from tests.unit.test_quota import held, sent


class Scene:
    """A volume and a store that gives links."""

    def __init__(self, cloud: Cloud, store: UUID, volume: UUID) -> None:
        self.cloud, self.store, self.volume = cloud, store, volume

    @classmethod
    async def start(cls, provider: str = "S3") -> Scene:
        cloud = await Cloud.start()
        added = await cloud.send(AddImageStore(name="s", provider=provider, details={"bucket": "b"} if provider == "S3" else {},
                                               zone_id=None if provider == "S3" else cloud.zone_id))
        await cloud.settle()
        made = await sent(cloud, CreateVolume(name="v", size=1))
        await cloud.settle()
        return cls(cloud, derive(added, "image_store"), derive(made, "volume"))

    def command(self, **more: Any) -> ExtractVolume:
        return ExtractVolume(**{"id": self.volume, "zone_id": self.cloud.zone_id, "mode": "HTTP_DOWNLOAD"} | more)

    async def order(self, kind: Any) -> Any:
        [found] = await self.cloud.open_orders()
        assert isinstance(found, kind), found
        return found

    async def status(self, stream: str) -> str:
        state = await self.cloud.runtime._state(stream)
        return str(state.status) if state is not None else ""

    async def refs(self) -> list[tuple[Any, Any]]:
        """What volume_store_ref has: (volume, state)."""
        tables = await FoldedViews(self.cloud.store).tables()  # type: ignore[arg-type] # the store in memory
        return [(UUID(row["volume_id"]), row["state"]) for row in tables.get("volume_store_ref", {}).values()]


async def test_the_copy_goes_with_its_link() -> None:
    scene = await Scene.start()
    cloud = scene.cloud
    job = await sent(cloud, scene.command(lifetime=60))
    take = await scene.order(TakeSnapshot)
    assert await scene.status(f"volume-{scene.volume}") == "Snapshotting"
    await cloud.complete(take)
    write = await scene.order(WriteSnapshot)
    assert (write.kind, write.parent, write.key.split("/")[1:3]) == ("volume_copy", None, ["volume_copy", str(job)])
    assert (await held(cloud))["secondary_storage"] > 1000
    await cloud.complete(write)
    drop = await scene.order(DropSnapshot)
    assert (drop.tag, drop.keep) == (take.tag, None)
    await cloud.complete(drop)
    link = await scene.order(MakeLink)
    assert (link.key, link.revocable, link.lifetime_s) == (write.key, False, 60)
    await cloud.complete(link)
    assert await cloud.ends(job) == ["job.completed"] and await scene.refs() == [(scene.volume, "Ready")]
    assert (await held(cloud))["secondary_storage"] == 1000
    refused = await cloud.send(DeleteImageStore(id=scene.store))
    assert await cloud.ends(refused) == ["job.failed"]
    await cloud.send(DeleteVolume(id=scene.volume))  # the copy is its link's, not the volume's
    await cloud.settle()
    assert await scene.refs() == [(scene.volume, "Ready")]
    ended = await cloud.send(EndLink(id=job))
    assert await cloud.ends(ended) == ["job.completed"]
    await cloud.submissions()
    delete = await scene.order(DeleteImages)
    assert delete.keys == [write.key] and await scene.refs() == [(scene.volume, "Destroying")]
    await cloud.complete(delete)
    assert await scene.refs() == [] and await cloud.store.timers() == {}
    assert await cloud.value(f"image_store/{scene.store}/residents") == 0
    assert await cloud.value(f"image_store/{scene.store}/used") == 0 and set((await held(cloud)).values()) == {0}


@pytest.mark.parametrize("step", [TakeSnapshot, WriteSnapshot, MakeLink])
@pytest.mark.parametrize("end", ["fail", "stop", "late"])
async def test_an_extraction_that_fails_or_is_cancelled_leaves_nothing(step: Any, end: str) -> None:
    scene = await Scene.start()
    cloud = scene.cloud
    values = {name: value for name, (value, _) in (await cloud.store.counters()).items()}
    job = await sent(cloud, scene.command())
    while not isinstance((await cloud.open_orders())[0], step):
        await cloud.complete((await cloud.open_orders())[0])
    order = await scene.order(step)
    if end == "fail":
        await cloud.fail(order)
    else:
        await cloud.send(CancelJob(job_id=job))
        await (cloud.stop(order) if end == "stop" else cloud.complete(order))
    await cloud.settle()
    assert await cloud.ends(job) == ["job.failed" if end == "fail" else "job.cancelled"]
    assert {name: value for name, (value, _) in (await cloud.store.counters()).items() if value} == {
        name: value for name, value in values.items() if value}
    assert await scene.refs() == [] and await scene.status(f"volume-{scene.volume}") == "Ready" and await cloud.store.timers() == {}
    if step is MakeLink:
        done = [type(each) for each in await cloud.orders()]
        assert DeleteImages in done and done.count(DropSnapshot) == 1 and RevokeLink not in done
    again = await sent(cloud, scene.command())
    await cloud.settle()
    assert await cloud.ends(again) == ["job.completed"]


async def test_the_record_of_changes_since_the_last_snapshot_stays() -> None:
    """Between two snapshots a volume is extracted: the second is still a delta of the first."""
    scene = await Scene.start()
    cloud = scene.cloud
    first = derive(await cloud.send(CreateSnapshot(volume_id=scene.volume)), "snapshot")
    await cloud.settle()
    await sent(cloud, scene.command())
    await cloud.settle()
    assert (await cloud.runtime._state(f"volume-{scene.volume}")).head == first
    second = derive(await cloud.send(CreateSnapshot(volume_id=scene.volume)), "snapshot")
    await cloud.settle()
    assert (await cloud.runtime._state(f"snapshot-{second}")).parent == first
    for each in (second, first):
        await cloud.send(DeleteSnapshot(id=each))
        await cloud.settle()


async def test_what_cannot_be_extracted_is_refused() -> None:
    scene = await Scene.start()
    for command, field in ((scene.command(mode="FTP_UPLOAD"), "mode"), (scene.command(zone_id=uuid4()), "zoneid"),
                           (scene.command(id=uuid4()), "id"), (scene.command(lifetime=0), "lifetime")):
        with pytest.raises(Refused) as refused:
            await scene.cloud.runtime.precheck(command, uuid4())
        assert refused.value.failure.field == field
    await sent(scene.cloud, scene.command())
    for command in (scene.command(), DeleteVolume(id=scene.volume), CreateSnapshot(volume_id=scene.volume)):
        with pytest.raises(Refused, match=r"Snapshotting|active"):
            await scene.cloud.runtime.precheck(command, uuid4())
    folder = await Scene.start("folder")
    with pytest.raises(Refused, match="presigned_get"):
        await folder.cloud.runtime.precheck(folder.command(), uuid4())
