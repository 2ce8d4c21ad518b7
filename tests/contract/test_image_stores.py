"""The image store contract on SeaweedFS, OpenStack Swift, a directory, an NFS mount (or a directory in its place) and memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest

from agents.image_stores.base import ImageStore
from agents.image_stores.folder import FolderImageStore
from agents.image_stores.memory import MemoryImageStore
from agents.image_stores.nfs import NfsImageStore
from agents.image_stores.s3 import S3ImageStore
from agents.image_stores.swift import SwiftImageStore
from schema.image import StoreSpec
from tests.contract.image_store import ImageStoreContract, Place
from tests.services.s3_fixture import s3_server, s3_spec
from tests.services.seaweedfs import SeaweedFS
from tests.services.swift import SwiftServer
from tests.services.swift_fixture import swift_server, swift_spec
from tests.support.memory_links import served

__all__ = ["s3_server", "swift_server"]


class TestMemory(ImageStoreContract):
    @pytest.fixture
    def place(self) -> Place:
        spec = StoreSpec(id=uuid4(), name="m", provider="memory", url=f"memory://{uuid4()}", prefix=str(uuid4()))
        return Place(MemoryImageStore, spec, outlives=False)

    def serving(self, store: ImageStore) -> AbstractContextManager[None]:
        return served(cast(MemoryImageStore, store)._bucket)


class TestFolder(ImageStoreContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        spec = StoreSpec(id=uuid4(), name="f", provider="folder", url=f"folder://{tmp_path}", prefix=str(uuid4()))
        return Place(FolderImageStore, spec)


class TestNfs(ImageStoreContract):
    """On the mount that STOREBUS_TEST_NFS_PATH names; without it on a directory, which proves the code and nothing about NFS."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        given = os.environ.get("STOREBUS_TEST_NFS_PATH", "")
        root = Path(given) / f"storebus-{uuid4()}" if given else tmp_path / "mount"
        root.mkdir()
        spec = StoreSpec(id=uuid4(), name="n", provider="nfs", url="nfs://filer/export", prefix=str(uuid4()),
                         details={"mountpoint": str(root)})
        yield Place(NfsImageStore, spec)
        if given:
            shutil.rmtree(root)


@pytest.mark.needs_s3
class TestS3(ImageStoreContract):
    @pytest.fixture
    def place(self, s3_server: SeaweedFS) -> Place:
        return Place(S3ImageStore, s3_spec(s3_server), {"secretkey": s3_server.secret_key})


@pytest.mark.needs_swift
class TestSwift(ImageStoreContract):
    @pytest.fixture
    def place(self, swift_server: SwiftServer) -> Place:
        return Place(SwiftImageStore, swift_spec(swift_server), {"key": swift_server.key})
