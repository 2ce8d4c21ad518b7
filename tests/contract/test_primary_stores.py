"""The primary store contract on a folder, on block devices and on memory, and what is the folder's own."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import pytest

from agents.hypervisors.memory import MemoryHypervisor
from agents.primary_stores import folder
from agents.primary_stores.base import PrimaryStore
from agents.primary_stores.block import BlockPrimaryStore
from agents.primary_stores.folder import FolderPrimaryStore
from agents.primary_stores.memory import MemoryPrimaryStore
from schema.failure import WorkFailed
from schema.image import ImageFormat
from tests.contract.hypervisor import image_file
from tests.services.loop_devices import LoopDevices

Make = Callable[[str, bytes], Awaitable[None]]
Content = Callable[[str], Awaitable[bytes]]
OUTSIDE = ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\0b"]


class PrimaryStoreContract:
    """What every primary store must do. `make` puts a disk at a path, `content` reads it, as its hypervisor would."""

    RESERVES = False
    """A draft has its place at once: a device that is all zeros, in place of a path where nothing is."""
    ALONE = True
    """Its free space is its own: nobody else fills it meanwhile."""

    def fresh(self, draft: str) -> bool:
        """Nothing is there that somebody could read."""
        return not any(Path(draft).read_bytes()) if self.RESERVES else not os.path.exists(draft)

    @pytest.fixture
    def store(self) -> PrimaryStore:
        """Override: an empty one."""
        raise NotImplementedError

    @pytest.fixture
    def make(self) -> Make:
        """Override."""
        raise NotImplementedError

    @pytest.fixture
    def content(self) -> Content:
        """Override."""
        raise NotImplementedError

    async def test_a_draft_becomes_the_volume(self, store: PrimaryStore, make: Make, content: Content) -> None:
        volume = uuid4()
        draft = await store.draft(volume, "w.1", "qcow2")
        assert self.fresh(draft)
        await make(draft, b"disk")
        name = f"{volume}.qcow2"
        assert not await store.exists(name) and await store.names() == [f".{volume}.w.1.qcow2"]
        for _ in range(2):  # twice is once
            assert await store.commit(volume, "w.1", "qcow2") == name
        assert await store.exists(name) and await store.names() == [name]
        assert await content(store.locate(name)) == b"disk"

    async def test_a_draft_that_was_left_is_removed_by_the_next(self, store: PrimaryStore, make: Make) -> None:
        volume = uuid4()
        await make(await store.draft(volume, "w.1", "qcow2"), b"half")
        again = await store.draft(volume, "w.1", "qcow2")
        assert await store.names() == [f".{volume}.w.1.qcow2"] * self.RESERVES and self.fresh(again)

    async def test_attempts_do_not_meet(self, store: PrimaryStore, make: Make, content: Content) -> None:
        volume = uuid4()
        await make(await store.draft(volume, "w.1", "qcow2"), b"old")
        await make(await store.draft(volume, "w.2", "qcow2"), b"new")
        assert len(await store.names()) == 2, "what is left over must be seen"
        await store.commit(volume, "w.2", "qcow2")
        for _ in range(2):
            await store.discard(volume, "w.1", "qcow2")
        assert await store.names() == [f"{volume}.qcow2"]
        assert await content(store.locate(f"{volume}.qcow2")) == b"new"

    async def test_a_disk_made_again_replaces_the_first(self, store: PrimaryStore, make: Make, content: Content) -> None:
        """The report of the first attempt was lost."""
        volume = uuid4()
        for work, body in (("w.1", b"first"), ("w.2", b"second")):
            await make(await store.draft(volume, work, "qcow2"), body)
            assert await store.commit(volume, work, "qcow2") == f"{volume}.qcow2"
        assert await store.names() == [f"{volume}.qcow2"]
        assert await content(store.locate(f"{volume}.qcow2")) == b"second"
        before = await store.usage()
        await store.delete(volume)
        assert await store.names() == []
        if self.ALONE:
            assert (await store.usage()).free >= before.free

    async def test_commit_without_a_draft_fails(self, store: PrimaryStore) -> None:
        with pytest.raises(WorkFailed):
            await store.commit(uuid4(), "w.1", "qcow2")
        assert await store.names() == []

    async def test_delete_takes_the_disk_and_its_drafts_only(self, store: PrimaryStore, make: Make) -> None:
        volume, other = uuid4(), uuid4()
        for one in (volume, other):
            await make(await store.draft(one, "w.1", "qcow2"), b"disk")
            await store.commit(one, "w.1", "qcow2")
        await make(await store.draft(volume, "w.2", "qcow2"), b"half")
        for _ in range(2):
            await store.delete(volume)
            assert await store.names() == [f"{other}.qcow2"]
        await store.delete(uuid4())

    @pytest.mark.parametrize("name", OUTSIDE)
    async def test_names_stay_inside(self, store: PrimaryStore, name: str) -> None:
        with pytest.raises(WorkFailed, match="leaves its primary store"):
            store.locate(name)
        with pytest.raises(WorkFailed, match="leaves its primary store"):
            await store.draft(uuid4(), name, "qcow2")
        with pytest.raises(WorkFailed, match="leaves its primary store"):
            await store.commit(uuid4(), "w", name)

    async def test_usage(self, store: PrimaryStore) -> None:
        usage = await store.usage()
        assert 0 <= usage.free <= usage.total > 0


class TestMemory(PrimaryStoreContract):
    @pytest.fixture
    def store(self) -> PrimaryStore:
        return MemoryPrimaryStore(f"/p/{uuid4()}")

    @pytest.fixture
    def make(self) -> Make:
        async def put(path: str, body: bytes) -> None:
            await MemoryHypervisor().create(path, 512)
            async with MemoryHypervisor().open(path, writable=True) as device:
                await device.write(0, body)

        return put

    @pytest.fixture
    def content(self) -> Content:
        async def get(path: str) -> bytes:
            async with MemoryHypervisor().open(path) as device:
                return bytes(await device.read(0, 512)).rstrip(b"\0")

        return get

    async def test_a_file_that_arrived_is_seen_and_taken_in(self, store: PrimaryStore, content: Content) -> None:
        volume = uuid4()
        draft = await store.draft(volume, "w.1", "qcow2")
        image_file(Path(draft), b"disk".ljust(512, b"\0"))
        assert await store.names() == [Path(draft).name]
        await MemoryHypervisor().adopt(draft, format=ImageFormat.QCOW2, grow_to=0)
        assert not os.path.exists(draft)
        assert await content(store.locate(await store.commit(volume, "w.1", "qcow2"))) == b"disk"


class TestBlock(PrimaryStoreContract):
    RESERVES = True

    @pytest.fixture
    async def store(self, tmp_path: Path, loop_devices: LoopDevices) -> PrimaryStore:
        made = BlockPrimaryStore(tmp_path / "p")
        await made.prepare([loop_devices.make(4 << 20) for _ in range(3)])
        return made

    @pytest.fixture
    def make(self) -> Make:
        async def put(path: str, body: bytes) -> None:
            with open(path, "r+b") as device:
                device.write(body)

        return put

    @pytest.fixture
    def content(self) -> Content:
        async def get(path: str) -> bytes:
            return Path(path).read_bytes().rstrip(b"\0")

        return get


class TestFolder(PrimaryStoreContract):
    ALONE = False  # on the file system of whatever else the machine does

    @pytest.fixture
    def store(self, tmp_path: Path) -> PrimaryStore:
        (tmp_path / "p").mkdir()
        (tmp_path / "p" / "readme.txt").write_text("somebody else's")
        return FolderPrimaryStore(tmp_path / "p")

    @pytest.fixture
    def make(self) -> Make:
        async def put(path: str, body: bytes) -> None:
            Path(path).write_bytes(body)

        return put

    @pytest.fixture
    def content(self) -> Content:
        async def get(path: str) -> bytes:
            return Path(path).read_bytes()

        return get

    async def test_commit_is_durable(self, store: PrimaryStore, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The file is synced before its name changes, the folder after it."""
        done: list[str] = []
        real, move = folder._fsync, Path.replace
        monkeypatch.setattr(folder, "_fsync", lambda path: (done.append(f"sync {path.name}"), real(path))[1])
        monkeypatch.setattr(Path, "replace", lambda path, to: (done.append("rename"), move(path, to))[1])
        volume = uuid4()
        draft = await store.draft(volume, "w.1", "qcow2")
        await make(draft, b"disk")
        await store.commit(volume, "w.1", "qcow2")
        assert done == [f"sync {Path(draft).name}", "rename", "sync p"]
        await store.delete(volume)
        assert done[3:] == ["sync p"]

    async def test_a_full_disk_says_what_to_do(self, store: PrimaryStore, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        volume = uuid4()
        await make(await store.draft(volume, "w.1", "qcow2"), b"disk")

        def full(path: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(folder, "_fsync", full)
        with pytest.raises(WorkFailed, match="No space left") as failure:
            await store.commit(volume, "w.1", "qcow2")
        assert failure.value.failure.field == "primary" and "free space" in failure.value.failure.remedy
        assert not await store.exists(f"{volume}.qcow2")

    async def test_a_folder_that_is_gone_is_an_error(self, tmp_path: Path) -> None:
        store = FolderPrimaryStore(tmp_path / "gone")
        for act in (store.names(), store.usage(), store.commit(uuid4(), "w", "qcow2")):
            with pytest.raises(WorkFailed, match="gone"):
                await act

    async def test_a_relative_folder_has_absolute_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert FolderPrimaryStore("nbd:p").locate("x") == str(tmp_path / "nbd:p" / "x")
