"""Every command that goes through an agent or several appends: what must be there for it, and its parameters.

A `Case` is one command in one form. What it needs is made in peace; the caller then asks for it, by a job id of its own (so that
asking twice is asking once), and kills whom it likes meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from schema.ids import derive
from tests.faults.cluster import Cluster, drop_bucket
from tests.faults.stores import S3Store, adding

PERSON = {"email": "a@b", "firstname": "A", "lastname": "B", "password": "p"}
FOR_ACCOUNT = ("createVolume", "uploadVolume", "registerTemplate", "registerIso", "createTemplate")
SYNC = ("deleteVolume", "recoverVolume", "createStoragePool", "deleteStoragePool", "addImageStore", "deleteImageStore",
        "createSnapshotPolicy", "deleteSnapshotPolicies")
"""Commands whose answer is their end."""
NOUNS = {"createVolume": "volume", "uploadVolume": "volume", "createSnapshot": "snapshot", "registerTemplate": "template",
         "registerIso": "template", "createTemplate": "template", "createStoragePool": "primary_store", "addImageStore": "image_store"}


def made(command: str, job: UUID) -> str:
    """The id of what a command's job makes."""
    return str(derive(job, NOUNS[command])) if command in NOUNS else ""


@dataclass
class World:
    """A cluster with an account without limits, a second zone, an image on a web server and the same one as somebody's objects."""

    cluster: Cluster
    url: str
    image: bytes
    zone: str = ""
    other: str = ""
    domain: str = ""
    objects: int = 0
    _kept: dict[str, str] = field(default_factory=dict)
    _bucket: str = ""

    async def found(self) -> None:
        """Make what every case stands on."""
        call = self.cluster.call
        self.zone = (await call("listZones"))["zone"][0]["id"]
        self.other = (await call("createZone", name="second", networktype="Basic", dns1="10.0.0.1", internaldns1="10.0.0.1"))["zone"]["id"]
        self.domain = (await call("createDomain", name="d"))["domain"]["id"]
        await call("createAccount", username="ann", domainid=self.domain, accounttype=0, **PERSON)
        for resource in (2, 3, 4, 10, 11):
            await call("updateResourceLimit", resourcetype=resource, max=-1, account="ann", domainid=self.domain)

    def whose(self, command: str) -> dict[str, str]:
        """Parameters that give what a command makes to the account: ROOT's own things are not counted."""
        return {"account": "ann", "domainid": self.domain} if command in FOR_ACCOUNT else {}

    async def ask(self, command: str, job: UUID, **parameters: Any) -> dict[str, Any]:
        """Ask for a command until the API answers."""
        return await self.cluster.persist(command, customjobid=job, **self.whose(command), **parameters)

    async def done(self, command: str, **parameters: Any) -> str:
        """In peace; the id of what it makes, else its job's. Raises AssertionError when the job does not complete."""
        job = uuid4()
        await self.ask(command, job, **parameters)
        ended = await self.cluster.end(str(job))
        assert ended["jobstatus"] == 1, (command, ended)
        return made(command, job) or str(job)

    async def kept(self, what: str, make: Callable[[], Awaitable[str]]) -> str:
        """One for all cases that only read it."""
        if what not in self._kept:
            self._kept[what] = await make()
        return self._kept[what]

    def registration(self, name: str = "t") -> dict[str, Any]:
        """Of a template."""
        return {"name": name, "displaytext": name, "url": self.url, "format": "QCOW2", "hypervisor": "KVM", "isextractable": "true"}

    async def template(self) -> str:
        return await self.kept("template", lambda: self.done("registerTemplate", zoneid=self.zone, **self.registration()))

    async def volume(self) -> str:
        """A new one, with the image's data."""
        return await self.done("createVolume", name="v", zoneid=self.zone, templateid=await self.template())

    async def snapshots(self, count: int) -> list[str]:
        """A chain on a new volume."""
        volume = await self.volume()
        return [await self.done("createSnapshot", volumeid=volume) for _ in range(count)]

    async def snapshot(self) -> str:
        """One that is only read."""
        return await self.kept("snapshot", lambda: self._last(1))

    async def delta(self) -> str:
        """One that is only read, built on another."""
        return await self.kept("delta", lambda: self._last(2))

    async def _last(self, count: int) -> str:
        return (await self.snapshots(count))[-1]

    async def uploaded(self) -> str:
        """A volume that lies in the image store."""
        return await self.done("uploadVolume", name="u", zoneid=self.zone, format="QCOW2", url=self.url)

    def theirs(self) -> str:
        """The URL of a new object in the store that is nobody's."""
        self.objects += 1
        key = f"theirs/{self.objects}.qcow2"
        with contextlib.closing(self.cluster.s3.client()) as client:
            client.put_object(Bucket=self.cluster.bucket, Key=key, Body=self.image)
        self.cluster.foreign.add(key)
        return f"s3://{self.cluster.bucket}/{key}"

    def folder(self) -> Path:
        """A new one, for a primary store."""
        folder = self.cluster.base / f"pool-{uuid4()}"
        folder.mkdir()
        return folder

    def pool(self) -> dict[str, Any]:
        folder = self.folder()
        return {"name": folder.name, "url": f"file://host{folder}", "zoneid": self.zone}

    async def store(self) -> dict[str, Any]:
        """Another one, in a bucket of its own. The one before it is gone by now: its bucket goes, or the server had no room for more."""
        s3, before, bucket = self.cluster.s3, self._bucket, f"sb{uuid4().hex[:12]}"
        if before:
            await asyncio.to_thread(drop_bucket, s3, before)
        await asyncio.to_thread(s3.create_bucket, bucket)
        self._bucket = bucket
        return {"name": bucket, **adding(S3Store(s3, bucket), s3.endpoint)}

    def due(self, volume: str) -> dict[str, Any]:
        """A policy whose first snapshot is due within the minute."""
        soon = datetime.now(UTC) + timedelta(minutes=1)
        return {"volumeid": volume, "intervaltype": "HOURLY", "schedule": f"{soon:%M}", "timezone": "UTC", "maxsnaps": 2}


Need = Callable[[World], Awaitable[dict[str, Any]]]
CASES: dict[str, tuple[str, Need]] = {}
"""Name -> command, and what makes its parameters."""


def case(command: str, form: str = "") -> Callable[[Need], Need]:
    """One more."""
    def keep(need: Need) -> Need:
        CASES[f"{command} {form}".strip()] = command, need
        return need
    return keep


def of_new(thing: str, **parameters: Any) -> Need:
    """Of something that is made for it."""
    async def need(world: World) -> dict[str, Any]:
        return {"id": await getattr(world, thing)(), **parameters}
    return need


def in_zone(need: Need) -> Need:
    """With the zone."""
    async def more(world: World) -> dict[str, Any]:
        return {**await need(world), "zoneid": world.zone}
    return more


@case("createVolume", "by an offering")
async def _(world: World) -> dict[str, Any]:
    offered = (await world.cluster.call("listDiskOfferings"))["diskoffering"]
    return {"name": "v", "size": 1, "zoneid": world.zone, "diskofferingid": next(each["id"] for each in offered if each["name"] == "Custom")}


@case("createVolume", "from a template")
async def _(world: World) -> dict[str, Any]:
    return {"name": "v", "zoneid": world.zone, "templateid": await world.template()}


@case("createVolume", "from a snapshot")
async def _(world: World) -> dict[str, Any]:
    return {"name": "v", "snapshotid": await world.delta(), "zoneid": world.zone}


CASES["resizeVolume"] = "resizeVolume", of_new("volume", size=2)
CASES["destroyVolume"] = "destroyVolume", of_new("volume")
CASES["destroyVolume and expunge"] = "destroyVolume", of_new("volume", expunge="true")
CASES["deleteVolume"] = "deleteVolume", of_new("volume")
CASES["extractVolume"] = "extractVolume", in_zone(of_new("volume", mode="HTTP_DOWNLOAD"))


@case("recoverVolume")
async def _(world: World) -> dict[str, Any]:
    volume = await world.volume()
    await world.done("destroyVolume", id=volume)
    return {"id": volume}


@case("deleteVolume", "that was uploaded")
async def _(world: World) -> dict[str, Any]:
    return {"id": await world.uploaded()}


@case("uploadVolume", "by its URL")
async def _(world: World) -> dict[str, Any]:
    return {"name": "u", "zoneid": world.zone, "format": "QCOW2", "url": world.url}


@case("uploadVolume", "where it lies")
async def _(world: World) -> dict[str, Any]:
    return {"name": "u", "zoneid": world.zone, "format": "QCOW2", "url": world.theirs()}


CASES["placeVolume"] = "placeVolume", of_new("uploaded")


@case("placeVolume", "of an object where it lies")
async def _(world: World) -> dict[str, Any]:
    return {"id": await world.done("uploadVolume", name="u", zoneid=world.zone, format="QCOW2", url=world.theirs())}


@case("createSnapshot")
async def _(world: World) -> dict[str, Any]:
    return {"volumeid": await world.volume()}


@case("createSnapshot", "of what changed")
async def _(world: World) -> dict[str, Any]:
    volume = await world.volume()
    await world.done("createSnapshot", volumeid=volume)
    return {"volumeid": volume}


@case("createSnapshot", "with its backup later")
async def _(world: World) -> dict[str, Any]:
    return {"volumeid": await world.volume(), "asyncbackup": "true"}


@case("revertSnapshot")
async def _(world: World) -> dict[str, Any]:
    return {"id": (await world.snapshots(2))[0]}


@case("deleteSnapshot")
async def _(world: World) -> dict[str, Any]:
    return {"id": (await world.snapshots(1))[0]}


@case("deleteSnapshot", "that others are built on")
async def _(world: World) -> dict[str, Any]:
    return {"id": (await world.snapshots(3))[1]}


@case("deleteSnapshot", "with a hidden chain")
async def _(world: World) -> dict[str, Any]:
    first, second = await world.snapshots(2)
    await world.done("deleteSnapshot", id=first)
    return {"id": second}


@case("copySnapshot")
async def _(world: World) -> dict[str, Any]:
    return {"id": (await world.snapshots(1))[0], "destzoneids": world.other}


@case("archiveSnapshot")
async def _(world: World) -> dict[str, Any]:
    return {"id": await on_primary(world)}


@case("extractSnapshot")
async def _(world: World) -> dict[str, Any]:
    return {"id": await world.snapshot(), "zoneid": world.zone, "mode": "HTTP_DOWNLOAD"}


@case("extractSnapshot", "of what changed")
async def _(world: World) -> dict[str, Any]:
    return {"id": await world.delta(), "zoneid": world.zone, "mode": "HTTP_DOWNLOAD"}


@case("createSnapshotPolicy")
async def _(world: World) -> dict[str, Any]:
    return world.due(await world.volume())


@case("registerTemplate")
async def _(world: World) -> dict[str, Any]:
    return {**world.registration(), "zoneids": f"{world.zone},{world.other}"}


@case("registerIso")
async def _(world: World) -> dict[str, Any]:
    return {"name": "i", "displaytext": "i", "url": world.url.replace(".qcow2", ".iso"), "zoneid": world.zone}


@case("createTemplate", "from a volume")
async def _(world: World) -> dict[str, Any]:
    return {"name": "t", "displaytext": "t", "volumeid": await world.volume()}


@case("createTemplate", "from a snapshot")
async def _(world: World) -> dict[str, Any]:
    return {"name": "t", "displaytext": "t", "snapshotid": await world.delta()}


@case("copyTemplate")
async def _(world: World) -> dict[str, Any]:
    template = await world.done("registerTemplate", zoneid=world.zone, **world.registration())
    return {"id": template, "sourcezoneid": world.zone, "destzoneid": world.other}


@case("extractTemplate")
async def _(world: World) -> dict[str, Any]:
    return {"id": await world.template(), "zoneid": world.zone, "mode": "HTTP_DOWNLOAD"}


@case("revokeExtractUrl", "of a template")
async def _(world: World) -> dict[str, Any]:
    return {"extractid": await world.done("extractTemplate", id=await world.template(), zoneid=world.zone, mode="HTTP_DOWNLOAD")}


@case("revokeExtractUrl", "of a volume")
async def _(world: World) -> dict[str, Any]:
    return {"extractid": await world.done("extractVolume", id=await world.volume(), zoneid=world.zone, mode="HTTP_DOWNLOAD")}


@case("deleteTemplate")
async def _(world: World) -> dict[str, Any]:
    return {"id": await world.done("registerTemplate", zoneid=world.zone, **world.registration())}


@case("prepareTemplate")
async def _(world: World) -> dict[str, Any]:
    return {"templateid": await world.done("registerTemplate", zoneid=world.zone, **world.registration()), "zoneid": world.zone}


@case("unprepareTemplate")
async def _(world: World) -> dict[str, Any]:
    return {"templateid": await prepared(world), "zoneid": world.zone}


@case("createVolume", "from a prepared template")
async def _(world: World) -> dict[str, Any]:
    return {"name": "v", "zoneid": world.zone, "templateid": await prepared(world)}


@case("deleteTemplate", "that is prepared")
async def _(world: World) -> dict[str, Any]:
    return {"id": await prepared(world)}


@case("addImageStore")
async def _(world: World) -> dict[str, Any]:
    return await world.store()


@case("deleteImageStore")
async def _(world: World) -> dict[str, Any]:
    return {"id": await world.done("addImageStore", **await world.store())}


@case("createStoragePool")
async def _(world: World) -> dict[str, Any]:
    return world.pool()


@case("deleteStoragePool")
async def _(world: World) -> dict[str, Any]:
    return {"id": await world.done("createStoragePool", **world.pool())}


async def prepared(world: World) -> str:
    """A template that waits on the zone's primary stores."""
    template = await world.done("registerTemplate", zoneid=world.zone, **world.registration())
    await world.done("prepareTemplate", templateid=template, zoneid=world.zone)
    await world.cluster.settled()  # each primary store's copy is a job of its own
    return template


async def on_primary(world: World) -> str:
    """A snapshot whose backup was cancelled before it began: the log's role is stopped while the job that took it ends."""
    cluster = world.cluster
    volume = await world.volume()
    for _ in range(20):
        job = uuid4()
        await world.ask("createSnapshot", job, volumeid=volume, asyncbackup="true")
        await cluster.halted("log", str(job))
        try:
            with contextlib.suppress(AssertionError):
                await cluster.call("cancelJob", jobid=derive(job, "backup-job"))
        finally:
            cluster.go_on("log")
        snapshot = made("createSnapshot", job)
        with contextlib.suppress(AssertionError):
            await cluster.end(str(derive(job, "backup-job")), 20)
        if (await cluster.call("listSnapshots", id=snapshot))["snapshot"][0]["state"] == "CreatedOnPrimary":
            return snapshot
        await world.done("deleteSnapshot", id=snapshot)
    raise AssertionError("every backup began before it was cancelled")


def seeded(pairs: list[Any], count: int, seed: int) -> list[Any]:
    """So many of them, in an order that the seed chooses: a run that is ended early has seen some of everything."""
    return random.Random(seed).sample(pairs, min(count, len(pairs)))


__all__ = ["CASES", "NOUNS", "SYNC", "World", "made", "seeded"]
