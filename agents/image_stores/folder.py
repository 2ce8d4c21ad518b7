"""FolderImageStore: images as files below a directory that somebody mounted, by NFS's rules.

It owns the layout: object `a/b/c` is the file `a/b/c`; an unfinished one is `a/b/.c.<id>.unfinished`; the sentinel
`.storebus-mount` lies in the root since the store was added, and an operation that does not find it is refused, so that
an empty mount point is never filled. It refuses to believe in locks, links and the page cache: a file appears by rename
after fsync, parts are synced and read again, and no key leads outside. Not claimed to be NFS until run on such a mount.
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

from agents.image_stores.base import Bytes, Limits, ObjectInfo
from agents.image_stores.details import read_details
from agents.image_stores.folder_disk import Disk
from agents.image_stores.probe import probe
from schema.failure import Failed, Refused, Unknown, WorkFailed, WorkRetryable
from schema.image import StoreSpec

T = TypeVar("T")
SENTINEL = ".storebus-mount"
SUFFIX = ".unfinished"
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
    CAPABILITIES: ClassVar[frozenset[str]] = frozenset({"ranged_read", "parallel_parts"})
    Settings: ClassVar[type[BaseModel]] = FolderSettings

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root, self.disk = root, disk

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
        store = cls(path, Disk())
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
                raise WorkFailed(f"read {key}: the object is absent",
                                 remedy="it was deleted or never written") from None

        return await self.run(f"read {key}", get)

    async def put(self, key: str, body: bytes) -> None:
        """An upload of one part."""
        upload = await self.begin(key, part_size=max(1, len(body)))
        try:
            if body:
                await upload.part(1, body)
            await upload.complete(len(body))
        except BaseException:
            await upload.drop()
            raise

    async def begin(self, key: str, *, part_size: int) -> FolderUpload:
        """Make the unfinished file, after removing those of earlier uploads of this key."""
        path, name = split_key(key)
        if part_size < 1:
            raise WorkFailed(f"parts of {part_size} bytes")
        mark = f"{_mark(name)}{uuid4().hex}{SUFFIX}"

        made: list[FolderUpload] = []

        def make() -> None:
            for left in reversed(range(_TRIES)):
                try:
                    with self.mounted() as root, self.disk.folder(root, path, make=True) as folder:
                        self._end(name, folder)
                        handle = self.disk.open(mark, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, folder)
                        made.append(FolderUpload(self, key, mark, handle, part_size))
                        return
                except FileNotFoundError:  # a delete removed the directory while it was still empty
                    if not left:
                        raise

        try:
            await self.run(f"begin {key}", make)
        except asyncio.CancelledError:
            for upload in made:
                await upload.drop()
            raise
        return made[0]

    def _end(self, name: str, folder: int) -> None:
        """Remove the unfinished files of an object. A writer that still has one open can no longer publish it."""
        for found in [found for found in self.disk.names(folder) if _object_of(found) == name]:
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
                 if (object_name := _object_of(name))}
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

    async def test(self, prefix: str) -> None:
        """Mark a fresh directory as ours, then the steps every store is asked.

        Called when the store is added: the one time that a missing sentinel is no sign of a missing mount.
        """
        try:
            await self.run("mark the directory", self._mark_root)
        except Refused:
            raise
        except Failed as error:
            raise Refused(f"test step mark: {error.failure.cause}", field="url", remedy=error.failure.remedy) from None
        await probe(self, prefix)

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

    async def run(self, action: str, call: Callable[[], T], *, changes: bool = False) -> T:
        """Run in a thread; an OSError becomes the failure that an operator understands.

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
            raise explain(error, action, changes=changes) from error


class FolderUpload:
    """An unfinished file, open."""

    def __init__(self, store: FolderImageStore, key: str, mark: str, handle: int, part_size: int) -> None:
        self._store, self._disk, self._key, self._mark = store, store.disk, key, mark
        self._handle: int | None = handle
        self._part_size = part_size
        self._end = 0
        """Where the furthest part ends."""
        self._done: ObjectInfo | None = None
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._asked = self._broken = False

    @contextmanager
    def _using(self) -> Iterator[int]:
        """The handle, which stays open as long as somebody uses it. A file whose sync failed is not used again."""
        if self._handle is None or self._broken:
            why = "a write failed before" if self._broken else "it was ended"
            raise WorkFailed(f"the upload of {self._key} cannot go on: {why}", remedy="begin again")
        self._busy += 1
        self._idle.clear()
        try:
            yield self._handle
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    async def part(self, number: int, data: Bytes, *, sha256: str = "") -> None:
        """pwrite, sync, and read again from below the page cache where the system allows it."""
        if number < 1 or not 0 < len(data) <= self._part_size:
            raise WorkFailed(f"part {number} of {len(data)} bytes does not fit an upload in parts of {self._part_size}")
        view, offset = memoryview(data).cast("B"), (number - 1) * self._part_size

        def write(handle: int) -> None:
            self._disk.write_all(handle, view, offset)
            try:
                self._disk.fdatasync(handle)
            except OSError:
                self._broken = True  # the kernel forgets what it could not write: a second sync would lie
                raise
            self._disk.forget(handle, offset, len(view))
            if self._disk.read_all(handle, len(view), offset) != view:
                raise WorkRetryable(f"write part {number} of {self._key}: it was read back changed",
                                    remedy="check the disk and the memory of this agent's host")

        with self._using() as handle:
            await self._store.run(f"write part {number} of {self._key}", lambda: write(handle))
        self._end = max(self._end, offset + len(view))

    async def complete(self, size: int) -> ObjectInfo:
        """Set the size, sync, rename, sync the directory."""
        if self._done is not None:
            return self._done
        if not self._end <= size:
            raise WorkFailed(f"the parts of {self._key} end at byte {self._end}, after its size of {size}")
        path, name = split_key(self._key)

        def publish(handle: int) -> ObjectInfo:
            try:
                self._disk.truncate(handle, size)
                self._disk.fsync(handle)
            except OSError:
                self._broken = True
                raise
            with self._store.mounted() as root, self._disk.folder(root, path) as folder:
                self._disk.replace(self._mark, name, folder)
                self._disk.fsync(folder)
                return ObjectInfo(key=self._key, size=self._disk.stat(name, folder).st_size)

        with self._using() as handle:
            self._asked = True
            try:
                info = await self._store.run(f"complete {self._key}", lambda: publish(handle), changes=True)
            except Unknown as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    self._asked = False  # nothing that is visible is ours
                    raise WorkFailed(f"the upload of {self._key} was ended by another", remedy="begin again") from None
                raise
        self._done = info
        await self._release()
        return info

    async def abort(self) -> None:
        """Remove the unfinished file; after a failed completion also the object."""
        if self._done is not None:
            return
        if not self._asked:
            await self.drop()
            return
        await self._release()
        await self._store.delete(self._key)

    async def drop(self) -> None:
        """Remove this upload's file and nothing else."""
        await self._release()
        path, _ = split_key(self._key)

        def remove() -> None:
            with self._store.mounted() as root:
                with suppress(FileNotFoundError), self._disk.folder(root, path) as folder:
                    self._disk.unlink(self._mark, folder)
                    self._disk.fsync(folder)
                self._store.prune(root, path)

        await self._store.run(f"end the upload of {self._key}", remove)

    async def _release(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            await self._idle.wait()
            await self._store.run(f"close {self._key}", lambda: self._disk.close(handle))


def split_key(key: str) -> tuple[Sequence[str], str]:
    """Directories and name of a key. Raises WorkFailed for a key that could lead elsewhere."""
    *path, name = check_names(key.split("/"))
    return path, name


def check_names(names: Sequence[str]) -> Sequence[str]:
    """The names, when each is a plain one: not empty, no leading dot, no NUL, short enough for the unfinished file."""
    for name in names:
        if not name or name.startswith(".") or "\0" in name or len(os.fsencode(name)) > 200:
            raise WorkFailed(f"{'/'.join(names)!r} is not a key of an object")
    return names


def _mark(name: str) -> str:
    return f".{name}."


def _object_of(name: str) -> str:
    """The object that an unfinished file belongs to; empty for other files."""
    inner = name.removeprefix(".").removesuffix(SUFFIX)
    if name != f".{inner}{SUFFIX}":
        return ""
    found, _, token = inner.rpartition(".")
    return found if len(token) == 32 else ""


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
