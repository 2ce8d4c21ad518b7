"""Clients that others wrote for CloudStack, as they are published: each goes through a user's whole lifecycle, unchanged.

All roles are processes of their own on RabbitMQ and Postgres, with a real S3 server, real disks and (where qemu-system is) a machine
of the user's own; every request is signed. What a client made it deletes, and nothing stays: no object, no disk, no counter.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import random
import shutil
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from agents.machine import PROGRAM
from tests.conftest import missing
from tests.faults.cluster import Cluster, free_port, running
from tests.services.node import NodeMissing, find_node
from tests.support.machines import define, end_all
from tests.support.web import Site, site

SCRIPT = Path(__file__).with_name("clients") / "lifecycle.js"
pytestmark = [pytest.mark.needs_rabbitmq, pytest.mark.needs_postgres, pytest.mark.needs_s3, pytest.mark.needs_qemu]


MACHINES = "machines"
QCOW2 = b"QFI\xfb"
"""What an image of that format begins with."""


@dataclass(frozen=True)
class User:
    """Somebody with an account of their own."""

    key: str
    secret: str
    machine: str
    """The id of the account's machine; empty where there is no program that machines are."""


@dataclass
class Cloud:
    """An installation with identity, an image to fetch, and offerings."""

    cluster: Cluster
    url: str
    web: Site

    async def user(self) -> User:
        """A new account, its user's keys, and its machine, running."""
        name = f"user-{uuid4().hex[:8]}"
        account = (await self.cluster.call("createAccount", username=name, password="canary-pw", email="a@b", firstname="A",
                                           lastname="B"))["account"]
        keys = (await self.cluster.call("registerUserKeys", id=account["user"][0]["id"]))["userkeys"]
        return User(keys["apikey"], keys["secretkey"], await self._machine(account["id"]))

    async def _machine(self, account: str) -> str:
        if shutil.which(PROGRAM) is None:
            return ""
        wanted = uuid4()
        define(self.cluster.base / MACHINES, wanted, account=account)
        for _ in range(900):
            found = await self.cluster.call("listVirtualMachines", id=wanted, listall="true")
            if found and found["virtualmachine"][0]["state"] == "Running":
                return str(wanted)
            await asyncio.sleep(0.1)
        raise AssertionError(self.cluster.logs())

    @property
    def image(self) -> str:
        """A template's URL."""
        return self.web.url("image")

    async def left(self) -> tuple[set[str], set[str], dict[str, int]]:
        """What rests in the bucket and on the primary store, and every counter that is not 0."""
        connection = await asyncpg.connect(self.cluster.dsn)
        try:
            counters = {row["name"]: row["value"] for row in await connection.fetch("SELECT name, value FROM es.counter WHERE value <> 0")}
        finally:
            await connection.close()
        return (await asyncio.to_thread(self.cluster.objects), {path.name for path in (self.cluster.base / "primary").iterdir()}, counters)


@pytest.fixture(scope="module")
async def cloud(qemu_tools: None, rabbitmq: Any, postgres_server: Any, s3_server: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    signed, opened = free_port(), free_port()
    folder: Path = tmp_path_factory.mktemp("web")
    async with site(folder, random.Random(5).randbytes(2 << 20) + bytes(4 << 20)) as web, running(
            rabbitmq, postgres_server, s3_server, allow=f"127.0.0.1/32:{web.port}", environment={
                "STOREBUS_IDENTITY": "true", "STOREBUS_API_PORT": str(signed), "STOREBUS_OPEN_PORT": str(opened),
                "STOREBUS_MAX_IMAGE_BYTES": str(64 << 20)}, port=opened) as cluster:
        (cluster.base / MACHINES).mkdir()
        cluster.kill("kvm")
        cluster.start("kvm")  # it knows the folder from now on
        try:
            await cluster.add_store()
            await cluster.call("createDiskOffering", name="one", displaytext="1 GB", disksize=1)
            await cluster.call("createDiskOffering", name="any", displaytext="any size", customized="true")
            yield Cloud(cluster, f"http://127.0.0.1:{signed}/client/api", web)
        finally:
            cluster.kill("kvm")  # else it would start them again
            end_all(cluster.base)


def until_ready(ask: Any) -> None:
    """Wait for a template, as its clients do: by asking."""
    for _ in range(300):
        found = ask()
        if found and found[0]["isready"]:
            return
        time.sleep(0.2)
    raise AssertionError(found)


def begins(url: str) -> bytes:
    """The first bytes behind a URL."""
    with urllib.request.urlopen(url, timeout=20) as answer:
        return bytes(answer.read(len(QCOW2)))


async def test_cs(cloud: Cloud) -> None:
    cs = importlib.import_module("cs")
    user = await cloud.user()

    def at_a_machine(client: Any, volume: str) -> None:
        [machine] = client.listVirtualMachines(fetch_list=True)
        assert (machine["id"], machine["state"]) == (user.machine, "Running")
        attached = client.attachVolume(id=volume, virtualmachineid=machine["id"], fetch_result=True)["volume"]
        assert (attached["virtualmachineid"], attached["vmname"]) == (machine["id"], machine["name"])
        assert [each["id"] for each in client.listVolumes(virtualmachineid=machine["id"], fetch_list=True)] == [volume]
        with pytest.raises(cs.CloudStackApiException, match="attached to the machine"):
            client.deleteVolume(id=volume)
        assert "virtualmachineid" not in client.detachVolume(id=volume, fetch_result=True)["volume"]

    def lifecycle() -> None:
        client = cs.CloudStack(endpoint=cloud.url, key=user.key, secret=user.secret, poll_interval=0.2)
        [zone] = client.listZones(fetch_list=True)
        offering = next(each for each in client.listDiskOfferings(fetch_list=True) if each["name"] == "one")
        template = client.registerTemplate(name="t", displaytext="t b~*/é [x]", url=cloud.image, format="QCOW2", hypervisor="KVM",
                                           zoneid=zone["id"])["template"][0]
        until_ready(lambda: client.listTemplates(templatefilter="self", id=template["id"], fetch_list=True))
        volume = client.createVolume(name="data", diskofferingid=offering["id"], zoneid=zone["id"], fetch_result=True)["volume"]
        assert (volume["size"], volume["state"]) == (1 << 30, "Ready")
        copy = client.createVolume(name="copy", templateid=template["id"], zoneid=zone["id"], fetch_result=True)["volume"]
        snapshots = [client.createSnapshot(volumeid=copy["id"], fetch_result=True)["snapshot"] for _ in range(2)]
        assert [each["state"] for each in snapshots] == ["BackedUp", "BackedUp"]
        golden = client.createTemplate(name="golden", displaytext="golden", snapshotid=snapshots[1]["id"], ostypeid=template["ostypeid"],
                                       fetch_result=True)["template"]
        assert golden["isready"] and golden["size"] == copy["size"]
        again = client.createVolume(name="again", snapshotid=snapshots[1]["id"], zoneid=zone["id"], fetch_result=True)["volume"]
        assert again["size"] == copy["size"]
        if user.machine:
            at_a_machine(client, volume["id"])
        assert client.resizeVolume(id=again["id"], size=1, fetch_result=True)["volume"]["size"] == 1 << 30
        link = client.extractVolume(id=again["id"], zoneid=zone["id"], mode="HTTP_DOWNLOAD", fetch_result=True)["volume"]
        assert begins(link["url"]) == QCOW2
        client.revokeExtractUrl(extractid=link["extractId"], fetch_result=True)
        assert sorted(each["name"] for each in client.listVolumes(fetch_list=True)) == ["again", "copy", "data"]
        with pytest.raises(cs.CloudStackApiException, match="no volume has the id"):
            client.deleteVolume(id=zone["id"])
        for each in (volume, copy, again):
            client.deleteVolume(id=each["id"])
        for each in snapshots:
            client.deleteSnapshot(id=each["id"], fetch_result=True)
        for each in (template, golden):
            client.deleteTemplate(id=each["id"], fetch_result=True)
        assert not client.listVolumes(fetch_list=True) and not client.listSnapshots(fetch_list=True)
        assert not client.listTemplates(templatefilter="self", fetch_list=True)

    before = await cloud.left()
    await asyncio.to_thread(lifecycle)
    assert await cloud.left() == before


async def test_libcloud(cloud: Cloud) -> None:
    """Nodes, images, volumes and snapshots by Libcloud's own methods; what it has no method for, by its connection."""
    try:
        types, providers = importlib.import_module("libcloud.compute.types"), importlib.import_module("libcloud.compute.providers")
    except ModuleNotFoundError:
        missing("apache-libcloud", "run: scripts/setup test")
    user = await cloud.user()
    where = urlsplit(cloud.url)

    def at_a_node(driver: Any, volume: Any) -> None:
        [node] = driver.list_nodes()
        assert (node.id, node.state, node.public_ips) == (user.machine, "running", [])
        assert driver.ex_get_node(node.id).name == node.name
        assert driver.attach_volume(node, volume)
        assert [each.id for each in driver.list_volumes(node=node)] == [volume.id]
        assert driver.ex_get_volume(volume.id).extra["instance_id"] == node.id
        assert driver.detach_volume(volume)
        assert driver.list_volumes(node=node) == []

    def lifecycle() -> None:
        driver = providers.get_driver(types.Provider.CLOUDSTACK)(key=user.key, secret=user.secret, secure=False, host=where.hostname,
                                                                 port=where.port, path=where.path)
        [location] = driver.list_locations()
        template = driver._sync_request("registerTemplate", params={
            "name": "t", "displaytext": "libcloud's", "url": cloud.image, "format": "QCOW2", "hypervisor": "KVM",
            "zoneid": location.id})["template"][0]
        until_ready(lambda: driver._sync_request("listTemplates", params={"templatefilter": "self", "id": template["id"]}).get("template"))
        [image] = driver.list_images(location)
        assert (image.id, image.name, image.extra["format"], image.extra["os"]) == (template["id"], "t", "QCOW2", "None")
        volume = driver.create_volume(1, "data", location=location)
        sized = driver.create_volume(2, "sized", location=location, ex_volume_type="any")
        snapshots = [driver.create_volume_snapshot(volume) for _ in range(2)]  # the second one is a delta
        assert {each.id for each in driver.list_snapshots()} == {each.id for each in snapshots}
        system = next(each for each in driver.ex_list_os_types() if each["description"].startswith("Debian"))
        golden = driver.ex_create_snapshot_template(snapshots[1], "golden", system["id"])
        assert golden.extra["os"] == system["description"]
        assert {each.id for each in driver.list_images()} == {image.id, golden.id}
        again = driver._async_request("createVolume", params={"name": "again", "snapshotid": snapshots[1].id, "zoneid": location.id})["volume"]
        if user.machine:
            at_a_node(driver, volume)
        assert driver._async_request("resizeVolume", params={"id": sized.id, "size": 3})["volume"]["size"] == 3 << 30
        assert {each.name: each.size for each in driver.list_volumes()} == {"data": 1 << 30, "sized": 3 << 30, "again": 1 << 30}
        driver.ex_create_tags([volume.id], "Volume", {"a": "b"})
        assert driver.ex_get_volume(volume.id).extra["tags"] == {"a": "b"}
        assert driver.ex_limits()["max_volumes"] == 20
        link = driver._async_request("extractVolume", params={"id": again["id"], "zoneid": location.id, "mode": "HTTP_DOWNLOAD"})["volume"]
        assert begins(link["url"]) == QCOW2
        driver._async_request("revokeExtractUrl", params={"extractid": link["extractId"]})
        for each in driver.list_volumes():
            assert driver.destroy_volume(each)
        for each in snapshots:
            assert driver.destroy_volume_snapshot(each)
        for each in driver.list_images():
            driver._async_request("deleteTemplate", params={"id": each.id})
        assert driver.list_volumes() == [] and driver.list_images() == []

    before = await cloud.left()
    await asyncio.to_thread(lifecycle)
    assert await cloud.left() == before


async def test_csclient_for_node(cloud: Cloud) -> None:
    try:
        program, modules = find_node("csclient")
    except NodeMissing as error:
        missing(str(error), "and run this again")
    user = await cloud.user()
    before = await cloud.left()
    process = await asyncio.create_subprocess_exec(
        program, str(SCRIPT), f"{cloud.url}?", user.key, user.secret, cloud.image, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env={"NODE_PATH": str(modules), "NODE_NO_WARNINGS": "1"})
    try:
        out, err = await asyncio.wait_for(process.communicate(), 100)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, err.decode()
    told = json.loads(out)
    assert told == {"template": "node b~*/é", "size": told["size"], "states": ["BackedUp", "BackedUp"], "golden": told["size"],
                    "machine": user.machine, "attached": bool(user.machine), "detached": True, "resized": 1 << 30, "begins": "QFI",
                    "volumes": ["again", "copy", "data"], "refused": 431, "left": 0}
    assert told["size"] and await cloud.left() == before
