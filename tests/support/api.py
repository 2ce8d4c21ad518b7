"""The HTTP API over the whole system in memory, and its caller: a real listener, agents played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from api.edge import Edge
from api.listener import HttpListener
from tests.support.system import FakeSystem

S3 = {"name": "objects", "provider": "S3", "url": "http://s3", "details[0].key": "bucket", "details[0].value": "b",
      "details[1].key": "accesskey", "details[1].value": "a", "details[2].key": "secretkey",
      "details[2].value": "canary-7f3d"}


@dataclass
class Api:
    """A running API and its caller."""

    system: FakeSystem
    edge: Edge
    url: str
    http: aiohttp.ClientSession

    async def ask(self, command: str, **parameters: Any) -> tuple[int, str, dict[str, Any]]:
        """(status, the envelope's key, its body)."""
        form = {"command": command, "response": "json", **{name: str(value) for name, value in parameters.items()}}
        async with self.http.post(f"{self.url}/client/api", data=form) as answer:
            body = await answer.json()
            assert answer.content_type == "application/json"
            assert len(body) == 1
            [(key, inner)] = body.items()
            if "errorcode" in inner:
                assert answer.status == inner["errorcode"] and answer.headers["X-Description"]
            return answer.status, key, inner

    async def ok(self, command: str, **parameters: Any) -> dict[str, Any]:
        """The body of an answer that must be right."""
        status, key, body = await self.ask(command, **parameters)
        assert (status, key) == (200, f"{command.lower()}response"), body
        return body

    async def refused(self, command: str, **parameters: Any) -> dict[str, Any]:
        """The error object of a request that must be refused."""
        status, _, body = await self.ask(command, **parameters)
        assert status >= 400, body
        assert body["uuidList"] == [] and isinstance(body["cserrorcode"], int)
        return body

    async def job(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended, polled as CloudStack's clients do."""
        for _ in range(2000):
            found = await self.ok("queryAsyncJobResult", jobid=job_id)
            if found["jobstatus"] != 0:
                return found
            await asyncio.sleep(0.02)
        raise AssertionError("the job does not end")


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """An API over an empty cloud with one zone, one agent and one primary store."""
    system = await FakeSystem.start()
    edge = Edge(system, wait_s=5)
    listener = HttpListener(edge)
    url = await listener.start()
    async with aiohttp.ClientSession() as http:
        yield Api(system, edge, url, http)
    await listener.aclose()


@pytest.fixture
async def cloud(api: Api) -> AsyncIterator[Api]:
    """The same with an image store, and agents that work."""
    async with api.system.working():
        await api.ok("addImageStore", **S3)
        yield api
