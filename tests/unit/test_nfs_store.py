"""What NFS adds to a directory: where an export is mounted, handles that went stale, root that counts for nothing.

No NFS mount is here: the mounts are text, and the errors are raised by a double of the system's calls.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from uuid import uuid4

import pytest

from agents.image_stores import nfs
from agents.image_stores.folder import SENTINEL
from agents.image_stores.folder_disk import Disk
from agents.image_stores.nfs import Mount, NfsImageStore, find, mounts
from schema.failure import Refused, Unknown, WorkFailed, WorkRetryable
from schema.image import StoreSpec

TEXT = r"""22 1 253:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
90 22 0:50 / /mnt/images rw,relatime shared:2 - nfs4 filer:/export rw,vers=4.2
91 22 0:51 / /mnt/with\040blank rw - nfs filer:/export/deep rw
92 22 0:52 / /mnt/six rw - nfs4 [fd00::1]:/six rw
93 22 0:53 / /mnt/other rw - cifs //filer/export rw
not a line of mountinfo
"""


def spec(url: str = "nfs://filer/export", **details: str) -> StoreSpec:
    return StoreSpec(id=uuid4(), name="n", provider="nfs", url=url, prefix="p", details=details)


@pytest.mark.parametrize(("server", "path", "place"), [
    ("filer", "/export", "/mnt/images"), ("filer", "/export/a/b", "/mnt/images/a/b"), ("filer", "/export/deep/x", "/mnt/with blank/x"),
    ("filer", "/exports", None), ("other", "/export", None), ("fd00::1", "/six/a", "/mnt/six/a"), ("filer", "/", None),
])
def test_the_longest_export_above_an_address_is_where_it_is(server: str, path: str, place: str | None) -> None:
    assert find(list(mounts(TEXT)), server, path) == (Path(place) if place else None)


def test_the_latest_of_two_mounts_of_one_export_is_seen() -> None:
    twice = [Mount(Path("/a"), "nfs4", "filer:/e"), Mount(Path("/b"), "nfs4", "filer:/e/")]
    assert find(twice, "filer", "/e/x") == Path("/b/x")


async def test_without_a_mountpoint_the_mount_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "info").write_text(TEXT)
    monkeypatch.setattr(nfs, "MOUNTS", tmp_path / "info")
    assert (await NfsImageStore.open(spec("nfs://filer/export/a"), {})).root == Path("/mnt/images/a")
    with pytest.raises(WorkRetryable, match=r"elsewhere:/export is not mounted on this agent's host.*mount -t nfs"):
        await NfsImageStore.open(spec("nfs://elsewhere/export"), {})


@pytest.mark.parametrize(("url", "details", "field"), [
    ("http://filer/export", {}, "url"), ("nfs:///export", {}, "url"), ("nfs://filer", {}, "url"), ("nfs://filer/", {}, "url"),
    ("nfs://filer/a/../b", {}, "url"), ("nfs://user@filer/a", {}, "url"), ("nfs://filer/a", {"mountpoint": "mnt"}, "details.mountpoint"),
    ("nfs://filer/a", {"mountpoint": "/"}, "details.mountpoint"), ("nfs://filer/a", {"mountpoint": "/a/../b"}, "details.mountpoint"),
    ("nfs://filer/a", {"mount": "/a"}, "details.mount"),
])
async def test_a_wrong_address_is_refused_by_its_field(url: str, details: dict[str, str], field: str) -> None:
    with pytest.raises(Refused) as refused:
        await NfsImageStore.open(spec(url, **details), {})
    assert refused.value.failure.field == field and refused.value.failure.remedy


class Bad(Disk):
    """A double of the system's calls: `fails` of the next ones that open a file fail so."""

    def __init__(self, number: int, fails: int) -> None:
        self.number, self.fails = number, fails

    def stat(self, name: str, directory: int) -> os.stat_result:
        if name != SENTINEL and self.fails:
            self.fails -= 1
            raise OSError(self.number, os.strerror(self.number))
        return super().stat(name, directory)

    def unlink(self, name: str, directory: int) -> None:
        self.stat(name, directory)
        super().unlink(name, directory)


@pytest.fixture
async def store(tmp_path: Path) -> NfsImageStore:
    store = await NfsImageStore.open(spec(mountpoint=str(tmp_path)), {})
    await store.test("p")
    await store.put("p/object", b"bytes")
    return store


async def test_a_stale_handle_is_taken_anew_and_not_for_ever(store: NfsImageStore) -> None:
    store.disk = Bad(errno.ESTALE, 2)
    found = await store.stat("p/object")
    assert found is not None and found.size == 5
    store.disk = Bad(errno.ESTALE, 3)
    with pytest.raises(WorkRetryable, match="look at p/object in the image store n: stale file handle"):
        await store.stat("p/object")
    store.disk = Bad(errno.ESTALE, 2)
    await store.delete("p/object")
    store.disk = Disk()
    assert await store.stat("p/object") is None


@pytest.mark.parametrize(("number", "kind", "words"), [
    (errno.EACCES, WorkFailed, "no_root_squash"), (errno.EIO, WorkRetryable, "check the mount and its server"),
    (errno.EDQUOT, WorkFailed, "quota"),
])
async def test_errors_of_the_server_say_what_to_do(store: NfsImageStore, number: int, kind: type[Exception], words: str) -> None:
    store.disk = Bad(number, 1)
    with pytest.raises(kind, match=words):
        await store.stat("p/object")


async def test_a_lost_answer_to_a_delete_is_indeterminate(store: NfsImageStore) -> None:
    store.disk = Bad(errno.EIO, 1)
    with pytest.raises(Unknown):
        await store.delete("p/object")


async def test_an_unmounted_place_is_never_filled(store: NfsImageStore) -> None:
    (store.root / SENTINEL).unlink()
    for act in (store.put("p/new", b"x"), store.stat("p/object"), store.delete("p/object")):
        with pytest.raises(WorkRetryable, match="is not mounted there"):
            await act
    assert not (store.root / "p" / "new").exists() and (store.root / "p" / "object").exists()


async def test_the_test_says_what_is_mounted(tmp_path: Path) -> None:
    store = await NfsImageStore.open(spec(mountpoint=str(tmp_path)), {})
    lines = await store.test("p")
    assert lines[0].startswith("mount: ") and "not on NFS" in lines[0] and any(line.startswith("multipart") for line in lines)
