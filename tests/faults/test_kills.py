"""Kill anything at any moment, wipe the broker once: every job ends once, and nothing is lost, doubled or left behind."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from agents.qemu import run
from bus.failpoints import NAMES
from tests.faults.cluster import ROLES, Cluster, running

JOBS = int(os.environ.get("STOREBUS_SOAK_N", "0")) or 14
BUSY_KILLS = 20 if JOBS >= 100 else 0
"""Each role dies at least so often while it holds work: jobs go on until it has."""
SEED = int(os.environ.get("STOREBUS_SOAK_SEED", os.environ.get("STOREBUS_SEED", "1")))


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory, qemu_tools: None) -> AsyncIterator[tuple[str, str]]:
    """A qcow2 image with some data, on a web server: (url, allow)."""
    folder = tmp_path_factory.mktemp("site")
    path = folder / "image.qcow2"
    raw = folder / "image.raw"
    raw.write_bytes(random.Random(SEED).randbytes(6 << 20) + bytes(2 << 20))
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))

    async def give(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path)

    application = web.Application()
    application.router.add_get("/image.qcow2", give)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield f"http://127.0.0.1:{port}/image.qcow2", f"127.0.0.1/32:{port}"
    await runner.cleanup()


class Story:
    """Seeded users: they make, back up, restore, cancel and delete until they have submitted enough jobs."""

    def __init__(self, cluster: Cluster, url: str, seed: int) -> None:
        self.cluster, self.url, self.dice = cluster, url, random.Random(seed)
        self.jobs: list[str] = []
        self.zone = ""
        self.volumes: list[str] = []
        self.templates: list[str] = []
        self.snapshots: list[str] = []

    async def submit(self, command: str, **parameters: Any) -> str:
        """Submit; the id of the thing. A refusal is fine: somebody else was faster."""
        try:
            answer = await self.cluster.persist(command, **parameters)
        except AssertionError:
            return ""
        answer = answer["template"][0] if "template" in answer else answer
        if "jobid" not in answer:
            return ""
        self.jobs.append(answer["jobid"])
        return str(answer.get("id", ""))

    async def user(self, count: int) -> None:
        """One user."""
        while len(self.jobs) < count:
            match self.dice.randrange(8):
                case 0:
                    self.templates.append(await self.submit("registerTemplate", name="t", displaytext="t", url=self.url, format="QCOW2",
                                                            hypervisor="KVM", zoneid=self.zone))
                case 1 | 2:
                    self.volumes.append(await self.submit("createVolume", name="v", size=1))
                case 3 if self.templates:
                    self.volumes.append(await self.submit("createVolume", name="v", templateid=self.dice.choice(self.templates)))
                case 4 | 5 if self.volumes:
                    self.snapshots.append(await self.submit("createSnapshot", volumeid=self.dice.choice(self.volumes)))
                case 6 if self.snapshots:
                    await self.submit("deleteSnapshot", id=self.dice.choice(self.snapshots))
                case 7 if self.jobs:
                    await self.submit("cancelJob", jobid=self.dice.choice(self.jobs))
            await asyncio.sleep(self.dice.uniform(0.05, 0.4))


async def murder(cluster: Cluster, dice: random.Random, stop: asyncio.Event) -> None:
    """Kill a random role every second or so, and start it again."""
    while not stop.is_set():
        await asyncio.sleep(dice.uniform(0.3, 1.2))
        role = dice.choice(ROLES)
        if (await cluster.outstanding())["open"]:
            cluster.busy_kills[role] = cluster.busy_kills.get(role, 0) + 1
        await asyncio.to_thread(cluster.kill, role)
        await asyncio.sleep(dice.uniform(0.0, 0.5))
        cluster.start(role)


@pytest.mark.timeout(900)
async def test_random_kills_of_every_role_and_one_broker_wipe(rabbitmq: Any, postgres_server: Any, s3_server: Any, site: tuple[str, str],
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    url, allow = site
    dice = random.Random(SEED)
    async with running(rabbitmq, postgres_server, s3_server, allow=allow) as cluster:
        await cluster.add_store()
        story = Story(cluster, url, SEED)
        story.zone = (await cluster.call("listZones"))["zone"][0]["id"]
        stop = asyncio.Event()
        killer = asyncio.create_task(murder(cluster, dice, stop))
        half = asyncio.create_task(story.user(JOBS // 2))
        await half
        await asyncio.to_thread(rabbitmq.wipe)
        await story.user(JOBS)
        while min(cluster.busy_kills.get(role, 0) for role in ROLES) < BUSY_KILLS and len(story.jobs) < 10 * JOBS:
            await story.user(len(story.jobs) + 5)
        stop.set()
        await killer
        began = time.monotonic()
        results = [await cluster.end(job, 120) for job in story.jobs]
        settle = time.monotonic() - began
        for _ in range(100):  # orders that only release may still be under way
            try:
                await cluster.check()
                break
            except AssertionError:
                await asyncio.sleep(0.2)
        await cluster.check()
        with capsys.disabled():
            states = [result["jobstatus"] for result in results]
            print(f"\n{len(results)} jobs: {states.count(1)} completed, {states.count(2)} failed or cancelled; settled in "
                  f"{settle:.1f} s; kills {cluster.kills}, of these with open jobs {cluster.busy_kills}")
        assert states.count(1) > 0
        assert min(cluster.busy_kills.get(role, 0) for role in ROLES) >= BUSY_KILLS


@pytest.fixture(scope="module")
async def cluster(rabbitmq: Any, postgres_server: Any, s3_server: Any, site: tuple[str, str]) -> AsyncIterator[Cluster]:
    """One installation for all named places: it must stand them one after another."""
    async with running(rabbitmq, postgres_server, s3_server, allow=site[1]) as cluster:
        await cluster.add_store()
        yield cluster


@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", sorted(NAMES))
async def test_killed_at_a_named_place(point: str, cluster: Cluster, site: tuple[str, str]) -> None:
    """Each named place is reached by a real job, the process dies there, and the job ends right."""
    part = point.split(".")[0]
    victims = {"relay": ["log"], "scheduler": ["log"], "consumer": ["handlers"], "forwarder": ["handlers"]}.get(part, ["storage", "kvm"])
    for victim in victims:
        cluster.kill(victim)
        cluster.start(victim, f"{point}=kill@2")
    if part == "scheduler":
        cluster.kill("kvm")  # its orders wait, so their timers come due
    await asyncio.sleep(1.0)
    template = (await cluster.persist("registerTemplate", name="t", displaytext="t", url=site[0], format="QCOW2", hypervisor="KVM",
                                      zoneid="-1"))["template"][0]
    jobs = [template["jobid"]] + [(await cluster.persist("createVolume", name="v", size=1))["jobid"] for _ in range(3)]
    if part == "forwarder":
        jobs += await _publish(cluster)
    died = await _died(cluster, victims, part == "scheduler")
    assert died, f"{point} was not reached"
    for victim in victims:  # those that were not reached are still armed
        if victim not in died:
            cluster.kill(victim)
    for victim in victims + (["kvm"] if part == "scheduler" else []):
        cluster.start(victim)
    for job in jobs:
        assert (await cluster.end(job))["jobstatus"] == 1
    await _checked(cluster)


async def _publish(cluster: Cluster) -> list[str]:
    from bus.client import Bus
    from schema.volume import CreateVolume

    async with Bus.connect(amqp_url=cluster.rabbit.url, database_url=cluster.dsn) as bus:
        return [str((await bus.publish(CreateVolume(name="p", size=1))).id) for _ in range(3)]


async def _died(cluster: Cluster, roles: list[str], slow: bool) -> list[str]:
    for _ in range(600 if slow else 300):
        dead = [role for role in roles if cluster.processes[role].poll() is not None]
        if dead:
            return dead
        await asyncio.sleep(0.1)
    return []


async def _checked(cluster: Cluster) -> None:
    for _ in range(100):
        try:
            await cluster.check()
            return
        except AssertionError:
            await asyncio.sleep(0.2)
    await cluster.check()


@pytest.mark.timeout(600)
async def test_a_host_that_dies_while_templates_are_prepared(cluster: Cluster, site: tuple[str, str]) -> None:
    """Whatever its agent did when it was killed: the copy is there and whole, or nothing is; a disk of it likewise."""
    dice, zone = random.Random(SEED), (await cluster.persist("listZones"))["zone"][0]["id"]
    answer = await cluster.persist("registerTemplate", name="p", displaytext="p", url=site[0], format="QCOW2", hypervisor="KVM", zoneid="-1")
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

    for _ in range(5):
        await killed("prepareTemplate", **about)
        for number in range(2):
            await killed("createVolume", name=f"of a copy {number}", **about)
        await _checked(cluster)
        await killed("unprepareTemplate", **about)
    await killed("prepareTemplate", **about)
    await killed("deleteTemplate", id=template)
    await _checked(cluster)
    assert not list((cluster.base / "primary").glob("*.seed.*"))
