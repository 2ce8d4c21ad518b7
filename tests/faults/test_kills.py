"""Kill anything at any moment, wipe the broker once: every job ends once, and nothing is lost, doubled or left behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
from aiohttp import web

from agents.qemu import run
from api import registry
from bus.failpoints import NAMES
from tests.faults.cluster import ROLES, Cluster, running
from tests.faults.commands import CASES, World, made, seeded
from tests.faults.story import Story
from tests.support.images import iso

SOAK = int(os.environ.get("STOREBUS_SOAK_N", "0"))
JOBS = SOAK or 8
BUSY_KILLS = 20 if JOBS >= 100 else 0
"""Each role dies at least so often while it holds work: jobs go on until it has."""
SEED = int(os.environ.get("STOREBUS_SOAK_SEED", os.environ.get("STOREBUS_SEED", "1")))


CALM_S = (0.3, 1.2) if JOBS >= 100 else (0.8, 2.4)
"""Seconds between two kills: a start is most of what one costs, so an ordinary run has fewer."""
PAIRS_N, POINTS_N = 4, 2
"""Commands that are hit in an ordinary run, each with one role, and named places. In a soak each with every role, and all places."""


@dataclass(frozen=True)
class Site:
    """A web server with a qcow2 image that has some data, and an ISO."""

    url: str
    allow: str
    image: bytes


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory, qemu_tools: None) -> AsyncIterator[Site]:
    """One for all tests here."""
    folder = tmp_path_factory.mktemp("site")
    raw = folder / "image.raw"
    raw.write_bytes(random.Random(SEED).randbytes(6 << 20) + bytes(2 << 20))
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(folder / "image.qcow2"))
    (folder / "image.iso").write_bytes(iso(512))
    application = web.Application()
    application.router.add_static("/", folder)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    yield Site(f"http://127.0.0.1:{port}/image.qcow2", f"127.0.0.1/32:{port}", (folder / "image.qcow2").read_bytes())
    await runner.cleanup()


async def murder(cluster: Cluster, dice: random.Random, stop: asyncio.Event) -> None:
    """Kill a random role every second or two, and start it again."""
    while not stop.is_set():
        await asyncio.sleep(dice.uniform(*CALM_S))
        role = dice.choice(ROLES)
        if (await cluster.outstanding())["open"]:
            cluster.busy_kills[role] = cluster.busy_kills.get(role, 0) + 1
        await asyncio.to_thread(cluster.kill, role)
        await asyncio.sleep(dice.uniform(0.0, 0.5))
        cluster.start(role)


@pytest.mark.timeout(1800)
async def test_random_kills_of_every_role_and_one_broker_wipe(rabbitmq: Any, postgres_server: Any, s3_server: Any, site: Site,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    dice = random.Random(SEED)
    async with running(rabbitmq, postgres_server, s3_server, allow=site.allow, environment={
            "STOREBUS_SNAPSHOT_COLLAPSE": "0", "STOREBUS_VOLUME_EXPUNGE_DELAY_S": "10"}) as cluster:
        await cluster.add_store()
        world = World(cluster, site.url, site.image)
        await world.found()
        story, stop = Story(world, SEED), asyncio.Event()
        await story.begin()
        killer = asyncio.create_task(murder(cluster, dice, stop))
        await story.users(JOBS // 2)
        await asyncio.to_thread(rabbitmq.wipe)
        await story.users(JOBS)
        while min(cluster.busy_kills.get(role, 0) for role in ROLES) < BUSY_KILLS and len(story.jobs) < 10 * JOBS:
            await story.users(len(story.jobs) + 5)
        stop.set()
        await killer
        began = time.monotonic()
        results = [await cluster.end(job, 120) for job in story.jobs]
        settle = time.monotonic() - began
        await cluster.settled(120)
        with capsys.disabled():
            states = [result["jobstatus"] for result in results]
            print(f"\n{len(results)} jobs: {states.count(1)} completed, {states.count(2)} failed or cancelled; settled in "
                  f"{settle:.1f} s; kills {cluster.kills}, of these with open jobs {cluster.busy_kills}; {len(story.asked)} commands: "
                  f"{dict(story.asked)}")
        assert states.count(1) > 0
        assert min(cluster.busy_kills.get(role, 0) for role in ROLES) >= BUSY_KILLS


@pytest.fixture(scope="module")
async def world(rabbitmq: Any, postgres_server: Any, s3_server: Any, site: Site) -> AsyncIterator[World]:
    """One installation for all that follows: it must stand them one after another. Deleted links of chains are merged at once."""
    async with running(rabbitmq, postgres_server, s3_server, allow=site.allow,
                       environment={"STOREBUS_SNAPSHOT_COLLAPSE": "0"}) as cluster:
        await cluster.add_store()
        world = World(cluster, site.url, site.image)
        await world.found()
        await world.ask("createSnapshotPolicy", uuid4(), **world.due(await world.volume()))
        yield world


POINTS = sorted(name for name in NAMES if not name.startswith("api."))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("point", seeded(POINTS, len(POINTS) if SOAK else POINTS_N, SEED))
async def test_killed_at_a_named_place(point: str, world: World, site: Site) -> None:
    """Each named place is reached by a real job, the process dies there, and the job ends right."""
    part, cluster = point.split(".")[0], world.cluster
    victims = {"relay": ["log"], "scheduler": ["log"], "consumer": ["handlers"], "forwarder": ["handlers"]}.get(part, ["storage", "kvm"])
    for victim in victims:
        cluster.kill(victim)
        cluster.start(victim, f"{point}=kill@2")
    if part == "scheduler":
        cluster.kill("kvm")  # its orders wait, so their timers come due
    await asyncio.sleep(1.0)
    template = (await cluster.persist("registerTemplate", name="t", displaytext="t", url=site.url, format="QCOW2", hypervisor="KVM",
                                      zoneid="-1"))["template"][0]
    jobs = [template["jobid"]] + [(await cluster.persist("createVolume", name="v", size=1, zoneid=world.zone))["jobid"] for _ in range(3)]
    if part == "forwarder":
        jobs += await _publish(world)
    died = await _died(cluster, victims, part == "scheduler")
    assert died, f"{point} was not reached"
    for victim in victims:  # those that were not reached are still armed
        if victim not in died:
            cluster.kill(victim)
    for victim in victims + (["kvm"] if part == "scheduler" else []):
        cluster.start(victim)
    for job in jobs:
        assert (await cluster.end(job))["jobstatus"] == 1
    await cluster.settled()


async def _publish(world: World) -> list[str]:
    from bus.client import Bus
    from schema.volume import CreateVolume

    async with Bus.connect(amqp_url=world.cluster.rabbit.url, database_url=world.cluster.dsn) as bus:
        return [str((await bus.publish(CreateVolume(name="p", size=1, zone_id=UUID(world.zone)))).id) for _ in range(3)]


async def _died(cluster: Cluster, roles: list[str], slow: bool) -> list[str]:
    for _ in range(600 if slow else 300):
        dead = [role for role in roles if cluster.processes[role].poll() is not None]
        if dead:
            return dead
        await asyncio.sleep(0.1)
    return []


@pytest.mark.timeout(1200)
async def test_a_host_that_dies_while_templates_are_prepared(world: World, site: Site) -> None:
    """Whatever its agent did when it was killed: the copy is there and whole, or nothing is; a disk of it likewise."""
    cluster, dice, zone = world.cluster, random.Random(SEED), world.zone
    answer = await cluster.persist("registerTemplate", name="p", displaytext="p", url=site.url, format="QCOW2", hypervisor="KVM", zoneid="-1")
    template = answer["template"][0]["id"]
    assert (await cluster.end(answer["template"][0]["jobid"]))["jobstatus"] == 1
    about = {"templateid": template, "zoneid": zone}

    async def killed(command: str, **parameters: Any) -> None:
        answer = await cluster.persist(command, **parameters)
        await asyncio.sleep(dice.uniform(0.0, 0.4))
        cluster.kill("kvm")
        cluster.start("kvm")
        job = (answer["template"][0] if "template" in answer else answer)["jobid"]
        assert (await cluster.end(job))["jobstatus"] == 1, await cluster.story(job)

    for _ in range(5 if SOAK else 2):
        await killed("prepareTemplate", **about)
        for number in range(2):
            await killed("createVolume", name=f"of a copy {number}", **about)
        await cluster.settled()
        await killed("unprepareTemplate", **about)
    await killed("prepareTemplate", **about)
    await killed("deleteTemplate", id=template)
    await cluster.settled()
    assert not list((cluster.base / "primary").glob("*.seed.*"))


ACCEPT = "api between append and answer"
PAIRS = [(case, role) for case in sorted(CASES) for role in (ACCEPT, *ROLES)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("case", "role"), seeded(PAIRS, len(PAIRS) if SOAK else PAIRS_N, SEED))
async def test_killed_during_a_command(case: str, role: str, world: World) -> None:
    """Every command comes to its one good end whoever dies during it, and leaves what it should, and nothing else."""
    command, need = CASES[case]
    parameters = await need(world)
    cluster, job, dice = world.cluster, uuid4(), random.Random(f"{SEED} {case} {role}")
    if role == ACCEPT:
        await _dies_before_it_answers(world, command, str(job), parameters)
        asked = asyncio.create_task(world.ask(command, job, **parameters))
    else:
        asked = asyncio.create_task(world.ask(command, job, **parameters))
        if await cluster.reached(str(job), dice.randint(0 if role == "api" else 1, 5)):
            cluster.busy_kills[role] = cluster.busy_kills.get(role, 0) + 1
        await asyncio.to_thread(cluster.kill, role)
        cluster.start(role)
    await asked
    ended = await cluster.end(str(job))
    assert ended["jobstatus"] == 1, ended
    await cluster.settled()
    if command == "addImageStore":  # else what follows might go there
        await world.done("deleteImageStore", id=made(command, job))


async def _dies_before_it_answers(world: World, command: str, job: str, parameters: dict[str, Any]) -> None:
    """The API accepts a command and dies before it says so, and nobody has relayed it."""
    cluster = world.cluster
    for role in ("log", "api"):
        await asyncio.to_thread(cluster.kill, role)
    cluster.start("api", "api.after_append=kill")
    await cluster.persist("listZones")
    with pytest.raises((aiohttp.ClientError, OSError)):
        await cluster.call(command, customjobid=job, **world.whose(command), **parameters)
    assert await _died(cluster, ["api"], slow=False)
    assert await cluster.reached(job, 1, timeout_s=0.1) or registry.find(command).now  # that has ended once it is accepted
    for role in ("log", "api"):
        cluster.start(role)


@pytest.mark.timeout(600)
async def test_what_came_due_meanwhile_was_taken_once(world: World) -> None:
    """Policies of this installation: each due time has one job, whoever died around it, and they go with their volumes' end."""
    policies = (await world.cluster.persist("listSnapshotPolicies", listall="true"))["snapshotpolicy"]
    for _ in range(1500):  # within the minute
        ran = [json.loads(row) for row in await world.cluster.logged("snapshot_policy.ran")]
        if {each["policy_id"] for each in ran} >= {each["id"] for each in policies}:
            break
        await asyncio.sleep(0.1)
    assert {each["policy_id"] for each in ran} >= {each["id"] for each in policies}
    assert len({(each["policy_id"], each["due_at"]) for each in ran}) == len(ran)
    for each in ran:
        assert (await world.cluster.end(each["job_id"]))["jobstatus"] == 1, each
    taken = (await world.cluster.persist("listSnapshots", snapshottype="HOURLY", listall="true"))["snapshot"]
    assert len(taken) == len(ran)
    for policy in policies:
        await world.done("destroyVolume", id=policy["volumeid"], expunge="true")
    await world.cluster.settled()
    assert "snapshotpolicy" not in await world.cluster.persist("listSnapshotPolicies", listall="true")
