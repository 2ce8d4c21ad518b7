"""KVM for disks at rest: qcow2 files, internal snapshots, block exports of qemu read and written by libnbd.

Owns what is inside a disk file. Refuses to know where the file lies (the primary store) and where bytes go (motion). A
snapshot is an internal one of the qcow2 file: durable, taken at once, and the file's path never changes. While one is
read the file is locked against writers, by qemu itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar, TypeVar

from agents import libnbd, qemu
from agents.gate import prove_disk
from agents.hypervisors.base import GRANULARITY, TAG, Extent, Untracked
from agents.hypervisors.clusters import Clusters
from agents.hypervisors.unused import prove_unused
from agents.primary_stores.base import explain
from agents.primary_stores.block_device import size_of
from agents.uninterrupted import in_thread, to_the_end
from schema.failure import WorkFailed
from schema.image import ImageFormat

T = TypeVar("T")

CONNECTIONS = 4
"""Connections of one open disk; each is used by one thread at a time."""
FOREIGN_SNAPSHOTS = 32
"""Snapshots inside an image from elsewhere that are dropped one by one; more are refused."""
LEAKS = 3
"""What `qemu-img check` ends with when space is lost but no data is wrong."""
CLUSTER = "cluster_size=65536,lazy_refcounts=off"


class NbdDevice:
    """See BlockDevice: an export, by several connections. What of a snapshot is plain in its file is read from there."""

    def __init__(self, connections: list[libnbd.Connection]) -> None:
        self.size = connections[0].size
        self._all = connections
        self._clusters: Clusters | None = None
        self._free: SimpleQueue[libnbd.Connection] = SimpleQueue()
        for connection in connections:
            self._free.put(connection)
        self._threads = ThreadPoolExecutor(len(connections), thread_name_prefix="nbd")

    @classmethod
    async def connect(cls, socket: str, count: int) -> NbdDevice:
        """Open `count` connections, or one where the server does not promise that several agree."""
        return cls(await to_the_end(asyncio.to_thread(_connect, socket, count), undo=_close))

    async def look_into(self, path: str, tag: str) -> None:
        """What is plain is read from the file from now on. The export is of this snapshot in this file, which it keeps locked."""
        def look() -> None:
            self._clusters = Clusters.of(path, tag)

        await self._thread(look)

    @contextlib.contextmanager
    def _one(self) -> Iterator[libnbd.Connection]:
        """A connection for this thread alone; waits while all are used."""
        connection = self._free.get()
        try:
            yield connection
        finally:
            self._free.put(connection)

    async def _thread(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run a blocking call in our threads; a cancelled caller still waits for it, since the buffer is its own."""
        return await to_the_end(asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments))

    async def _over(self, call: Callable[..., T], *arguments: Any) -> T:
        """The same of a method of Connection, over one that is free."""
        def over() -> T:
            with self._one() as connection:
                return call(connection, *arguments)

        return await self._thread(over)

    async def extents(self) -> Sequence[Extent]:
        """See BlockDevice."""
        return await self._over(libnbd.Connection.extents)

    async def read(self, offset: int, length: int) -> bytearray:
        """See BlockDevice."""
        buffer = bytearray(length)
        await self.read_into(memoryview(buffer), offset)
        return buffer

    async def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer of the caller's: no copy."""
        await self._thread(self.read_here, buffer, offset)

    def read_here(self, buffer: memoryview, offset: int) -> None:
        """See ReadsHere."""
        with self._one() as connection:
            if self._clusters is None or offset + len(buffer) > self.size:
                connection.read_into(buffer, offset)
            else:
                self._clusters.read_into(buffer, offset, connection.read_into)
                connection.prove_there()  # else nobody has locked the file, and it may be another's data

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See BlockDevice."""
        await self._over(libnbd.Connection.write, offset, data)

    async def zero(self, offset: int, length: int) -> None:
        """See BlockDevice."""
        await self._over(libnbd.Connection.zero, offset, length)

    async def flush(self) -> None:
        """See BlockDevice."""
        await self._over(libnbd.Connection.flush)

    async def aclose(self) -> None:
        """Disconnect. No call is running any more: each was waited for."""
        await _close(self._all)
        self._threads.shutdown(wait=False)
        if self._clusters is not None:
            self._clusters.close()


def _holds(path: str, tag: str) -> bool:
    """The snapshot is seen in the file, which costs less than to start a program. False: it is not, or nothing can be seen."""
    clusters = Clusters.of(path, tag)
    if clusters is not None:
        clusters.close()
    return clusters is not None


def _connect(socket: str, count: int) -> list[libnbd.Connection]:
    made = [libnbd.Connection(socket)]
    try:
        while made[0].multi and len(made) < count:
            made.append(libnbd.Connection(socket))
    except BaseException:
        for connection in made:
            connection.close()
        raise
    return made


async def _close(connections: list[libnbd.Connection]) -> None:
    for connection in connections:
        await asyncio.to_thread(connection.close)


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
        await prove_disk(path)
        checked = asyncio.create_task(qemu.run(
            "qemu-img", "check", "-q", "-f", "qcow2", path, look_s=qemu.CHECK_S, accept=(0, LEAKS)))
        try:  # beside each other: to start either costs more than it looks
            found = await qemu.info(path, "qcow2")
            _refuse(found)
            await checked
        finally:
            checked.cancel()
            await to_the_end(asyncio.gather(checked, return_exceptions=True))
        for inner in found.get("snapshots", []):  # somebody else's snapshots would be carried along for ever
            await self.drop_snapshot(path, inner["name"])
        for name in _bitmaps_in(found):  # and somebody else's record of changes must not be taken for ours
            await _bitmap(path, "--remove", name)
        size = int(found["virtual-size"])
        if grow_to > size:
            await qemu.run("qemu-img", "resize", "-q", "-f", "qcow2", path, str(grow_to), look_s=qemu.LOOK_S)
            size = -(-grow_to // 512) * 512  # as qemu rounds
        return size

    @contextlib.asynccontextmanager
    async def open(self, path: str, *, tag: str = "", writable: bool = False,
                   format: ImageFormat = ImageFormat.QCOW2) -> AsyncIterator[NbdDevice]:  # noqa: A002 - the field's word
        """See Hypervisor."""
        if tag and writable:
            raise WorkFailed("a snapshot cannot be written")
        if not await asyncio.to_thread(os.path.exists, path):
            raise WorkFailed(f"the disk {Path(path).name} is not there")
        if tag and not await in_thread(_holds, path, tag) and tag not in await self.snapshots(path):
            raise WorkFailed(f"the disk has no snapshot {tag}")
        how = (qemu.snapshot(path, tag, connections=CONNECTIONS) if tag else
               qemu.daemon(path, str(format), writable=writable, connections=CONNECTIONS))
        async with qemu.export(how) as export:
            device = await NbdDevice.connect(export.socket, CONNECTIONS)
            try:
                if tag:
                    await device.look_into(path, tag)
                yield device
            finally:
                await to_the_end(device.aclose())

    async def take_snapshot(self, path: str, tag: str) -> None:
        """See Hypervisor."""
        if tag not in await self.snapshots(path):
            await qemu.run("qemu-img", "snapshot", "--image-opts", qemu.image_options(path), "-c", tag)
            await in_thread(_sync, path)

    async def drop_snapshot(self, path: str, tag: str) -> None:
        """See Hypervisor."""
        if not await asyncio.to_thread(os.path.exists, path):
            return
        if tag in await self.snapshots(path):
            await qemu.run("qemu-img", "snapshot", "--image-opts", qemu.image_options(path), "-d", tag)
            await in_thread(_sync, path)

    async def track(self, path: str, name: str) -> None:
        """See ChangeTracking. Before the snapshot of the same moment: what is written in between is then in both."""
        known = await _bitmaps(path)
        if name in known and not _fault(known[name]):
            return
        if name in known:
            await _bitmap(path, "--remove", name)
        await _bitmap(path, "--add", "-g", str(GRANULARITY), name)
        await in_thread(_sync, path)

    async def changed(self, path: str, name: str) -> Sequence[Extent]:
        """See ChangeTracking."""
        known = await _bitmaps(path)
        if name not in known:
            raise Untracked("the disk has no dirty bitmap since the previous snapshot")
        fault = _fault(known[name])
        if fault:
            raise Untracked(f"the dirty bitmap since the previous snapshot {fault}")
        how = qemu.daemon(path, "qcow2", writable=False, connections=1, bitmap=name)
        async with qemu.export(how) as export:
            return await to_the_end(asyncio.to_thread(_changed, export.socket, name))

    async def forget_changes(self, path: str, name: str) -> None:
        """See ChangeTracking."""
        await _forget(path, lambda found: found == name)

    async def keep_changes(self, path: str, name: str) -> None:
        """See ChangeTracking."""
        await _forget(path, lambda found: found != name and found.startswith(TAG))

    async def snapshots(self, path: str) -> list[str]:
        """See Hypervisor."""
        return [entry["name"] for entry in (await qemu.info(path, "qcow2")).get("snapshots", [])]

    async def resize(self, path: str, virtual_size: int, *, shrink: bool) -> int:
        """See Resizable."""
        found = await qemu.info(path, "qcow2")
        before, size = int(found["virtual-size"]), -(-virtual_size // 512) * 512
        if size == before:
            return size
        if found.get("snapshots"):
            raise WorkFailed("the disk holds a snapshot that is not backed up yet", remedy="resize it when that job has ended")
        if size < before:
            if not shrink:
                raise WorkFailed(f"the disk has {before} bytes, and may not become smaller")
            async with self.open(path) as device:
                await prove_unused(device, size)
        for name in _bitmaps_in(found):
            await _bitmap(path, "--remove", name)
        await qemu.run("qemu-img", "resize", "-q", *(["--shrink"] if size < before else []), "--image-opts",
                       qemu.image_options(path), str(size))
        await in_thread(_sync, path)
        return size

    async def measure(self, path: str) -> tuple[int, int]:
        """See Hypervisor."""
        return await in_thread(_measured, path)


async def _bitmaps(path: str) -> dict[str, dict[str, Any]]:
    """The dirty bitmaps kept in a disk: name -> granularity and flags."""
    return _bitmaps_in(await qemu.info(path, "qcow2"))


def _bitmaps_in(info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    details = info.get("format-specific", {}).get("data", {})
    return {entry["name"]: entry for entry in details.get("bitmaps", [])}


def _fault(bitmap: dict[str, Any]) -> str:
    """Why a bitmap cannot be trusted; empty when it can. qemu sets `in-use` while a disk is open for writing and clears it
    at an orderly end, so after a crash it stays; `auto` is what makes it record at every opening."""
    flags = bitmap.get("flags", [])
    if "in-use" in flags:
        return "was not closed: what wrote to the disk was killed"
    if "auto" not in flags:
        return "is not recording"
    if bitmap.get("granularity") != GRANULARITY:
        return f"has blocks of {bitmap.get('granularity')} bytes, not {GRANULARITY}"
    return ""


async def _bitmap(path: str, *words: str) -> None:
    await qemu.run("qemu-img", "bitmap", *words[:-1], "--image-opts", qemu.image_options(path), words[-1])


async def _forget(path: str, goes: Callable[[str], bool]) -> None:
    """Remove the bitmaps whose name `goes` says yes to."""
    if await asyncio.to_thread(os.path.exists, path):
        for name in filter(goes, await _bitmaps(path)):
            await _bitmap(path, "--remove", name)


def _changed(socket: str, name: str) -> list[Extent]:
    connection = libnbd.Connection(socket, context=f"{libnbd.DIRTY}{name}")
    try:
        return connection.changed()
    finally:
        connection.close()


def _refuse(found: dict[str, Any]) -> None:
    """What an image from elsewhere must not have. Raises WorkFailed."""
    details = found.get("format-specific", {}).get("data", {})
    if found.get("backing-filename") or found.get("full-backing-filename"):
        raise WorkFailed("the image has a backing file", remedy="flatten it before it is registered")
    if details.get("data-file"):
        raise WorkFailed("the image keeps its data in another file", remedy="convert it before it is registered")
    if found.get("encrypted"):
        raise WorkFailed("the image is encrypted", remedy="decrypt it before it is registered")
    if len(found.get("snapshots", [])) > FOREIGN_SNAPSHOTS:
        raise WorkFailed(f"the image holds more than {FOREIGN_SNAPSHOTS} snapshots of its own",
                         remedy="remove them with qemu-img convert before it is registered")


def _measured(path: str) -> tuple[int, int]:
    """As its header and its file say: to start a program for two numbers takes longer than to read them."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            header, found = os.pread(descriptor, 32, 0), os.fstat(descriptor)
        finally:
            os.close(descriptor)
        # All of a device is this disk's.
        used = size_of(path) if stat.S_ISBLK(found.st_mode) else found.st_blocks * 512
    except OSError as error:
        raise explain(error, path) from None
    if len(header) < 32 or not header.startswith(b"QFI\xfb"):
        raise WorkFailed(f"the disk {Path(path).name} is no qcow2 file", remedy="restore it from a snapshot")
    return int.from_bytes(header[24:32], "big"), used


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
