"""`storebus up` as a person runs it: a process of its own on its own folder, asked over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg

from api.demo_s3 import SeaweedFS
from api.first_keys import read_keys
from api.signature import sign
from bus.installation import read_installation
from tests.services.forked import Forked, storebus

START_S, END_S = 180.0, 180.0
"""Seconds that a start and a job may take: a machine may be slow for minutes, and waiting costs nothing when it is not."""


class Refusal(Exception):
    """The API refused: `code` and `text`."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code, self.text = code, text


@dataclass
class Up:
    """One embedded installation."""

    base: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="sb-up-")))
    environment: dict[str, str] = field(default_factory=dict)
    watched: bool = False
    """Somebody reads its environment from outside, so it has to be started with it."""
    process: Forked | subprocess.Popen[bytes] | None = None
    url: str = ""

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.base / "data"

    @property
    def dsn(self) -> str:
        """Its database."""
        return read_installation(self.data).dsn()

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        self.base.chmod(0o711)
        (self.data / "installation.json").unlink(missing_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STOREBUS_")}
        with (self.base / "up.log").open("ab") as log:
            self.process = storebus("up", "--data-dir", str(self.data), "--api-port", "0", env=clean | self.environment, stdout=log,
                                    stderr=log, loaded=not self.watched)
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log()
            with contextlib.suppress(Exception):
                self.url = read_installation(self.data).api_url
                if (await self.call("listStoragePools")) and (await self.call("listStorageProviders", type="image")):
                    return
            await asyncio.sleep(0.1)
        raise AssertionError(self.log())

    def log(self) -> str:
        """Its log."""
        return (self.base / "up.log").read_text(errors="replace")[-4000:]

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(30)

    def remove(self) -> None:
        """End it and delete everything."""
        with contextlib.suppress(Exception):
            self.kill()
        shutil.rmtree(self.base, ignore_errors=True)

    async def call(self, command: str, **parameters: Any) -> dict[str, Any]:
        """One API call. Raises Refusal."""
        form = {"command": command, "response": "json"} | {name: str(value) for name, value in parameters.items()}
        if self.environment.get("STOREBUS_IDENTITY"):  # as its first admin
            key, secret = read_keys(self.data) or ("", "")
            form["apiKey"] = key
            form["signature"] = sign(form, secret)
        async with aiohttp.ClientSession() as http, http.post(f"{self.url}/client/api", data=form) as answer:
            body: dict[str, Any] = await answer.json(content_type=None)
        inner: dict[str, Any] = next(iter(body.values()))
        if "errorcode" in inner:
            assert answer.status == inner["errorcode"]
            raise Refusal(inner["errorcode"], inner["errortext"])
        return inner

    async def table(self, name: str) -> list[dict[str, Any]]:
        """A read table, as whoever may only read sees it."""
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute("SET ROLE storebus_app")
            return [dict(row) for row in await connection.fetch(f'SELECT * FROM read."{name}" ORDER BY id')]
        finally:
            await connection.close()

    async def end(self, job: str, timeout_s: float = END_S) -> dict[str, Any]:
        """The ended job."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            found = await self.call("queryAsyncJobResult", jobid=job)
            if found["jobstatus"]:
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"{found}\n{self.log()}")

    async def done(self, command: str, **parameters: Any) -> tuple[str, dict[str, Any]]:
        """Run a command to its end: (id of the thing, ended job)."""
        answer = await self.call(command, **parameters)
        answer = answer["template"][0] if "template" in answer else answer
        return str(answer.get("id", "")), await self.end(answer["jobid"])

    async def add_s3(self, s3: SeaweedFS, bucket: str, /, **more: str) -> str:
        """Add the S3 server; its id. `more` overrides details."""
        details = {"accesskey": s3.access_key, "secretkey": s3.secret_key, "endpoint": s3.endpoint, "bucket": bucket} | more
        pairs = {f"details[{n}].{part}": value for n, (key, text) in enumerate(details.items())
                 for part, value in (("key", key), ("value", text))}
        answer = await self.call("addImageStore", name=f"s-{uuid4()}", provider="S3", url=details["endpoint"], **pairs)
        return str(answer["imagestore"]["id"])
