"""Compressed motion: a disk written to a store as a qcow2 with zstd clusters, compressed on the way. No byte rests anywhere else.

Owns the pipeline: clusters are read and compressed in threads, several batches at once and used in their order; the file
grows, and each part goes out as soon as it is full; the first part, which has the header, goes last. Unlike direct motion's,
parts depend on one another, so a transfer that was interrupted starts again. Memory: the first part and the one that is being
filled; batches ahead and parts on their way come from the process's buffers. Where parts are too large, nothing is compressed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from agents import manifest as manifests
from agents.buffers import BUFFERS
from agents.hypervisors.base import BlockDevice
from agents.image_stores.base import ImageStore, Upload
from agents.motion.base import Progress
from agents.motion.direct import WORKERS, leave_nothing, part_size, read_device, write_image
from agents.motion.streamed import WHOLE
from agents.qcow2 import CLUSTER, Layout
from agents.qcow2_compressed import RUN, CompressedFile
from agents.uninterrupted import in_thread, to_the_end
from schema.failure import Refused
from schema.image import ImageFormat, ImageRef, Manifest

BATCH = 16
"""Clusters that are read and compressed together: 1 MiB."""
AHEAD = 8
"""Batches that are read or compressed, or wait for their turn."""
ROOM = 2 * BATCH * CLUSTER
"""Bytes of a batch, and of what it is compressed to."""
LEVEL = 1
WORTH = CLUSTER - CLUSTER // 8
"""Bytes that a compressed cluster may have; a larger one is written as it is, which is quicker to read."""

Packed = list[tuple[int, bytes | None, memoryview]]
"""(guest cluster, compressed, raw)"""


def _compressor() -> Any:
    """A compressor of this thread's own. Raises Refused without the package."""
    try:
        import zstandard
    except ImportError:
        raise Refused("this agent cannot compress with zstd", field="compression",
                      remedy="pip install 'storebus[zstd]' on its host, or set STOREBUS_SNAPSHOT_COMPRESSION=none") from None
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)


def _pack(first: int, buffer: bytearray) -> Packed:
    """Compress the clusters of a batch. The interpreter's lock is free meanwhile."""
    compressor = _compressor()
    view = memoryview(buffer)
    packed: Packed = []
    for number in range(len(buffer) // CLUSTER):
        raw = view[number * CLUSTER:(number + 1) * CLUSTER]
        small = compressor.compress(raw)
        packed.append((first + number, small if len(small) <= WORTH else None, raw))
    return packed


def _batches(layout: Layout) -> Iterator[tuple[int, int]]:
    """(first guest cluster, how many) in guest order."""
    for run in layout.runs:
        for at in range(0, run.count, BATCH):
            yield run.guest + at, min(BATCH, run.count - at)


async def write_compressed(device: BlockDevice, store: ImageStore, *, store_id: UUID, key: str, kind: str, thing_id: UUID,
                           job_id: UUID, work: str, installation: str, progress: Progress, workers: int = WORKERS,
                           part: int | None = None) -> ImageRef:
    """Write the device to `key` as a qcow2 with zstd clusters, and its manifest.

    Progress counts the disk's bytes that the store has, whatever they were compressed to. Raises what the store raises, and
    Refused where zstd is missing; nothing is left then."""
    _compressor()
    progress("scan", 0, 0)
    layout = await asyncio.to_thread(Layout, device.size, await device.extents())
    size = part_size(layout.size + layout.size // 8 + 2 * RUN, store.limits, part)
    if size > WHOLE:  # its parts would have to be held whole, since they cannot be made twice: such a disk is not compressed
        return await write_image(device, store, store_id=store_id, key=key, kind=kind, thing_id=thing_id, job_id=job_id,
                                 work=work, installation=installation, progress=progress, workers=workers, part=part,
                                 layout=layout)
    upload: Upload | None = None
    try:
        upload = await to_the_end(store.begin(key, part_size=size), undo=lambda begun: begun.abort())
        parts = _Parts(upload, size, workers, progress, layout.data_clusters * CLUSTER)
        progress("write", 0, layout.data_clusters * CLUSTER)  # from here on bytes should move
        file = await _pump(device, layout, parts)
        progress("verify", parts.moved, parts.moved)
        await upload.complete(file.size)
        root = manifests.root_of(parts.digests)
        await manifests.write_manifest(store, Manifest(
            installation=installation, kind=kind, thing_id=thing_id, job_id=job_id, work=work, key=key,
            format=ImageFormat.QCOW2, virtual_size=device.size, physical_size=file.size, part_size=size, parts=parts.digests,
            root=root, created=datetime.now(UTC).isoformat()))
    except BaseException:
        await leave_nothing(store, upload, key)
        raise
    return ImageRef(store_id=store_id, key=key, format=ImageFormat.QCOW2, virtual_size=device.size, physical_size=file.size,
                    root=root)


class _Parts:
    """Cuts the growing file into parts and sends them, some at once; the first one waits for its header."""

    def __init__(self, upload: Upload, size: int, workers: int, progress: Progress, total: int) -> None:
        self._upload, self._size, self._progress, self._total = upload, size, progress, total
        self._room = asyncio.Semaphore(workers)
        self._sending: set[asyncio.Task[None]] = set()
        self._buffer = bytearray()
        self._first: bytearray | None = None
        self._told = 0
        self.digests: list[str] = []
        self.guest = 0
        """Bytes of the disk that are in the file so far."""
        self.moved = 0
        """Those that the store has."""

    async def add(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes of the file. Waits while too many parts are on their way; raises what one of them met."""
        at = 0
        view = memoryview(data)
        while at < len(view):
            step = min(self._size - len(self._buffer), len(view) - at)
            self._buffer += view[at:at + step]
            at += step
            if len(self._buffer) == self._size:
                await self._seal()

    async def _seal(self) -> None:
        part, self._buffer = self._buffer, bytearray()
        self.digests.append("")
        if self._first is None:
            self._first = part
            return
        await self._room.acquire()
        for task in [task for task in self._sending if task.done()]:
            self._sending.discard(task)
            task.result()
        share, self._told = self.guest - self._told, self.guest
        await BUFFERS.take(self._size)
        task = asyncio.create_task(self._send(len(self.digests), part, share))
        task.add_done_callback(lambda _: BUFFERS.give(self._size))  # one that is cancelled before it begins, too
        self._sending.add(task)

    async def _send(self, number: int, part: bytearray, share: int) -> None:
        try:
            self.digests[number - 1] = digest = await in_thread(lambda: hashlib.sha256(part).hexdigest())
            await self._upload.part(number, part, sha256=digest)
        finally:
            self._room.release()
        self.moved += share
        self._progress("write", self.moved, self._total)

    async def end(self, header: bytes) -> None:
        """The file is whole: send what is left, and the first part with its header at last."""
        if self._buffer or self._first is None:
            await self._seal()
        await asyncio.gather(*self._sending)
        self._sending.clear()
        assert self._first is not None
        self._first[:len(header)] = header
        await self._room.acquire()
        async with BUFFERS.room(self._size):
            await self._send(1, self._first, self._total - self.moved)

    async def stop(self) -> None:
        """Something failed: nothing is sent any more when this returns."""
        for task in self._sending:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await to_the_end(asyncio.gather(*self._sending, return_exceptions=True))


async def _pump(device: BlockDevice, layout: Layout, parts: _Parts) -> CompressedFile:
    """Read, compress and seal, in order; the finished file."""
    file = CompressedFile(device.size)
    ahead: deque[tuple[asyncio.Task[Packed], int, int]] = deque()
    batches = _batches(layout)

    async def batch(first: int, count: int) -> Packed:
        buffer = bytearray(count * CLUSTER)
        there = min(len(buffer), device.size - first * CLUSTER)
        await read_device(device, memoryview(buffer)[:there], first * CLUSTER)
        return await in_thread(_pack, first, buffer)

    try:
        await parts.add(bytes(CLUSTER))  # the header's room
        while True:
            while len(ahead) < AHEAD and (not ahead or BUFFERS.try_take(ROOM)):  # one goes on however little room there is
                took = ROOM if ahead else 0
                found = next(batches, None)
                if found is None:
                    BUFFERS.give(took)
                    break
                first, count = found
                ahead.append((asyncio.create_task(batch(first, count)), count * CLUSTER, took))
            if not ahead:
                break
            task, guest, took = ahead[0]
            for number, packed, raw in await task:
                for data in file.add(number, packed, raw):
                    await parts.add(data)
            ahead.popleft()
            BUFFERS.give(took)
            parts.guest += guest
        for data in file.end():
            await parts.add(data)
        await parts.end(file.header)
    except BaseException:
        for task, *_ in ahead:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # what happened first is what is raised
            await to_the_end(asyncio.gather(*(task for task, *_ in ahead), return_exceptions=True))
        BUFFERS.give(sum(took for *_, took in ahead))
        await parts.stop()
        raise
    return file
