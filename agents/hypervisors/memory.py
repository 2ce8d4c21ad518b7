"""A hypervisor in memory, for tests and for trying things without qemu: disks are buffers of this process, by path.

It is a double of nothing: it keeps the whole contract, and forgets everything with the process. Sparse: only pages that
were written are kept. An image that came from a store as a file is taken in by `adopt` and the file removed; it reads the
plain qcow2 that Storebus writes and refuses any other, which are qemu's to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from array import array
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar

from agents.hypervisors.base import TAG, Extent, Untracked
from agents.hypervisors.unused import prove_unused
from schema.failure import WorkFailed
from schema.image import ImageFormat

PAGE = 1 << 16
_OFFSET = 0x00FFFFFFFFFFFE00
"""The bits of a table entry that are a place in the file."""


@dataclass
class Disk:
    """The content now, and as it was at each snapshot. Pages are never changed, only replaced, so a snapshot is a copy of
    the table."""

    size: int
    pages: dict[int, bytes] = field(default_factory=dict)
    tags: dict[str, dict[int, bytes]] = field(default_factory=dict)
    marks: dict[str, set[int]] = field(default_factory=dict)
    """Pages written since each change record was begun."""


DISKS: dict[str, Disk] = {}
"""Every disk of this process by its path: what a file system is to the other hypervisors."""


class MemoryDevice:
    """See BlockDevice."""

    def __init__(self, size: int, pages: dict[int, bytes], *, writable: bool, marks: Collection[set[int]] = ()) -> None:
        self.size, self._pages, self._writable, self._marks = size, pages, writable, marks

    async def extents(self) -> Sequence[Extent]:
        """See BlockDevice."""
        found: list[Extent] = []
        end = 0
        for page in sorted(self._pages):
            start, stop = page * PAGE, min((page + 1) * PAGE, self.size)
            if found and start == end:
                found[-1] = Extent(offset=found[-1].offset, length=stop - found[-1].offset, zero=False)
            else:
                if start > end:
                    found.append(Extent(offset=end, length=start - end, zero=True))
                found.append(Extent(offset=start, length=stop - start, zero=False))
            end = stop
        if end < self.size:
            found.append(Extent(offset=end, length=self.size - end, zero=True))
        return found

    async def read(self, offset: int, length: int) -> bytes:
        """See BlockDevice."""
        self._inside(offset, length)
        first, last = offset // PAGE, -(-(offset + length) // PAGE)
        whole = b"".join(self._pages.get(page, bytes(PAGE)) for page in range(first, last))
        return whole[offset - first * PAGE:offset - first * PAGE + length]

    async def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer of the caller's."""
        buffer[:] = await self.read(offset, len(buffer))

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See BlockDevice."""
        self._may_write()
        self._inside(offset, len(data))
        view, end = memoryview(data), offset + len(data)
        while offset < end:
            page, inside = divmod(offset, PAGE)
            step = min(PAGE - inside, end - offset)
            old = self._pages.get(page, bytes(PAGE))
            self._pages[page] = old[:inside] + bytes(view[:step]) + old[inside + step:]
            self._mark([page])
            view, offset = view[step:], offset + step

    async def zero(self, offset: int, length: int) -> None:
        """See BlockDevice."""
        self._may_write()
        self._inside(offset, length)
        end = offset + length
        whole = range(-(-offset // PAGE), self.size // PAGE + 1 if end == self.size else end // PAGE)
        for page in [page for page in self._pages if page in whole]:
            del self._pages[page]
            self._mark([page])
        for start, stop in ((offset, min(end, whole.start * PAGE)), (max(offset, whole.stop * PAGE), end)):
            if start < stop and start // PAGE in self._pages:
                await self.write(start, bytes(stop - start))

    async def flush(self) -> None:
        """See BlockDevice."""

    def _mark(self, pages: Sequence[int]) -> None:
        for record in self._marks:
            record.update(pages)

    def _may_write(self) -> None:
        if not self._writable:
            raise WorkFailed("the disk is open for reading only")

    def _inside(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self.size:
            raise WorkFailed(f"bytes {offset} to {offset + length} are not all on a disk of {self.size}")


class MemoryHypervisor:
    """See Hypervisor."""

    NAME: ClassVar[str] = "Memory"

    def _disk(self, path: str) -> Disk:
        if path not in DISKS:
            raise WorkFailed(f"the disk {Path(path).name} is not there")
        return DISKS[path]

    async def create(self, path: str, virtual_size: int) -> None:
        """See Hypervisor."""
        DISKS[path] = Disk(virtual_size)

    async def adopt(self, path: str, *, format: ImageFormat, grow_to: int) -> int:  # noqa: A002 - the field's word
        """See Hypervisor."""
        if format is not ImageFormat.QCOW2:
            raise WorkFailed(f"a disk here is qcow2, not {format}")
        if path not in DISKS and await asyncio.to_thread(os.path.exists, path):
            DISKS[path] = await asyncio.to_thread(_take_in, path)
        disk = self._disk(path)
        disk.size = max(disk.size, -(-grow_to // 512) * 512)
        return disk.size

    @contextlib.asynccontextmanager
    async def open(self, path: str, *, tag: str = "", writable: bool = False,
                   format: ImageFormat = ImageFormat.QCOW2) -> AsyncIterator[MemoryDevice]:  # noqa: A002
        """See Hypervisor."""
        disk = self._disk(path)
        if tag and writable:
            raise WorkFailed("a snapshot cannot be written")
        if tag and tag not in disk.tags:
            raise WorkFailed(f"the disk has no snapshot {tag}")
        yield MemoryDevice(disk.size, disk.tags[tag] if tag else disk.pages, writable=writable, marks=disk.marks.values())

    async def take_snapshot(self, path: str, tag: str) -> None:
        """See Hypervisor."""
        disk = self._disk(path)
        disk.tags.setdefault(tag, dict(disk.pages))

    async def drop_snapshot(self, path: str, tag: str) -> None:
        """See Hypervisor."""
        if path in DISKS:
            DISKS[path].tags.pop(tag, None)

    async def snapshots(self, path: str) -> list[str]:
        """See Hypervisor."""
        return list(self._disk(path).tags)

    async def track(self, path: str, name: str) -> None:
        """See ChangeTracking."""
        self._disk(path).marks.setdefault(name, set())

    async def changed(self, path: str, name: str) -> Sequence[Extent]:
        """See ChangeTracking."""
        disk = self._disk(path)
        if name not in disk.marks:
            raise Untracked("the disk has no record of changes since the previous snapshot")
        return [Extent(offset=page * PAGE, length=min(PAGE, disk.size - page * PAGE), zero=False)
                for page in sorted(disk.marks[name])]

    async def forget_changes(self, path: str, name: str) -> None:
        """See ChangeTracking."""
        if path in DISKS:
            DISKS[path].marks.pop(name, None)

    async def keep_changes(self, path: str, name: str) -> None:
        """See ChangeTracking."""
        if path in DISKS:
            for other in [other for other in DISKS[path].marks if other != name and other.startswith(TAG)]:
                del DISKS[path].marks[other]

    async def resize(self, path: str, virtual_size: int, *, shrink: bool) -> int:
        """See Resizable."""
        disk, size = self._disk(path), -(-virtual_size // 512) * 512
        if size == disk.size:
            return size
        if disk.tags:
            raise WorkFailed("the disk holds a snapshot that is not backed up yet", remedy="resize it when that job has ended")
        if size < disk.size:
            if not shrink:
                raise WorkFailed(f"the disk has {disk.size} bytes, and may not become smaller")
            async with self.open(path) as device:
                await prove_unused(device, size)
            for page in [page for page in disk.pages if page * PAGE >= size]:
                del disk.pages[page]
        disk.marks.clear()
        disk.size = size
        return size

    async def measure(self, path: str) -> tuple[int, int]:
        """See Hypervisor."""
        disk = self._disk(path)
        return disk.size, len(disk.pages) * PAGE


def _take_in(path: str) -> Disk:
    """The disk in a plain qcow2 file, which is then removed. Raises WorkFailed for any other file."""
    with Path(path).open("rb") as file:
        head = file.read(104)
        if len(head) < 104 or head[:4] != b"QFI\xfb":
            raise WorkFailed("the image is not qcow2")
        _, version, backing, _, bits, size, crypt, l1_size, l1_at, _, _, snapshots, _, features = struct.unpack_from(
            ">4sIQIIQIIQQIIQQ", head)
        if backing:
            raise WorkFailed("the image has a backing file", remedy="flatten it before it is registered")
        if (version, bits, crypt, snapshots, features) != (3, 16, 0, 0, 0):
            raise WorkFailed("the image is not a plain qcow2 of version 3", remedy="use the KVM hypervisor, which has qemu")
        disk = Disk(size)
        for l2, table in enumerate(_entries(file, l1_at, l1_size)):
            for n, entry in enumerate(_entries(file, table & _OFFSET, PAGE // 8) if table & _OFFSET else ()):
                if entry >> 62 & 1:
                    raise WorkFailed("the image is compressed", remedy="use the KVM hypervisor, which has qemu")
                if entry & _OFFSET and not entry & 1:
                    file.seek(entry & _OFFSET)
                    disk.pages[l2 * (PAGE // 8) + n] = file.read(PAGE).ljust(PAGE, b"\0")
    Path(path).unlink()
    return disk


def _entries(file: BinaryIO, at: int, count: int) -> array[int]:
    file.seek(at)
    entries = array("Q", file.read(count * 8).ljust(count * 8, b"\0"))
    entries.byteswap()
    return entries
