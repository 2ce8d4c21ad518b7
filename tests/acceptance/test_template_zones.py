"""Templates in two zones, each with its own directory store and its own agents, all of them processes on a real broker."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agents.qemu import run
from api.demo_s3 import SeaweedFS
from api.verify import verify_all
from tests.faults.cluster import Cluster, running
from tests.services.forked import storebus
from tests.services.http_files import HttpFiles
from tests.services.postgres import TestServer
from tests.services.rabbitmq import RabbitMQ

pytestmark = pytest.mark.needs_qemu
COMPARE = ("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2")


@dataclass
class Scene:
    """The cluster, with two zones; the stores' folders by zone."""

    cluster: Cluster
    web: HttpFiles
    here: str
    other: str
    folders: dict[str, Path]

    def start(self, kind: str) -> None:
        """An agent in the other zone."""
        environment = os.environ | {
            "STOREBUS_AMQP_URL": self.cluster.rabbit.url, "STOREBUS_DATA_DIR": str(self.cluster.base / "data"), "STOREBUS_ZONE": "zone-2",
            "STOREBUS_AGENT_NAME": "far", "STOREBUS_PRIMARY_PATH": str(self.cluster.base / "far-primary")}
        with (self.cluster.base / f"far-{kind}.log").open("ab") as log:
            self.cluster.processes[f"far-{kind}"] = storebus("serve", "agent", "--role", kind, env=environment, stdout=log, stderr=log)

    async def add(self, zone: str, name: str) -> str:
        """A directory store of a zone, once its agent is there."""
        for _ in range(400):
            try:
                answer = await self.cluster.call("addImageStore", name=name, provider="folder", url=f"folder://{self.folders[zone]}", zoneid=zone,
                                                 **{"details[0].key": "path", "details[0].value": str(self.folders[zone])})
                return str(answer["imagestore"]["id"])
            except AssertionError as refused:
                if "no storage agent" not in str(refused):
                    raise
                await asyncio.sleep(0.2)
        raise AssertionError(self.cluster.logs())

    async def rows(self, template: str) -> dict[str, bool]:
        """Zone -> isready."""
        found = await self.cluster.call("listTemplates", templatefilter="all", id=template)
        return {row["zoneid"]: row["isready"] for row in found.get("template", [])}

    async def until_ready(self, template: str) -> None:
        """In both zones."""
        for _ in range(500):
            if await self.rows(template) == {self.here: True, self.other: True}:
                return
            await asyncio.sleep(0.2)
        raise AssertionError(f"{await self.rows(template)}; {self.cluster.logs()}")

    def objects(self, zone: str) -> set[Path]:
        """Images in a zone's store."""
        return {path for path in self.folders[zone].rglob("*.qcow2") if path.is_file()}

    async def done(self, command: str, **parameters: Any) -> tuple[str, dict[str, Any]]:
        """(id, ended job)."""
        answer = await self.cluster.call(command, **parameters)
        return str(answer.get("id", "")), await self.cluster.end(answer["jobid"])


@pytest.fixture
async def scene(qemu_tools: None, rabbitmq: RabbitMQ, postgres_server: TestServer, s3_server: SeaweedFS, tmp_path: Path) -> AsyncIterator[Scene]:
    web = HttpFiles()
    async with running(rabbitmq, postgres_server, s3_server, allow=web.allow) as cluster:
        here = (await cluster.call("listZones"))["zone"][0]["id"]
        other = (await cluster.call("createZone", name="zone-2", networktype="Basic", dns1="10.0.0.1", internaldns1="10.0.0.1"))["zone"]["id"]
        folders = {here: tmp_path / "here", other: tmp_path / "other"}
        for folder in folders.values():
            folder.mkdir()
        made = Scene(cluster, web, here, other, folders)
        for kind in ("storage", "kvm"):
            made.start(kind)
        yield made
    web.close()


async def test_each_zone_has_its_own_copy_of_one_download(scene: Scene, tmp_path: Path) -> None:
    raw, image = tmp_path / "raw", tmp_path / "image.qcow2"
    raw.write_bytes(random.Random(4).randbytes(9 << 20) + bytes(1 << 20))
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    scene.web.bodies["os.qcow2"] = image.read_bytes()
    cluster = scene.cluster
    for zone, name in ((scene.here, "s1"), (scene.other, "s2")):
        await scene.add(zone, name)
    answer = await cluster.call("registerTemplate", name="os", displaytext="os", url=scene.web.url("file/os.qcow2"), format="QCOW2",
                                hypervisor="KVM", zoneids=f"{scene.here},{scene.other}")
    assert {row["zoneid"] for row in answer["template"]} == {scene.here, scene.other}
    template = answer["template"][0]["id"]
    await scene.until_ready(template)
    assert [len(scene.objects(zone)) for zone in scene.folders] == [1, 1]
    assert sum(asked.startswith("/file/os.qcow2") for asked, _ in scene.web.asked) == 1, "one download"
    for zone in scene.folders:
        [copy] = scene.objects(zone)
        assert "identical" in await run(*COMPARE, str(image), str(copy))
    _, made = await scene.done("createVolume", name="v", templateid=template, zoneid=scene.other)
    assert made["jobstatus"] == 1, made
    [disk] = (cluster.base / "far-primary").glob("*.qcow2")
    assert "identical" in await run(*COMPARE, str(image), str(disk))
    _, gone = await scene.done("deleteTemplate", id=template, zoneid=scene.here)
    assert gone["jobstatus"] == 1 and scene.objects(scene.here) == set() and len(scene.objects(scene.other)) == 1
    assert await scene.rows(template) == {scene.other: True}
    _, back = await scene.done("copyTemplate", id=template, sourcezoneid=scene.other, destzoneid=scene.here)
    assert back["jobstatus"] == 1, back
    await scene.until_ready(template)
    [copy] = scene.objects(scene.here)
    assert "identical" in await run(*COMPARE, str(image), str(copy))
    _, gone = await scene.done("deleteTemplate", id=template)
    assert gone["jobstatus"] == 1 and not scene.objects(scene.here) | scene.objects(scene.other)
    assert await verify_all(cluster.dsn) == []
