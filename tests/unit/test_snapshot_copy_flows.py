"""Snapshots in several zones and their extraction, through the real edge, runtime and event store in memory, with agents played by
the test: where copies are, what is read where, who deletes what, and that counters are the sum of what is there."""

from __future__ import annotations

import base64
import random
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.edge import Answer, Edge
from bus.grant_sealing import answer_to, seal_to
from handlers.agent import create_zone, proof
from handlers.table import FLOWS
from schema.agent import AgentHello, CreateDisk, DeleteImages, LinkMade, MakeLink, MergeImages, ProviderSpec, WorkCompleted
from schema.failure import Damage
from schema.ids import derive
from schema.image import PrimarySpec
from schema.job import CancelJob
from schema.message import Order
from schema.motion import MERGE, MotionSpec
from schema.scrub import LiftQuarantine, QuarantineCopy, ScrubStore
from tests.support.cloud import ABLE, S3_SETTINGS, TOKEN, Cloud
from tests.support.system import FakeSystem

URL = "https://store.example/object?signature=CANARY"


class Zones:
    """A cloud with two zones, a store in each or one for both, and a volume in the first."""

    def __init__(self, system: FakeSystem, second: UUID) -> None:
        self.system, self.edge, self.cloud = system, Edge(system), system.cloud
        self.first, self.second, self.volume = self.cloud.zone_id, second, ""
        self.stores: list[UUID] = []
        self.cloud.runtime.vault_key = system.vault.public_key

    @classmethod
    async def start(cls, provider: str = "folder", snapshots: int = 0) -> Zones:
        system = await FakeSystem.start()
        made = cls(system, await create_zone(system.cloud.runtime, "zone-2"))
        for name, zone_id in (("merger-1", made.first), ("merger-2", made.second)):
            await made.cloud.handle(AgentHello(
                agent=name, zone_id=zone_id, roles=["storage", "hypervisor"], public_key="k", proof=proof(TOKEN, name, "k"),
                providers=[ProviderSpec(name="s3", scope="REGION", settings=S3_SETTINGS, capabilities=[*ABLE, "presigned_get"]),
                           ProviderSpec(name="folder", scope="ZONE", settings={"properties": {}}, capabilities=ABLE)],
                primaries=[] if zone_id == made.first else [PrimarySpec(
                    id=derive(zone_id, "primary"), name="q", kind="memory", path="/q", zone_id=zone_id, agent=name)],
                motions=[MotionSpec(name="store-to-store", moves=[MERGE], reads=["ranged_read"], writes=["parallel_parts"]),
                         MotionSpec(name="direct", moves=["disk->store", "store->disk"])]), kind="report")
        async with system.working():
            for number, zone_id in enumerate((made.first, made.second)[:2 if provider == "folder" else 1]):
                where = {"zoneid": zone_id} if provider == "folder" else {"details[0].key": "bucket", "details[0].value": "b"}
                answer = await made.ok("addImageStore", provider=provider, name=f"s{number}", url="folder:///x", **where)
                made.stores.append(UUID(answer["imagestore"]["id"]))
            made.volume = (await made.ok("createVolume", name="v", size=1, zoneid=made.first))["id"]
            await made.cloud.settle()
        for _ in range(snapshots):
            await made.snapshot()
        return made

    async def ask(self, command: str, **parameters: object) -> Answer:
        return await self.edge.call({"command": command, **{name: str(value) for name, value in parameters.items()}})

    async def ok(self, command: str, **parameters: object) -> dict[str, Any]:
        answer = await self.ask(command, **parameters)
        assert answer.status == 200, answer
        body: dict[str, Any] = answer.body[f"{command.lower()}response"]
        return body

    async def done(self, command: str, **parameters: object) -> dict[str, Any]:
        answer = await self.ok(command, **parameters)
        for _ in range(3):  # jobs that jobs started
            await self.cloud.settle()
        job = await self.ok("queryAsyncJobResult", jobid=answer["jobid"])
        assert job["jobstatus"] == 1, job
        return answer

    async def snapshot(self, **more: object) -> str:
        return str((await self.done("createSnapshot", volumeid=self.volume, **more))["id"])

    async def where(self, snapshot: str) -> list[str]:
        """Zones in which it is listed."""
        rows = (await self.ok("listSnapshots", id=snapshot)).get("snapshot", [])
        return sorted("first" if row["zoneid"] == str(self.first) else "second" for row in rows)

    async def open(self, kind: type[Order]) -> Any:
        (order,) = [order for order in await self.cloud.open_orders() if isinstance(order, kind)]
        return order

    async def state(self, snapshot: str) -> Any:
        return await (await self.cloud.another()).runtime._state(f"snapshot-{snapshot}")

    async def counted(self) -> None:
        """Each store's counters are what rests there."""
        used = dict.fromkeys(self.stores, 0)
        residents = dict.fromkeys(self.stores, 0)
        for row in await self.cloud.rows("snapshot.requested"):
            state = await self.state(row.stream.removeprefix("snapshot-"))
            if state.status in ("BackedUp", "Hidden"):
                used[state.store_id] += state.counted
                residents[state.store_id] += 1
            for copy in state.places.copies.values():
                used[copy.store_id] += copy.counted
                residents[copy.store_id] += 1
        for store in self.stores:
            assert await self.cloud.value(f"image_store/{store}/used") == used[store]
            assert await self.cloud.value(f"image_store/{store}/residents") == residents[store]
            assert await self.cloud.value(f"image_store/{store}/reserved") == 0


async def test_a_copy_is_a_whole_image_that_needs_nothing_of_the_first_store() -> None:
    zones = await Zones.start(snapshots=2)
    third = await zones.snapshot()
    answer = await zones.ok("copySnapshot", id=third, destzoneid=zones.second)
    await zones.cloud.submissions()
    order = await zones.open(MergeImages)
    assert (order.source.id, order.store.id) == tuple(zones.stores) and order.parent is None
    assert len(order.links) == 3 and order.links[-1] == (await zones.state(third)).image
    assert await zones.where(third) == ["first"]
    await zones.cloud.settle()
    job = await zones.ok("queryAsyncJobResult", jobid=answer["jobid"])
    assert job["jobresult"]["snapshot"]["id"] == third
    assert await zones.where(third) == ["first", "second"]
    (there,) = (await zones.ok("listSnapshots", id=third, zoneid=zones.second))["snapshot"]
    assert (there["datastoreid"], there["status"]) == (str(zones.stores[1]), "Download Complete")
    assert [each["datastore"] for each in there["downloaddetails"]] == ["s0", "s1"]
    assert len((await zones.ok("listSnapshots", id=third, showunique="true"))["snapshot"]) == 1
    await zones.counted()
    await zones.ok("createVolume", name="w", snapshotid=third, zoneid=zones.second)
    await zones.cloud.submissions()
    disk: CreateDisk = await zones.open(CreateDisk)
    assert disk.base == [] and disk.image is not None and disk.image.store_id == zones.stores[1] and disk.agent == "merger-2"
    await zones.cloud.settle()


async def test_a_snapshot_goes_from_all_zones_or_from_one() -> None:
    zones = await Zones.start()
    one, two = await zones.snapshot(), await zones.snapshot()
    for each in (one, two):
        await zones.done("copySnapshot", id=each, destzoneids=zones.second)
    copied = (await zones.state(one)).places.copies[zones.stores[1]].image.key
    refused = await zones.ask("deleteSnapshot", id=one, zoneid=zones.first)
    assert refused.status == 431 and "zoneid" in refused.error
    assert (await zones.ask("deleteSnapshot", id=one, zoneid=uuid4())).status == 431
    await zones.done("deleteSnapshot", id=one, zoneid=zones.second)
    assert await zones.where(one) == ["first"] and await zones.where(two) == ["first", "second"]
    deleted = [(order.store.id, order.keys) for order in await zones.cloud.orders() if isinstance(order, DeleteImages)]
    assert deleted == [(zones.stores[1], [copied])]
    await zones.counted()
    await zones.done("copySnapshot", id=one, destzoneid=zones.second)
    assert (await zones.state(one)).places.copies[zones.stores[1]].image.key != copied, "a key is never used again"
    for each in (one, two):
        await zones.done("deleteSnapshot", id=each)
        assert await zones.where(each) == []
    await zones.counted()
    assert {value for name, (value, _) in (await zones.cloud.store.counters()).items() if "image_store" in name} == {0}
    assert await zones.cloud.store.timers() == {}


async def test_where_one_store_reaches_all_zones_nothing_is_moved() -> None:
    zones = await Zones.start("s3")
    snapshot = await zones.snapshot(zoneids=zones.second)
    assert await zones.where(snapshot) == ["first", "second"]
    assert not [order for order in await zones.cloud.orders() if isinstance(order, MergeImages)]
    await zones.done("deleteSnapshot", id=snapshot, zoneid=zones.second)
    assert await zones.where(snapshot) == ["first"]
    assert not [order for order in await zones.cloud.orders() if isinstance(order, DeleteImages)]
    await zones.done("copySnapshot", id=snapshot, destzoneid=zones.second, sourcezoneid=zones.first)
    assert await zones.where(snapshot) == ["first", "second"]
    await zones.done("deleteSnapshot", id=snapshot)
    assert len([order for order in await zones.cloud.orders() if isinstance(order, DeleteImages)]) == 1
    await zones.counted()


@pytest.mark.parametrize("later", ["false", "true"])
async def test_zones_that_are_named_when_it_is_taken_have_it_once_it_is_backed_up(later: str) -> None:
    zones = await Zones.start()
    snapshot = await zones.snapshot(zoneids=f"{zones.second},{zones.first}", asyncbackup=later)
    assert await zones.where(snapshot) == ["first", "second"]
    await zones.counted()


@pytest.mark.parametrize("how", ["fail", "stop", "late"])
async def test_a_copy_that_does_not_come_to_its_end_leaves_nothing(how: str) -> None:
    zones = await Zones.start(snapshots=1)
    snapshot = await zones.snapshot()
    job = UUID((await zones.ok("copySnapshot", id=snapshot, destzoneid=zones.second))["jobid"])
    await zones.cloud.submissions()
    order = await zones.open(MergeImages)
    assert (await zones.ask("deleteSnapshot", id=snapshot)).status == 200  # accepted, and then refused: it is being read
    await zones.cloud.submissions()
    if how == "fail":
        await zones.cloud.fail(order)
    else:
        await zones.cloud.send(CancelJob(job_id=job))
        await (zones.cloud.stop(order) if how == "stop" else zones.cloud.complete(order))
    await zones.cloud.settle()
    assert await zones.cloud.ends(job) == ["job.failed" if how == "fail" else "job.cancelled"]
    assert await zones.where(snapshot) == ["first"]
    gone = [key for each in await zones.cloud.orders() if isinstance(each, DeleteImages) for key in each.keys]
    assert gone == ([order.key] if how == "late" else [])
    await zones.counted()


@pytest.mark.parametrize(("wrong", "said"), [
    ({}, "destzone"), ({"destzoneid": "FIRST"}, "there already"), ({"destzoneid": str(uuid4())}, "no zone"),
    ({"destzoneid": "SECOND", "destzoneids": "SECOND"}, "either"), ({"destzoneid": "SECOND", "sourcezoneid": "SECOND"}, "sourcezoneid"),
    ({"destzoneids": ",".join(str(uuid4()) for _ in range(9))}, "no zone"), ({"id": str(uuid4()), "destzoneid": "SECOND"}, "no snapshot")])
async def test_what_is_wrong_is_named_and_changes_nothing(wrong: dict[str, str], said: str) -> None:
    zones = await Zones.start(snapshots=1)
    (snapshot,) = (await zones.ok("listSnapshots"))["snapshot"]
    head = await zones.cloud.store.head()
    places = {"FIRST": str(zones.first), "SECOND": str(zones.second)}
    answer = await zones.ask("copySnapshot", **({"id": snapshot["id"]} | {name: places.get(value, value) for name, value in wrong.items()}))
    assert answer.status == 431 and said in answer.error, answer
    assert await zones.cloud.store.head() == head


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_agents_do_copies_and_deletions_end_and_counters_agree(seed: int) -> None:
    dice = random.Random(seed)
    zones = await Zones.start()
    made = [await zones.snapshot() for _ in range(3)]
    jobs: list[UUID] = []
    for _ in range(6):
        snapshot = dice.choice(made)
        if dice.random() < 0.6:
            answer = await zones.ask("copySnapshot", id=snapshot, destzoneid=zones.second)
        else:
            more = {"zoneid": zones.second} if dice.random() < 0.5 else {}
            answer = await zones.ask("deleteSnapshot", id=snapshot, **more)
        if answer.status == 200:
            jobs.append(UUID(next(iter(answer.body.values()))["jobid"]))

        async def cancel(job: UUID) -> None:
            await zones.cloud.send(CancelJob(job_id=job))

        if jobs:
            await zones.cloud.chaos(seed, jobs, cancel)
    assert [len(await zones.cloud.ends(job)) for job in jobs] == [1] * len(jobs)
    await zones.counted()


# --- extraction ---


async def seal(cloud: Cloud, order: MakeLink) -> None:
    """The agent makes the link."""
    sealed = base64.b64encode(seal_to(base64.b64decode(order.seal_to), URL.encode(), answer_to(order.work_id))).decode()
    made = LinkMade.model_validate({"link_id": "name" if order.revocable else "", "expires_at": "2035-01-01T00:00:00Z",
                                    "work_id": order.work_id, "sealed_url": sealed})
    await cloud.handle(WorkCompleted(job_id=order.job_id, work_id=order.work_id, agent=order.agent,
                                     result=made.model_dump(mode="json")), kind="report")


async def test_a_full_snapshot_is_linked_to_as_it_is_and_a_delta_is_made_whole_first() -> None:
    zones = await Zones.start("s3")
    full, delta = await zones.snapshot(), await zones.snapshot()
    for snapshot in (full, delta):
        job = (await zones.ok("extractSnapshot", id=snapshot, zoneid=zones.first, mode="HTTP_DOWNLOAD"))["jobid"]
        await zones.cloud.submissions()
        own = (await zones.state(snapshot)).image.key
        if snapshot == delta:
            merge = await zones.open(MergeImages)
            assert [link.key for link in merge.links] == [(await zones.state(full)).image.key, own] and merge.parent is None
            await zones.cloud.complete(merge)
            own = merge.key
        link: MakeLink = await zones.open(MakeLink)
        assert link.key == own and link.revocable is (snapshot == full)
        await seal(zones.cloud, link)
        answer = (await zones.ok("queryAsyncJobResult", jobid=job))["jobresult"]["snapshot"]
        assert (answer["id"], answer["url"], answer["state"]) == (snapshot, URL, "DOWNLOAD_URL_CREATED")
        assert (answer["storagetype"], answer["extractMode"]) == ("secondary", "HTTP_DOWNLOAD")
        await zones.done("revokeExtractUrl", extractid=job)
    assert [key for order in await zones.cloud.orders() if isinstance(order, DeleteImages) for key in order.keys] == [merge.key]
    assert not [row for row in zones.cloud.store.rows if b"CANARY" in row.payload]  # type: ignore[attr-defined] # the store in memory
    await zones.counted()
    for snapshot in (delta, full):
        await zones.done("deleteSnapshot", id=snapshot)
    await zones.counted()


@pytest.mark.parametrize("at", [MergeImages, MakeLink])
async def test_an_extraction_that_fails_leaves_nothing(at: type[Order]) -> None:
    zones = await Zones.start("s3", snapshots=1)
    delta = await zones.snapshot()
    job = UUID((await zones.ok("extractSnapshot", id=delta, zoneid=zones.second, mode="HTTP_DOWNLOAD"))["jobid"])
    await zones.cloud.submissions()
    if at is MakeLink:
        await zones.cloud.complete(await zones.open(MergeImages))
    await zones.cloud.fail(await zones.open(at))
    await zones.cloud.settle()
    assert await zones.cloud.ends(job) == ["job.failed"]
    await zones.counted()
    await zones.done("deleteSnapshot", id=delta)


@pytest.mark.parametrize(("wrong", "said"), [({"mode": "FTP_UPLOAD"}, "mode"), ({"zoneid": str(uuid4())}, "zoneid"),
                                             ({"id": str(uuid4())}, "no snapshot"), ({"lifetime": "0"}, "lifetime")])
async def test_what_cannot_be_extracted_is_named(wrong: dict[str, str], said: str) -> None:
    zones = await Zones.start("s3", snapshots=2)
    shown = (await zones.ok("listSnapshots"))["snapshot"]
    for snapshot in shown:
        head = await zones.cloud.store.head()
        answer = await zones.ask("extractSnapshot", **({"id": snapshot["id"], "zoneid": str(zones.first), "mode": "HTTP_DOWNLOAD"} | wrong))
        assert answer.status == 431 and said in answer.error, answer
        assert await zones.cloud.store.head() == head


async def test_a_store_that_gives_no_links_says_so() -> None:
    zones = await Zones.start(snapshots=2)
    for snapshot in (await zones.ok("listSnapshots"))["snapshot"]:
        answer = await zones.ask("extractSnapshot", id=snapshot["id"], zoneid=zones.first, mode="HTTP_DOWNLOAD")
        assert answer.status == 431 and "presigned_get" in answer.error
        elsewhere = await zones.ask("extractSnapshot", id=snapshot["id"], zoneid=zones.second, mode="HTTP_DOWNLOAD")
        assert elsewhere.status == 431 and "copySnapshot" in elsewhere.error


async def test_a_copy_that_is_damaged_is_read_by_nobody_and_the_other_one_still_is() -> None:
    zones = await Zones.start()
    snapshot = await zones.snapshot(zoneids=zones.second)
    key = (await zones.state(snapshot)).copies[zones.stores[1]].image.key
    damage = Damage(object=key, what="bytes", part=1, offset=0, length=10, expected="a", found="b")
    await zones.cloud.send(QuarantineCopy(kind="snapshot", thing_id=UUID(snapshot), damage=damage))
    refused = await zones.ask("createVolume", name="w", snapshotid=snapshot, zoneid=zones.second)
    assert refused.status != 200 and "quarantined" in refused.error
    assert (await zones.ask("createVolume", name="w", snapshotid=snapshot, zoneid=zones.first)).status == 200
    await zones.cloud.settle()
    await zones.cloud.send(LiftQuarantine(kind="snapshot", thing_id=UUID(snapshot), object_key=key))
    assert (await zones.ask("createVolume", name="w", snapshotid=snapshot, zoneid=zones.second)).status == 200


async def test_a_scrub_knows_what_rests_in_each_store_until_it_is_gone() -> None:
    zones = await Zones.start()
    one, two = await zones.snapshot(zoneids=zones.second), await zones.snapshot(zoneids=zones.second)
    await zones.done("deleteSnapshot", id=one)  # merged into the other in the first zone, gone from the second
    await zones.cloud.runtime._look_around(FLOWS[ScrubStore])
    survey = zones.cloud.runtime.survey
    assert [len(list(survey.resting(store))) for store in zones.stores] == [1, 1] and survey.coming == {}
    await zones.done("deleteSnapshot", id=two)
    await zones.cloud.runtime._look_around(FLOWS[ScrubStore])
    assert survey.copies == {} and survey.coming == {}
