"""Image stores as an operator has them: added, staged on, refused, deprecated names, the backup provider. Through the edge, in memory."""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

import pytest

from api import deprecation
from api.edge import Edge
from bus.event_store import AppendRequest, CounterChange, NewRow
from handlers.agent import create_zone
from handlers.image_store import SHOWN
from handlers.survey import Survey
from schema.codec import encode
from schema.ids import zone_named
from schema.image_store import CreateStagingStore
from schema.job import CancelJob
from schema.zone import ZoneCreated
from tests.support.system import FakeSystem

SECRET = "canary-41ac"


class Operator:
    """A caller of an empty cloud whose agents work as soon as they are asked."""

    def __init__(self, system: FakeSystem) -> None:
        self.system, self.edge = system, Edge(system, wait_s=5)
        self.zone = str(system.cloud.zone_id)

    async def ask(self, command: str, **parameters: object) -> tuple[int, dict[str, Any]]:
        async with self.system.working():
            answer = await self.edge.call({"command": command, **{name: str(value) for name, value in parameters.items()}})
        return answer.status, answer.body[next(iter(answer.body))]

    async def ok(self, command: str, **parameters: object) -> dict[str, Any]:
        status, body = await self.ask(command, **parameters)
        assert status == 200, body
        if "jobid" in body:
            await self.system.cloud.submissions()
            await self.system.cloud.settle()
        return body

    async def refused(self, command: str, code: int = 431, **parameters: object) -> str:
        head = await self.system.store.head()
        status, body = await self.ask(command, **parameters)
        assert status == code, body
        if head == await self.system.store.head() or "jobid" not in body:
            return str(body["errortext"])
        raise AssertionError(body)

    async def s3(self, name: str = "objects", bucket: str = "b") -> str:
        body = await self.ok("addImageStoreS3", accesskey="a", secretkey=SECRET, endpoint="http://s3", bucket=bucket)
        await self.ok("updateImageStore", id=body["imagestore"]["id"], name=name)
        return str(body["imagestore"]["id"])

    async def snapshot(self, name: str) -> dict[str, str]:
        volume = (await self.ok("createVolume", name=f"of {name}", size=1))["id"]
        return {"id": (await self.ok("createSnapshot", volumeid=volume, name=name))["id"], "volume": volume}


@pytest.fixture
async def it() -> Operator:
    made = Operator(await FakeSystem.start())
    return made


async def test_the_specs_spellings(it: Operator) -> None:
    store = (await it.ok("addImageStore", providerName="NFS", storeName="images", zoneId=it.zone, url="nfs://filer/x"))["imagestore"]
    assert (store["name"], store["providername"], store["scope"], store["zoneid"], store["zonename"], store["protocol"]) == (
        "images", "NFS", "ZONE", it.zone, "zone-1", "nfs")
    for parameters in ({"storeName": "images"}, {"name": "images"}, {"id": store["id"]}, {"protocol": "nfs"}, {"provider": "nfs"},
                       {"providerName": "NFS"}, {"zoneId": it.zone}, {"readonly": "false"}, {"keyword": "MAG"}):
        assert (await it.ok("listImageStores", **parameters))["count"] == 1, parameters
    for parameters in ({"name": "x"}, {"protocol": "s3"}, {"provider": "s3"}, {"zoneid": str(uuid4())}, {"readonly": "true"}):
        assert await it.ok("listImageStores", **parameters) == {}, parameters


async def test_what_rests_on_a_store_is_shown(it: Operator) -> None:
    store = await it.s3()
    [shown] = (await it.ok("listImageStores"))["imagestore"]
    assert shown["disksizeused"] == 0 and "disksizetotal" not in shown
    await it.ok("updateImageStore", id=store, capacitybytes=10 << 30)
    await it.snapshot("first")
    [shown] = (await it.ok("listImageStores"))["imagestore"]
    assert (shown["disksizetotal"], shown["disksizeused"]) == (10 << 30, 1000)


@pytest.mark.parametrize(("parameters", "named"), [
    ({"provider": "S3", "zoneid": "ZONE", "details[0].key": "bucket", "details[0].value": "b"}, "zoneid: stores of the provider s3 are region-wide"),
    ({"provider": "nfs", "url": "nfs://f/x", "zoneid": str(uuid4())}, "no zone has the id"),
    ({"provider": "nfs", "name": "here"}, "an image store is already named 'here'"),
    ({"provider": "swift", "details[0].key": "username", "details[0].value": "u", "details[1].key": "key", "details[1].value": SECRET},
     "image stores here are of the provider nfs; providers are not mixed"),
    ({"provider": "tape"}, "no provider is named 'tape'"),
])
async def test_what_cannot_be_added(it: Operator, parameters: dict[str, str], named: str) -> None:
    if "S3" not in parameters.values():
        await it.ok("addImageStore", provider="nfs", name="here", url="nfs://f/here")
    sent = {name: it.zone if value == "ZONE" else value for name, value in parameters.items()}
    error = await it.refused("addImageStore", **sent)
    assert named in error and SECRET not in error


async def test_a_zone_is_named_where_there_are_several(it: Operator) -> None:
    await create_zone(it.system.cloud.runtime, "zone-2")
    assert "zoneid: missing" in await it.refused("addImageStore", provider="nfs", url="nfs://f/x")


async def test_a_store_in_use_is_not_deleted_and_says_by_what(it: Operator) -> None:
    store = await it.s3()
    template = (await it.ok("registerTemplate", name="debian", url="http://x/y", format="RAW"))["template"][0]["id"]
    made = await it.snapshot("first")
    error = await it.refused("deleteImageStore", id=store)
    assert f"2 things reside on the image store: snapshot first ({made['id']}), template debian ({template})" in error
    await it.ok("deleteTemplate", id=template)
    # A snapshot that is deleted while another is a delta of it stays, and is told.
    second = (await it.ok("createSnapshot", volumeid=made["volume"], name="second"))["id"]
    await it.ok("deleteSnapshot", id=made["id"])
    error = await it.refused("deleteImageStore", id=store)
    assert f"2 things reside on the image store: hidden snapshot first ({made['id']}), snapshot second ({second})" in error
    await it.ok("deleteSnapshot", id=second)
    assert await it.ok("deleteImageStore", id=store) == {"success": True}
    assert await it.ok("listImageStores") == {}


async def test_what_is_on_its_way_resides_there_too_and_the_list_is_bounded(it: Operator) -> None:
    store = await it.s3()
    answer = await it.edge.call({"command": "createVolume", "name": "v", "size": "1"})
    await it.system.cloud.submissions()
    await it.system.cloud.settle()
    volume = answer.body["createvolumeresponse"]["id"]
    await it.edge.call({"command": "createSnapshot", "volumeid": volume, "name": "coming"})  # no agent works on it
    await it.system.cloud.submissions()
    answer = await it.edge.call({"command": "deleteImageStore", "id": store})
    assert answer.status == 431 and "1 thing resides on the image store: snapshot coming (" in answer.error
    await it.system.cloud.settle()
    for n in range(SHOWN + 2):
        await it.ok("registerTemplate", name=f"t{n}", url="http://x/y", format="RAW")
    error = await it.refused("deleteImageStore", id=store)
    assert f"{SHOWN + 3} things reside on the image store" in error and "and 3 more" in error
    assert error.count("(") == SHOWN


async def test_another_handler_that_saw_less_does_not_delete_it_either(it: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is what one process knows; the counter in the append is what decides."""
    store = await it.s3()
    await it.snapshot("first")
    monkeypatch.setattr(Survey, "residents", lambda survey, store_id: [])  # a process that is behind
    error = await it.refused("deleteImageStore", id=store)
    assert "reside on the image store" in error
    assert (await it.ok("listImageStores"))["count"] == 1


# --- staging stores ---


async def test_a_staging_store_holds_no_image(it: Operator) -> None:
    made = (await it.ok("createSecondaryStagingStore", url="nfs://filer/scratch", zoneid=it.zone))["secondarystorage"]
    assert (made["scope"], made["zoneid"], made["providername"], made["name"]) == ("ZONE", it.zone, "NFS", "nfs://filer/scratch")
    assert await it.ok("listImageStores") == {}
    for parameters in ({}, {"id": made["id"]}, {"zoneid": it.zone}, {"provider": "NFS"}, {"protocol": "nfs"}, {"name": made["name"]}):
        assert (await it.ok("listSecondaryStagingStores", **parameters))["imagestore"][0]["id"] == made["id"]
    # Nothing is placed on it: without an image store there is no room for anything.
    error = await it.refused("registerTemplate", 503, name="t", url="http://x/y", format="RAW")
    assert "no image store reaches this zone" in error
    store = await it.s3()  # its provider is not mixed with that of image stores
    await it.ok("registerTemplate", name="t", url="http://x/y", format="RAW")
    await it.snapshot("s")
    refs = [row for table in ("template_store_ref", "snapshot_store_ref") for row in (await it.system.rows(table))[0]]
    assert {row["store_id"] for row in refs} == {store}
    # Nor is it one of the image stores to any of their commands.
    for command, more in (("deleteImageStore", {}), ("updateImageStore", {"name": "n"}), ("scrubImageStore", {})):
        assert "no image store has the id" in await it.refused(command, id=made["id"], **more)
    assert "no staging store has the id" in await it.refused("deleteSecondaryStagingStore", id=store)
    assert await it.ok("deleteSecondaryStagingStore", id=made["id"]) == {"success": True}
    assert await it.ok("listSecondaryStagingStores") == {}
    claims = await it.system.store.claims()
    assert not [name for name in claims if name.startswith("staging_store")]
    assert claims["image_store.provider"]


async def staged(it: Operator, store: str, delta: int) -> None:
    """What a job that stages there counts: none does in this version, so the test does."""
    zone = uuid4()
    fact = ZoneCreated(zone_id=zone, name=str(zone))
    await it.system.store.append(AppendRequest(expected={f"zone-{zone}": -1}, rows=[NewRow(
        stream=f"zone-{zone}", kind="event", type=fact.TYPE, type_version=1, id=uuid4(), payload=encode(fact), key=f"zone-{zone}",
        correlation=zone)], counters=[CounterChange(name=f"image_store/{store}/residents", delta=delta)]))


async def test_a_staging_store_in_use_is_not_deleted(it: Operator) -> None:
    made = (await it.ok("createSecondaryStagingStore", url="nfs://filer/scratch", zoneid=it.zone))["secondarystorage"]["id"]
    await staged(it, made, +1)
    assert "the staging store is in use" in await it.refused("deleteSecondaryStagingStore", id=made)
    await staged(it, made, -1)
    assert await it.ok("deleteSecondaryStagingStore", id=made) == {"success": True}


@pytest.mark.parametrize(("parameters", "named"), [
    ({}, "url"), ({"url": "nfs://f/x"}, "zoneid: missing"), ({"url": "nfs://f/x", "zoneid": str(uuid4())}, "no zone has the id"),
    ({"url": "nfs://f/x", "zoneid": str(zone_named("zone-1")), "scope": "REGION"}, "scope: 'REGION' is not ZONE"),
    ({"url": "s3://x", "zoneid": str(zone_named("zone-1")), "provider": "S3"}, "the provider 'S3' cannot stage"),
])
async def test_what_cannot_stage(it: Operator, parameters: dict[str, str], named: str) -> None:
    assert named in await it.refused("createSecondaryStagingStore", **parameters)


async def test_a_staging_store_that_fails_its_test_leaves_nothing(it: Operator) -> None:
    """Its name is free, nothing is listed, and no counter or claim is left; cancelled too."""
    cloud = it.system.cloud
    for end in ("fail", "cancel"):
        job = await cloud.send(CreateStagingStore(url="nfs://filer/scratch", zone_id=cloud.zone_id))
        [order] = await cloud.open_orders()
        if end == "fail":
            await cloud.fail(order)
        else:
            await cloud.send(CancelJob(job_id=job))
            await cloud.stop(order)
        assert await cloud.ends(job) == [f"job.{end}ed" if end == "fail" else "job.cancelled"]
        assert await cloud.store.claims() == {}
        assert await it.ok("listSecondaryStagingStores") == {}
    made = (await it.ok("createSecondaryStagingStore", url="nfs://filer/scratch", zoneid=it.zone))["secondarystorage"]["id"]
    assert "already named" in await it.refused("createSecondaryStagingStore", url="nfs://filer/scratch", zoneid=it.zone)
    await it.ok("deleteSecondaryStagingStore", id=made)
    assert await cloud.store.claims() == {} and {value for value, _ in (await cloud.store.counters()).values()} == {0}


# --- deprecated names ---


DEPRECATED = {
    "addSecondaryStorage": ({"url": "nfs://filer/x"}, "secondarystorage", "NFS"),
    "addSwift": ({"url": "https://swift/auth/v1.0", "account": "a", "username": "u", "key": SECRET}, "secondarystorage", "Swift"),
    "addS3": ({"accesskey": "a", "secretkey": SECRET, "endpoint": "http://s3", "bucket": "b"}, "imagestore", "S3"),
}


@pytest.mark.parametrize("name", DEPRECATED)
async def test_deprecated_names_add_ordinary_stores(it: Operator, name: str, caplog: pytest.LogCaptureFixture) -> None:
    parameters, item, provider = DEPRECATED[name]
    deprecation._TOLD.discard(name)
    with caplog.at_level(logging.WARNING):
        made = (await it.ok(name, **parameters))[item]
        await it.refused(name, **parameters)
    assert (made["providername"], made["name"]) == (provider, parameters.get("url", "http://s3/b"))
    assert [store["id"] for store in (await it.ok("listImageStores"))["imagestore"]] == [made["id"]]
    told = [record for record in caplog.records if getattr(record, "action", "") == "deprecated"]
    assert len(told) == 1 and told[0].use in ("addImageStore", "addImageStoreS3")  # type: ignore[attr-defined] # its extra field
    payloads = b"".join(row.payload for row in await it.system.cloud.rows("#"))
    assert SECRET.encode() not in payloads and SECRET not in str(made)


@pytest.mark.parametrize(("names", "add"), [(("listS3s", "listS3"), "addS3"), (("listSwifts", "listSwift"), "addSwift")])
async def test_deprecated_lists_show_image_stores_of_their_provider(it: Operator, names: tuple[str, ...], add: str) -> None:
    parameters, item, _ = DEPRECATED[add]
    made = (await it.ok(add, **parameters))[item]["id"]
    await it.ok("createSecondaryStagingStore", url="nfs://filer/scratch", zoneid=it.zone)
    for name in names:
        assert [store["id"] for store in (await it.ok(name))["imagestore"]] == [made]
        assert (await it.ok(name, id=made))["count"] == 1
    for other in {"listS3s", "listS3", "listSwifts", "listSwift"} - set(names):
        assert await it.ok(other) == {}


async def test_list_apis_marks_what_is_deprecated(it: Operator) -> None:
    marked = {each["name"]: each["replacement"] for each in (await it.ok("listApis"))["api"] if each.get("deprecated")}
    assert set(marked) == {*DEPRECATED, "listS3s", "listS3", "listSwifts", "listSwift"}
    known = {each["name"] for each in (await it.ok("listApis"))["api"]}
    assert set(marked.values()) <= known - set(marked)
    assert deprecation.headers("listzones") == {} and deprecation.headers("nope") == {}
    assert deprecation.headers("ADDSWIFT")["Deprecation"] == "@1380585600"


# --- the backup provider ---


async def test_backups_go_to_the_chosen_provider(it: Operator) -> None:
    every = (await it.ok("listBackupProviders"))["providers"]
    assert [(each["name"], each["chosen"]) for each in every] == [("Folder", False), ("NFS", False), ("S3", False), ("Swift", False)]
    assert all(each["description"] and isinstance(each["capabilities"], list) for each in every)
    assert [each["name"] for each in (await it.ok("listBackupProviders", name="s3"))["providers"]] == ["S3"]
    assert await it.ok("listBackupProviders", name="veeam") == {}
    assert "no image store is of the provider" in await it.refused("configureBackupProvider", provider="S3")
    await it.ok("createSecondaryStagingStore", url="nfs://filer/scratch", zoneid=it.zone)
    assert "no image store is of the provider" in await it.refused("configureBackupProvider", provider="NFS")
    first = await it.s3()
    assert await it.ok("configureBackupProvider", provider="S3") == {"success": True}
    assert await it.ok("configureBackupProvider", name="s3") == {"success": True}
    assert len(await it.system.cloud.rows("backup_provider.configured")) == 1
    assert [each["name"] for each in (await it.ok("listBackupProviders"))["providers"] if each["chosen"]] == ["S3"]
    made = await it.snapshot("first")
    assert (await it.ok("listSnapshots", id=made["id"]))["snapshot"][0]["datastoreid"] == first
    # Its stores are deleted, others come: what was chosen is said, and the choice is what is wrong.
    await it.ok("deleteSnapshot", id=made["id"])
    await it.ok("deleteImageStore", id=first)
    await it.ok("addImageStore", provider="nfs", url="nfs://filer/x", zoneid=it.zone)
    error = await it.refused("createSnapshot", 503, volumeid=made["volume"])
    assert "no image store of the provider s3" in error and "configureBackupProvider" in error
    await it.ok("configureBackupProvider", provider="nfs")
    assert (await it.ok("createSnapshot", volumeid=made["volume"]))["id"]


async def test_the_choice_is_known_to_every_process(it: Operator) -> None:
    await it.s3()
    await it.ok("configureBackupProvider", provider="s3")
    other = await it.system.cloud.another()
    await other.runtime.catch_up()
    assert other.runtime.directory.backup_provider == "s3"


