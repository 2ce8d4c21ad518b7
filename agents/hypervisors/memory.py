"""A hypervisor in memory, for tests and for trying things without qemu: disks are buffers of this process.

It is a double of nothing: it keeps the whole contract, and forgets everything with the process. Sparse: only pages that
were written are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from agents.hypervisors.base import Extent
from schema.failure import WorkFailed
from schema.image import ImageFormat

PAGE = 1 << 16


@dataclass
class _Disk:
    size: int
    pages: dict[int, bytes] = field(default_factory=dict)
    tags: dict[str, dict[int, bytes]] = field(default_factory=dict)


class MemoryDevice:
    """See BlockDevice."""

    def __init__(self, size: int, pages: dict[int, bytes]) -> None:
        self.size, self._pages = size, pages

    async def extents(self) -> Sequence[Extent]:
        """See BlockDevice."""
        found: list[Extent] = []
        for page in range(-(-self.size // PAGE)):
            zero, length = page not in self._pages, min(PAGE, self.size - page * PAGE)
            if found and found[-1].zero == zero:
                found[-1] = Extent(offset=found[-1].offset, length=found[-1].length + length, zero=zero)
            else:
                found.append(Extent(offset=page * PAGE, length=length, zero=zero))
        return found

    async def read(self, offset: int, length: int) -> bytes:
        """See BlockDevice."""
        first, last = offset // PAGE, -(-(offset + length) // PAGE)
        whole = b"".join(self._pages.get(page, bytes(PAGE)) for page in range(first, last))
        return whole[offset - first * PAGE:offset - first * PAGE + length]

    async def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer of the caller's."""
        buffer[:] = await self.read(offset, len(buffer))

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See BlockDevice."""
        view, end = memoryview(data), offset + len(data)
        while offset < end:
            page, inside = divmod(offset, PAGE)
            step = min(PAGE - inside, end - offset)
            old = self._pages.get(page, bytes(PAGE))
            self._pages[page] = old[:inside] + bytes(view[:step]) + old[inside + step:]
            view, offset = view[step:], offset + step

    async def zero(self, offset: int, length: int) -> None:
        """See BlockDevice."""
        end = offset + length
        while offset < end:
            page, inside = divmod(offset, PAGE)
            step = min(PAGE - inside, end - offset)
            if step == PAGE:
                self._pages.pop(page, None)
            elif page in self._pages:
                await self.write(offset, bytes(step))
            offset += step

    async def flush(self) -> None:
        """See BlockDevice."""


class MemoryHypervisor:
    """See Hypervisor."""

    NAME: ClassVar[str] = "Memory"

    def __init__(self) -> None:
        self._disks: dict[str, _Disk] = {}

    def _disk(self, path: str) -> _Disk:
        if path not in self._disks:
            raise WorkFailed("the disk is not there")
        return self._disks[path]

    async def create(self, path: str, virtual_size: int) -> None:
        """See Hypervisor."""
        self._disks[path] = _Disk(virtual_size)

    async def adopt(self, path: str, *, format: ImageFormat, grow_to: int) -> int:  # noqa: A002 - the field's word
        """See Hypervisor."""
        disk = self._disk(path)
        disk.size = max(disk.size, grow_to)
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
        yield MemoryDevice(disk.size, disk.tags[tag] if tag else disk.pages)

    async def take_snapshot(self, path: str, tag: str) -> None:
        """See Hypervisor."""
        disk = self._disk(path)
        disk.tags.setdefault(tag, dict(disk.pages))

    async def drop_snapshot(self, path: str, tag: str) -> None:
        """See Hypervisor."""
        if path in self._disks:
            self._disks[path].tags.pop(tag, None)

    async def snapshots(self, path: str) -> list[str]:
        """See Hypervisor."""
        return list(self._disk(path).tags)

    async def measure(self, path: str) -> tuple[int, int]:
        """See Hypervisor."""
        disk = self._disk(path)
        return disk.size, len(disk.pages) * PAGE
