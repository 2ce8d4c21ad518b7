"""FolderUpload: one unfinished file of a folder store, and the names of such files.

It owns the order write, sync, read again, record, publish, and the record (JSON lines: the part size, then each synced part)
by which a later process goes on. It refuses to trust that record alone: a recorded part is read again before it counts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from agents.image_stores.base import Bytes, ObjectInfo, PartInfo, PartSource
from agents.image_stores.trouble import at
from schema.failure import Unknown, WorkFailed, WorkRetryable

if TYPE_CHECKING:
    from agents.image_stores.folder import FolderImageStore

SUFFIX = ".unfinished"
RECORD = ".parts"
RECORD_MAX = 64 << 20
"""Bytes of a record that are read: half a million parts. What is behind them is written again."""
READ = 8 << 20
"""Bytes read at once while recorded parts are looked at."""
AGAIN = 1 << 20
"""Bytes read at once while a part that was written is compared."""


class FolderUpload:
    """An unfinished file, open, and the record of its synced parts where it has one."""

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
        self._torn: set[int] = set()
        """Parts whose writing began and did not end well: what lies in their place is no part, and no hole either."""
        self._asked = self._broken = False
        self._log: int | None = None
        """The record's handle."""
        self._recorded: dict[int, PartInfo] = {}
        self._log_end = 0
        self._logging = threading.Lock()

    @classmethod
    def take_up(cls, store: FolderImageStore, key: str, old: str, mark: str, folder: int, part_size: int) -> FolderUpload | None:
        """Go on with the unfinished file `old`, from now on called `mark`. None without a record of this part size.

        Synchronous. The record is opened first and renamed last: interrupted at any line, the upload is whole or has no
        record, and then it is begun again."""
        disk = store.disk
        try:
            log = disk.open(record_of(old), os.O_RDWR | os.O_NOFOLLOW, folder)
        except FileNotFoundError:
            return None
        handle: int | None = None
        try:
            said, end = _read_record(disk.read_all(log, min(disk.size(log), RECORD_MAX), 0))
            if said is None or said[0] != part_size:
                return None
            disk.replace(old, mark, folder)
            disk.replace(record_of(old), record_of(mark), folder)
            disk.fsync(folder)
            handle = disk.open(mark, os.O_RDWR | os.O_NOFOLLOW, folder)
        finally:
            if handle is None:
                disk.close(log)
        upload = cls(store, key, mark, handle, part_size)
        upload._log, upload._log_end, upload._recorded = log, end, said[1]
        return upload

    def record(self, folder: int) -> None:
        """Begin the record. Synchronous."""
        self._log = self._disk.open(record_of(self._mark), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, folder)
        self._note(json.dumps({"part_size": self._part_size}))
        self._disk.fsync(folder)

    def _note(self, line: str) -> None:
        """One more line of the record, synced. A line that could not be written is overwritten by the next."""
        if self._log is None:
            return
        text = line.encode() + b"\n"
        with self._logging:
            self._disk.write_all(self._log, memoryview(text), self._log_end)
            self._disk.fdatasync(self._log)
            self._log_end += len(text)

    async def parts(self) -> Mapping[int, PartInfo]:
        """The recorded parts, each read again: those whose bytes still have the SHA-256 of the record."""
        def same(handle: int, number: int, info: PartInfo) -> bool:
            digest, at = hashlib.sha256(), (number - 1) * self._part_size
            end = at + info.size
            while at < end and (data := self._disk.read_all(handle, min(READ, end - at), at)):
                digest.update(data)
                at += len(data)
            return at == end and digest.hexdigest() == info.etag

        with self._using() as handle:
            return {number: info for number, info in sorted(self._recorded.items())
                    if await self._store.run(f"read part {number} of {self._key}", partial(same, handle, number, info))}

    @contextmanager
    def _using(self) -> Iterator[int]:
        """The handle, which stays open as long as somebody uses it. A file whose sync failed is not used again."""
        if self._handle is None or self._broken:
            why = "a write failed before" if self._broken else "it was ended"
            raise WorkFailed(f"{at(f'the upload of {self._key}', self._store.name)} cannot go on: {why}", remedy="begin again")
        self._busy += 1
        self._idle.clear()
        try:
            yield self._handle
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    async def keep(self, number: int, *, sha256: str) -> None:
        """It is in its place already."""
        info = self._recorded.get(number)
        if info is None or info.etag != sha256:
            raise WorkFailed(f"part {number} of {self._key} is not there", remedy="write it again")
        self._end = max(self._end, (number - 1) * self._part_size + info.size)

    async def part(self, number: int, data: Bytes, *, sha256: str = "") -> PartInfo:
        """pwrite, sync, and read again from below the page cache where the system allows it."""
        if number < 1 or not 0 < len(data) <= self._part_size:
            raise WorkFailed(f"part {number} of {len(data)} bytes does not fit an upload in parts of {self._part_size}")
        view, offset = memoryview(data).cast("B"), (number - 1) * self._part_size

        def write(handle: int) -> PartInfo:
            self._disk.write_all(handle, view, offset)
            return self._settle(handle, number, len(view), sha256 or hashlib.sha256(view).hexdigest(), view)

        self._torn.add(number)
        with self._using() as handle:
            self._recorded[number] = info = await self._store.run(f"write part {number} of {self._key}", lambda: write(handle))
        self._torn.discard(number)
        self._end = max(self._end, offset + len(view))
        return info

    async def part_from(self, number: int, source: PartSource) -> PartInfo:
        """The same, slice by slice."""
        if number < 1 or not 0 < source.size <= self._part_size:
            raise WorkFailed(f"part {number} of {source.size} bytes does not fit an upload in parts of {self._part_size}")
        action, offset = f"write part {number} of {self._key}", (number - 1) * self._part_size
        self._torn.add(number)
        with self._using() as handle:
            async with aclosing(source.slices()) as slices:
                async for view in slices:
                    await self._store.run(action, partial(self._disk.write_all, handle, view, offset))
                    offset += len(view)
            self._recorded[number] = info = await self._store.run(
                action, partial(self._settle, handle, number, source.size, source.sha256))
        self._torn.discard(number)
        self._end = max(self._end, offset)
        return info

    def _settle(self, handle: int, number: int, size: int, sha256: str, view: memoryview | None = None) -> PartInfo:
        """Sync a part that was written, read it again in pieces, record it. Compared with `view`, or else with its sum."""
        offset = (number - 1) * self._part_size
        try:
            self._disk.fdatasync(handle)
        except OSError:
            self._broken = True  # the kernel forgets what it could not write: a second sync would lie
            raise
        self._disk.forget(handle, offset, size)
        digest, same = hashlib.sha256(), True
        for start in range(0, size, AGAIN):
            data = self._disk.read_all(handle, min(AGAIN, size - start), offset + start)
            if view is not None:
                same = same and data == view[start:start + AGAIN]
            else:
                digest.update(data)
        if not same or (view is None and digest.hexdigest() != sha256):
            raise WorkRetryable(f"{at(f'write part {number} of {self._key}', self._store.name)}: it was read back changed",
                                remedy="check the disk and the memory of this agent's host")
        info = PartInfo(size=size, etag=sha256)
        self._note(json.dumps({"part": number, "size": info.size, "sha256": info.etag}))
        return info

    async def complete(self, size: int) -> ObjectInfo:
        """Set the size, sync, rename, sync the directory."""
        if self._done is not None:
            return self._done
        if not self._end <= size:
            raise WorkFailed(f"the parts of {self._key} end at byte {self._end}, after its size of {size}")
        if self._torn and not self._broken:
            raise WorkFailed(f"{at(f'complete {self._key}', self._store.name)}: part {min(self._torn)} was not written whole",
                             remedy="write it again, then complete")
        path, name = split_key(self._key)

        def publish(handle: int) -> ObjectInfo:
            try:
                self._disk.truncate(handle, size)
                self._disk.fsync(handle)
            except OSError:
                self._broken = True
                raise
            with self._store.mounted() as root, self._disk.folder(root, path) as folder:
                with suppress(FileNotFoundError):  # first: interrupted here, nothing stays that the object would hide
                    if self._log is not None:
                        self._disk.unlink(record_of(self._mark), folder)
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
                    raise WorkFailed(f"{at(f'the upload of {self._key}', self._store.name)} was ended by another",
                                     remedy="begin again") from None
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
                    for name in (record_of(self._mark), self._mark):
                        with suppress(FileNotFoundError):
                            self._disk.unlink(name, folder)
                    self._disk.fsync(folder)
                self._store.prune(root, path)

        await self._store.run(f"end the upload of {self._key}", remove)

    async def _release(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            await self._idle.wait()
            log, self._log = self._log, None

            def close() -> None:
                for one in (handle, log):
                    if one is not None:
                        self._disk.close(one)

            await self._store.run(f"close {self._key}", close)


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


def mark_of(name: str) -> str:
    return f".{name}."


def record_of(mark: str) -> str:
    """The record that belongs to an unfinished file."""
    return mark.removesuffix(SUFFIX) + RECORD


def object_of(name: str) -> str:
    """The object that an unfinished file, or the record of one, belongs to; empty for other files."""
    suffix = SUFFIX if name.endswith(SUFFIX) else RECORD
    inner = name.removeprefix(".").removesuffix(suffix)
    if name != f".{inner}{suffix}":
        return ""
    found, _, token = inner.rpartition(".")
    return found if len(token) == 32 else ""


def _read_record(text: bytes) -> tuple[tuple[int, dict[int, PartInfo]] | None, int]:
    """(part size, parts) and where the last whole line ends. What follows a line that was torn does not count."""
    size, parts, end = 0, dict[int, PartInfo](), 0
    for line in text.split(b"\n")[:-1]:
        try:
            said = json.loads(line)
            if not size:
                size = int(said["part_size"])
            else:
                info = PartInfo(size=int(said["size"]), etag=str(said["sha256"]))
                if int(said["part"]) < 1 or not 0 < info.size <= size:
                    break
                parts[int(said["part"])] = info
        except (ValueError, KeyError, TypeError):
            break
        end += len(line) + 1
    return ((size, parts) if size > 0 else None), end
