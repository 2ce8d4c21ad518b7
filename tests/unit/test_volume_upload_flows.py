"""Uploads: what a URL means, whose the bytes are, what is counted, and the way to a primary store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.access import SYSTEM
from api.edge import Edge
from handlers import adoption
from handlers.directory import Directory, Store
from schema.agent import AdoptImage, CreateDisk, DeleteDisk, DeleteImages, DisownImage, FetchImage
from schema.failure import Denied, Refused
from schema.identity import Role
from schema.ids import derive
from schema.image import ImageFormat, StoreSpec
from schema.image_store import AddImageStore, DeleteImageStore
from schema.job import CancelJob
from schema.offering import CreateDiskOffering
from schema.snapshot import CreateSnapshot
from schema.volume import DeleteVolume, DestroyVolume
from schema.volume_upload import DropVolumeImage, PlaceVolume, UploadVolume
from tests.support.cloud import Cloud
from tests.support.system import FakeSystem, FoldedViews
from tests.unit.test_quota import held, sent

PREFIX, ZONE = "0f0e", UUID(int=7)
STORES = {
    "s3": ("s3", "s3://ignored", {"bucket": "images", "endpoint": "http://s3.example:9000"}),
    "aws": ("s3", "s3://far", {}),
    "swift": ("swift", "https://keystone.example:5000/v3", {"container": "disks"}),
    "nfs": ("nfs", "nfs://filer.example/export/images", {}),
    "folder": ("folder", "folder:///srv/images", {}),
}


def directory(*names: str) -> Directory:
    made = Directory()
    for number, name in enumerate(names or STORES):
        provider, url, details = STORES[name]
        spec = StoreSpec(id=UUID(int=number + 1), name=name, provider=provider, url=url, details=details, prefix=PREFIX)
        made.stores[spec.id] = Store(spec=spec, zone_id=None, scope="REGION", state="Ready")
    return made


def named(url: str, **more: Any) -> tuple[str, str] | None:
    found = adoption.find(directory(), url, ZONE, more.get("store"), allowed=more.get("allowed", True))
    return (found[0].spec.name, found[1]) if found else None


@pytest.mark.parametrize(("url", "store", "key"), [
    ("s3://images/a/b.qcow2", "s3", "a/b.qcow2"),
    ("http://s3.example:9000/images/a/b.qcow2", "s3", "a/b.qcow2"),
    ("http://S3.EXAMPLE:9000/images/a%20b", "s3", "a b"),
    ("http://images.s3.example:9000/b", "s3", "b"),
    ("s3://far/x", "aws", "x"),
    ("swift://disks/x/y", "swift", "x/y"),
    ("nfs://filer.example/export/images/x", "nfs", "x"),
    ("folder:///srv/images/x", "folder", "x"),
    ("file:///srv/images/x", "folder", "x"),
    (f"s3://images/{PREFIX}/uploads/x", "s3", f"{PREFIX}/uploads/x")])
def test_an_address_is_compared_by_its_parts(url: str, store: str, key: str) -> None:
    assert named(url) == (store, key)


@pytest.mark.parametrize("url", [
    "http://s3.example:9000/images2/a", "http://s3.example:9001/images/a", "https://s3.example:9000/images/a",
    "http://s3.example/images/a", "http://s3.example.evil:9000/images/a", "http://s3.example:9000/images", "http://s3.example:9000/images/",
    "http://evil/http://s3.example:9000/images/a", "http://s3.example:9000/images/a?X-Amz-Signature=1",
    "http://s3.example:9000//images/a", "http://x.images.s3.example:9000/a"])
def test_what_only_looks_alike_is_fetched(url: str) -> None:
    assert named(url) is None


@pytest.mark.parametrize(("url", "said"), [
    ("s3://images2/a", "no image store"), ("s3://images", "no image store"), ("nfs://filer.example/export/images2/x", "no image store"),
    ("nfs://filer.example/export/images/../x", "not plain"), ("folder:///srv/images/../../etc/shadow", "not plain"),
    ("s3://images/%2e%2e/x", "not plain"), ("s3://images/a//b", "not plain"), ("s3://images/.hidden", "not plain"),
    ("folder:///srv/images/a%00b", "not plain"), ("s3://images/a%5cb", "not plain"), ("s3://images/" + "x" * 901, "not plain"),
    ("s3://images/a.manifest.json", "manifest"), (f"s3://images/{PREFIX}/template/1/a", "belongs to"),
    (f"http://s3.example:9000/images/{PREFIX}/snapshot/1/a", "belongs to"), (f"s3://images/{PREFIX}", "belongs to"),
    ("ftp://host/a", "no image store"), ("images/a", "no scheme"), ("s3://u:p@images/a", "user or password"), ("http://[/x", "not an address")])
def test_what_is_no_object_of_ours_to_take_is_refused(url: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        named(url)


def test_of_several_stores_one_is_named() -> None:
    two = directory("aws", "aws")
    with pytest.raises(Refused, match="several"):
        adoption.find(two, "s3://far/x", ZONE, None, allowed=True)
    found = adoption.find(two, "s3://far/x", ZONE, UUID(int=2), allowed=True)
    assert found is not None and found[0].spec.id == UUID(int=2)


def test_others_than_root_admins_take_nothing_from_stores() -> None:
    assert named("http://s3.example:9000/images/a", allowed=False) is None  # fetched like any URL, without our keys
    with pytest.raises(Denied):
        named("s3://images/a", allowed=False)


class Scene:
    """A cloud with a store."""

    def __init__(self, cloud: Cloud, store: UUID) -> None:
        self.cloud, self.store = cloud, store

    @classmethod
    async def start(cls) -> Scene:
        cloud = await Cloud.start()
        added = await cloud.send(AddImageStore(name="s", provider="S3", details={"bucket": "b"}))
        await cloud.settle()
        return cls(cloud, derive(added, "image_store"))

    def command(self, **more: Any) -> UploadVolume:
        return UploadVolume(**{"url": "s3://b/x.qcow2", "name": "u", "zone_id": self.cloud.zone_id, "format": ImageFormat.QCOW2} | more)

    async def order(self, kind: Any) -> Any:
        [found] = await self.cloud.open_orders()
        assert isinstance(found, kind), found
        return found

    async def uploaded(self, **more: Any) -> UUID:
        job = await sent(self.cloud, self.command(**more))
        await self.cloud.settle()
        assert await self.cloud.ends(job) == ["job.completed"]
        return derive(job, "volume")

    async def state(self, volume: UUID) -> Any:
        return await self.cloud.runtime._state(f"volume-{volume}")

    async def refs(self) -> list[tuple[str, str]]:
        tables = await FoldedViews(self.cloud.store).tables()  # type: ignore[arg-type] # the store in memory
        return [(row["kind"], row["state"]) for row in tables.get("volume_store_ref", {}).values()]

    async def nothing_is_left(self) -> None:
        cloud = self.cloud
        assert await self.refs() == [] and await cloud.open_orders() == [] and await cloud.store.timers() == {}
        assert set((await held(cloud)).values()) <= {0} and not [name for name in await cloud.store.claims() if "adopted" in name]
        assert {name: value for name, (value, _) in (await cloud.store.counters()).items() if value} == {}
        last = await cloud.send(DeleteImageStore(id=self.store))
        assert await cloud.ends(last) == ["job.completed"]


@pytest.mark.parametrize(("url", "kind", "gone"), [
    ("s3://b/x.qcow2", AdoptImage, DisownImage), ("https://web.example/x.qcow2", FetchImage, DeleteImages)])
async def test_an_upload_rests_in_the_store_until_it_is_deleted(url: str, kind: Any, gone: Any) -> None:
    """Adopted: only what was written beside the object is removed; fetched: the object."""
    scene = await Scene.start()
    cloud = scene.cloud
    job = await sent(cloud, scene.command(url=url))
    order = await scene.order(kind)
    assert order.kind == "volume" and (order.key == "x.qcow2") == (kind is AdoptImage)
    assert (await scene.state(derive(job, "volume"))).status == "UploadOp" and await scene.refs() == [("upload", "Creating")]
    await cloud.complete(order)
    volume = derive(job, "volume")
    assert (await scene.state(volume)).status == "Uploaded" and await scene.refs() == [("upload", "Ready")]
    assert {name: value for name, value in (await held(cloud)).items() if value} == {"volume": 1, "secondary_storage": 1000}
    for command, said in ((DestroyVolume(id=volume), "expunge"), (CreateSnapshot(volume_id=volume), "Uploaded, not Ready")):
        with pytest.raises(Refused, match=said):
            await cloud.runtime.precheck(command, uuid4())  # type: ignore[arg-type] # of several kinds
    await cloud.send(DeleteVolume(id=volume))
    delete = await scene.order(gone)
    assert (delete.key, delete.thing_id) == ("x.qcow2", volume) if gone is DisownImage else delete.keys == [order.key]
    await cloud.settle()
    assert (await scene.state(volume)).status == "Expunged"
    await scene.nothing_is_left()


@pytest.mark.parametrize("url", ["s3://b/x.qcow2", "https://web.example/x.qcow2"])
async def test_its_first_use_brings_it_to_a_primary_store(url: str) -> None:
    scene = await Scene.start()
    cloud, volume = scene.cloud, await scene.uploaded(url=url)
    job = await sent(cloud, PlaceVolume(id=volume))
    make = await scene.order(CreateDisk)
    assert (await scene.state(volume)).status == "Copying" and make.image.key == (await scene.state(volume)).image.key
    assert (await held(cloud))["primary_storage"] == make.image.virtual_size
    await cloud.complete(make)
    assert await cloud.ends(job) == ["job.completed"] and (await scene.state(volume)).status == "Ready"
    await cloud.submissions()
    await scene.order(DisownImage if url.startswith("s3") else DeleteImages)
    assert (await held(cloud))["secondary_storage"] == 1000  # until the store confirmed
    await cloud.settle()
    assert (await held(cloud))["secondary_storage"] == 0 and await scene.refs() == []
    with pytest.raises(Refused, match="not Uploaded"):
        await cloud.runtime.precheck(PlaceVolume(id=volume), uuid4())
    again = await cloud.send(DropVolumeImage(id=volume))
    assert await cloud.ends(again) == ["job.completed"]
    await cloud.send(DeleteVolume(id=volume))
    await cloud.settle()
    await scene.nothing_is_left()


async def test_one_that_is_deleted_before_its_image_is_gone_is_counted_once() -> None:
    scene = await Scene.start()
    cloud, volume = scene.cloud, await scene.uploaded()
    await sent(cloud, PlaceVolume(id=volume))
    await cloud.complete(await scene.order(CreateDisk))
    job = await cloud.send(DeleteVolume(id=volume))  # before the job that drops the image has begun
    await cloud.complete(await scene.order(DeleteDisk))
    await cloud.complete(await scene.order(DisownImage))
    assert await cloud.ends(job) == ["job.completed"]
    await cloud.settle()
    await scene.nothing_is_left()


@pytest.mark.parametrize("url", ["s3://b/x.qcow2", "https://web.example/x.qcow2"])
@pytest.mark.parametrize("end", ["fail", "stop", "late"])
async def test_an_upload_that_fails_or_is_cancelled_leaves_nothing(url: str, end: str) -> None:
    scene = await Scene.start()
    cloud = scene.cloud
    job = await sent(cloud, scene.command(url=url))
    [order] = await cloud.open_orders()
    if end == "fail":
        await cloud.fail(order)
    else:
        await cloud.send(CancelJob(job_id=job))
        await (cloud.stop(order) if end == "stop" else cloud.complete(order))
    await cloud.settle()
    assert await cloud.ends(job) == ["job.failed" if end == "fail" else "job.cancelled"]
    assert (await scene.state(derive(job, "volume"))).status == "Failed"
    done = [type(each) for each in await cloud.orders()]
    assert (DisownImage in done or DeleteImages in done) == (end == "late")
    await scene.nothing_is_left()


@pytest.mark.parametrize("end", ["fail", "stop", "late"])
async def test_a_volume_that_could_not_be_placed_is_uploaded_still(end: str) -> None:
    scene = await Scene.start()
    cloud, volume = scene.cloud, await scene.uploaded()
    job = await sent(cloud, PlaceVolume(id=volume))
    order = await scene.order(CreateDisk)
    if end == "fail":
        await cloud.fail(order)
    else:
        await cloud.send(CancelJob(job_id=job))
        await (cloud.stop(order) if end == "stop" else cloud.complete(order))
    await cloud.settle()
    assert await cloud.ends(job) == ["job.failed" if end == "fail" else "job.cancelled"]
    now = await scene.state(volume)
    assert now.status == ("Ready" if end == "late" else "Uploaded")  # a disk that was made is not thrown away
    assert (await held(cloud))["primary_storage"] == (now.size if end == "late" else 0)
    assert await scene.refs() == ([] if end == "late" else [("upload", "Ready")])
    await cloud.send(DeleteVolume(id=volume))
    await cloud.settle()
    await scene.nothing_is_left()


async def test_what_cannot_be_uploaded_is_refused() -> None:
    scene = await Scene.start()
    cloud = scene.cloud
    fixed = derive(await cloud.send(CreateDiskOffering(name="o", disk_size=1)), "disk_offering")
    await scene.uploaded()
    for more, field in (({"name": ""}, "name"), ({"zone_id": uuid4()}, "zoneid"), ({"disk_offering_id": fixed}, "diskofferingid"),
                        ({"disk_offering_id": uuid4()}, "diskofferingid"), ({"image_store_id": uuid4(), "url": "http://a/b"}, "imagestoreuuid"),
                        ({"url": "s3://b/y", "adopt": False}, "url"), ({"url": "s3://other/y"}, "url")):
        with pytest.raises(Refused) as refused:
            await cloud.runtime.precheck(scene.command(**more), uuid4())
        assert refused.value.failure.field == field
    twice = await sent(cloud, scene.command())
    assert await cloud.ends(twice) == ["job.failed"]  # the object is a volume's already


async def test_through_the_edge_a_role_decides_what_a_url_may_mean() -> None:
    system = await FakeSystem.start()
    edge = Edge(system)
    async with system.working():
        await edge.call({"command": "addImageStore", "provider": "s3", "name": "s", "details[0].key": "bucket", "details[0].value": "b"})
    ask = {"command": "uploadVolume", "name": "u", "zoneid": str(system.cloud.zone_id), "format": "QCOW2", "url": "s3://b/x"}
    user = replace(SYSTEM, system=False, role=Role.USER)
    refused = await edge.call(ask, principal=user)
    assert (refused.status, "root admins" in refused.error) == (531, True)
    made = (await edge.call(ask)).body["uploadvolumeresponse"]
    await system.cloud.submissions()
    [shown] = (await edge.call({"command": "listVolumes", "id": made["id"]})).body["listvolumesresponse"]["volume"]
    assert (shown["state"], shown["jobid"], shown.get("storageid")) == ("UploadOp", made["jobid"], None)
    await system.cloud.settle()
    [shown] = (await edge.call({"command": "listVolumes", "state": "Uploaded"})).body["listvolumesresponse"]["volume"]
    assert (shown["id"], shown["status"], shown["size"]) == (made["id"], "Upload Complete", 1 << 30)
    placed = (await edge.call({"command": "placeVolume", "id": made["id"]})).body["placevolumeresponse"]
    await system.cloud.settle()
    job = (await edge.call({"command": "queryAsyncJobResult", "jobid": placed["jobid"]})).body["queryasyncjobresultresponse"]
    assert (job["jobresult"]["volume"]["state"], job["jobresult"]["volume"]["storagetype"]) == ("Ready", "local")
