"""A seeded user: whatever can be asked for is asked for, whatever became of what it is about, until enough jobs are submitted."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any
from uuid import UUID, uuid4

from schema.ids import derive
from tests.faults.commands import World, made

WEIGHTS = {
    "registerTemplate": 2, "registerIso": 1, "createTemplate": 3, "copyTemplate": 1, "extractTemplate": 2, "deleteTemplate": 1, "prepareTemplate": 2,
    "unprepareTemplate": 1,
    "createVolume": 8, "resizeVolume": 2, "destroyVolume": 2, "recoverVolume": 2, "deleteVolume": 1, "extractVolume": 2,
    "uploadVolume": 2, "placeVolume": 2, "createSnapshot": 10, "revertSnapshot": 3, "archiveSnapshot": 1, "copySnapshot": 1,
    "extractSnapshot": 3, "deleteSnapshot": 5, "createSnapshotPolicy": 1, "revokeExtractUrl": 3, "createStoragePool": 1,
    "deleteStoragePool": 1, "cancelJob": 4,
}
"""Command -> how often it is asked for."""
KEEPS = {"createVolume": "volume", "uploadVolume": "upload", "registerTemplate": "template", "createTemplate": "template",
         "createSnapshot": "snapshot", "createStoragePool": "pool", "extractTemplate": "link", "extractVolume": "link",
         "extractSnapshot": "link", "registerIso": "iso"}


class Story:
    """See the module. `things` are by kind: what was accepted, whether it came to be or not."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.dice = world, random.Random(seed)
        self.jobs: list[str] = []
        self.asked: dict[str, int] = defaultdict(int)
        self.things: dict[str, list[str]] = defaultdict(list)

    async def begin(self) -> None:
        """Something of each kind, in peace, so that there is something to ask about from the start."""
        world = self.world
        self.things["template"] += [await world.template()]
        self.things["snapshot"] += await world.snapshots(2)
        self.things["volume"] += [await world.volume(), await world.volume()]
        self.things["upload"] += [await world.uploaded()]
        self.things["link"] += [await world.done("extractTemplate", id=await world.template(), zoneid=world.zone, mode="HTTP_DOWNLOAD")]

    async def users(self, count: int) -> None:
        """Two at once, until there are so many jobs."""
        await asyncio.gather(self._user(count), self._user(count))

    async def _user(self, count: int) -> None:
        while len(self.jobs) < count:
            command = self.dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            try:
                parameters = self._parameters(command)
            except IndexError:  # nothing is there that it could be about
                continue
            await self._ask(command, parameters)
            await asyncio.sleep(self.dice.uniform(0.05, 0.4))

    async def _ask(self, command: str, parameters: dict[str, Any]) -> None:
        """A refusal is fine: somebody else was faster, or it never came to be."""
        job = uuid4()
        try:
            await self.world.ask(command, job, **parameters)
        except AssertionError:
            return
        self.asked[command] += 1
        if command == "cancelJob":
            return
        self.jobs.append(str(job))
        if command in KEEPS:
            self.things[KEEPS[command]].append(made(command, job) or str(job))
        if command == "placeVolume":
            self.things["volume"].append(parameters["id"])

    def _parameters(self, command: str) -> dict[str, Any]:
        """Raises IndexError where there is nothing to choose from."""
        pick, world = self._pick, self.world
        zone = {"zoneid": world.zone}
        match command:
            case "registerTemplate":
                return {**world.registration(), "zoneids": self.dice.choice((world.zone, f"{world.zone},{world.other}"))}
            case "registerIso":
                return {"name": "i", "displaytext": "i", "url": world.url.replace(".qcow2", ".iso"), **zone}
            case "createTemplate":
                source = self.dice.choice(("volume", "snapshot"))
                return {"name": "t", "displaytext": "t", f"{source}id": pick(source)}
            case "copyTemplate":
                return {"id": pick("template"), "sourcezoneid": world.zone, "destzoneid": world.other}
            case "createVolume":
                return self.dice.choice((lambda: {"size": 1}, lambda: {"templateid": pick("template")},
                                         lambda: {"snapshotid": pick("snapshot")}))() | {"name": "v", **zone}
            case "resizeVolume":
                return {"id": pick("volume"), "size": self.dice.randint(1, 3)}
            case "destroyVolume":
                return {"id": pick("volume"), "expunge": self.dice.choice(("true", "false", "false"))}
            case "extractTemplate" | "extractVolume" | "extractSnapshot":
                return {"id": pick(command.removeprefix("extract").lower()), **zone, "mode": "HTTP_DOWNLOAD"}
            case "uploadVolume":
                return {"name": "u", "format": "QCOW2", "url": self.dice.choice((world.theirs, lambda: world.url))(), **zone}
            case "createSnapshot":
                return {"volumeid": pick("volume"), "asyncbackup": self.dice.choice(("true", "false"))}
            case "copySnapshot":
                return {"id": pick("snapshot"), "destzoneids": world.other}
            case "createSnapshotPolicy":
                return world.due(pick("volume"))
            case "prepareTemplate" | "unprepareTemplate":
                return {"templateid": pick("template"), **zone}
            case "placeVolume":
                return {"id": pick("upload")}
            case "deleteVolume":
                return {"id": pick(self.dice.choice(("volume", "volume", "upload")))}
            case "revokeExtractUrl":
                return {"extractid": pick("link")}
            case "createStoragePool":
                return world.pool()
            case "deleteStoragePool":
                return {"id": pick("pool")}
            case "cancelJob":
                return {"jobid": self.dice.choice(self.jobs) if self.dice.random() < 0.7 else self._backup()}
            case _:
                return {"id": pick(next(kind for kind in ("volume", "snapshot", "template") if command.lower().endswith(kind)))}

    def _backup(self) -> str:
        """The job that backs up an asynchronous snapshot, if it was one."""
        return str(derive(UUID(self.dice.choice(self.jobs)), "backup-job"))

    def _pick(self, kind: str) -> str:
        """One of the newer ones rather than an old one."""
        return self.dice.choice(self.things[kind][-8:])


__all__ = ["Story"]
