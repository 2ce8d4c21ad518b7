"""Copies between zones whose stores reach no other zone: every role, those of the other zone too, is killed while the bytes move."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.qemu import run
from schema.ids import derive
from tests.acceptance.test_template_zones import Scene
from tests.faults.checker import findings
from tests.faults.cluster import ROLES, running
from tests.faults.commands import seeded
from tests.services.http_files import HttpFiles

pytestmark = pytest.mark.needs_qemu
SOAK = bool(os.environ.get("STOREBUS_SOAK_N"))
SEED = int(os.environ.get("STOREBUS_SOAK_SEED", os.environ.get("STOREBUS_SEED", "1")))
PAIRS = [(command, role) for command in ("copyTemplate", "copySnapshot", "createSnapshot") for role in (*ROLES, "far-storage", "far-kvm")]


@pytest.fixture(scope="module")
async def scene(qemu_tools: None, rabbitmq: Any, postgres_server: Any, s3_server: Any, tmp_path_factory: pytest.TempPathFactory,
                ) -> AsyncIterator[Scene]:
    """Two zones, a folder as the image store of each, an image on a web server."""
    folder, web = tmp_path_factory.mktemp("zones"), HttpFiles()
    raw, image = folder / "raw", folder / "image.qcow2"
    raw.write_bytes(random.Random(SEED).randbytes(20 << 20) + bytes(1 << 20))
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    web.bodies["os.qcow2"] = image.read_bytes()
    async with running(rabbitmq, postgres_server, s3_server, allow=web.allow) as cluster:
        here = (await cluster.call("listZones"))["zone"][0]["id"]
        other = (await cluster.call("createZone", name="zone-2", networktype="Basic", dns1="10.0.0.1", internaldns1="10.0.0.1"))["zone"]["id"]
        made = Scene(cluster, web, here, other, {here: folder / "here", other: folder / "other"})
        for kind in ("storage", "kvm"):
            made.start(kind)
        for zone, place in made.folders.items():
            place.mkdir()
            await made.add(zone, place.name)
        yield made
    web.close()


def objects(scene: Scene) -> set[str]:
    """Keys of both stores."""
    return {str(path.relative_to(root)) for root in scene.folders.values() for path in root.rglob("*.qcow2*") if path.is_file()}


async def at_rest(scene: Scene) -> None:
    """The invariants hold."""
    cluster = scene.cluster
    for _ in range(900):
        found = await findings(cluster.dsn, cluster.base, lambda: asyncio.to_thread(objects, scene), set())
        if not found:
            return
        await asyncio.sleep(0.2)
    raise AssertionError("\n".join([*found, cluster.logs()[-3000:]]))


async def needed(scene: Scene, command: str) -> tuple[str, dict[str, Any]]:
    """The template that it begins with, and what it is asked with."""
    answer = await scene.cluster.call("registerTemplate", name="os", displaytext="os", url=scene.web.url("file/os.qcow2"), format="QCOW2",
                                      hypervisor="KVM", zoneid=scene.here)
    template = answer["template"][0]
    assert (await scene.cluster.end(template["jobid"]))["jobstatus"] == 1
    if command == "copyTemplate":
        return template["id"], {"id": template["id"], "sourcezoneid": scene.here, "destzoneid": scene.other}
    volume, ended = await scene.done("createVolume", name="v", templateid=template["id"], zoneid=scene.here)
    assert ended["jobstatus"] == 1, ended
    if command == "createSnapshot":
        return template["id"], {"volumeid": volume, "zoneids": scene.other}
    snapshot, ended = await scene.done("createSnapshot", volumeid=volume)
    assert ended["jobstatus"] == 1, ended
    return template["id"], {"id": snapshot, "destzoneids": scene.other}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("command", "role"), PAIRS if SOAK else seeded(PAIRS, 2, SEED))
async def test_killed_while_a_copy_moves(scene: Scene, command: str, role: str) -> None:
    """The copy is there once, in both zones; then it is deleted, and nothing stays in either."""
    cluster, job = scene.cluster, str(uuid4())
    template, parameters = await needed(scene, command)
    asked = asyncio.create_task(cluster.persist(command, customjobid=job, **parameters))
    await cluster.reached(job, random.Random(f"{SEED} {command} {role}").randint(0 if role == "api" else 1, 5))
    await asyncio.to_thread(cluster.kill, role)
    if role.startswith("far-"):
        scene.start(role.removeprefix("far-"))
    else:
        cluster.start(role)
    await asked
    assert (await cluster.end(job))["jobstatus"] == 1
    await at_rest(scene)
    thing = template if command == "copyTemplate" else parameters.get("id") or str(derive(UUID(job), "snapshot"))
    assert len([key for key in objects(scene) if thing in key and key.endswith(".qcow2")]) == 2, objects(scene)
    if command != "copyTemplate":
        assert (await scene.done("deleteSnapshot", id=thing))[1]["jobstatus"] == 1
    assert (await scene.done("deleteTemplate", id=template))[1]["jobstatus"] == 1
    await at_rest(scene)
    assert objects(scene) == set()
