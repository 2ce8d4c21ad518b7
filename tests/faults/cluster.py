"""A whole installation as separate processes on real servers, killed and restarted by tests; and its checkers.

Roles are what an operator starts (`storebus serve ...`), each a process of its own. Nothing here reaches into a role: it
is driven over HTTP and looked at from outside (database, bucket, folder).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from api.demo_s3 import SeaweedFS
from tests.faults.checker import findings
from tests.faults.stores import S3Store, Store, adding
from tests.services.forked import Forked, storebus
from tests.services.postgres import TestServer, fresh_database
from tests.services.rabbitmq import RabbitMQ

_ENDED = "SELECT 1 FROM es.event WHERE stream = $1 AND type IN ('job.completed', 'job.failed', 'job.cancelled')"
ROLES = ("api", "handlers", "log", "storage", "kvm")
PATIENCE_S = 180.0
"""Seconds that a wait for what must come may last: a machine may be slow for minutes, and waiting costs nothing when it is not."""
END_S = 240.0
"""The same, for a job that its killers keep from ending."""


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Cluster:
    """One installation."""

    rabbit: RabbitMQ
    dsn: str
    s3: SeaweedFS
    base: Path
    store: Store
    """What is added as image store."""
    bucket: str = "storebus"
    allow: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    """Settings of all roles, besides."""
    watched: bool = False
    """Somebody reads the roles' environments from outside, so they have to be started with them."""
    port: int = field(default_factory=free_port)
    processes: dict[str, Forked | subprocess.Popen[bytes]] = field(default_factory=dict)
    kills: dict[str, int] = field(default_factory=dict)
    busy_kills: dict[str, int] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    """Keys in the bucket that a test put there."""

    def start(self, role: str, failpoints: str = "") -> None:
        """Start one role."""
        environment = os.environ | {
            "STOREBUS_AMQP_URL": self.rabbit.url, "STOREBUS_DATABASE_URL": self.dsn, "STOREBUS_DATA_DIR": str(self.base / "data"),
            "STOREBUS_API_PORT": str(self.port), "STOREBUS_FAILPOINTS": failpoints, "STOREBUS_AGENT_NAME": "host",
            "STOREBUS_DOWNLOAD_ALLOW": self.allow, "STOREBUS_PRIMARY_PATH": str(self.base / "primary"),
            **self.environment,
        }
        if (self.base / "machines").is_dir():
            environment["STOREBUS_AGENT_MACHINES"] = str(self.base / "machines")
        serve = ["agent", "--role", role] if role in ("storage", "kvm") else [role]
        with (self.base / f"{role}.log").open("ab") as log:
            self.processes[role] = storebus("serve", *serve, env=environment, stdout=log, stderr=log, loaded=not self.watched)

    def kill(self, role: str) -> None:
        """SIGKILL one role's process; its children die with it by themselves."""
        process = self.processes[role]
        process.kill()
        process.wait()
        self.kills[role] = self.kills.get(role, 0) + 1

    async def halted(self, role: str, job: str) -> None:
        """Stop one role's process in the moment in which the job ends, or soon after: it runs in slices until then. `go_on` ends it."""
        process, connection = self.processes[role], await asyncpg.connect(self.dsn)
        try:
            for _ in range(600):
                process.send_signal(signal.SIGSTOP)
                for _ in range(6):
                    if await connection.fetchval(_ENDED, f"job-{job}"):
                        return
                    await asyncio.sleep(0.01)
                self.go_on(role)
                await asyncio.sleep(0.01)
        finally:
            await connection.close()
        raise AssertionError(f"job {job} has not ended: {await self.story(job)}")

    async def logged(self, event: str) -> list[bytes]:
        """The payloads of all events of a type."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return [row["payload"] for row in await connection.fetch(
                "SELECT payload FROM es.event WHERE type = $1 ORDER BY position", event)]
        finally:
            await connection.close()

    def go_on(self, role: str) -> None:
        """Let a halted role go on."""
        self.processes[role].send_signal(signal.SIGCONT)

    async def reached(self, job: str, rows: int, timeout_s: float = 10.0) -> bool:
        """Wait until the log has so many rows of a job, or its end; whether it is open still."""
        connection = await asyncpg.connect(self.dsn)
        try:
            end = time.monotonic() + timeout_s
            while time.monotonic() < end:
                if await connection.fetchval(_ENDED, f"job-{job}"):
                    return False
                if (await connection.fetchval("SELECT version FROM es.stream WHERE name = $1", f"job-{job}") or 0) >= rows - 1:
                    return True
                await asyncio.sleep(0.005)
        finally:
            await connection.close()
        return True

    async def ready(self) -> None:
        """Wait until every part answers and the agents have announced themselves."""
        end = time.monotonic() + PATIENCE_S
        last: Any = None
        while time.monotonic() < end:
            try:
                if (await self.call("listStorageProviders", type="image")) and (await self.call("listStoragePools")):
                    return
            except (aiohttp.ClientError, AssertionError) as error:
                last = error
            await asyncio.sleep(0.2)
        raise AssertionError(f"the roles are not ready: {last}; {self.logs()}")

    def logs(self) -> str:
        """The end of every role's log."""
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(self.base.glob("*.log")))

    async def call(self, command: str, **parameters: Any) -> dict[str, Any]:
        """One API call. Raises AssertionError with the API's own words."""
        form = {"command": command, "response": "json"} | {name: str(value) for name, value in parameters.items()}
        async with aiohttp.ClientSession() as http, http.post(f"http://127.0.0.1:{self.port}/client/api", data=form) as answer:
            body: dict[str, Any] = await answer.json(content_type=None)
        inner: dict[str, Any] = next(iter(body.values()))
        assert "errorcode" not in inner, f"{command}: {inner}"
        return inner

    async def persist(self, command: str, **parameters: Any) -> dict[str, Any]:
        """Call until the API answers (it may just be dead). A refusal is raised at once."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self.call(command, **parameters)
            except (aiohttp.ClientError, OSError):
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.1)

    async def end(self, job: str, timeout_s: float = END_S) -> dict[str, Any]:
        """The job's result once it has ended. One that came over AMQP may still be at the door, and not known yet."""
        end = time.monotonic() + timeout_s
        found: dict[str, Any] = {"jobstatus": 0}
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):
                found = await self.persist("queryAsyncJobResult", jobid=job)
            if found["jobstatus"] != 0:
                return found
            await asyncio.sleep(0.1)
        raise AssertionError(f"job {job} has not ended after {timeout_s} s: {found}; {await self.story(job)}; {self.logs()}")

    async def story(self, job: str) -> str:
        """What is known of a job: its rows, its timers, the agents' journals."""
        connection = await asyncpg.connect(self.dsn)
        try:
            rows = await connection.fetch("SELECT recorded_at, kind, type, payload FROM es.event WHERE stream = $1 ORDER BY version", f"job-{job}")
            timers = await connection.fetch("SELECT id, due_at, now() AS now FROM es.timer WHERE id LIKE $1", f"job-{job}%")
            held = await connection.fetch("SELECT key, reason FROM es.held")
        finally:
            await connection.close()
        told = [f"{row['recorded_at']:%H:%M:%S} {row['kind']} {row['type']} {row['payload'].decode()[:300]}" for row in rows]
        journals = []
        for path in self.base.glob("data/agents/*/orders.db"):
            with contextlib.closing(sqlite3.connect(path)) as db:
                names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
                journals += [f"{path.parent.name} {name} {row!s:.200}" for name in names for row in db.execute(f"SELECT * FROM {name}")]
        return "\n".join([*told, *(str(dict(row)) for row in [*timers, *held]), *journals])

    async def add_store(self, *, endpoint: str = "") -> str:
        """The server as image store, or what stands before it; its id."""
        given = adding(self.store, endpoint or self.store.endpoint)
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                added = await self.call("addImageStore", name="objects", **given)
                return str(added["imagestore"]["id"])
            except AssertionError as error:  # the storage agent has not announced itself yet
                if "'errorcode': 503" not in str(error) or time.monotonic() > end:
                    raise
            await asyncio.sleep(0.2)

    # --- checkers -----------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """The invariants (`checker`). Raises AssertionError with everything that does not hold."""
        found = await findings(self.dsn, self.base, lambda: asyncio.to_thread(self.objects), self.foreign)
        assert not found, "\n".join(found)

    async def settled(self, timeout_s: float = PATIENCE_S) -> None:
        """The invariants hold within this time: what jobs started may still be under way, and orders that only release."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                return await self.check()
            except AssertionError as error:
                if time.monotonic() > end:
                    raise AssertionError(f"{error}\n{self.logs()[-3000:]}") from None
            await asyncio.sleep(0.2)

    def objects(self) -> set[str]:
        """Every key in the image store; unfinished uploads are named as such."""
        return self.store.objects()

    async def outstanding(self) -> dict[str, int]:
        """Orders without an end by agent kind, and commands not started: what a killed role was holding."""
        connection = await asyncpg.connect(self.dsn)
        try:
            rows = await connection.fetch("SELECT step, status FROM read.job WHERE completed IS NULL")
        finally:
            await connection.close()
        return {"open": len(rows)}

    def stop(self) -> None:
        """End every role."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
        shutil.rmtree(self.base, ignore_errors=True)


@contextlib.asynccontextmanager
async def running(rabbit: RabbitMQ, postgres: TestServer, s3: SeaweedFS, *, allow: str = "",
                  environment: dict[str, str] | None = None, port: int | None = None,
                  store: Store | None = None, watched: bool = False) -> AsyncIterator[Cluster]:
    """A fresh installation with all roles running, on a fresh database and a fresh bucket; `store`: what is its image store instead."""
    base = Path(tempfile.mkdtemp(prefix="sb-cluster-"))
    bucket = f"sb{secrets.token_hex(6)}"
    await asyncio.to_thread(s3.create_bucket, bucket)
    await asyncio.to_thread(_warm, s3, bucket)
    cluster = Cluster(rabbit, await fresh_database(postgres), s3, base, store or S3Store(s3, bucket), bucket=bucket, allow=allow,
                      environment=environment or {}, watched=watched, port=port or free_port())
    try:
        for role in ROLES:
            cluster.start(role)
        await cluster.ready()
        yield cluster
    except BaseException:
        sys.stderr.write(cluster.logs()[-8000:])
        raise
    finally:
        cluster.stop()
        await asyncio.to_thread(drop_bucket, s3, bucket)


def drop_bucket(s3: SeaweedFS, bucket: str) -> None:
    """With all that is in it: the server grows volumes for each bucket and has a bounded number of them."""
    with contextlib.closing(s3.client()) as client:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=item["Key"])
        client.delete_bucket(Bucket=bucket)


def _warm(s3: SeaweedFS, bucket: str) -> None:
    """The first writes into a new bucket fail while the server grows volumes for it."""
    with contextlib.closing(s3.client()) as client:
        for _ in range(200):
            with contextlib.suppress(Exception):
                client.put_object(Bucket=bucket, Key="warm", Body=b"x")
                client.delete_object(Bucket=bucket, Key="warm")
                return
            time.sleep(0.2)


def dump(value: Any) -> str:
    """For messages of failed checks."""
    return json.dumps(value, indent=1, default=str)[:4000]
