"""Templates prepared on primary stores, decided through the real runtime, asked for in CloudStack's words."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from handlers.agent import proof
from schema.agent import AgentHello, CancelWork, CreateDisk, DropSeed, MakeSeed, PrimaryUsage, WorkCompleted
from schema.codec import decode
from schema.image import PrimarySpec
from schema.job import CancelJob, JobPlanned
from schema.motion import SEED
from schema.template_seed import PrepareTemplate, UnprepareTemplate
from schema.volume import CreateVolume, DeleteVolume
from tests.support.cloud import TOKEN, Cloud, result_of
from tests.support.two_zones import MOTIONS, PROVIDERS, TwoZones


class Scene(TwoZones):
    """Two zones of one region's store, with a template in both."""

    template: str

    @classmethod
    async def ready(cls, **pools: str) -> Scene:
        """`pools`: further primary stores of the first zone, name -> plug-in, on host-1."""
        scene = await cls.start("s3")
        assert isinstance(scene, Scene)
        if pools:
            first = scene.pool(scene.here, "p", "memory", scene.first(scene.here))
            specs = [first, *(scene.pool(scene.here, name, kind, uuid4()) for name, kind in pools.items())]
            await scene.hello("host-1", scene.here, specs)
        scene.template, job = await scene.register()
        await scene.ended(job)
        return scene

    def first(self, zone_id: UUID) -> UUID:
        """The primary store that a zone has from the start."""
        return next(spec.id for spec, _ in self.cloud.runtime.directory.primaries.values() if spec.zone_id == zone_id)

    @staticmethod
    def pool(zone_id: UUID, name: str, kind: str, pool_id: UUID) -> PrimarySpec:
        return PrimarySpec(id=pool_id, name=name, kind=kind, path=f"/{name}", zone_id=zone_id, agent="host-1")

    async def hello(self, agent: str, zone_id: UUID, primaries: list[PrimarySpec], motions: Any = MOTIONS,
                    usage: list[PrimaryUsage] | None = None) -> None:
        await self.cloud.handle(AgentHello(
            agent=agent, zone_id=zone_id, roles=["storage", "hypervisor"], hypervisor="KVM", providers=PROVIDERS, primaries=primaries,
            public_key="k", proof=proof(TOKEN, agent, "k"), motions=motions, usage=usage or []), kind="report")

    async def prepare(self, **more: object) -> tuple[list[dict[str, Any]], str]:
        """The rows that it answers with, and the job."""
        body = await self.ok("prepareTemplate", **({"templateid": self.template, "zoneid": self.here} | more))
        return body["template"], body["template"][0]["jobid"]

    async def seeds(self) -> dict[str, str]:
        """Primary store -> state."""
        tables = await self.system.views.tables()  # type: ignore[attr-defined] # of the double
        return {row["pool_id"]: row["state"] for row in tables.get("template_spool_ref", {}).values()}

    async def volume(self, **more: object) -> tuple[str, CreateDisk]:
        """A volume of the template that is being made, and the order."""
        made = await self.ok("createVolume", **({"name": "v", "templateid": self.template, "zoneid": self.here} | more))
        await self.cloud.submissions()
        return made["jobid"], (await self.orders(CreateDisk))[-1]


    async def in_use(self, command: str, **parameters: object) -> bool:
        """Whether its job is refused since something is being read: the append decides, not the door."""
        job = (await self.ok(command, **parameters))["jobid"]
        await self.cloud.submissions()
        ended = await self.ok("queryAsyncJobResult", jobid=job)
        return ended["jobstatus"] == 2 and ended["jobresult"]["errorcode"] == 536


async def answer(cloud: Cloud, order: CreateDisk, **more: object) -> None:
    """The agent made the disk, and says more of it."""
    await cloud.handle(WorkCompleted(job_id=order.job_id, work_id=order.work_id, attempt=order.attempt, agent=order.agent,
                                     result=result_of(order) | more, bytes=5), kind="report")


async def test_it_answers_at_once_and_volumes_are_made_of_the_copy() -> None:
    scene = await Scene.ready()
    before = await scene.counters()
    [row], job = await scene.prepare()
    assert (row["id"], row["zoneid"], row["isready"]) == (scene.template, str(scene.here), True)
    assert (await scene.ok("queryAsyncJobResult", jobid=job))["jobstatus"] == 0, "it goes on in the background"
    await scene.cloud.submissions()
    pool = scene.first(scene.here)
    assert await scene.seeds() == {str(pool): "Creating"}
    assert (await scene.ended(job))["jobstatus"] == 1
    [make] = await scene.orders(MakeSeed)
    assert (make.agent, str(make.template_id), make.primary.id, make.motion) == ("host-1", scene.template, pool, "direct")
    assert await scene.seeds() == {str(pool): "Ready"}
    counters = await scene.counters()
    assert counters == before | {f"primary_store/{pool}/seeds": 1}
    job, order = await scene.volume()
    assert (order.motion, order.seed, order.seed_size) == ("seed", f"{scene.template}.seed.qcow2", order.image.physical_size)
    assert order.store is not None, "it can be read in its place"
    plan = next(event.plan for row in await scene.cloud.store.read_stream(f"job-{job}")
                if isinstance(event := decode(row.type, row.type_version, row.payload), JobPlanned))
    assert (plan.strategy, plan.move, plan.cost.bytes, plan.agent) == ("seed", SEED, 0, "host-1")
    assert (await scene.ended(job))["jobstatus"] == 1
    job, order = await scene.volume(zoneid=scene.other)
    assert (order.motion, order.seed) == ("direct", ""), "the other zone's primary store has none"
    await scene.ended(job)
    _, job = await scene.prepare()
    assert (await scene.ended(job))["jobstatus"] == 1 and len(await scene.orders(MakeSeed)) == 1, "what is there is not made again"


async def test_deleting_the_template_takes_its_copies_too() -> None:
    scene = await Scene.ready()
    before = await scene.counters()
    await scene.ended((await scene.prepare())[1])
    await scene.ended((await scene.prepare(zoneid=scene.other))[1])
    making, _ = await scene.volume()
    assert await scene.in_use("deleteTemplate", id=scene.template), "a volume is being made of it"
    assert await scene.in_use("unprepareTemplate", templateid=scene.template, zoneid=scene.here)
    assert await scene.in_use("deleteTemplate", id=scene.template, zoneid=scene.here), "nor with its zone"
    await scene.ended(making)
    await scene.ended((await scene.ok("deleteTemplate", id=scene.template, zoneid=scene.other))["jobid"])
    assert set(await scene.seeds()) == {str(scene.first(scene.here))}, "the other zone's went with its row"
    deleted = (await scene.ok("deleteTemplate", id=scene.template))["jobid"]
    await scene.cloud.submissions()
    pending = (await scene.ok("listPendingDeletions"))["pendingdeletion"]
    assert {each["datastoreid"] for each in pending} == {str(scene.stores[0]), str(scene.first(scene.here))}
    assert {each["datastore"] for each in pending} == {"s0", "p"}
    assert (await scene.ended(deleted))["jobstatus"] == 1
    assert await scene.seeds() == {} and await scene.ok("listPendingDeletions") == {}
    assert len(await scene.orders(DropSeed)) == 2
    after = await scene.counters()
    assert {name: value for name, value in after.items() if "template" in name or "seeds" in name or "image_store" in name} == {
        name: value for name, value in before.items() if "seeds" in name}


async def test_every_primary_store_of_a_zone_has_a_job_of_its_own() -> None:
    scene = await Scene.ready(second="memory", third="memory", whole="block")
    _, job = await scene.prepare()
    done = await scene.ended(job)
    assert done["jobstatus"] == 1 and len(done["jobresult"]["template"]["jobs"]) == 3
    await scene.cloud.settle()
    assert len(await scene.seeds()) == len(await scene.orders(MakeSeed)) == 3, "none where disks are whole devices"
    for each in done["jobresult"]["template"]["jobs"]:
        assert (await scene.ok("queryAsyncJobResult", jobid=each))["jobstatus"] == 1
    whole = next(spec.id for spec, _ in scene.cloud.runtime.directory.primaries.values() if spec.name == "whole")
    refused = await scene.ask("prepareTemplate", templateid=scene.template, zoneid=scene.here, storageid=whole)
    assert refused.status == 431 and refused.error.startswith("storageid:") and "block devices" in refused.error
    gone = (await scene.ok("unprepareTemplate", templateid=scene.template, zoneid=scene.here))["jobid"]
    assert (await scene.ended(gone))["jobstatus"] == 1 and await scene.seeds() == {}
    assert not [name for name in await scene.counters() if "seeds" in name]
    _, order = await scene.volume()
    assert order.motion == "direct"


async def test_a_copy_that_failed_or_was_stopped_leaves_nothing() -> None:
    scene = await Scene.ready()
    before = await scene.counters()
    _, job = await scene.prepare()
    await scene.cloud.submissions()
    [order] = [each for each in await scene.cloud.open_orders() if isinstance(each, MakeSeed)]
    assert await scene.in_use("deleteTemplate", id=scene.template), "it is being read"
    await scene.cloud.fail(order)
    assert (await scene.ended(job))["jobstatus"] == 2
    assert await scene.seeds() == {} and await scene.counters() == before
    _, job = await scene.prepare()
    await scene.cloud.submissions()
    await scene.ok("cancelJob", jobid=job)
    await scene.cloud.submissions()
    assert any(isinstance(each, CancelWork) for each in await scene.cloud.orders())
    await scene.ended(job)  # it was done before the cancel was seen, and is taken back
    assert len(await scene.orders(DropSeed)) == 1
    assert await scene.seeds() == {} and await scene.counters() == before


async def test_a_copy_that_is_there_no_more_is_forgotten_and_can_be_made_again() -> None:
    scene = await Scene.ready()
    await scene.ended((await scene.prepare())[1])
    job, order = await scene.volume()
    await answer(scene.cloud, order, reason="it is not on the primary store")
    done = await scene.ended(job)
    assert (done["jobstatus"], done["jobresult"]["volume"]["reason"]) == (1, "it is not on the primary store")
    assert await scene.seeds() == {} and len(await scene.orders(DropSeed)) == 1
    await scene.ended((await scene.prepare())[1])
    assert set((await scene.seeds()).values()) == {"Ready"}


async def test_a_primary_store_with_copies_is_not_deleted() -> None:
    scene = await Scene.ready()
    await scene.ended((await scene.prepare())[1])
    await scene.hello("host-1", scene.here, [])
    pool = scene.first(scene.here)
    async with scene.system.working():
        refused = await scene.ask("deleteStoragePool", id=pool)
        assert refused.status == 536 and "unprepareTemplate" in refused.error
    await scene.ended((await scene.ok("unprepareTemplate", templateid=scene.template, zoneid=scene.here, storageid=pool))["jobid"])
    async with scene.system.working():
        assert (await scene.ask("deleteStoragePool", id=pool)).status == 200


async def test_a_host_that_cannot_use_a_copy_gets_none() -> None:
    scene = await Scene.ready()
    old = [spec for spec in MOTIONS if spec.name != "seed"]
    primary = scene.cloud.runtime.directory.primaries[scene.first(scene.here)][0]
    await scene.ended((await scene.prepare())[1])
    await scene.hello("host-1", scene.here, [primary], motions=old)
    job, order = await scene.volume()
    assert (order.motion, order.seed) == ("direct", ""), "its host was replaced by an older one"
    await scene.ended(job)
    await scene.ended((await scene.ok("unprepareTemplate", templateid=scene.template, zoneid=scene.here))["jobid"])
    refused = await scene.ask("prepareTemplate", templateid=scene.template, zoneid=scene.here)
    assert refused.status == 503 and "seed" in refused.error


@pytest.mark.parametrize(("more", "field"), [
    ({"templateid": uuid4()}, "templateid"), ({"zoneid": uuid4()}, "zoneid"), ({"storageid": uuid4()}, "storageid")])
async def test_what_cannot_be_is_refused_at_the_door(more: dict[str, object], field: str) -> None:
    scene = await Scene.ready()
    for command in ("prepareTemplate", "unprepareTemplate"):
        if (command, field) == ("unprepareTemplate", "storageid"):
            continue  # none lies there: that is what was asked for
        refused = await scene.ask(command, **({"templateid": scene.template, "zoneid": scene.here} | more))
        assert refused.status == 431 and refused.error.startswith(f"{field}:"), (command, refused)


async def test_a_primary_store_without_room_is_refused() -> None:
    scene = await Scene.ready(second="memory")
    specs = [spec for spec, _ in scene.cloud.runtime.directory.primaries.values() if spec.zone_id == scene.here]
    await scene.hello("host-1", scene.here, specs, usage=[
        PrimaryUsage(id=spec.id, total_bytes=5000, free_bytes=999 + number) for number, spec in enumerate(specs)])
    refused = await scene.ask("prepareTemplate", templateid=scene.template, zoneid=scene.here, storageid=specs[0].id)
    assert refused.status == 533 and refused.error.startswith("storageid:") and "999 bytes free" in refused.error
    _, job = await scene.prepare(storageid=specs[1].id)
    assert (await scene.ended(job))["jobstatus"] == 1, "what fits exactly"


@pytest.mark.parametrize("dice", range(12))
async def test_whatever_agents_do_nothing_is_lost_or_counted_twice(dice: int) -> None:
    scene = await Scene.ready(second="memory", third="memory")
    cloud, template = scene.cloud, UUID(scene.template)
    before, jobs = await scene.counters(), [uuid4()]
    about = {"template_id": template, "zone_id": scene.here}
    pools = [spec.id for spec, _ in cloud.runtime.directory.primaries.values() if spec.zone_id == scene.here]

    async def cancel(job: UUID) -> None:
        await cloud.send(CancelJob(job_id=job))

    for turn, commands in enumerate((
            [PrepareTemplate(**about)], [PrepareTemplate(**about, storage_id=pool) for pool in pools],
            [CreateVolume(name="v", template_id=template, zone_id=scene.here, storage_id=pool) for pool in pools]
            + [UnprepareTemplate(**about, storage_id=pools[0]), PrepareTemplate(**about, storage_id=pools[1])],
            [UnprepareTemplate(**about), CreateVolume(name="w", template_id=template, zone_id=scene.here)])):
        new = [await cloud.send(command) for command in commands]
        jobs += new
        await cloud.chaos(100 * dice + turn, new, cancel)
        seeds = await scene.seeds()
        assert set(seeds.values()) <= {"Ready"}, "at rest nothing is on its way"
        counted = await scene.counters()
        assert {name for name in counted if name.endswith("/seeds")} == {f"primary_store/{pool}/seeds" for pool in seeds}
        assert f"template/{template}/readers" not in counted
    for job in jobs[1:]:
        assert len(await cloud.ends(job)) == 1
    volumes = (await scene.ok("listVolumes")).get("volume", [])
    for volume in volumes:
        if volume["state"] == "Ready":
            await cloud.send(DeleteVolume(id=UUID(volume["id"])))
    await cloud.settle()
    assert (await scene.ended((await scene.ok("deleteTemplate", id=template))["jobid"]))["jobstatus"] == 1
    assert await scene.seeds() == {} and await cloud.store.timers() == {}
    after = await scene.counters()
    assert all(value == before.get(name) for name, value in after.items()), after
    assert not [name for name in after if "template" in name or "primary_store" in name]
