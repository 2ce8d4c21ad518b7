"""What each kind of image store is to a test that shoots at it: added, listed, read and killed by other means than the product's.

Owns what differs between the kinds. Refuses to know what is shot, and when.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from swiftclient.client import Connection

from agents.image_stores.swift_upload import FOLDER, MADE_BY
from api.demo_s3 import SeaweedFS
from tests.services.s3_proxy import Seen
from tests.services.swift import SwiftServer

AGAIN_S = 180
"""A killed server answers again within so many seconds."""


class Store(Protocol):
    """One image store on a server that a test may kill."""

    provider: ClassVar[str]
    part: ClassVar[re.Pattern[str]]
    """Finds the upload, or the key, and the number in the target of a PUT that carries a part."""

    @property
    def endpoint(self) -> str: ...

    def url(self, endpoint: str) -> str:
        """What addImageStore is given when the server is reached by this endpoint."""

    def details(self, endpoint: str) -> dict[str, str]:
        """Settings and secret, likewise."""

    def objects(self) -> set[str]:
        """Every key; what is of no whole object is named as unfinished."""

    def fetch(self, key: str, to: Path) -> None:
        """An object as another client gets it."""

    def restart(self) -> None:
        """SIGKILL to all of the server, and the same again on what it had."""

    def stop(self) -> None:
        """End the server and remove what it wrote."""


def is_part(store: Store, seen: Seen) -> bool:
    """Whether a request carries a part."""
    return seen.method == "PUT" and store.part.search(seen.target) is not None


def adding(store: Store, endpoint: str) -> dict[str, str]:
    """Parameters of addImageStore, but the name."""
    return {"provider": store.provider, "url": store.url(endpoint), **{
        f"details[{n}].{part}": value for n, (key, text) in enumerate(store.details(endpoint).items())
        for part, value in (("key", key), ("value", text))}}


class S3Store:
    """SeaweedFS."""

    provider = "S3"
    part = re.compile(r"/([^?]+)\?.*partNumber=(\d+)")

    def __init__(self, server: SeaweedFS, bucket: str) -> None:
        self.server, self.bucket = server, bucket

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    def url(self, endpoint: str) -> str:
        return endpoint

    def details(self, endpoint: str) -> dict[str, str]:
        return {"accesskey": self.server.access_key, "secretkey": self.server.secret_key, "endpoint": endpoint, "bucket": self.bucket}

    def objects(self) -> set[str]:
        with contextlib.closing(self.server.client()) as client:
            found = {item["Key"] for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
                     for item in page.get("Contents", [])}
            uploads = client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return found | {f"unfinished {upload['Key']}" for upload in uploads}

    def fetch(self, key: str, to: Path) -> None:
        with contextlib.closing(self.server.client()) as client, to.open("wb") as file:
            for piece in client.get_object(Bucket=self.bucket, Key=key)["Body"].iter_chunks(1 << 20):
                file.write(piece)

    def restart(self) -> None:
        _restart(self.server, self._answers)

    def _answers(self) -> None:
        with contextlib.closing(self.server.client(retries={"total_max_attempts": 1})) as client:
            client.put_object(Bucket=self.server.bucket, Key="again", Body=b"x")
            client.delete_object(Bucket=self.server.bucket, Key="again")

    def stop(self) -> None:
        self.server.kill()


class SwiftStore:
    """OpenStack Swift; objects and their segments lie in one container."""

    provider = "Swift"
    part = re.compile(rf"/{re.escape(FOLDER)}(.+)/(\d+)$")

    def __init__(self, server: SwiftServer, container: str) -> None:
        self.server, self.container = server, container

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    def url(self, endpoint: str) -> str:
        return f"{endpoint}/auth/v1.0"

    def details(self, endpoint: str) -> dict[str, str]:
        return {"account": self.server.account, "username": self.server.username, "key": self.server.key, "container": self.container}

    def _client(self, **more: Any) -> Connection:
        return Connection(self.server.url, f"{self.server.account}:{self.server.username}", self.server.key, **more)

    def objects(self) -> set[str]:
        with contextlib.closing(self._client()) as client:
            names = {one["name"] for one in client.get_container(self.container, full_listing=True)[1]}
            found = {name for name in names if not name.startswith(FOLDER)}
            whole = tuple(f"{FOLDER}{key}/{upload}/" for key in found if (upload := client.head_object(self.container, key).get(MADE_BY)))
        return found | {f"unfinished {name}" for name in names - found if not name.startswith(whole)}

    def fetch(self, key: str, to: Path) -> None:
        with contextlib.closing(self._client()) as client, to.open("wb") as file:
            for piece in client.get_object(self.container, key, resp_chunk_size=1 << 20)[1]:
                file.write(piece)

    def restart(self) -> None:
        _restart(self.server, self._answers)

    def _answers(self) -> None:
        with contextlib.closing(self._client(retries=0)) as client:
            client.put_container("again")
            client.put_object("again", "again", b"x")
            client.delete_object("again", "again")

    def stop(self) -> None:
        self.server.stop()


def _restart(server: Any, answers: Callable[[], None]) -> None:
    """Kill all of it, its supervisor first, which would end it in good order, and start it on what it had."""
    # Swift's servers have left their starter's group, and would share its port with the new ones.
    children = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _parent(entry) == server.process.pid]
    os.killpg(server.process.pid, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    server.process.wait()
    assert server.process.stdin is not None
    server.process.stdin.close()
    (server.root / "exit").unlink(missing_ok=True)
    with (server.root / "again.log").open("ab") as log:
        server.process = subprocess.Popen(server.process.args, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                                          start_new_session=True, cwd=server.root)
    end = time.monotonic() + AGAIN_S
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            return answers()
        time.sleep(0.2)
    raise AssertionError((server.root / "again.log").read_text(errors="replace")[-2000:])


def _parent(entry: Path) -> int:
    with contextlib.suppress(OSError):
        return int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0
