"""The product on a real Swift: added over HTTP, a template from a URL, a snapshot backed up and restored, all of it deleted."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from uuid import uuid4

import pytest
from swiftclient.client import Connection

from agents.hypervisors.kvm import KvmHypervisor
from agents.qemu import run
from api.verify import verify_all
from tests.conftest import missing
from tests.services.swift import SwiftServer
from tests.support.up import Refusal, Up
from tests.support.web import Site, site

pytestmark = [pytest.mark.needs_swift, pytest.mark.needs_qemu]
MIB = 1 << 20


@dataclass
class Scene:
    """An installation, the web, and a container of its own that nobody has made yet."""

    up: Up
    web: Site
    swift: SwiftServer
    container: str

    async def add(self, **more: str) -> str:
        """Add Swift; the store's id. `more` overrides details."""
        details = {"account": self.swift.account, "username": self.swift.username, "key": self.swift.key,
                   "container": self.container} | more
        pairs = {f"details[{n}].{part}": value for n, (name, text) in enumerate(details.items())
                 for part, value in (("key", name), ("value", text))}
        answer = await self.up.call("addImageStore", name=f"s-{uuid4()}", provider="Swift", url=self.swift.url, **pairs)
        return str(answer["imagestore"]["id"])

    async def objects(self) -> set[str]:
        """All names in the container, segments too; by another client."""
        def names() -> set[str]:
            with contextlib.closing(self.client()) as client:
                return {one["name"] for one in client.get_container(self.container, full_listing=True)[1]}

        return await asyncio.to_thread(names)

    async def fetch(self, key: str, to: Path) -> None:
        """An object as another client gets it."""
        def get() -> None:
            with contextlib.closing(self.client()) as client:
                to.write_bytes(client.get_object(self.container, key)[1])

        await asyncio.to_thread(get)

    def client(self) -> Connection:
        """python-swiftclient as it is."""
        return Connection(self.swift.url, f"{self.swift.account}:{self.swift.username}", self.swift.key)

    async def disk(self, volume: str) -> Path:
        """A volume's file."""
        found = (await self.up.call("listVolumes", id=volume))["volume"][0]
        return self.up.data / "primary" / found["path"]


@pytest.fixture(scope="module")
async def scene(qemu_tools: None, swift_server: SwiftServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    if not any(point.name == "swift" for point in entry_points(group="storebus.image_store")):
        missing("the entry point of Swift", "run: scripts/setup test")
    folder: Path = tmp_path_factory.mktemp("web")
    async with site(folder, random.Random(3).randbytes(20 * MIB) + bytes(4 * MIB)) as web:
        up = Up(environment={"STOREBUS_DOWNLOAD_ALLOW": f"127.0.0.1/32:{web.port}"})
        try:
            await up.start()
            yield Scene(up, web, swift_server, f"images-{uuid4()}")
        finally:
            up.remove()


async def test_what_is_wrong_with_a_store_is_said_before_it_is_there(scene: Scene) -> None:
    listed = (await scene.up.call("listStorageProviders", type="image"))["dataStoreProvider"]
    assert "Swift" in {one["name"] for one in listed}
    for more, field in (({"key": "wrong-CANARY"}, "details.key"), ({"username": "nobody"}, "details.key"),
                        ({"storagepolicy": "tin"}, "details.storagepolicy"), ({"colour": "blue"}, "details.colour")):
        with pytest.raises(Refusal) as refusal:
            await scene.add(**more)
        assert field in refusal.value.text
        assert scene.swift.key not in refusal.value.text and "CANARY" not in refusal.value.text
    assert not (await scene.up.call("listImageStores")).get("imagestore")


async def test_the_whole_lifecycle_on_swift_byte_for_byte(scene: Scene, tmp_path: Path) -> None:
    up = scene.up
    store = await scene.add()
    [shown] = (await up.call("listImageStores"))["imagestore"]
    assert (shown["id"], shown["providername"]) == (store, "Swift")
    template, job = await up.done("registerTemplate", name="image", displaytext="image", url=scene.web.url("image"),
                                  format="QCOW2", hypervisor="KVM", zoneid="-1")
    assert job["jobstatus"] == 1, job
    [old] = await up.table("swift")  # the deprecated tables have their rows, and no secret
    assert (old["id"], old["url"], old["account"], old["username"]) == (store, scene.swift.url, scene.swift.account, scene.swift.username)
    assert "key" not in old and scene.swift.key not in str(await up.table("image_store") + await up.table("image_store_details"))
    [old] = await up.table("template_swift_ref")
    [ref] = await up.table("template_store_ref")
    assert (old["swift_id"], old["template_id"], old["path"]) == (store, template, ref["key"])
    assert (await up.call("listSwift"))["imagestore"][0]["id"] == store
    volume, _ = await up.done("createVolume", name="v", templateid=template)
    disk = await scene.disk(volume)
    await run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(scene.web.image), str(disk))
    frozen = tmp_path / "frozen.qcow2"
    await run("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", str(disk), str(frozen))
    first, taken = await up.done("createSnapshot", volumeid=volume, name="first")
    assert taken["jobstatus"] == 1, taken
    async with KvmHypervisor().open(str(disk), writable=True) as device:
        await device.write(0, b"changed!" * 64)
        await device.flush()
    await asyncio.to_thread(scene.swift.forget_tokens)
    second, taken = await up.done("createSnapshot", volumeid=volume, name="second")
    assert taken["jobstatus"] == 1, taken
    zone = (await up.call("listZones"))["zone"][0]["id"]
    for snapshot, original in ((first, frozen), (second, disk)):
        restored, made = await up.done("createVolume", name=f"r-{snapshot}", snapshotid=snapshot, zoneid=zone)
        assert made["jobstatus"] == 1, made
        await run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(original), str(await scene.disk(restored)))
    there = await scene.objects()
    key = next(one for one in there if first in one and one.endswith(".qcow2") and not one.startswith(".segments/"))
    await scene.fetch(key, tmp_path / "object.qcow2")
    await run("qemu-img", "check", "-f", "qcow2", str(tmp_path / "object.qcow2"))
    await run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(frozen), str(tmp_path / "object.qcow2"))
    assert any(one.startswith(".segments/") for one in there)
    for kind, command in (("volume", "deleteVolume"), ("snapshot", "deleteSnapshot"), ("template", "deleteTemplate")):
        listed = await up.call(f"list{kind.title()}s", **({"templatefilter": "all"} if kind == "template" else {}))
        for thing in listed.get(kind, []):
            answer = await up.call(command, id=thing["id"])
            if "jobid" in answer:
                await up.end(answer["jobid"])
    assert await scene.objects() == set()
    assert await verify_all(up.dsn) == []
    assert scene.swift.key not in up.log()
