"""Compressed motion: a disk written to a store as a qcow2 with zstd clusters, compressed on the way. No byte rests anywhere else.

Owns the pipeline: clusters are read and compressed in threads, several batches at once and used in their order; the file
grows, and each part goes out as soon as it is full; the first part, which has the header, goes last. Unlike direct motion's,
parts depend on one another, so a transfer that was interrupted starts again. Memory: the first part, one that is being filled or
on its way, and one batch, whatever there is; batches ahead and more parts come from the process's buffers while there is room.
Where parts are too large, nothing is compressed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from agents import manifest as manifests
from agents.buffers import BUFFERS
from agents.hypervisors.base import BlockDevice
from agents.image_stores.base import ImageStore, Upload
from agents.motion.base import Progress
from agents.motion.direct import WORKERS, leave_nothing, part_size, read_device_then, write_image
from agents.motion.streamed import WHOLE
from agents.qcow2 import CLUSTER, Layout
from agents.qcow2_compressed import RUN, CompressedFile
from agents.uninterrupted import in_thread, to_the_end
from schema.failure import Refused
from schema.image import ImageFormat, ImageRef, Manifest

BATCH = 16
"""Clusters that are read and compressed together: 1 MiB."""
AHEAD = min(8, 2 + (os.cpu_count() or 1))
"""Batches that are read or compressed, or wait for their turn."""
ROOM = 2 * BATCH * CLUSTER
"""Bytes of a batch, and of what it is compressed to."""
PART = 5 << 20
"""Bytes of a part, unless the store or the object's size asks for more: two are held. No S3 store takes smaller ones."""
LEVEL = 1
WORTH = CLUSTER - CLUSTER // 8
"""Bytes that a compressed cluster may have; a larger one is written as it is, which is quicker to read."""

Packed = list[tuple[int, memoryview | None, memoryview]]
"""(guest cluster, compressed, raw), all of it in the batch's buffer."""


_OWN = threading.local()
"""Each thread's compressor: a new one for each batch costs the kernel its memory each time."""


def _compressor() -> Any:
    """This thread's own compressor. Raises Refused without the package."""
    try:
        import zstandard
    except ImportError:
        raise Refused("this agent cannot compress with zstd", field="compression",
                      remedy="pip install 'storebus[zstd]' on its host, or set STOREBUS_SNAPSHOT_COMPRESSION=none") from None
    if not hasattr(_OWN, "compressor"):
        _OWN.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)
    return _OWN.compressor


def _pack(first: int, count: int, buffer: memoryview) -> Packed:
    """Compress the clusters in the first half of a batch's buffer into its second. The interpreter's lock is free meanwhile."""
    compressor = _compressor()
    view, end = memoryview(buffer), ROOM // 2
    packed: Packed = []
    for number in range(count):
        raw = view[number * CLUSTER:(number + 1) * CLUSTER]
        small: bytes = compressor.compress(raw)
        at, end = end, end + (len(small) if len(small) <= WORTH else 0)
        view[at:end] = small[:end - at]  # at once: kept, thousands of them would leave the heap in pieces
        packed.append((first + number, view[at:end] if end > at else None, raw))
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
    size = part_size(layout.size + layout.size // 8 + 2 * RUN, store.limits, part or PART)
    if size > WHOLE:  # its parts would have to be held whole, since they cannot be made twice: such a disk is not compressed
        return await write_image(device, store, store_id=store_id, key=key, kind=kind, thing_id=thing_id, job_id=job_id,
                                 work=work, installation=installation, progress=progress, workers=workers, part=part,
                                 layout=layout)
    upload: Upload | None = None
    try:
        upload = await to_the_end(store.begin(key, part_size=size), undo=lambda begun: begun.abort())
        parts = Parts(upload, size, workers, progress, layout.data_clusters * CLUSTER)
        progress("write", 0, layout.data_clusters * CLUSTER)  # from here on bytes should move
        file = await _pump(device, layout, parts)
        progress("verify", parts.moved, parts.moved)
        made = await upload.complete(file.size)
        root = manifests.root_of(parts.digests)
        await manifests.write_manifest(store, Manifest(
            installation=installation, kind=kind, thing_id=thing_id, job_id=job_id, work=work, key=key,
            format=ImageFormat.QCOW2, virtual_size=device.size, physical_size=file.size, part_size=size, parts=parts.digests,
            root=root, created=datetime.now(UTC).isoformat()), made=made)
    except BaseException:
        await leave_nothing(store, upload, key)
        raise
    return ImageRef(store_id=store_id, key=key, format=ImageFormat.QCOW2, virtual_size=device.size, physical_size=file.size,
                    root=root)


class Parts:
    """Cuts the growing file into parts and sends them, some at once; the first one waits for its header."""

    def __init__(self, upload: Upload, size: int, workers: int, progress: Progress, total: int) -> None:
        self._upload, self._size, self._progress, self._total = upload, size, progress, total
        self._room = asyncio.Semaphore(workers)
        self._sending: set[asyncio.Task[None]] = set()
        self._part: _Part | None = _Part(memoryview(bytearray(size)), lent=False)
        """The one that is being filled. None: it has no buffer yet."""
        self._first: _Part | None = None
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
            if self._part is None:
                self._part = await self._empty()
            part = self._part
            step = min(self._size - part.filled, len(view) - at)
            part.buffer[part.filled:part.filled + step] = view[at:at + step]
            part.filled += step
            at += step
            if part.filled == self._size:
                await self._seal(part)

    async def _seal(self, part: _Part) -> None:
        self.digests.append("")
        if self._first is None:
            self._first, self._part = part, None
            return
        await self._begin(len(self.digests), part)
        self._part = None

    async def _begin(self, number: int, part: _Part) -> None:
        """Send it as soon as fewer are on their way than may be."""
        await self._room.acquire()
        self._look()
        share, self._told = self.guest - self._told, self.guest
        task = asyncio.create_task(self._send(number, part, share))
        task.add_done_callback(lambda _: part.let_go())  # of one that is cancelled before it begins, too
        self._sending.add(task)

    def _look(self) -> None:
        """Raise what a part met."""
        for task in [task for task in self._sending if task.done()]:
            self._sending.discard(task)
            task.result()

    async def _empty(self) -> _Part:
        """Room for the next part. While others have all that the process lends, a transfer goes on with a buffer of its own, one
        part at a time: none may wait for another's."""
        while (lent := BUFFERS.try_borrow(self._size)) is None:
            if not self._sending:
                return _Part(memoryview(bytearray(self._size)), lent=False)
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
            self._look()
        return _Part(lent, lent=True)

    async def _send(self, number: int, part: _Part, share: int) -> None:
        try:
            view = part.buffer[:part.filled]
            self.digests[number - 1] = digest = await in_thread(lambda: hashlib.sha256(view).hexdigest())
            await self._upload.part(number, view, sha256=digest)
        finally:
            self._room.release()
        self.moved += share
        self._progress("write", self.moved, self._total)

    async def end(self, header: bytes) -> None:
        """The file is whole: send what is left, and the first part with its header at last, beside those still on their way."""
        if self._part is not None:
            await self._seal(self._part)
        assert self._first is not None
        self._first.buffer[:len(header)] = header
        await self._begin(1, self._first)
        await asyncio.gather(*self._sending)
        self._sending.clear()

    async def stop(self) -> None:
        """Something failed: nothing is sent any more when this returns."""
        if self._part is not None:
            self._part.let_go()
        for task in self._sending:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await to_the_end(asyncio.gather(*self._sending, return_exceptions=True))


@dataclass(slots=True)
class _Part:
    """Bytes of the file that go out together."""

    buffer: memoryview
    lent: bool
    """By the process's buffers; else it is the transfer's own."""
    filled: int = 0

    def let_go(self) -> None:
        """Nobody needs its bytes any more."""
        if self.lent:
            BUFFERS.give_back(self.buffer)
        self.lent, self.buffer = False, memoryview(b"")


@dataclass(frozen=True, slots=True)
class _Batch:
    """Clusters on their way from the disk into the file."""

    task: asyncio.Task[Packed]
    guest: int
    """Bytes of the disk."""
    buffer: memoryview
    lent: bool
    """By the process's buffers; else it is the transfer's own."""


async def _pump(device: BlockDevice, layout: Layout, parts: Parts) -> CompressedFile:
    """Read, compress and seal, in order; the finished file."""
    file = CompressedFile(device.size)
    ahead: deque[_Batch] = deque()
    batches = _batches(layout)
    own: memoryview | None = memoryview(bytearray(ROOM))  # one batch goes on however little room there is

    async def pack(first: int, count: int, buffer: memoryview) -> Packed:
        there = min(count * CLUSTER, device.size - first * CLUSTER)
        buffer[there:count * CLUSTER] = bytes(count * CLUSTER - there)
        return await read_device_then(device, buffer[:there], first * CLUSTER, partial(_pack, first, count, buffer))

    try:
        await parts.add(bytes(CLUSTER))  # the header's room
        while True:
            while len(ahead) < AHEAD:
                room = own is None and BUFFERS.lent < BUFFERS.total // 2  # the other half is for parts on their way
                lent = BUFFERS.try_borrow(ROOM) if room else None
                buffer = own or lent
                found = next(batches, None) if buffer is not None else None
                if lent is not None and found is None:
                    BUFFERS.give_back(lent)
                if buffer is None or found is None:
                    break
                own = None if lent is None else own
                ahead.append(_Batch(asyncio.create_task(pack(*found, buffer)), found[1] * CLUSTER, buffer, lent is not None))
            if not ahead:
                break
            batch = ahead[0]
            for number, packed, raw in await batch.task:
                for data in file.add(number, packed, raw):
                    await parts.add(data)
            ahead.popleft()
            if batch.lent:
                BUFFERS.give_back(batch.buffer)
            else:
                own = batch.buffer
            parts.guest += batch.guest
        for data in file.end():
            await parts.add(data)
        await parts.end(file.header)
    except BaseException:
        for batch in ahead:
            batch.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # what happened first is what is raised
            await to_the_end(asyncio.gather(*(batch.task for batch in ahead), return_exceptions=True))
        for batch in ahead:
            if batch.lent:
                BUFFERS.give_back(batch.buffer)
        await parts.stop()
        raise
    return file
