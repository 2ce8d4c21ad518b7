"""Transfers under fire: downloads, backups and restores while agents, roles and the store are killed and the store misbehaves.

The bytes are judged by another client and qemu-img; the store and the folder hold exactly what the tables name; what is sent
twice is counted where it passes. STOREBUS_SOAK_N says how many transfers (100 for a soak).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agents.qemu import run
from tests.faults.cluster import ROLES, Cluster, running
from tests.faults.stores import S3Store, Store, SwiftStore, is_part
from tests.services.s3_proxy import S3Proxy, Seen
from tests.services.seaweedfs import start_seaweedfs
from tests.services.swift import start_swift

MIB = 1 << 20
COUNT = int(os.environ.get("STOREBUS_SOAK_N", "0")) or 4
SEED = int(os.environ.get("STOREBUS_SOAK_SEED", os.environ.get("STOREBUS_SEED", "1")))
STORE_DIES = COUNT >= 100
"""Only at large counts: with its restarts of 10 s on a busy machine the test would take minutes."""
KILLS = COUNT // 3
"""Processes that die meanwhile, at least: transfers go on until they have."""
WHOLE = COUNT // 4
"""Transfers at least that must have succeeded, or there would be nothing to judge."""
CALM_S = (2.0, 6.0)
"""Seconds between two kills: shorter ones let nothing come to its end, and show nothing more."""
IMAGES, SIZE = 3, 40 * MIB
WORKERS = 4
"""Parts of one transfer under way at once, as agents are shipped."""
AT_ONCE = 4
"""Transfers of this test under way at once."""


def is_range(seen: Seen) -> bool:
    return seen.method == "GET" and "range" in seen.headers


class Fire:
    """What goes wrong, at random, until it is told to stop."""

    def __init__(self, cluster: Cluster, proxy: S3Proxy, dice: random.Random) -> None:
        self.cluster, self.proxy, self.dice = cluster, proxy, dice
        self.is_part = partial(is_part, cluster.store)
        self.faults: Counter[str] = Counter()
        self.store_kills = 0
        self._stop = asyncio.Event()

    async def rage(self) -> None:
        await asyncio.gather(self._faults(), self._kills(), self._store())

    def stop(self) -> None:
        self._stop.set()

    async def _pause(self, low: float, high: float) -> bool:
        """Whether to go on."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), self.dice.uniform(low, high))
        return not self._stop.is_set()

    async def _faults(self) -> None:
        while await self._pause(0.3, 1.2):
            kind = self.dice.choice(("500", "503", "reset", "cut", "wrong etag", "denied", "silence", "drop"))
            self.faults[kind] += 1
            match kind:
                case "500":
                    self.proxy.fail(self.dice.randint(1, 2), status=500, code="InternalError")
                case "503":
                    self.proxy.fail(self.dice.randint(1, 3), status=503, code="SlowDown")
                case "reset":
                    self.proxy.reset(1, after=self.dice.randrange(4 * MIB), match=self.is_part)
                case "cut":
                    self.proxy.cut_answers(1, after=self.dice.randrange(2 * MIB), match=is_range)
                case "wrong etag":
                    self.proxy.lie(1, match=self.is_part)
                case "denied" if self.faults["denied"] % 4 == 0:  # ends a job: seldom, or nothing would be left to judge
                    self.proxy.fail(1, status=401, code="ExpiredToken", match=self.is_part)
                case "silence":
                    self.proxy.pause()
                    await asyncio.sleep(self.dice.uniform(0.2, 1.5))
                    self.proxy.resume()
                case "drop":
                    self.proxy.drop()

    async def _kills(self) -> None:
        while await self._pause(*CALM_S):
            role = self.dice.choice((*ROLES, "kvm", "storage"))
            await asyncio.to_thread(self.cluster.kill, role)
            await asyncio.sleep(self.dice.uniform(0, 0.5))
            self.cluster.start(role)

    async def _store(self) -> None:
        while STORE_DIES and await self._pause(20.0, 60.0):
            self.store_kills += 1
            await asyncio.to_thread(self.cluster.store.restart)


class Story:
    """Transfers whose content is known: each thing remembers the image that its bytes come from."""

    def __init__(self, cluster: Cluster, zone: str, urls: list[str], dice: random.Random, calm: Callable[[], None]) -> None:
        self.cluster, self.zone, self.urls, self.dice, self.calm = cluster, zone, urls, dice, calm
        self.things: dict[str, dict[str, int]] = {"template": {}, "volume": {}, "snapshot": {}}
        self.started = self.completed = 0
        self.ended: Counter[str] = Counter()

    async def user(self) -> None:
        while self.started < COUNT or ((sum(self.cluster.kills.values()) < KILLS or self.completed < WHOLE) and self.started < 5 * COUNT):
            if self.started >= COUNT and sum(self.cluster.kills.values()) >= KILLS:
                self.calm()  # on a slow machine the fire left nothing whole: what comes now must be
            self.started += 1
            kind, command, parameters, image = self._next()
            try:
                answer = await self.cluster.persist(command, **parameters)
            except AssertionError as refused:  # somebody has deleted it, or the store is away: as the API says
                self.ended[f"refused: {str(refused)[:60]}"] += 1
                continue
            answer = answer["template"][0] if "template" in answer else answer
            result = await self.cluster.end(answer["jobid"], 240)
            said = "done" if result["jobstatus"] == 1 else re.sub(r"[0-9a-f-]{12,}|http\S+", "", result["jobresult"]["errortext"])[:70]
            self.ended[f"{command}: {said}"] += 1
            if result["jobstatus"] == 1:
                self.completed += 1
                self.things[kind][answer["id"]] = image

    def _next(self) -> tuple[str, str, dict[str, Any], int]:
        templates, volumes, snapshots = (list(self.things[kind].items()) for kind in ("template", "volume", "snapshot"))
        choice = self.dice.random()
        if volumes and choice < 0.45:
            volume, image = self.dice.choice(volumes)
            return "snapshot", "createSnapshot", {"volumeid": volume}, image
        if snapshots and choice < 0.65:
            snapshot, image = self.dice.choice(snapshots)
            return "volume", "createVolume", {"name": "r", "snapshotid": snapshot, "zoneid": self.zone}, image
        if templates and choice < 0.9:
            template, image = self.dice.choice(templates)
            return "volume", "createVolume", {"name": "v", "templateid": template}, image
        image = self.dice.randrange(IMAGES)
        return "template", "registerTemplate", {"name": "t", "displaytext": "t", "url": self.urls[image], "format": "QCOW2",
                                                "hypervisor": "KVM", "zoneid": self.zone}, image


async def serve(folder: Path, dice: random.Random) -> tuple[web.AppRunner, list[str], list[Path], str]:
    """The images on a web server."""
    paths = []
    for number in range(IMAGES):
        raw, path = folder / f"{number}.raw", folder / f"{number}.qcow2"
        with raw.open("wb") as file:
            for at in range(0, 4 * SIZE, 4 * MIB):  # a quarter is data
                file.seek(at)
                file.write(dice.randbytes(MIB))
            file.truncate(4 * SIZE)
        await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))
        paths.append(path)
    application = web.Application()
    application.router.add_static("/", folder)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    return runner, [f"http://127.0.0.1:{port}/{path.name}" for path in paths], paths, f"127.0.0.1/32:{port}"


@pytest.mark.timeout(3600)
@pytest.mark.soak(but=("s3",))
@pytest.mark.parametrize("kind", ["s3", "swift"])
async def test_transfers_under_fire(kind: str, rabbitmq: Any, postgres_server: Any, s3_server: Any, tmp_path: Path, qemu_tools: None,
                                    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    dice = random.Random(SEED)
    site, urls, originals, allow = await serve(tmp_path, dice)
    own = await asyncio.to_thread(private, kind, request)
    try:
        async with S3Proxy(own.endpoint) as proxy, running(rabbitmq, postgres_server, s3_server, allow=allow, store=own) as cluster:
            await cluster.add_store(endpoint=proxy.endpoint)
            zone = (await cluster.call("listZones"))["zone"][0]["id"]
            fire = Fire(cluster, proxy, random.Random(SEED + 1))
            story = Story(cluster, zone, urls, dice, fire.stop)
            raging = asyncio.create_task(fire.rage())
            await asyncio.gather(*(story.user() for _ in range(AT_ONCE)))
            fire.stop()
            await raging
            proxy.heal()
            await settled(cluster)
            await judge(cluster, story, originals, tmp_path)
            again, parts = sent_again(own, proxy.requests)
            kills = cluster.kills.get("kvm", 0) + cluster.kills.get("storage", 0)
            bound = WORKERS * AT_ONCE * (kills + fire.store_kills) + sum(fire.faults.values()) * WORKERS
            with capsys.disabled():
                print(f"\n{kind}: {story.started} transfers: {dict(story.ended)}; kills {cluster.kills}, of the store {fire.store_kills}; "
                      f"faults {dict(fire.faults)}; {again} parts of {parts} sent again (bound {bound})")
            assert again <= bound
            assert sum(cluster.kills.values()) >= KILLS
            assert story.completed >= WHOLE  # the others ended with a reason, and left nothing: settled() has seen that
    finally:
        await site.cleanup()
        await asyncio.to_thread(own.stop)


def private(kind: str, request: pytest.FixtureRequest) -> Store:
    """A server of its own: it is killed."""
    if kind == "swift":
        request.getfixturevalue("swift_server")  # a skip where there is none
        return SwiftStore(start_swift(), "images")
    server = start_seaweedfs()
    return S3Store(server, server.bucket)


def sent_again(store: Store, requests: list[Seen]) -> tuple[int, int]:
    """Parts that came by more than once under the same key; and all of them."""
    found = Counter(named.groups() for seen in requests if is_part(store, seen) and (named := store.part.search(seen.target)))
    return sum(count - 1 for count in found.values()), sum(found.values())


async def settled(cluster: Cluster) -> None:
    """What failed jobs left is undone, orders that only release are done; then the invariants hold."""
    end = time.monotonic() + 120
    while True:
        try:
            return await cluster.check()
        except AssertionError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.3)


async def judge(cluster: Cluster, story: Story, originals: list[Path], folder: Path) -> None:
    """Every object and every disk equals the image its bytes came from, as qemu-img sees it."""
    found = {"template": (await cluster.call("listTemplates", templatefilter="all")).get("template", []),
             "snapshot": (await cluster.call("listSnapshots")).get("snapshot", []),
             "volume": (await cluster.call("listVolumes")).get("volume", [])}
    for kind, things in story.things.items():
        assert things.keys() <= {row["id"] for row in found[kind]}, kind
    disks = {row["id"]: cluster.base / "primary" / row["path"] for row in found["volume"] if row["state"] == "Ready"}
    for volume, image in story.things["volume"].items():
        await same(disks[volume], originals[image])
    fetched = folder / "fetched.qcow2"
    for key in cluster.objects():
        if key.endswith(".manifest.json"):
            continue
        thing = next((thing for kind in ("template", "snapshot") for thing in story.things[kind] if thing in key), None)
        if thing is None:
            continue  # a job that did not end well for its caller has an object only if it is whole: check() has seen that
        await asyncio.to_thread(cluster.store.fetch, key, fetched)
        with fetched.open("rb") as file:
            head = file.read(64)
        if int.from_bytes(head[8:16], "big"):
            continue  # a delta: its chain is judged by the volumes that are restored from it
        await same(fetched, originals[(story.things["template"] | story.things["snapshot"])[thing]])


async def same(one: Path, other: Path) -> None:
    assert "identical" in await run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(one), str(other))
