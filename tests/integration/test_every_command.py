"""What no story of its own tries: asked over HTTP, and gone on with, on the whole system in memory."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from schema.ids import derive
from tests.support.api import S3, Api

PERSON = {"email": "a@b", "firstname": "A", "lastname": "B", "password": "p"}


async def only(api: Api, command: str, item: str, **given: Any) -> dict[str, Any]:
    """The one thing that a list has."""
    found = await api.ok(command, **given)
    assert found["count"] == 1, found
    thing: dict[str, Any] = found[item][0]
    return thing


async def test_people_and_what_they_share(api: Api) -> None:
    domain = (await api.ok("createDomain", name="d"))["domain"]
    account = (await api.ok("createAccount", username="ann", domainid=domain["id"], accounttype=0, **PERSON))["account"]
    user = (await api.ok("createUser", username="bob", account="ann", domainid=domain["id"], **PERSON))["user"]
    assert (user["account"], (await only(api, "listUsers", "user", username="bob"))["id"]) == ("ann", user["id"])
    project = (await api.ok("createProject", name="p", account="ann", domainid=domain["id"]))["project"]
    await api.ok("createAccount", username="eve", domainid=domain["id"], accounttype=0, **PERSON)
    await api.job((await api.ok("addAccountToProject", projectid=project["id"], account="eve"))["jobid"])
    assert (await only(api, "listProjects", "project", id=project["id"]))["name"] == "p"
    await api.ok("updateResourceLimit", resourcetype=2, max=1, account="ann", domainid=domain["id"])
    limits = (await api.ok("listResourceLimits", account="ann", domainid=domain["id"], resourcetypename="volume"))["resourcelimit"]
    assert [int(each["max"]) for each in limits] == [1] and account["name"] == "ann"


async def test_offerings(api: Api) -> None:
    made = (await api.ok("createDiskOffering", name="small", displaytext="small", disksize=2))["diskoffering"]
    assert (await api.ok("updateDiskOffering", id=made["id"], displaytext="tiny"))["diskoffering"]["displaytext"] == "tiny"
    assert made["id"] in {each["id"] for each in (await api.ok("listDiskOfferings"))["diskoffering"]}
    assert await api.ok("deleteDiskOffering", id=made["id"]) == {"success": True}
    assert made["id"] not in {each["id"] for each in (await api.ok("listDiskOfferings")).get("diskoffering", [])}


async def test_policies_of_snapshots(cloud: Api) -> None:
    volume = await cloud.ok("createVolume", name="v", size=1)
    await cloud.job(volume["jobid"])
    policy = (await cloud.ok("createSnapshotPolicy", volumeid=volume["id"], intervaltype="DAILY", schedule="00:02", timezone="UTC",
                             maxsnaps=3))["snapshotpolicy"]
    await cloud.job((await cloud.ok("updateSnapshotPolicy", id=policy["id"], fordisplay="false"))["jobid"])
    shown = await only(cloud, "listSnapshotPolicies", "snapshotpolicy", volumeid=volume["id"])
    assert (shown["id"], shown["schedule"], shown["fordisplay"]) == (policy["id"], "00:02", False)
    assert await cloud.ok("deleteSnapshotPolicies", id=policy["id"]) == {"success": True}
    assert await cloud.ok("listSnapshotPolicies", volumeid=volume["id"]) == {}


async def test_templates_and_isos_are_described_shared_and_given_out(cloud: Api) -> None:
    [template] = (await cloud.ok("registerTemplate", name="t", url="http://h/t.qcow2", format="QCOW2", hypervisor="KVM", zoneid="-1",
                                 displaytext="t", isextractable="true"))["template"]
    [iso] = (await cloud.ok("registerIso", name="i", displaytext="i", url="http://h/i.iso", zoneid="-1", isextractable="true"))["iso"]
    for job in (template["jobid"], iso["jobid"]):
        assert (await cloud.job(job))["jobstatus"] == 1
    assert (await cloud.ok("updateTemplate", id=template["id"], name="new"))["template"]["name"] == "new"
    assert (await cloud.ok("updateIso", id=iso["id"], name="disc"))["iso"]["name"] == "disc"
    assert await cloud.ok("updateTemplatePermissions", id=template["id"], ispublic="true") == {"success": True}
    assert await cloud.ok("updateIsoPermissions", id=iso["id"], ispublic="true") == {"success": True}
    assert (await cloud.ok("listTemplatePermissions", id=template["id"]))["templatepermission"]["ispublic"] is True
    assert (await cloud.ok("listIsoPermissions", id=iso["id"]))["templatepermission"]["ispublic"] is True
    asked = [await cloud.ok("extractTemplate", id=template["id"], mode="HTTP_DOWNLOAD"),
             await cloud.ok("extractIso", id=iso["id"], mode="HTTP_DOWNLOAD")]
    await asyncio.sleep(0.2)  # the URL itself is sealed by agents: real ones, in other tests
    jobs = {each["jobid"]: each["jobstatus"] for each in (await cloud.ok("listAsyncJobs"))["asyncjobs"]}
    assert [jobs[each["jobid"]] for each in asked] == [1, 1]
    zone = (await cloud.ok("createZone", name="z2", networktype="Advanced", dns1="8.8.8.8", internaldns1="8.8.8.8"))["zone"]
    job = await cloud.job((await cloud.ok("copyIso", id=iso["id"], destzoneid=zone["id"]))["jobid"])
    assert job["jobstatus"] == 1, job


async def test_a_snapshot_is_archived(api: Api) -> None:
    async with api.system.working():
        await api.ok("addImageStore", **S3)
        volume = await api.ok("createVolume", name="v", size=1)
        await api.job(volume["jobid"])
    played = api.system.cloud
    taken = await api.ok("createSnapshot", volumeid=volume["id"], asyncbackup="true")
    await played.submissions()
    [take] = await played.open_orders()
    await played.complete(take)
    await api.ok("cancelJob", jobid=derive(UUID(taken["jobid"]), "backup-job"))  # its backup never begins
    await played.settle()
    assert (await only(api, "listSnapshots", "snapshot"))["state"] == "CreatedOnPrimary"
    async with api.system.working():
        job = await api.job((await api.ok("archiveSnapshot", id=taken["id"]))["jobid"])
    assert job["jobresult"]["snapshot"]["state"] == "BackedUp", job


async def test_stores_by_all_their_names(api: Api) -> None:
    async with api.system.working():
        store = (await api.ok("addImageStoreS3", accesskey="a", secretkey="canary-2", endpoint="http://s3", bucket="b"))["imagestore"]
    for command, item in (("listS3", "imagestore"), ("listImageStores", "imagestore")):
        assert (await only(api, command, item))["id"] == store["id"]
    assert await api.ok("listSwifts") == {}
    assert await api.ok("listSecondaryStagingStores") == {}


async def test_where_things_are_and_how_bytes_would_move(cloud: Api) -> None:
    host = await only(cloud, "listHosts", "host", type="Routing")
    assert host["zonename"] == "zone-1"
    [template] = (await cloud.ok("registerTemplate", name="t", url="http://h/t.qcow2", format="QCOW2", hypervisor="KVM", zoneid="-1",
                                 displaytext="t"))["template"]
    await cloud.job(template["jobid"])
    head = await cloud.system.store.head()
    plans = (await cloud.ok("planCommand", of="createVolume", name="v", templateid=template["id"]))["plan"]
    assert plans[0]["strategy"] and await cloud.system.store.head() == head


async def test_a_snapshot_is_copied_to_another_zone_where_one_store_serves_both(cloud: Api) -> None:
    volume = await cloud.ok("createVolume", name="v", size=1)
    await cloud.job(volume["jobid"])
    snapshot = await cloud.ok("createSnapshot", volumeid=volume["id"])
    await cloud.job(snapshot["jobid"])
    zone = (await cloud.ok("createZone", name="second"))["zone"]
    copied = await cloud.job((await cloud.ok("copySnapshot", id=snapshot["id"], destzoneids=zone["id"]))["jobid"])
    assert copied["jobstatus"] == 1, copied
    shown = (await cloud.ok("listSnapshots", id=snapshot["id"], zoneid=zone["id"]))["snapshot"]
    assert [(each["id"], each["zoneid"], each["state"]) for each in shown] == [(snapshot["id"], zone["id"], "BackedUp")]
