"""A cloud's life by its API, one command after the other, every command that an installation of one machine can do.

Owns the order. Each command's first good answer, and a first refusal, become its example in docs/reference. A new command gets its
line here, or its reason in UNTRIED.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.support.recording import Recorder, pairs
from tests.support.web import Site

UNTRIED: dict[str, str] = {
    "addSwift": "the installation on which the examples were recorded has S3 stores, and providers are not mixed",
    "addSecondaryStorage": "the installation on which the examples were recorded has S3 stores, and providers are not mixed",
    "archiveSnapshot": "a snapshot is on the primary store alone only when its backup was stopped before it began",
}
"""Commands without a good answer, and why: the reference shows the refusal, and this."""
ABSENT = "6f1d1f2e-0f0a-4c2a-9d0e-2f6b7a1c3d4e"


async def lifecycle(ask: Recorder, s3: Any, buckets: list[str], web: Site, disc: str, folder: Path) -> None:
    """All of it. What is made is deleted again."""
    zone = (await ask("listZones"))["zone"][0]["id"]
    await around(ask, zone, folder)
    store = await stores(ask, s3, buckets, zone, folder)
    await people(ask)
    template = await templates(ask, web, zone)
    await isos(ask, disc, zone)
    volume = await volumes(ask, zone, template)
    await snapshots(ask, zone, volume)
    await uploads(ask, web, zone)
    await machines(ask, zone)
    await tagged(ask, volume)
    await jobs(ask, web, zone)
    await ask("extractTemplate", id=template, mode="HTTP_DOWNLOAD", zoneid=zone)
    await ask("createTemplate", name="golden", displaytext="From a volume", volumeid=volume)
    for each in {one["id"] for one in (await ask("listTemplates", templatefilter="self"))["template"]} - {template}:
        await ask("deleteTemplate", id=each)
    await ask("scrubImageStore", id=store, share="100%")
    await ask.refused("deleteImageStore", id=store)
    await ask("deleteVolume", id=volume)
    await ask("deleteTemplate", id=template)
    await ask("listPendingDeletions")
    await ask.refused("attachVolume", id=ABSENT, virtualmachineid=ABSENT)
    await ask.refused("detachVolume", id=ABSENT)
    for command in ("deleteTemplate", "deleteVolume", "extractTemplate", "deleteSnapshot", "deleteDiskOffering", "deleteStoragePool"):
        await ask.refused(command, id=ABSENT, **({"mode": "HTTP_DOWNLOAD"} if command == "extractTemplate" else {}))


async def around(ask: Recorder, zone: str, folder: Path) -> None:
    """What is there, and what the API says of itself."""
    await ask("listApis", name="createVolume")
    await ask("listCapabilities")
    await ask("listStorageProviders", type="image")
    await ask("listHosts")
    pool = (await ask("listStoragePools"))["storagepool"][0]
    for name in ("listHypervisors", "listConfigurations", "listOsTypes", "listOsCategories",
                 "listPublicIpAddresses", "listPortForwardingRules", "listIpForwardingRules"):
        await ask(name)
    await ask("createZone", name="zone-2", networktype="Basic", dns1="192.0.2.1", internaldns1="192.0.2.2")
    place = folder / "pool"
    place.mkdir()
    host = str(pool["ipaddress"])
    made = await ask("createStoragePool", name="second", url=f"file://{host}{place}", zoneid=zone)
    await ask("deleteStoragePool", id=made["storagepool"]["id"])
    await ask("listDiskOfferings")
    offering = (await ask("createDiskOffering", name="one", displaytext="1 GB", disksize=1))["diskoffering"]["id"]
    await ask("updateDiskOffering", id=offering, name="uno")
    await ask("deleteDiskOffering", id=offering)


async def stores(ask: Recorder, s3: Any, buckets: list[str], zone: str, folder: Path) -> str:
    """Image stores of one provider; the id of the one that is used."""
    one, two, three = buckets
    keys = {"accesskey": s3.access_key, "secretkey": s3.secret_key, "endpoint": s3.endpoint}
    store = (await _patiently(ask, "addImageStore", name="objects", provider="S3", url=s3.endpoint,
                              **pairs("details", {**keys, "bucket": one})))["imagestore"]["id"]
    second = (await _patiently(ask, "addImageStoreS3", **keys, bucket=two))["imagestore"]["id"]
    await _patiently(ask, "addS3", **keys, bucket=three)
    await ask("listImageStores")
    for name in ("listS3s", "listS3", "listSwifts", "listSwift", "listBackupProviders"):
        await ask(name)
    await ask("updateImageStore", id=second, name="archive", readonly="true")
    for each in (await ask("listImageStores"))["imagestore"]:
        if each["id"] != store:
            await ask("deleteImageStore", id=each["id"])
    await ask("configureBackupProvider", provider="S3")
    scratch = folder / "scratch"
    scratch.mkdir()
    staging = await ask("createSecondaryStagingStore", url="nfs://filer/scratch", zoneid=zone, **pairs("details", {"mountpoint": str(scratch)}))
    await ask("listSecondaryStagingStores")
    await ask("deleteSecondaryStagingStore", id=staging["secondarystorage"]["id"])
    await ask.refused("addSwift", url="https://swift.example/auth/v1.0", account="a", username="u", key="k")
    await ask.refused("addSecondaryStorage", url="nfs://filer/images", zoneid=zone)
    await ask.refused("addImageStore", name="objects", provider="Tape", url="tape://robot")
    return str(store)


async def _patiently(ask: Recorder, command: str, **given: str) -> dict[str, Any]:
    """The server's first writes into a new bucket may fail."""
    for tries in range(20):
        try:
            return await ask(command, **given)
        except AssertionError:
            if tries == 19:
                raise
            await asyncio.sleep(0.3)
    raise AssertionError(command)


async def people(ask: Recorder) -> None:
    """Domains, accounts, users, projects, limits, a login."""
    person = {"email": "ann@example.org", "firstname": "Ann", "lastname": "Lee", "password": "canary-pass"}
    domain = (await ask("createDomain", name="sales"))["domain"]["id"]
    await ask("listDomains")
    account = (await ask("createAccount", username="ann", domainid=domain, **person))["account"]
    await ask("createUser", username="bob", account="ann", domainid=domain, **person)
    for name in ("listAccounts", "listUsers"):
        await ask(name, domainid=domain)
    keys = (await ask("registerUserKeys", id=account["user"][0]["id"]))["userkeys"]
    await ask("getUser", userapikey=keys["apikey"])
    await ask("updateResourceLimit", resourcetype=2, account="ann", domainid=domain, max=20)
    await ask("listResourceLimits", account="ann", domainid=domain)
    project = (await ask("createProject", name="web", displaytext="The shop"))["project"]["id"]
    await ask("createAccount", username="eve", **person)
    await ask("addAccountToProject", projectid=project, account="eve")
    await ask("listProjects", listall="true")
    told = await ask("login", signed=False, username="ann", password=person["password"], domain="sales")
    await ask("logout", signed=False, sessionkey=told["sessionkey"])


async def templates(ask: Recorder, web: Site, zone: str) -> str:
    """A template and who may use it; its id."""
    template = (await ask("registerTemplate", name="debian", displaytext="Debian", url=web.url("image"), format="QCOW2",
                          hypervisor="KVM", isextractable="true", zoneid=zone))["template"]["id"]
    await ask("listTemplates", templatefilter="self")
    await ask("updateTemplate", id=template, displaytext="Debian 12")
    await ask("updateTemplatePermissions", id=template, op="add", accounts="eve")
    await ask("listTemplatePermissions", id=template)
    second = next(each["id"] for each in (await ask("listZones"))["zone"] if each["id"] != zone)
    await ask("copyTemplate", id=template, destzoneid=second, sourcezoneid=zone)
    await ask("prepareTemplate", templateid=template, zoneid=zone)
    await ask("unprepareTemplate", templateid=template, zoneid=zone)
    return str(template)


async def isos(ask: Recorder, disc: str, zone: str) -> None:
    """An ISO image, there and gone."""
    made = (await ask("registerIso", name="install", displaytext="Installer", url=disc, isextractable="true", zoneid=zone))["iso"]["id"]
    await ask("listIsos", isofilter="self")
    await ask("updateIso", id=made, displaytext="The installer")
    await ask("updateIsoPermissions", id=made, op="add", accounts="eve")
    await ask("listIsoPermissions", id=made)
    second = next(each["id"] for each in (await ask("listZones"))["zone"] if each["id"] != zone)
    await ask("copyIso", id=made, destzoneid=second, sourcezoneid=zone)
    await ask("extractIso", id=made, mode="HTTP_DOWNLOAD", zoneid=zone)
    await ask("deleteIso", id=made)


async def volumes(ask: Recorder, zone: str, template: str) -> str:
    """Volumes; the id of one that stays."""
    await ask("planCommand", of="createVolume", templateid=template, name="root", zoneid=zone)
    volume = (await ask("createVolume", name="root", templateid=template, zoneid=zone))["volume"]["id"]
    await ask.refused("createVolume", name="data", size="-1", zoneid=zone)
    await ask("listVolumes", id=volume)
    await ask("updateVolume", id=volume, name="system")
    other = (await ask("createVolume", name="data", size=1, zoneid=zone))["volume"]["id"]
    await ask("resizeVolume", id=other, size=2)
    link = (await ask("extractVolume", id=other, zoneid=zone, mode="HTTP_DOWNLOAD", lifetime=600))["volume"]
    await ask("revokeExtractUrl", extractid=link["extractId"])
    await ask("destroyVolume", id=other)
    await ask("recoverVolume", id=other)
    await ask("deleteVolume", id=other)
    return str(volume)


async def snapshots(ask: Recorder, zone: str, volume: str) -> None:
    """Snapshots and policies."""
    snapshot = (await ask("createSnapshot", volumeid=volume, name="before"))["snapshot"]["id"]
    await ask.refused("createSnapshot", volumeid=ABSENT)
    await ask("listSnapshots", volumeid=volume)
    made = (await ask("createVolume", name="again", snapshotid=snapshot, zoneid=zone))["volume"]["id"]
    await ask("deleteVolume", id=made)
    await ask("revertSnapshot", id=snapshot)
    policy = (await ask("createSnapshotPolicy", volumeid=volume, intervaltype="DAILY", schedule="30:02", timezone="Europe/Berlin",
                        maxsnaps=7))["snapshotpolicy"]["id"]
    await ask("listSnapshotPolicies", volumeid=volume)
    await ask("updateSnapshotPolicy", id=policy, fordisplay="false")
    await ask("deleteSnapshotPolicies", id=policy)
    second = next(each["id"] for each in (await ask("listZones"))["zone"] if each["id"] != zone)
    await ask("copySnapshot", id=snapshot, destzoneid=second, sourcezoneid=zone)
    link = (await ask("extractSnapshot", id=snapshot, zoneid=zone, lifetime=600))["snapshot"]
    await ask("revokeExtractUrl", extractid=link["extractId"])
    await ask.refused("archiveSnapshot", id=snapshot)
    await ask("deleteSnapshot", id=snapshot)


async def uploads(ask: Recorder, web: Site, zone: str) -> None:
    """A volume of a URL, and the disk that it is given."""
    made = (await ask("uploadVolume", name="disk", url=web.url("image"), format="QCOW2", zoneid=zone))["volume"]["id"]
    await ask("placeVolume", id=made)
    await ask("deleteVolume", id=made)


async def machines(ask: Recorder, zone: str) -> None:
    """A volume at the machine that the installation's agent runs."""
    machine = (await ask("listVirtualMachines"))["virtualmachine"][0]["id"]
    volume = (await ask("createVolume", name="data", size=1, zoneid=zone))["volume"]["id"]
    await ask("attachVolume", id=volume, virtualmachineid=machine, deviceid=2)
    await ask.refused("deleteVolume", id=volume)
    await ask("detachVolume", id=volume)
    await ask("deleteVolume", id=volume)


async def tagged(ask: Recorder, volume: str) -> None:
    """Tags."""
    await ask("createTags", resourceids=volume, resourcetype="Volume", **pairs("tags", {"tier": "gold"}))
    await ask("listTags", resourcetype="Volume")
    await ask("deleteTags", resourceids=volume, resourcetype="Volume", **{"tags[0].key": "tier"})


async def jobs(ask: Recorder, web: Site, zone: str) -> None:
    """Jobs and the history."""
    found = (await ask("listAsyncJobs", page=1, pagesize=1))["asyncjobs"][0]
    await ask("queryAsyncJobResult", jobid=found["jobid"])
    slow = await ask.started("registerTemplate", name="slow", displaytext="slow", url=web.url("slow"), format="QCOW2",
                             hypervisor="KVM", zoneid=zone)
    await ask("cancelJob", jobid=slow)
    await ask.ended(slow)
    await ask.refused("cancelJob", jobid=found["jobid"])
    await ask("listEventTypes")
    await ask("listEvents", page=1, pagesize=1)
    await ask.refused("queryAsyncJobResult", jobid=ABSENT)
