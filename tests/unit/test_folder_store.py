"""The folder store's rules: mounted or refused, whole or absent, inside or not at all, and every system error in words."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from agents.image_stores.folder import SENTINEL, FolderImageStore
from schema.failure import Failed, Refused, Unknown, WorkFailed, WorkRetryable
from schema.image import StoreSpec
from tests.support.broken_disk import BrokenDisk

PART = 64 << 10


def spec(path: Path) -> StoreSpec:
    return StoreSpec(id=uuid4(), name="f", provider="folder", url=f"folder://{path}", prefix="inst")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FolderImageStore]:
    store = await FolderImageStore.open(spec(tmp_path), {})
    await store.test("inst")
    store.disk = BrokenDisk()
    yield store
    await store.aclose()


def disk_of(store: FolderImageStore) -> BrokenDisk:
    assert isinstance(store.disk, BrokenDisk)
    return store.disk


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != SENTINEL)


async def test_an_unmounted_path_is_never_filled(store: FolderImageStore, tmp_path: Path) -> None:
    await store.put("inst/a", b"x")
    upload = await store.begin("inst/b", part_size=PART)
    await upload.part(1, b"y")
    (tmp_path / SENTINEL).rename(tmp_path.parent / "aside")  # what an unmount looks like from above
    before = files(tmp_path)

    async def listing() -> None:
        async for _ in store.list("inst"):
            pass

    for operation in (store.stat("inst/a"), store.read("inst/a", 0, 1), store.put("inst/c", b"z"), listing(),
                      store.begin("inst/d", part_size=PART), store.delete("inst/a"), store.unfinished("inst"),
                      upload.complete(1)):
        with pytest.raises(WorkRetryable, match="not mounted") as failed:
            await operation
        assert failed.value.failure.field == "url"
    assert files(tmp_path) == before, "nothing was written, nothing removed"
    (tmp_path.parent / "aside").rename(tmp_path / SENTINEL)
    assert (await upload.complete(1)).size == 1, "mounted again, the work goes on"


async def test_a_missing_directory_is_no_empty_store(store: FolderImageStore, tmp_path: Path) -> None:
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    with pytest.raises(WorkRetryable, match="missing"):
        await store.stat("inst/a")
    tmp_path.with_name("elsewhere").rename(tmp_path)


async def test_only_an_empty_directory_or_a_marked_one_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    store = await FolderImageStore.open(spec(tmp_path), {})
    with pytest.raises(Refused, match=r"thesis\.txt") as refused:
        await store.test("inst")
    assert SENTINEL in refused.value.failure.remedy
    assert files(tmp_path) == ["thesis.txt"]
    (tmp_path / SENTINEL).touch()
    await store.test("inst")
    assert files(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize(("url", "detail"), [
    ("folder:///no/such/directory", ""), ("folder://host/path", ""), ("s3://bucket", ""), ("folder:///", ""),
    ("folder:///tmp/../etc", ""), ("relative", ""), ("folder:///tmp", "relative"),
])
async def test_addresses_that_are_no_directory_are_refused(url: str, detail: str) -> None:
    place = StoreSpec(id=uuid4(), name="f", provider="folder", url=url, prefix="i",
                      details={"path": detail} if detail else {})
    with pytest.raises(Refused) as refused:
        await FolderImageStore.open(place, {})
    assert refused.value.failure.field == ("details.path" if detail else "url")


@pytest.mark.parametrize("key", ["../out", "a/../../out", "/etc/passwd", "a//b", "", ".", "a/.", ".hidden", "a/.b",
                                 "a\0b", "a/" + "x" * 201, SENTINEL])
async def test_no_key_leads_outside(store: FolderImageStore, tmp_path: Path, key: str) -> None:
    before = files(tmp_path.parent)
    for operation in (store.put(key, b"x"), store.read(key, 0, 1), store.delete(key), store.stat(key),
                      store.begin(key, part_size=PART)):
        with pytest.raises(WorkFailed):
            await operation
    assert files(tmp_path.parent) == before


async def test_links_are_not_followed(store: FolderImageStore, tmp_path: Path) -> None:
    outside = tmp_path.with_name("outside")
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (tmp_path / "inst").mkdir(exist_ok=True)
    (tmp_path / "inst" / "way").symlink_to(outside)
    (tmp_path / "inst" / "file").symlink_to(outside / "secret")
    for operation in (store.read("inst/way/secret", 0, 9), store.put("inst/way/new", b"x"),
                      store.read("inst/file", 0, 9), store.delete("inst/way/secret")):
        with pytest.raises(WorkFailed, match="link"):
            await operation
    assert [info.key async for info in store.list("inst")] == []
    await store.put("inst/file", b"mine")  # replaces the link, not what it points to
    assert (outside / "secret").read_text() == "secret"
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]


async def test_a_file_appears_by_rename_after_sync(store: FolderImageStore) -> None:
    upload = await store.begin("inst/x", part_size=PART)
    await upload.part(1, os.urandom(PART))
    disk_of(store).calls.clear()
    await upload.complete(PART)
    calls = [call for call in disk_of(store).calls if call in ("fsync", "replace")]
    assert calls == ["fsync", "replace", "fsync"], "the file, its name, its directory"


async def test_holes_stay_holes(store: FolderImageStore, tmp_path: Path) -> None:
    upload = await store.begin("inst/sparse", part_size=1 << 20)
    await upload.part(5, b"data")
    await upload.complete(64 << 20)
    found = (tmp_path / "inst/sparse").stat()
    assert found.st_size == 64 << 20
    assert found.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(("at", "error", "kind", "words"), [
    ("pwrite", errno.ENOSPC, WorkFailed, "full"), ("fdatasync", errno.ENOSPC, WorkFailed, "full"),
    ("pwrite", errno.EDQUOT, WorkFailed, "quota"), ("fdatasync", errno.EIO, WorkRetryable, "error"),
    ("pwrite", errno.ESTALE, WorkRetryable, "stale"), ("pwrite", errno.EROFS, WorkFailed, "read-only"),
    ("pwrite", errno.EFBIG, WorkFailed, "size"), ("pread", errno.EIO, WorkRetryable, "error"),
])
async def test_a_part_that_cannot_be_written_says_why(store: FolderImageStore, tmp_path: Path, at: str, error: int,
                                                     kind: type[Failed], words: str) -> None:
    upload = await store.begin("inst/x", part_size=PART)
    disk_of(store).breaks(at, error, skip=2 if at == "pwrite" else 0)
    with pytest.raises(WorkFailed, match=f"(?i){words}") as failed:
        await upload.part(1, os.urandom(PART))
    assert type(failed.value) is kind
    assert failed.value.failure.field == "url"
    assert failed.value.failure.remedy
    disk_of(store).breaks("", 0)
    if at == "fdatasync":
        with pytest.raises(WorkFailed, match="cannot go on"):  # a second sync would claim what the first lost
            await upload.part(1, os.urandom(PART))
        with pytest.raises(WorkFailed, match="cannot go on"):
            await upload.complete(PART)
    await upload.abort()
    assert files(tmp_path) == []


@pytest.mark.parametrize(("at", "skip"), [("fsync", 0), ("replace", 0), ("fsync", 1)])
async def test_a_completion_that_fails_is_undone_by_abort(store: FolderImageStore, tmp_path: Path, at: str,
                                                         skip: int) -> None:
    upload = await store.begin("inst/x", part_size=PART)
    await upload.part(1, b"x")
    disk_of(store).breaks(at, errno.EIO, skip=skip)
    with pytest.raises(Unknown):
        await upload.complete(1)
    disk_of(store).breaks("", 0)
    await upload.abort()
    assert files(tmp_path) == []


@pytest.mark.parametrize("at", ["create", "pwrite", "fdatasync", "fsync", "replace"])
async def test_a_put_that_fails_leaves_what_was_there(store: FolderImageStore, tmp_path: Path, at: str) -> None:
    await store.put("inst/m", b"old")
    disk_of(store).breaks(at, errno.ESTALE)
    with pytest.raises(Failed):
        await store.put("inst/m", b"new")
    disk_of(store).breaks("", 0)
    assert await store.read("inst/m", 0, 9) == b"old"
    assert files(tmp_path) == ["inst", "inst/m"]


@pytest.mark.parametrize("at", ["open", "unlink"])
async def test_a_delete_that_fails_is_unknown_and_may_be_repeated(store: FolderImageStore, tmp_path: Path,
                                                                 at: str) -> None:
    await store.put("inst/deep/x", b"x")
    disk_of(store).breaks(at, errno.ESTALE)
    with pytest.raises(Unknown):
        await store.delete("inst/deep/x")
    disk_of(store).breaks("", 0)
    await store.delete("inst/deep/x")
    assert files(tmp_path) == []


async def test_cancelled_work_leaves_no_file_and_no_handle(store: FolderImageStore, tmp_path: Path) -> None:
    handles = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        task = asyncio.create_task(store.put("inst/x", os.urandom(200_000)))
        await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.delete("inst/x")
    assert files(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == handles


async def test_deletes_and_begins_beside_each_other(store: FolderImageStore, tmp_path: Path) -> None:
    """Empty directories are removed while others make them: nobody fails, nothing stays."""

    async def one(number: int) -> None:
        for _ in range(5):
            await store.put(f"inst/deep/er/{number}", b"x")
            await store.delete(f"inst/deep/er/{number}")

    await asyncio.gather(*(one(number) for number in range(8)))
    assert files(tmp_path) == []
