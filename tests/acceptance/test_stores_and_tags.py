"""An operator's day through the whole product: stores added under old and new names, staged on, tagged, refused, deleted. Real HTTP, real
Postgres, real bytes in folders that stand for NFS exports."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from agents.image_stores.folder import SENTINEL
from tests.services.forked import told
from tests.support.up import Refusal, Up
from tests.support.web import Site, site

pytestmark = pytest.mark.needs_qemu


@pytest.fixture(scope="module")
async def running(qemu_tools: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Up, Site]]:
    async with site(tmp_path_factory.mktemp("web"), random.Random(5).randbytes(1 << 20) + bytes(1 << 20)) as web:
        up = Up(environment={"STOREBUS_DOWNLOAD_ALLOW": f"127.0.0.1/32:{web.port}"})
        try:
            await up.start()
            yield up, web
        finally:
            up.remove()


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {SENTINEL}


def tags(**pairs: str) -> dict[str, str]:
    return {f"tags[{n}].{part}": text for n, pair in enumerate(pairs.items()) for part, text in zip(("key", "value"), pair, strict=True)}


async def test_an_operators_day(running: tuple[Up, Site], tmp_path: Path) -> None:
    up, web = running
    zone = (await up.call("listZones"))["zone"][0]["id"]
    folders = {name: tmp_path / name for name in ("images", "scratch")}
    for folder in folders.values():
        folder.mkdir()

    def at(name: str) -> dict[str, str]:
        return {"details[0].key": "mountpoint", "details[0].value": str(folders[name])}

    assert {each["name"] for each in (await up.call("listStorageProviders", type="image"))["dataStoreProvider"]} >= {"NFS", "S3", "Swift"}
    staging = (await up.call("createSecondaryStagingStore", url="nfs://filer/scratch", zoneid=zone, **at("scratch")))["secondarystorage"]["id"]
    with pytest.raises(Refusal, match="no image store reaches this zone"):
        await up.call("registerTemplate", name="t", displaytext="t", url=web.url("image"), format="QCOW2", hypervisor="KVM", zoneid=zone)
    with pytest.raises(Refusal, match="is not mounted on this agent's host"):
        await up.call("addSecondaryStorage", url="nfs://filer/nowhere", zoneid=zone)
    store = (await up.call("addImageStore", providerName="NFS", storeName="images", url="nfs://filer/images", zoneId=zone,
                           **at("images")))["imagestore"]["id"]
    await up.call("configureBackupProvider", provider="NFS")

    template, job = await up.done("registerTemplate", name="debian", displaytext="t", url=web.url("image"), format="QCOW2",
                                  hypervisor="KVM", zoneid=zone)
    assert job["jobstatus"] == 1, job
    volume, _ = await up.done("createVolume", name="v", templateid=template)
    snapshot, job = await up.done("createSnapshot", volumeid=volume, name="nightly")
    assert job["jobstatus"] == 1, job
    [shown] = (await up.call("listImageStores"))["imagestore"]
    sizes = [(await up.call("listTemplates", templatefilter="all"))["template"][0]["physicalsize"],
             (await up.call("listSnapshots"))["snapshot"][0]["physicalsize"]]
    assert shown["disksizeused"] == sum(sizes) > 0
    assert left(folders["scratch"]) == set(), "nothing is placed on a staging store"

    await tables(up, store, staging, template, snapshot)

    with pytest.raises(Refusal) as refused:
        await up.call("deleteImageStore", id=store)
    assert refused.value.code == 431
    assert f"snapshot nightly ({snapshot}), template debian ({template})" in refused.value.text

    _, job = await up.done("createTags", resourceids=snapshot, resourcetype="Snapshot", **tags(keep="yes", token="t1"))
    assert job["jobresult"] == {"success": True}
    assert (await up.call("listSnapshots", **tags(keep="yes", token="t1")))["snapshot"][0]["id"] == snapshot
    assert await up.call("listSnapshots", **tags(keep="yes", token="t2")) == {}
    assert {(each["key"], each["value"], each["resourceid"]) for each in (await up.call("listTags", resourcetype="snapshot"))["tag"]} == {
        ("keep", "yes", snapshot), ("token", "t1", snapshot)}
    await up.done("deleteTags", resourceids=snapshot, resourcetype="Snapshot", **{"tags[0].key": "token"})
    assert (await up.call("listTags"))["count"] == 1

    async with aiohttp.ClientSession() as http, http.get(f"{up.url}/client/api", params={"command": "listS3s"}) as answer:
        assert answer.status == 200 and "Deprecation" in answer.headers
    for command, thing in (("deleteSnapshot", snapshot), ("deleteTemplate", template)):
        assert (await up.done(command, id=thing))[1]["jobstatus"] == 1
    assert await up.call("listTags") == {}, "tags go with their thing"
    assert await up.call("deleteSecondaryStagingStore", id=staging) == {"success": True}
    assert await up.call("deleteImageStore", id=store) == {"success": True}
    assert left(folders["images"]) == left(folders["scratch"]) == set()


async def test_what_clients_ask_at_their_start(running: tuple[Up, Site]) -> None:
    up, _ = running
    assert (await up.call("listOsTypes", keyword="debian gnu", pagesize=2, page=1))["count"] == 6
    assert (await up.call("listHypervisors"))["hypervisor"] == [{"name": "KVM"}]
    settings = {each["name"]: each["value"] for each in (await up.call("listConfigurations", pagesize=-1))["configuration"]}
    assert settings["storebus.data.dir"] == str(up.data) and settings["storage.max.volume.size"] == "2000"
    assert not [name for name in settings if "key" in name or "token" in name]
    assert (await up.call("listCapabilities"))["capability"]["customdiskofferingmaxsize"] == 2000
    assert {each["max"] for each in (await up.call("listResourceLimits"))["resourcelimit"]} == {-1}
    [account] = (await up.call("listAccounts", details="min", name="admin"))["account"]
    assert "user" not in account and (await up.call("listDomains", listall="true"))["domain"][0]["path"] == "ROOT"
    for command in ("listProjects", "listTags"):
        assert await up.call(command, listall="true") in ({}, {"count": 0})


async def tables(up: Up, store: str, staging: str, template: str, snapshot: str) -> None:
    """The tables that administrators read, each with its row of this story."""
    rows = {row["id"]: row for row in await up.table("image_store")}
    assert {key: (row["name"], row["role"]) for key, row in rows.items() if row["state"] == "Ready"} == {
        store: ("images", "Image"), staging: ("nfs://filer/scratch", "ImageCache")}
    assert [{**row} for row in await up.table("image_data_store")] == list(rows.values())
    assert {(row["store_id"], row["name"]) for row in await up.table("image_store_details")} >= {(store, "mountpoint"), (staging, "mountpoint")}
    [ref] = await up.table("template_store_ref")
    [copy] = await up.table("snapshot_store_ref")
    assert (ref["template_id"], ref["store_id"], ref["state"]) == (template, store, "Ready")
    assert (copy["snapshot_id"], copy["store_id"], copy["state"]) == (snapshot, store, "Ready")
    [old] = await up.table("template_host_ref")
    assert (old["template_id"], old["host_id"], old["download_state"], old["download_pct"], old["destroyed"], old["install_path"]) == (
        template, store, "DOWNLOADED", 100, False, ref["key"])
    assert old["url"].startswith("http://127.0.0.1") and old["physical_size"] == ref["physical_size"] > 0
    for other in ("s3", "swift", "template_s3_ref", "template_swift_ref"):
        assert await up.table(other) == []


async def test_the_tables_are_their_fold(running: tuple[Up, Site]) -> None:
    """After all that: what the read tables hold is what the log says, tags and choices too."""
    up, _ = running
    await verified(up)


async def verified(up: Up) -> None:
    status, out, err = await asyncio.to_thread(told, "verify", "--data-dir", str(up.data), env=os.environ)
    assert status == 0, (out + err).decode()
