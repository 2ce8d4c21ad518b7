"""The fault suite on SeaweedFS, OpenStack Swift, NFS's store, a directory and memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agents.image_stores import trouble
from tests.contract.image_store_faults import FaultContract, Rig
from tests.services.s3_fixture import s3_server
from tests.services.seaweedfs import SeaweedFS
from tests.services.swift import SwiftServer
from tests.services.swift_fixture import swift_server
from tests.support.faulty_stores import FolderRig, MemoryRig, NfsRig, S3Rig, SwiftRig

__all__ = ["s3_server", "swift_server"]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other quickly: what is tested is that there are several, and an end of them."""
    monkeypatch.setattr(trouble, "MAX_BACKOFF_S", 0.06)


@pytest.fixture(scope="module")
async def s3_rig(s3_server: SeaweedFS) -> AsyncIterator[Rig]:
    rig = await S3Rig.open(s3_server)
    yield rig
    await rig.aclose()


@pytest.fixture(scope="module")
async def swift_rig(swift_server: SwiftServer) -> AsyncIterator[Rig]:
    rig = await SwiftRig.open(swift_server)
    yield rig
    await rig.aclose()


class TestMemory(FaultContract):
    RIG = MemoryRig

    @pytest.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        rig = await MemoryRig.open()
        yield rig
        await rig.aclose()


class TestFolder(FaultContract):
    RIG = FolderRig

    @pytest.fixture
    async def rig(self, tmp_path: Path) -> AsyncIterator[Rig]:
        rig = await FolderRig.open(tmp_path)
        yield rig
        await rig.aclose()


class TestNfs(FaultContract):
    RIG = NfsRig

    @pytest.fixture
    async def rig(self, tmp_path: Path) -> AsyncIterator[Rig]:
        rig = await NfsRig.open(tmp_path)
        yield rig
        await rig.aclose()


@pytest.mark.needs_s3
class TestS3(FaultContract):
    RIG = S3Rig

    @pytest.fixture
    def rig(self, s3_rig: Rig) -> Rig:
        return s3_rig


@pytest.mark.needs_swift
class TestSwift(FaultContract):
    RIG = SwiftRig

    @pytest.fixture
    def rig(self, swift_rig: Rig) -> Rig:
        return swift_rig
