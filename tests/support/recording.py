"""What the API really answers, recorded for docs/reference: a lifecycle against an installation with real disks and a real S3.

Owns how a request and its answer become an example that is the same for every run but for sizes: ids and times in place of those
of the run, no secret, no path or port of a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
from aiohttp import web

from api import registry
from api.first_keys import read_keys
from api.signature import sign
from tests.support.machines import define, end_all
from tests.support.up import Up
from tests.support.web import Site, site
from tests.unit.test_inspection import iso

SECRET = re.compile(r"secret|password|sessionkey|apikey|accesskey", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:[+-]\d\d:?\d\d|Z)")
_LINK = re.compile(r"(https?://[^\s?\"']+)\?[^\s\"']+")


@dataclass
class Example:
    """One command, tried."""

    request: dict[str, str]
    answer: dict[str, Any]
    job: dict[str, Any] | None = None
    """The job of an asynchronous command, as queryAsyncJobResult shows it at its end."""


@dataclass
class Recorder:
    """Asks an installation as its first admin, and remembers the first good answer to each command, and the first refusal."""

    url: str
    keys: tuple[str, str]
    examples: dict[str, Example] = field(default_factory=dict)
    refusals: dict[str, Example] = field(default_factory=dict)
    http: aiohttp.ClientSession | None = None

    async def _post(self, form: dict[str, str], *, signed: bool = True) -> dict[str, Any]:
        assert self.http is not None
        if signed:
            form = {**form, "apiKey": self.keys[0]}
            form["signature"] = sign(form, self.keys[1])
        async with self.http.post(f"{self.url}/client/api", data=form) as answer:
            found: dict[str, Any] = await answer.json(content_type=None)
            return found

    async def __call__(self, command: str, /, *, signed: bool = True, **given: Any) -> dict[str, Any]:
        """The body of the answer; of a job, its result. Raises AssertionError when it is refused or fails."""
        request = {name: str(value) for name, value in given.items()}
        answer = await self._post({"command": command, "response": "json", **request}, signed=signed)
        [body] = answer.values()
        assert "errorcode" not in body, f"{command}: {body}"
        job: dict[str, Any] | None = None
        known = registry.find(command)
        thing = body[known.item][0] if known.listed else body
        if "jobid" in thing and "jobstatus" not in body:
            job = await self.ended(thing["jobid"])
            assert job["jobstatus"] == 1, f"{command}: {job}"
        self.examples.setdefault(command, Example(request, answer, job))
        found: dict[str, Any] = job["jobresult"] if job else body
        return found

    async def started(self, command: str, /, **given: Any) -> str:
        """The job of a command that is not waited for, nor remembered."""
        [body] = (await self._post({"command": command, "response": "json", **{name: str(value) for name, value in given.items()}})).values()
        thing = body["template"][0] if "template" in body else body
        return str(thing["jobid"])

    async def refused(self, command: str, /, **given: Any) -> None:
        """A call that is refused, remembered as such."""
        request = {name: str(value) for name, value in given.items()}
        answer = await self._post({"command": command, "response": "json", **request})
        [body] = answer.values()
        assert "errorcode" in body, f"{command}: {body}"
        self.refusals.setdefault(command, Example(request, answer))

    async def ended(self, job: str) -> dict[str, Any]:
        """The job at its end."""
        for _ in range(1200):
            [found] = (await self._post({"command": "queryAsyncJobResult", "jobid": job, "response": "json"})).values()
            if found.get("jobstatus", 1) != 0:
                return dict(found)
            await asyncio.sleep(0.05)
        raise AssertionError(job)


@dataclass
class Writer:
    """Makes what was recorded fit to be read: each id, once seen, has one number; what is long is cut."""

    hidden: dict[str, str]
    """Text of this run -> what stands for it."""
    ids: dict[str, str] = field(default_factory=dict)

    def value(self, found: Any, name: str = "") -> Any:
        """A value, of the field `name`."""
        match found:
            case dict():
                return {key: self.value(each, key) for key, each in found.items()}
            case list():
                kept = [self.value(each, name) for each in found[:1]]
                return kept + ([f"... {len(found) - 1} more"] if len(found) > 1 else [])
            case str():
                if SECRET.search(name):
                    return "********"
                return self.text(found)
            case _:
                return found

    def text(self, found: str) -> str:
        """A text."""
        for here, there in self.hidden.items():
            found = re.sub(_whole(here), there, found)
        found = _LINK.sub(r"\1?...", found)
        found = _TIME.sub("2026-01-01T12:00:00+0000", found)
        return _UUID.sub(lambda match: self.ids.setdefault(
            match.group().lower(), f"00000000-0000-4000-8000-{len(self.ids) + 1:012d}"), found)

    def example(self, example: Example) -> dict[str, Any]:
        """As it is kept."""
        request = {name: self.value(value, (SECRET.search(name) and name) or self._detail(example.request, name))
                   for name, value in example.request.items()}
        kept: dict[str, Any] = {"request": request, "answer": self.value(example.answer)}
        if example.job is not None:
            kept["job"] = self.value(example.job)
        return kept

    @staticmethod
    def _detail(request: dict[str, str], name: str) -> str:
        """Of `details[0].value` the key that it is of."""
        return request.get(name.removesuffix("value") + "key", name) if name.endswith(".value") else name


def _whole(text: str) -> str:
    """The pattern of a text that is not part of a longer word: a machine may be called vm, and kvm is not its name."""
    first, last = (r"(?<![A-Za-z0-9])" if text[0].isalnum() else ""), (r"(?![A-Za-z0-9])" if text[-1].isalnum() else "")
    return first + re.escape(text) + last


def pairs(name: str, found: dict[str, str]) -> dict[str, str]:
    """A map parameter."""
    return {f"{name}[{n}].{part}": text for n, one in enumerate(found.items()) for part, text in zip(("key", "value"), one, strict=True)}


@contextlib.asynccontextmanager
async def disc() -> AsyncIterator[str]:
    """The URL of an ISO image."""
    body = iso(head=b"\x33\xed" + bytes(508) + b"\x55\xaa") + random.Random(1).randbytes(1 << 20)
    application = web.Application()

    async def give(request: web.Request) -> web.Response:
        return web.Response(body=body, headers={"ETag": '"1"'})

    application.router.add_get("/disc.iso", give)
    runner = web.AppRunner(application, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/disc.iso"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def recorded(s3: Any, folder: Path) -> AsyncIterator[tuple[Recorder, Writer, Up]]:
    """An installation with identity on which the whole lifecycle was gone through."""
    buckets = [f"sb{secrets.token_hex(6)}" for _ in range(3)]
    for bucket in buckets:
        await asyncio.to_thread(s3.create_bucket, bucket)
    async with site(folder, random.Random(5).randbytes(1 << 20) + bytes(3 << 20)) as images, disc() as disc_url:
        allowed = ",".join(f"127.0.0.1/32:{urlsplit(url).port}" for url in (images.url(""), disc_url))
        up = Up(environment={"STOREBUS_DOWNLOAD_ALLOW": allowed, "STOREBUS_MAX_IMAGE_BYTES": str(64 << 20),
                             "STOREBUS_IDENTITY": "true", "STOREBUS_AGENT_MACHINES": str(folder / "machines")})
        define(folder / "machines", UUID("5b6c7d8e-9f0a-4b1c-8d2e-3f4a5b6c7d8e"), name="web")
        try:
            await up.start()
            keys = read_keys(up.data)
            assert keys is not None
            hidden = {images.url(""): "https://images.example/", disc_url: "https://images.example/disc.iso", s3.endpoint: "https://s3.example", str(up.base): "/var/lib/storebus",
                      **{bucket: f"images-{n}" for n, bucket in enumerate(buckets, 1)}, str(folder): "/mnt", socket.gethostname(): "host-1"}
            async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
                ask = Recorder(up.url, keys, http=http)
                from tests.support.lifecycle import lifecycle

                await lifecycle(ask, s3, buckets, images, disc_url, folder)
            yield ask, Writer(hidden), up
        finally:
            with contextlib.suppress(Exception):
                up.kill()  # else it would start the machine again
            end_all(up.base)
            up.remove()
            with contextlib.closing(s3.client()) as client, contextlib.suppress(Exception):
                for bucket in buckets:
                    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                        for item in page.get("Contents", []):
                            client.delete_object(Bucket=bucket, Key=item["Key"])
                    client.delete_bucket(Bucket=bucket)


def kept(ask: Recorder, writer: Writer, untried: Mapping[str, str]) -> str:
    """The examples as a file; of commands without a good answer with the reason."""
    return json.dumps({name: {**(writer.example(ask.examples[name]) if name in ask.examples else {}),
                              **({"untried": untried[name]} if name in untried else {}),
                              **({"refused": writer.example(ask.refusals[name])} if name in ask.refusals else {})}
                       for name in sorted({*ask.examples, *ask.refusals})}, indent=1, ensure_ascii=False) + "\n"


__all__ = ["Example", "Recorder", "Site", "Writer", "kept", "pairs", "recorded"]
