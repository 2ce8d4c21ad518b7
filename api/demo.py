"""The demo: the whole way of a real disk image, on real servers, checked at each turn. `make demo` runs it.

Owns the story and its checks. Refuses to reach into Storebus: everything is asked for over HTTP like by any client;
only the checks look at the bucket, the disk files and the log from outside. Exits non-zero naming what is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TransferSpeedColumn

from api import demo_checks
from api.demo_image import build_image, serve
from api.demo_s3 import SeaweedFS, start_seaweedfs
from bus.installation import read_installation
from schema.failure import Failed, WorkFailed

BUCKET = "storebus-demo"
SLOW = 12 << 20
"""Bytes a second of the transfer that is cancelled halfway."""
START_S, JOB_S = 120.0, 300.0
"""Seconds that the start and one job may take: a machine may be slow, and nobody waits longer than the work does."""


@dataclass
class Demo:
    """One run."""

    image: str = ""
    keep: bool = False
    before_checks: str = ""
    """A command run before the checks, with DEMO_* in its environment: to damage something and see it found."""
    console: Console = field(default_factory=lambda: Console(stderr=False, highlight=False))
    base: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="storebus-demo-")))
    """Its own folder; others may walk through it, since the database runs as another user."""
    api: str = ""
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """One line of the story."""
        self.console.print(f"[dim]{time.monotonic() - self.started:5.1f}s[/dim]  {text}")

    async def run(self) -> int:
        """The story; 0 when every check held."""
        try:
            self.base.chmod(0o711)
            async with contextlib.AsyncExitStack() as stack:
                await self._story(stack)
            self.say("[bold green]everything held[/bold green]")
            return 0
        except (Failed, demo_checks.Damaged) as wrong:
            self.console.print(f"[bold red]demo failed:[/bold red] {wrong}", soft_wrap=True)
            return 1
        finally:
            if not self.keep:
                await asyncio.to_thread(shutil.rmtree, self.base, ignore_errors=True)

    async def _story(self, stack: contextlib.AsyncExitStack) -> None:
        disk = await build_image(self.image, self.base / "image")
        self.say(f"a disk image: {disk.path.name}, {disk.virtual_size >> 20} MiB virtual, {disk.size >> 20} MiB stored")
        web = await stack.enter_async_context(serve(disk.path, slow=SLOW))
        s3 = stack.enter_context(await asyncio.to_thread(start_seaweedfs, parent=self.base, bucket=BUCKET))
        self.say(f"an S3 server: SeaweedFS at {s3.endpoint}")
        await stack.enter_async_context(self._storebus(web.port))
        self.say(f"storebus up: {self.api}")
        await self._provision(s3)
        template = await self._do("registerTemplate", "template", name="debian", displaytext="a disk image",
                                  url=web.url, format="QCOW2", hypervisor="KVM", zoneid="-1",
                                  checksum=f"{{SHA-256}}{disk.sha256}")
        volume = await self._do("createVolume", "volume", name="data", templateid=template)
        first = await self._do("createSnapshot", "snapshot", volumeid=volume, name="before")
        path = await self._path(volume)
        await demo_checks.change(path)
        self.say("changed the volume through its block export")
        second = await self._do("createSnapshot", "snapshot", volumeid=volume, name="after")
        restored = await self._do("createVolume", "volume", name="restored", snapshotid=first,
                                  zoneid=await self._zone())
        await self._cancelled(web.slow_url)
        await self._damage(s3)
        await self._checks(s3, disk, path, await self._path(restored))
        job = self.last_jobs["createSnapshot"]
        for what, command, thing in (("volume", "deleteVolume", volume), ("volume", "deleteVolume", restored),
                                     ("snapshot", "deleteSnapshot", first), ("snapshot", "deleteSnapshot", second),
                                     ("template", "deleteTemplate", template)):
            await self._do(command, what, id=thing)
        await demo_checks.nothing_left(s3, BUCKET, self.base / "data/primary")
        self.say("deleted all of it: no object, no multipart, no disk file is left")
        await self._log(job)

    last_jobs: dict[str, str] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def _storebus(self, web_port: int) -> AsyncIterator[None]:
        data = self.base / "data"
        environment = {**os.environ, "STOREBUS_DOWNLOAD_ALLOW": f"127.0.0.1/32:{web_port}", "PYTHONUNBUFFERED": "1"}
        for name in ("STOREBUS_AMQP_URL", "STOREBUS_DATABASE_URL", "STOREBUS_PRIMARY_PATH", "STOREBUS_DATA_DIR"):
            environment.pop(name, None)
        with (self.base / "storebus.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "api.cli", "up", "--data-dir", str(data), "--api-port", "0",
                env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            await self._ready(process, data)
            yield
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 20)
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _ready(self, process: asyncio.subprocess.Process, data: Path) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if process.returncode is not None:
                text = (self.base / "storebus.log").read_text(errors="replace")[-2000:]
                raise WorkFailed(f"storebus up ended with {process.returncode}: {text}")
            with contextlib.suppress(Exception):
                record = await asyncio.to_thread(read_installation, data)
                async with aiohttp.ClientSession() as http, http.get(f"{record.api_url}/readyz") as answer:
                    if answer.status == 200:
                        self.api = record.api_url
                        return
            await asyncio.sleep(0.1)
        raise WorkFailed(f"storebus up is not ready after {START_S:.0f} s", remedy=f"see {self.base / 'storebus.log'}")

    async def _provision(self, s3: SeaweedFS) -> None:
        for _ in range(600):  # agents announce themselves within moments of the start
            providers = (await self._call("listStorageProviders", type="image")).get("dataStoreProvider", [])
            pools = (await self._call("listStoragePools")).get("storagepool", [])
            if providers and pools:
                break
            await asyncio.sleep(0.1)
        answer = await self._call("addImageStore", name="objects", provider="S3", url=s3.endpoint, **{
            f"details[{n}].{part}": value
            for n, (key, text) in enumerate({"accesskey": s3.access_key, "secretkey": s3.secret_key,
                                             "endpoint": s3.endpoint, "bucket": BUCKET}.items())
            for part, value in (("key", key), ("value", text))})
        self.say(f"addImageStore: {answer['imagestore']['name']} ({answer['imagestore']['providername']}), tested")

    async def _call(self, command: str, **parameters: Any) -> dict[str, Any]:
        form = {"command": command, "response": "json", **{k: str(v) for k, v in parameters.items()}}
        async with aiohttp.ClientSession() as http, http.post(f"{self.api}/client/api", data=form) as answer:
            body: dict[str, Any] = await answer.json(content_type=None)
        inner: dict[str, Any] = next(iter(body.values()))
        if "errorcode" in inner:
            raise WorkFailed(f"{command}: {inner['errortext']}")
        return inner

    async def _do(self, command: str, noun: str, **parameters: Any) -> str:
        """Run a command to its end with its progress on the screen; the id of the thing it made."""
        answer = await self._call(command, **parameters)
        if "jobid" not in answer:  # synchronous ones answer with the thing
            inner = answer.get(noun, answer)
            inner = inner[0] if isinstance(inner, list) else inner
            answer = {"id": inner.get("id", ""), "jobid": inner.get("jobid", answer.get("jobid", ""))}
        began = time.monotonic()
        if answer["jobid"]:
            self.last_jobs[command] = answer["jobid"]
            job = await self._follow(command, answer["jobid"])
            if job["jobstatus"] != 1:
                raise WorkFailed(f"{command}: {job['jobresult'].get('errortext', job['jobresult'])}")
        name = parameters.get("name", "")
        self.say(f"{command} {name} [dim]{time.monotonic() - began:.1f}s[/dim]")
        return str(answer.get("id", ""))

    async def _follow(self, command: str, job_id: str, *, until: float = 2.0) -> dict[str, Any]:
        columns = (TextColumn("        {task.description}"), BarColumn(30), TextColumn("{task.percentage:>3.0f}%"),
                   TransferSpeedColumn())
        with Progress(*columns, console=self.console, transient=True,
                      disable=not self.console.is_terminal) as bars:
            bar = bars.add_task(command, total=None)
            end = time.monotonic() + JOB_S
            while time.monotonic() < end:
                job = await self._call("queryAsyncJobResult", jobid=job_id)
                progress = job.get("progress") or {}
                if progress.get("total"):
                    bars.update(bar, total=progress["total"], completed=progress["bytes"],
                                description=f"{command}: {progress['stage']}")
                share = progress.get("bytes", 0) / progress["total"] if progress.get("total") else 0.0
                if job["jobstatus"] != 0 or share >= until:
                    return job
                await asyncio.sleep(0.1)
        raise WorkFailed(f"{command} has not ended after {JOB_S:.0f} s", remedy=f"see {self.base / 'storebus.log'}")

    async def _cancelled(self, url: str) -> None:
        answer = await self._call("registerTemplate", name="halfway", displaytext="cancelled", url=url, format="QCOW2",
                                  hypervisor="KVM", zoneid="-1")
        job_id = answer["template"][0]["jobid"]
        job = await self._follow("registerTemplate halfway", job_id, until=0.4)
        if job["jobstatus"] != 0:
            raise WorkFailed(f"the slow transfer ended before it could be cancelled: {job.get('jobresult')}")
        done = job["progress"]["bytes"]
        began = time.monotonic()
        await self._call("cancelJob", jobid=job_id)
        job = await self._follow("cancelJob", job_id)
        if job["jobstatus"] == 1:
            raise WorkFailed("the cancelled job completed")
        self.say(f"cancelled a transfer at {done >> 20} MiB; it stopped after {time.monotonic() - began:.1f}s")

    async def _path(self, volume: str) -> Path:
        found = (await self._call("listVolumes", id=volume))["volume"][0]
        pool = (await self._call("listStoragePools", id=found["storageid"]))["storagepool"][0]
        return Path(str(pool["path"])) / str(found["path"])

    async def _zone(self) -> str:
        return str((await self._call("listZones"))["zone"][0]["id"])

    async def _damage(self, s3: SeaweedFS) -> None:
        if not self.before_checks:
            return
        record = await asyncio.to_thread(read_installation, self.base / "data")
        environment = {**os.environ, "DEMO_DATABASE_URL": record.dsn(), "DEMO_S3_ENDPOINT": s3.endpoint,
                       "DEMO_S3_ACCESS_KEY": s3.access_key, "DEMO_S3_SECRET_KEY": s3.secret_key,
                       "DEMO_BUCKET": BUCKET, "DEMO_DATA_DIR": str(self.base / "data")}
        process = await asyncio.create_subprocess_shell(self.before_checks, env=environment)
        if await process.wait() != 0:
            raise WorkFailed(f"the command before the checks ended with {process.returncode}")

    async def _checks(self, s3: SeaweedFS, disk: Any, changed: Path, restored: Path) -> None:
        await demo_checks.same_content(disk.path, restored)
        self.say("the restored volume equals the image, byte for byte")
        await demo_checks.file_system(restored, self.base)
        await demo_checks.differs(disk.path, changed)
        self.say("its file system is clean; the changed volume differs, as it should")
        objects = await demo_checks.objects(s3, BUCKET)
        self.say(f"{objects} objects in the bucket equal their manifests; qemu-img check finds no fault")
        record = await asyncio.to_thread(read_installation, self.base / "data")
        events = await demo_checks.log_and_projections(record.dsn())
        self.say(f"the log holds: {events} rows, dense, chained; projections equal their fold, and again when rebuilt")

    async def _log(self, job_id: str) -> None:
        record = await asyncio.to_thread(read_installation, self.base / "data")
        self.console.print(await demo_checks.timeline(record.dsn(), job_id))
        await demo_checks.log_and_projections(record.dsn())


def main(image: str, keep: bool, before_checks: str) -> int:
    """Run the demo; the exit status."""
    return asyncio.run(Demo(image=image, keep=keep, before_checks=before_checks).run())
