"""One embedded installation with a real S3 store for the stories here."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stores import S3Store
from tests.support.up import Up
from tests.support.web import Site, site

CANARY = f"CANARY-{secrets.token_hex(8)}"


@dataclass
class Place:
    """An installation, the web and the bucket."""

    up: Up
    web: Site
    s3: Any
    bucket: str
    store: str
    zone: str

    def objects(self) -> set[str]:
        """Everything in the bucket, unfinished uploads too."""
        return S3Store(self.s3, self.bucket).objects()

    def disks(self) -> set[str]:
        """Every file of the primary store."""
        return {path.name for path in (self.up.data / "primary").iterdir()}

    async def register(self, name: str = "image", **more: Any) -> tuple[str, dict[str, Any]]:
        """Register a template from the web; (id, ended job)."""
        given = {"name": name, "displaytext": name, "url": self.web.url(name), "format": "QCOW2", "hypervisor": "KVM", "zoneid": "-1"}
        return await self.up.done("registerTemplate", **(given | more))


@pytest.fixture(scope="module")
async def place(qemu_tools: None, s3_server: Any, tmp_path_factory: pytest.TempPathFactory,
                request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """An installation of this module's own, with the settings of its ENVIRONMENT; WATCHED: its environment is read from outside."""
    folder: Path = tmp_path_factory.mktemp("web")
    bucket = f"sb{secrets.token_hex(6)}"
    await asyncio.to_thread(s3_server.create_bucket, bucket)
    async with site(folder, random.Random(3).randbytes(20 << 20) + bytes(4 << 20)) as web:
        up = Up(environment={"STOREBUS_DOWNLOAD_ALLOW": f"127.0.0.1/32:{web.port}", "STOREBUS_MAX_IMAGE_BYTES": str(64 << 20)}
                | getattr(request.module, "ENVIRONMENT", {}), watched=getattr(request.module, "WATCHED", False))
        try:
            await up.start()
            store = ""
            for _ in range(20):  # the server's first writes into a new bucket may fail
                with contextlib.suppress(Exception):
                    store = await up.add_s3(s3_server, bucket)
                    break
            assert store, up.log()
            zone = (await up.call("listZones"))["zone"][0]["id"]
            yield Place(up, web, s3_server, bucket, store, zone)
        finally:
            up.remove()
            with contextlib.closing(s3_server.client()) as client, contextlib.suppress(Exception):
                for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                    for item in page.get("Contents", []):
                        client.delete_object(Bucket=bucket, Key=item["Key"])
                client.delete_bucket(Bucket=bucket)
