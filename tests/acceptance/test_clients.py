"""Clients that others wrote for CloudStack, as they are published: each goes through a user's whole lifecycle.

All roles are processes of their own on RabbitMQ and Postgres, with a real S3 server and real disks; every request is signed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.conftest import missing
from tests.faults.cluster import Cluster, free_port, running
from tests.services.node import NodeMissing, find_node
from tests.support.web import Site, site

SCRIPT = Path(__file__).with_name("clients") / "lifecycle.js"
pytestmark = [pytest.mark.needs_rabbitmq, pytest.mark.needs_postgres, pytest.mark.needs_s3, pytest.mark.needs_qemu]


@dataclass
class Cloud:
    """An installation with identity, an image to fetch, and offerings."""

    cluster: Cluster
    url: str
    web: Site

    async def user(self) -> tuple[str, str]:
        """The keys of a new account's user."""
        name = f"user-{uuid4().hex[:8]}"
        account = await self.cluster.call("createAccount", username=name, password="canary-pw", email="a@b", firstname="A", lastname="B")
        keys = await self.cluster.call("registerUserKeys", id=account["account"]["user"][0]["id"])
        return keys["userkeys"]["apikey"], keys["userkeys"]["secretkey"]

    @property
    def image(self) -> str:
        """A template's URL."""
        return self.web.url("image")


@pytest.fixture(scope="module")
async def cloud(qemu_tools: None, rabbitmq: Any, postgres_server: Any, s3_server: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    signed, opened = free_port(), free_port()
    folder: Path = tmp_path_factory.mktemp("web")
    async with site(folder, random.Random(5).randbytes(2 << 20) + bytes(4 << 20)) as web, running(
            rabbitmq, postgres_server, s3_server, allow=f"127.0.0.1/32:{web.port}", environment={
                "STOREBUS_IDENTITY": "true", "STOREBUS_API_PORT": str(signed), "STOREBUS_OPEN_PORT": str(opened),
                "STOREBUS_MAX_IMAGE_BYTES": str(64 << 20)}, port=opened) as cluster:
        await cluster.add_store()
        await cluster.call("createDiskOffering", name="one", displaytext="1 GB", disksize=1)
        await cluster.call("createDiskOffering", name="any", displaytext="any size", customized="true")
        yield Cloud(cluster, f"http://127.0.0.1:{signed}/client/api", web)


async def left(cloud: Cloud) -> int:
    """What rests in the bucket and on the primary store."""
    return len(await asyncio.to_thread(cloud.cluster.objects)) + len(list((cloud.cluster.base / "primary").iterdir()))


async def test_cs(cloud: Cloud) -> None:
    cs = importlib.import_module("cs")
    key, secret = await cloud.user()

    def lifecycle() -> None:
        client = cs.CloudStack(endpoint=cloud.url, key=key, secret=secret, poll_interval=0.2)
        [zone] = client.listZones(fetch_list=True)
        offering = next(each for each in client.listDiskOfferings(fetch_list=True) if each["name"] == "one")
        template = client.registerTemplate(name="t", displaytext="t b~*/é [x]", url=cloud.image, format="QCOW2", hypervisor="KVM",
                                           zoneid=zone["id"])["template"][0]
        until_ready(lambda: client.listTemplates(templatefilter="self", id=template["id"], fetch_list=True))
        volume = client.createVolume(name="data", diskofferingid=offering["id"], zoneid=zone["id"], fetch_result=True)["volume"]
        assert (volume["size"], volume["state"]) == (1 << 30, "Ready")
        copy = client.createVolume(name="copy", templateid=template["id"], zoneid=zone["id"], fetch_result=True)["volume"]
        snapshot = client.createSnapshot(volumeid=copy["id"], fetch_result=True)["snapshot"]
        assert snapshot["state"] == "BackedUp"
        again = client.createVolume(name="again", snapshotid=snapshot["id"], zoneid=zone["id"], fetch_result=True)["volume"]
        assert again["size"] == copy["size"]
        assert sorted(each["name"] for each in client.listVolumes(fetch_list=True)) == ["again", "copy", "data"]
        with pytest.raises(cs.CloudStackApiException, match="no volume has the id"):
            client.deleteVolume(id=zone["id"])
        for each in (volume, copy, again):
            client.deleteVolume(id=each["id"])
        client.deleteSnapshot(id=snapshot["id"], fetch_result=True)
        client.deleteTemplate(id=template["id"], fetch_result=True)
        assert not client.listVolumes(fetch_list=True) and not client.listSnapshots(fetch_list=True)

    before = await left(cloud)
    await asyncio.to_thread(lifecycle)
    assert await left(cloud) == before


def until_ready(ask: Any) -> None:
    """Wait for a template, as its clients do: by asking."""
    import time

    for _ in range(300):
        found = ask()
        if found and found[0]["isready"]:
            return
        time.sleep(0.2)
    raise AssertionError(found)


async def test_libcloud(cloud: Cloud) -> None:
    """Images, volumes and snapshots by Libcloud's own methods; what it has no method for, by its connection."""
    try:
        types, providers = importlib.import_module("libcloud.compute.types"), importlib.import_module("libcloud.compute.providers")
    except ModuleNotFoundError:
        missing("apache-libcloud", "run: scripts/setup test")
    key, secret = await cloud.user()
    where = urlsplit(cloud.url)

    def lifecycle() -> None:
        driver = providers.get_driver(types.Provider.CLOUDSTACK)(key=key, secret=secret, secure=False, host=where.hostname, port=where.port,
                                                                 path=where.path)
        [location] = driver.list_locations()
        system = driver.ex_list_os_types()[0]
        template = driver._sync_request("registerTemplate", params={
            "ostypeid": system["id"],
            "name": "t", "displaytext": "libcloud's", "url": cloud.image, "format": "QCOW2", "hypervisor": "KVM", "zoneid": location.id})["template"][0]
        until_ready(lambda: driver._sync_request("listTemplates", params={"templatefilter": "self", "id": template["id"]}).get("template"))
        [image] = driver.list_images()
        assert (image.id, image.name, image.extra["format"], image.extra["os"]) == (template["id"], "t", "QCOW2", system["description"])
        volume = driver.create_volume(1, "data", location=location)
        driver.create_volume(2, "sized", location=location, ex_volume_type="any")
        snapshot = driver.create_volume_snapshot(volume)
        assert [each.id for each in driver.list_snapshots()] == [snapshot.id]
        again = driver._async_request("createVolume", params={"name": "again", "snapshotid": snapshot.id, "zoneid": location.id})["volume"]
        sizes = {each.name: each.size for each in driver.list_volumes()}
        assert sizes == {"data": 1 << 30, "sized": 2 << 30, "again": 1 << 30}
        driver.ex_create_tags([volume.id], "Volume", {"a": "b"})
        assert driver.ex_get_volume(volume.id).extra["tags"] == {"a": "b"}
        for each in driver.list_volumes():
            assert driver.destroy_volume(each)
        assert again["id"] and driver.destroy_volume_snapshot(snapshot)
        driver._async_request("deleteTemplate", params={"id": template["id"]})
        assert driver.list_volumes() == [] and driver.list_images() == []

    before = await left(cloud)
    await asyncio.to_thread(lifecycle)
    assert await left(cloud) == before


async def test_csclient_for_node(cloud: Cloud) -> None:
    try:
        program, modules = find_node("csclient")
    except NodeMissing as error:
        missing(str(error), "and run this again")
    key, secret = await cloud.user()
    before = await left(cloud)
    process = await asyncio.create_subprocess_exec(
        program, str(SCRIPT), f"{cloud.url}?", key, secret, cloud.image, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"NODE_PATH": str(modules), "NODE_NO_WARNINGS": "1"})
    try:
        out, err = await asyncio.wait_for(process.communicate(), 100)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, err.decode()
    told = json.loads(out)
    assert told == {"template": "node b~*/é", "size": told["size"], "state": "BackedUp", "volumes": ["again", "copy", "data"],
                    "refused": 431, "left": 0}
    assert told["size"] and await left(cloud) == before
