"""FolderImageStore: images as files below a directory that somebody mounted, by NFS's rules.

It owns the layout: object `a/b/c` is the file `a/b/c`; an unfinished one is `a/b/.c.<id>.unfinished`, beside which
`.c.<id>.parts` says what of it is synced; the sentinel `.storebus-mount` lies in the root since the store was added, and an
operation that does not find it is refused, so that an empty mount point is never filled. It refuses to believe in locks, links
and the page cache: a file appears by rename after fsync, parts are synced and read again, and no key leads outside. Not claimed
to be NFS until run on such a mount.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import ClassVar, Self, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from agents.image_stores.base import Limits, ObjectInfo
from agents.image_stores.details import read_details
from agents.image_stores.folder_disk import Disk
from agents.image_stores.folder_upload import SUFFIX, FolderUpload, check_names, mark_of, object_of, split_key
from agents.image_stores.probe import probe
from agents.image_stores.trouble import at
from schema.failure import Failed, Refused, Unknown, WorkFailed, WorkRetryable
from schema.image import StoreSpec

T = TypeVar("T")
SENTINEL = ".storebus-mount"
PAGE = 1000
_TRIES = 50
_ROOT = os.O_RDONLY | os.O_DIRECTORY
_SENTINEL_TEXT = b"An image store of Storebus. Without this file the directory counts as not mounted: keep it.\n"
_IGNORED = frozenset({SENTINEL, "lost+found", ".snapshot", ".zfs"})
"""Names that do not make a directory a used one."""


class FolderSettings(BaseModel):
    """Details of a folder store: none are needed beside the url."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field("", description="Absolute path of the directory on the agents' hosts; unset: the url's path.")


class FolderImageStore:
    """A directory."""

    PROVIDER: ClassVar[str] = "folder"
    SCOPE: ClassVar[str] = "ZONE"
    CAPABILITIES: ClassVar[frozenset[str]] = frozenset({"ranged_read", "parallel_parts", "resume_upload", "free_room"})
    Settings: ClassVar[type[BaseModel]] = FolderSettings

    def __init__(self, root: Path, disk: Disk, name: str = "") -> None:
        self.root, self.disk, self.name = root, disk, name

    @classmethod
    async def open(cls, spec: StoreSpec, secrets: Mapping[str, str]) -> Self:
        """Find the directory. Whether it is mounted is looked at by every operation, not here."""
        settings = read_details(FolderSettings, spec, secrets)
        field = "details.path" if settings.path else "url"
        url = urlsplit(spec.url)
        if not settings.path and (url.scheme not in ("", "folder", "file") or url.netloc):
            raise Refused("not the address of a directory", field="url", remedy="use folder:///path")
        path = Path(settings.path or unquote(url.path))
        if not path.is_absolute() or ".." in path.parts or path == Path("/"):
            raise Refused("not the absolute path of a directory", field=field, remedy="use folder:///path")
        store = cls(path, Disk(), spec.name)
        if not await asyncio.to_thread(path.is_dir):
            raise Refused(f"{path} is not a directory on this agent's host", field=field,
                          remedy="create it and mount the file system there")
        return store

    @property
    def limits(self) -> Limits:
        """A file takes parts of any size; parts of zeros may be left out and stay holes."""
        return Limits(min_part=4096, max_part=1 << 40, max_parts=1 << 30, parts_may_skip=True)

    async def stat(self, key: str) -> ObjectInfo | None:
        """The file, or None."""
        path, name = split_key(key)

        def look() -> ObjectInfo | None:
            try:
                with self.mounted() as root, self.disk.folder(root, path) as folder:
                    return ObjectInfo(key=key, size=self.disk.stat(name, folder).st_size)
            except FileNotFoundError:
                return None

        return await self.run(f"look at {key}", look)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """pread."""
        path, name = split_key(key)

        def get() -> bytes:
            try:
                with self.mounted() as root, self.disk.folder(root, path) as folder, \
                        self.disk.held(self.disk.open(name, os.O_RDONLY | os.O_NOFOLLOW, folder)) as handle:
                    return self.disk.read_all(handle, length, offset)
            except FileNotFoundError:
                raise WorkFailed(f"{at(f'read {key}', self.name)}: the object is absent",
                                 remedy="it was deleted or never written") from None

        return await self.run(f"read {key}", get)

    async def put(self, key: str, body: bytes) -> None:
        """An upload of one part."""
        upload = await self._begin(key, max(1, len(body)), recorded=False)
        try:
            if body:
                await upload.part(1, body)
            await upload.complete(len(body))
        except BaseException:
            await upload.drop()
            raise

    async def begin(self, key: str, *, part_size: int) -> FolderUpload:
        """Make the unfinished file and its record, after removing those of earlier uploads of this key."""
        return await self._begin(key, part_size, recorded=True)

    async def resume(self, key: str, *, part_size: int) -> FolderUpload | None:
        """Open the unfinished file by a new name, so that who had it before can no longer publish it."""
        path, name = split_key(key)
        made: list[FolderUpload] = []

        def take() -> None:
            with self.mounted() as root, self.disk.folder(root, path) as folder:
                found = [one for one in self.disk.names(folder) if object_of(one) == name and one.endswith(SUFFIX)]
                if len(found) == 1:
                    mark = f"{mark_of(name)}{uuid4().hex}{SUFFIX}"
                    upload = FolderUpload.take_up(self, key, found[0], mark, folder, part_size)
                    made.extend([upload] if upload else [])

        try:
            with suppress(FileNotFoundError):
                await self.run(f"resume {key}", take, absent=True)
        except asyncio.CancelledError:
            await _drop(made)
            raise
        return made[0] if made else None

    async def _begin(self, key: str, part_size: int, *, recorded: bool) -> FolderUpload:
        path, name = split_key(key)
        if part_size < 1:
            raise WorkFailed(f"parts of {part_size} bytes")
        mark = f"{mark_of(name)}{uuid4().hex}{SUFFIX}"

        made: list[FolderUpload] = []

        def make() -> None:
            for left in reversed(range(_TRIES)):
                try:
                    with self.mounted() as root, self.disk.folder(root, path, make=True) as folder:
                        self._end(name, folder)
                        handle = self.disk.open(mark, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, folder)
                        made.append(FolderUpload(self, key, mark, handle, part_size))
                        if recorded:
                            made[0].record(folder)
                        return
                except FileNotFoundError:  # a delete removed the directory while it was still empty
                    if not left:
                        raise

        try:
            await self.run(f"begin {key}", make)
        except BaseException:
            await _drop(made)
            raise
        await _drop(made[:-1])
        return made[-1]

    def _end(self, name: str, folder: int) -> None:
        """Remove the unfinished files of an object. A writer that still has one open can no longer publish it."""
        for found in [found for found in self.disk.names(folder) if object_of(found) == name]:
            with suppress(FileNotFoundError):
                self.disk.unlink(found, folder)

    async def delete(self, key: str) -> None:
        """The file, unfinished ones, and directories that are empty now."""
        path, name = split_key(key)

        def remove() -> None:
            with self.mounted() as root:
                with suppress(FileNotFoundError), self.disk.folder(root, path) as folder:
                    self._end(name, folder)
                    with suppress(FileNotFoundError):
                        self.disk.unlink(name, folder)
                    self.disk.fsync(folder)
                self.prune(root, path)

        await self.run(f"delete {key}", remove, changes=True)

    def prune(self, root: int, path: Sequence[str]) -> None:
        """Remove `path` and its parents as far as they are empty."""
        for depth in range(len(path), 0, -1):
            try:
                with self.disk.folder(root, path[: depth - 1]) as parent:
                    self.disk.rmdir(path[depth - 1], parent)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                    return
                raise

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """The tree, walked in a thread, PAGE files at a time."""
        async for path, name, size in self._files(prefix):
            if not name.startswith("."):
                yield ObjectInfo(key="/".join((*path, name)), size=size)

    async def unfinished(self, prefix: str) -> Sequence[str]:
        """Objects that have an unfinished file."""
        found = {"/".join((*path, object_name)) async for path, name, _ in self._files(prefix)
                 if (object_name := object_of(name))}
        return sorted(found)

    async def _files(self, prefix: str) -> AsyncIterator[tuple[Sequence[str], str, int]]:
        path = check_names(prefix.strip("/").split("/")) if prefix.strip("/") else ()

        def walk() -> Generator[tuple[Sequence[str], str, int], None, None]:
            with self.mounted() as root:
                yield from self.disk.walk(root, path)

        walker = walk()
        try:
            while page := await self.run(f"list {prefix}", lambda: list(islice(walker, PAGE))):
                for entry in page:
                    yield entry
        finally:
            await asyncio.to_thread(walker.close)

    async def free_bytes(self) -> int:
        """What the file system gives to this user."""
        def look() -> int:
            with self.mounted() as root:
                found = os.fstatvfs(root)
                return found.f_bavail * found.f_frsize

        return await self.run("look at the free room", look)

    async def test(self, prefix: str) -> Sequence[str]:
        """Mark a fresh directory as ours, then the steps every store is asked.

        Called when the store is added: the one time that a missing sentinel is no sign of a missing mount.
        """
        try:
            await self.run("mark the directory", self._mark_root)
        except Refused:
            raise
        except Failed as error:
            raise Refused(f"test step mark: {error.failure.cause}", field="url", remedy=error.failure.remedy) from None
        return await probe(self, prefix)

    def _mark_root(self) -> None:
        with self.disk.held(self.disk.open(str(self.root), _ROOT)) as root:
            try:
                self.disk.stat(SENTINEL, root)
            except FileNotFoundError:
                if used := [name for name in self.disk.names(root) if name not in _IGNORED]:
                    raise Refused(f"test step mark: {self.root} is neither an image store nor empty, it has {used[0]}",
                                  field="url", remedy="give an empty directory, or create the file "
                                                      f"{SENTINEL} in it by hand") from None
                try:
                    with self.disk.held(self.disk.open(SENTINEL, os.O_WRONLY | os.O_CREAT | os.O_EXCL, root)) as handle:
                        self.disk.write_all(handle, memoryview(_SENTINEL_TEXT), 0)
                        self.disk.fsync(handle)
                except FileExistsError:  # somebody else adds the same directory at this moment
                    return
                except OSError:  # a mark that is not whole is no mark
                    self.disk.unlink(SENTINEL, root)
                    raise
                self.disk.fsync(root)

    async def aclose(self) -> None:
        """Nothing is held between operations."""

    @contextmanager
    def mounted(self) -> Iterator[int]:
        """The root's handle, after finding the sentinel. Opened each time: a kept one would outlive the mount."""
        try:
            handle = self.disk.open(str(self.root), _ROOT)
        except FileNotFoundError:
            raise WorkRetryable(f"the directory {self.root} is missing", field="url",
                                remedy="create it and mount the file system there") from None
        with self.disk.held(handle) as root:
            try:
                self.disk.stat(SENTINEL, root)
            except FileNotFoundError:
                raise WorkRetryable(f"{self.root}/{SENTINEL} is missing: the file system is not mounted there",
                                    field="url", remedy="mount it on this agent's host") from None
            yield root

    async def run(self, action: str, call: Callable[[], T], *, changes: bool = False, absent: bool = False) -> T:
        """Run in a thread; an OSError becomes the failure that an operator understands (not FileNotFoundError if `absent`).

        When cancelled, waits for the thread: whoever cleans up next must not race with it.
        """
        task = asyncio.ensure_future(asyncio.to_thread(call))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # looked at, so that asyncio does not complain about it
            raise
        except OSError as error:
            if absent and isinstance(error, FileNotFoundError):
                raise
            raise explain(error, at(action, self.name), changes=changes) from error


async def _drop(uploads: Sequence[FolderUpload]) -> None:
    """End uploads that nobody will hear of. What cannot be removed now goes with the next begin() or delete()."""
    for upload in uploads:
        with suppress(Failed):
            await upload.drop()


def explain(error: OSError, action: str, *, changes: bool = False) -> Failed:
    """What a system error means to an operator. `changes`: the effect may be visible although the call failed."""
    number, text = error.errno or 0, os.strerror(error.errno) if error.errno else "error"
    if number in (errno.ENOSPC, errno.EDQUOT):
        what = "the quota is used up" if number == errno.EDQUOT else "the file system is full"
        return WorkFailed(f"{action}: {what}", field="url", remedy="free space or raise the quota")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return WorkFailed(f"{action}: {text.lower()} for user id {os.geteuid()}", field="url",
                          remedy="let the agent's user write there, and mount it writable")
    if number in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
        return WorkFailed(f"{action}: a link or another file is in the way ({text.lower()})", field="url",
                          remedy="remove what Storebus did not put there")
    if number == errno.EFBIG:
        return WorkFailed(f"{action}: the file system takes no file of this size", field="url",
                          remedy="use another one")
    remedy = "check the mount and its server, then try again"
    if changes:
        return Unknown(f"{action}: {text.lower()}; whether it took effect is not known", field="url", remedy=remedy)
    return WorkRetryable(f"{action}: {text.lower()}", field="url", remedy=remedy)
