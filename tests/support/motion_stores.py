"""The image stores that motions are tested on, opened by name: memory (a double), folder, S3 (SeaweedFS) and Swift, the servers
those of the session's fixtures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from agents.image_stores.base import ImageStore
from agents.image_stores.folder import FolderImageStore
from agents.image_stores.memory import MemoryImageStore
from agents.image_stores.s3 import S3ImageStore
from agents.image_stores.swift import SwiftImageStore
from schema.image import StoreSpec
from tests.services.s3_fixture import s3_spec
from tests.services.swift_fixture import swift_spec

FOLDER, S3, SWIFT = "folder", pytest.param("s3", marks=pytest.mark.needs_s3), pytest.param("swift", marks=pytest.mark.needs_swift)
REAL = (FOLDER, S3, SWIFT)
"""What a fixture has as its parameters; each but memory is a real one."""


def store_spec(provider: str, url: str) -> StoreSpec:
    """A store with a prefix of its own."""
    return StoreSpec(id=uuid4(), name="s", provider=provider, url=url, prefix=str(uuid4()))


@asynccontextmanager
async def opened(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ImageStore]:
    """The store of this kind, empty below a prefix of its own; it was tested, as one that is added."""
    store: ImageStore
    match kind:
        case "memory":
            store = await MemoryImageStore.open(store_spec("memory", f"memory://{uuid4()}"), {})
        case "folder":
            (tmp_path / "store").mkdir()
            store = await FolderImageStore.open(store_spec("folder", f"folder://{tmp_path / 'store'}"), {})
        case "swift":
            swift = request.getfixturevalue("swift_server")
            store = await SwiftImageStore.open(swift_spec(swift), {"key": swift.key})
        case "s3":
            server = request.getfixturevalue("s3_server")
            store = await S3ImageStore.open(s3_spec(server), {"secretkey": server.secret_key})
        case _:
            raise ValueError(kind)
    try:
        await store.test("probe")
        yield store
    finally:
        await store.aclose()
