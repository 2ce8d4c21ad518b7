"""KVM for disks at rest: qcow2 files, internal snapshots, block exports of qemu read and written by libnbd.

Owns what is inside a disk file. Refuses to know where the file lies (the primary store) and where bytes go (motion). A
snapshot is an internal one of the qcow2 file: durable, taken at once, and the file's path never changes. While one is
read the file is locked against writers, by qemu itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from agents import libnbd, qemu
from agents.hypervisors.base import Extent
from schema.failure import WorkFailed
from schema.image import ImageFormat

T = TypeVar("T")

CONNECTIONS = 4
"""Connections of one open disk; each is used by one thread at a time."""
CLUSTER = "cluster_size=65536,lazy_refcounts=off"


class NbdDevice:
    """See BlockDevice: an export, by several connections."""

    def __init__(self, connections: list[libnbd.Connection]) -> None:
        self.size = connections[0].size
        self._all = connections
        self._free: asyncio.Queue[libnbd.Connection] = asyncio.Queue()
        for connection in connections:
            self._free.put_nowait(connection)
        self._threads = ThreadPoolExecutor(len(connections), thread_name_prefix="nbd")

    @classmethod
    async def connect(cls, socket: str, count: int) -> NbdDevice:
        """Open `count` connections, or one where the server does not promise that several agree."""
        first = await asyncio.to_thread(libnbd.Connection, socket)
        more = count - 1 if first.multi else 0
        return cls([first, *[await asyncio.to_thread(libnbd.Connection, socket) for _ in range(more)]])

    @contextlib.asynccontextmanager
    async def _one(self) -> AsyncIterator[libnbd.Connection]:
        connection = await self._free.get()
        try:
            yield connection
        finally:
            self._free.put_nowait(connection)

    async def _thread(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run a blocking call in our threads; a cancelled caller still waits for it, since the buffer is its own."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def extents(self) -> Sequence[Extent]:
        """See BlockDevice."""
        async with self._one() as connection:
            return await self._thread(connection.extents)

    async def read(self, offset: int, length: int) -> bytearray:
        """See BlockDevice."""
        buffer = bytearray(length)
        await self.read_into(memoryview(buffer), offset)
        return buffer

    async def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer of the caller's: no copy."""
        async with self._one() as connection:
            await self._thread(connection.read_into, buffer, offset)

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See BlockDevice."""
        async with self._one() as connection:
            await self._thread(connection.write, offset, data)

    async def zero(self, offset: int, length: int) -> None:
        """See BlockDevice."""
        async with self._one() as connection:
            await self._thread(connection.zero, offset, length)

    async def flush(self) -> None:
        """See BlockDevice."""
        async with self._one() as connection:
            await self._thread(connection.flush)

    async def aclose(self) -> None:
        """Disconnect."""
        for connection in self._all:
            await asyncio.get_running_loop().run_in_executor(self._threads, connection.close)
        self._threads.shutdown(wait=False)


class KvmHypervisor:
    """See Hypervisor."""

    NAME: ClassVar[str] = "KVM"

    async def create(self, path: str, virtual_size: int) -> None:
        """See Hypervisor."""
        await qemu.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", CLUSTER, path, str(virtual_size))

    async def adopt(self, path: str, *, format: ImageFormat, grow_to: int) -> int:  # noqa: A002 - the field's word
        """See Hypervisor."""
        if format is not ImageFormat.QCOW2:
            raise WorkFailed(f"a disk here is qcow2, not {format}")
        found = await qemu.info(path, "qcow2")
        details = found.get("format-specific", {}).get("data", {})
        for name in ("backing-filename", "full-backing-filename"):
            if found.get(name):
                raise WorkFailed("the image has a backing file", remedy="flatten it before it is registered")
        if details.get("data-file"):
            raise WorkFailed("the image keeps its data in another file", remedy="convert it before it is registered")
        if found.get("encrypted"):
            raise WorkFailed("the image is encrypted", remedy="decrypt it before it is registered")
        for inner in found.get("snapshots", []):  # somebody else's snapshots would be carried along for ever
            await self.drop_snapshot(path, inner["name"])
        size = int(found["virtual-size"])
        if grow_to > size:
            await qemu.run("qemu-img", "resize", "-q", "-f", "qcow2", path, str(grow_to))
            size = grow_to
        return size

    @contextlib.asynccontextmanager
    async def open(self, path: str, *, tag: str = "", writable: bool = False,
                   format: ImageFormat = ImageFormat.QCOW2) -> AsyncIterator[NbdDevice]:  # noqa: A002 - the field's word
        """See Hypervisor."""
        if tag and writable:
            raise WorkFailed("a snapshot cannot be written")
        if not await asyncio.to_thread(os.path.exists, path):
            raise WorkFailed(f"the disk {Path(path).name} is not there")
        how = qemu.snapshot(path, tag) if tag else qemu.daemon(path, str(format), writable=writable)
        async with qemu.export(how) as export:
            device = await NbdDevice.connect(export.socket, CONNECTIONS)
            try:
                yield device
            finally:
                await asyncio.shield(asyncio.ensure_future(device.aclose()))

    async def take_snapshot(self, path: str, tag: str) -> None:
        """See Hypervisor."""
        if tag not in await self.snapshots(path):
            await qemu.run("qemu-img", "snapshot", "--image-opts", _options(path), "-c", tag)
            await asyncio.to_thread(_sync, path)

    async def drop_snapshot(self, path: str, tag: str) -> None:
        """See Hypervisor."""
        if not await asyncio.to_thread(os.path.exists, path):
            return
        if tag in await self.snapshots(path):
            await qemu.run("qemu-img", "snapshot", "--image-opts", _options(path), "-d", tag)
            await asyncio.to_thread(_sync, path)

    async def snapshots(self, path: str) -> list[str]:
        """See Hypervisor."""
        return [entry["name"] for entry in (await qemu.info(path, "qcow2")).get("snapshots", [])]

    async def measure(self, path: str) -> tuple[int, int]:
        """See Hypervisor."""
        found = await qemu.info(path, "qcow2")
        return int(found["virtual-size"]), int(found["actual-size"])


def _options(path: str) -> str:
    """The disk as qemu's image options: the format is said, never guessed. Commas in a path are doubled."""
    return f"driver=qcow2,file.driver=file,file.filename={path.replace(',', ',,')}"


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
