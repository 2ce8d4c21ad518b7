"""Compressed motion: a disk written to a store as a qcow2 with zstd clusters, compressed on the way. No byte rests anywhere else.

Owns the threads that read, compress and lay clusters down, and their order. Each works on batches of its own; when the turn of
one has come, its thread lays it into the file's parts and sums them, all while its processor's cache has the bytes. The event
loop sends parts, and sees no other bytes. Unlike direct motion's, parts depend on one another, so a transfer that was interrupted
starts again. Rule: the file and the part that is being filled are touched by the thread whose turn it is alone, and no thread
runs once `run` has ended. Memory: one batch, whatever there is, beside the parts'; other threads have their batch from the
process's buffers while there is room, and give it back when somebody waits for it. Where parts are too large, nothing is
compressed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from agents import manifest as manifests
from agents import stall
from agents.buffers import BUFFERS
from agents.hypervisors.base import BlockDevice, ReadsHere
from agents.image_stores.base import Bytes, ImageStore, Upload
from agents.motion.base import Progress
from agents.motion.direct import WORKERS, leave_nothing, part_size, read_device, write_image
from agents.motion.parts import PART, Parts
from agents.motion.streamed import WHOLE
from agents.qcow2 import CLUSTER, Layout
from agents.qcow2_compressed import RUN, CompressedFile
from agents.uninterrupted import to_the_end
from schema.failure import Refused
from schema.image import ImageFormat, ImageRef, Manifest

T = TypeVar("T")

BATCH = 16
"""Clusters that are read and compressed together: 1 MiB."""
ROOM = 2 * BATCH * CLUSTER
"""Bytes of a batch, and of what it is compressed to."""
THREADS = min(8, 1 + (os.cpu_count() or 1))
"""Of one transfer: one more than processors, since one may wait for its turn."""
LEVEL = 1
WORTH = CLUSTER - CLUSTER // 8
"""Bytes that a compressed cluster may have; a larger one is written as it is, which is quicker to read."""


def _compressor() -> Any:
    """A new one. Raises Refused without the package."""
    try:
        import zstandard
    except ImportError:
        raise Refused("this agent cannot compress with zstd", field="compression",
                      remedy="pip install 'storebus[zstd]' on its host, or set STOREBUS_SNAPSHOT_COMPRESSION=none") from None
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)


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
        parts = Parts(upload, size, workers, progress, layout.data_clusters * CLUSTER, summed=True)
        progress("write", 0, layout.data_clusters * CLUSTER)  # from here on bytes should move
        file = CompressedFile(device.size)
        try:
            await Packing(device, layout, file, parts).run()
            await parts.end(file.header)
        except BaseException:
            await parts.stop()
            raise
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


class _Stopped(Exception):
    """The transfer has ended: so do its threads."""


class Packing:
    """One disk on its way into the parts of one file."""

    def __init__(self, device: BlockDevice, layout: Layout, file: CompressedFile, parts: Parts) -> None:
        self._device, self._file, self._parts = device, file, parts
        self._batches = enumerate(_batches(layout))
        self._more = True
        """There are batches that no thread has taken."""
        self._turn, self._stopped = 0, False
        """Number of the batch that is laid down next; no thread may go on."""
        self._lock = threading.Lock()
        """Of these four."""
        self._waiting: dict[int, threading.Lock] = {}
        """Number of a batch -> what its thread waits at. A condition would wake all of them at each turn."""
        self._loop, self._tell = asyncio.get_running_loop(), stall.from_thread()
        self._threads = ThreadPoolExecutor(THREADS, "pack")
        self._packing: set[asyncio.Future[None]] = set()
        self._asked: set[asyncio.Task[Any]] = set()
        """What threads wait for the event loop to do."""
        self._ended: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Lay down all of the file; its header is known then. Raises what the device or a part met."""
        await self._parts.add(bytes(CLUSTER))  # the header's room
        self._begin(memoryview(bytearray(ROOM)), lent=False)  # one goes on however little room there is
        self._begin_more()
        try:
            await self._ended
        except BaseException:
            self._stop()
            for task in self._asked:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # what happened first is what is raised
                await to_the_end(asyncio.gather(*self._packing, return_exceptions=True))
            raise
        finally:
            self._threads.shutdown(wait=False)

    def _begin_more(self) -> None:
        """As many threads as there is room for: half of the buffers is for parts on their way."""
        while (self._more and not self._stopped and len(self._packing) < THREADS and BUFFERS.lent < BUFFERS.total // 2
               and (room := BUFFERS.try_borrow(ROOM)) is not None):
            self._begin(room, lent=True)

    def _begin(self, room: memoryview, *, lent: bool) -> None:
        batch = room[:ROOM // 2]  # the other half stands for what it is compressed to
        packing = self._loop.run_in_executor(self._threads, partial(copy_context().run, self._pack, batch, lent))
        self._packing.add(packing)

        def end(packing: asyncio.Future[None]) -> None:
            self._packing.discard(packing)
            if lent:
                BUFFERS.give_back(room)
            error = None if packing.cancelled() else packing.exception()
            if self._ended.done():
                return
            if error is not None:
                self._ended.set_exception(error)
            elif not self._packing and self._stopped:
                self._ended.cancel()
            elif not self._packing:
                self._ended.set_result(None)

        packing.add_done_callback(end)

    # --- in its threads ----------------------------------------------------------------------------------------------

    def _pack(self, batch: memoryview, lent: bool) -> None:
        """Batch after batch, to the end or until somebody waits for the memory."""
        try:
            compressor = _compressor()
            while (found := self._next(lent)) is not None:
                number, (first, count) = found
                packed = [(first + index, _smaller(compressor, raw), raw)
                          for index, raw in enumerate(self._read(batch[:count * CLUSTER], first * CLUSTER))]
                self._wait_for(number)
                for guest, small, raw in packed:
                    for data in self._file.add(guest, small, raw):
                        self._lay(data)
                if not count:
                    for data in self._file.end():
                        self._lay(data)
                self._parts.done += count * CLUSTER
                self._pass(number + 1)
        except _Stopped:
            self._stop()
        except BaseException:
            self._stop()
            raise

    def _next(self, lent: bool) -> tuple[int, tuple[int, int]] | None:
        with self._lock:
            if self._stopped or (lent and BUFFERS.wanted):
                return None
            found = next(self._batches, None)
            self._more = found is not None
            return found

    def _read(self, view: memoryview, offset: int) -> list[memoryview]:
        """The clusters of a batch."""
        if not len(view):
            return []
        there = min(len(view), self._device.size - offset)
        view[there:] = bytes(len(view) - there)
        if isinstance(self._device, ReadsHere):
            self._device.read_here(view[:there], offset)
        else:
            self._on_loop(partial(read_device, self._device, view[:there], offset))
        self._tell()  # a slow disk of which little is left may fill no part for minutes
        return [view[at:at + CLUSTER] for at in range(0, len(view), CLUSTER)]

    def _wait_for(self, number: int) -> None:
        gate = threading.Lock()
        with self._lock:
            if self._turn != number and not self._stopped:
                gate.acquire()
                self._waiting[number] = gate
        with gate:
            if self._stopped:
                raise _Stopped

    def _pass(self, number: int) -> None:
        with self._lock:
            self._turn = number
            gate = self._waiting.pop(number, None)
        if gate is not None:
            gate.release()

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            gates, self._waiting = self._waiting, {}
        for gate in gates.values():
            gate.release()

    def _lay(self, data: Bytes) -> None:
        view, at = memoryview(data), 0
        while at < len(view):
            at += self._parts.part.lay(view[at:])
            if self._parts.part.full:
                self._on_loop(self._exchange)

    async def _exchange(self) -> None:
        await self._parts.exchange()
        self._begin_more()

    def _on_loop(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the event loop makes of it; its task has ended then. Raises _Stopped when it was cancelled."""
        ended: Future[asyncio.Task[T]] = Future()

        def begin() -> None:
            task = self._loop.create_task(call())
            self._asked.add(task)
            task.add_done_callback(self._asked.discard)
            task.add_done_callback(ended.set_result)
            if self._stopped:
                task.cancel()

        self._loop.call_soon_threadsafe(begin)
        task = ended.result()
        if task.cancelled():
            raise _Stopped
        return task.result()


def _smaller(compressor: Any, raw: memoryview) -> bytes | None:
    """A cluster compressed; None where that is not worth it."""
    small: bytes = compressor.compress(raw)
    return small if len(small) <= WORTH else None


def _batches(layout: Layout) -> Iterator[tuple[int, int]]:
    """(first guest cluster, how many) in guest order; none at the end."""
    for run in layout.runs:
        for at in range(0, run.count, BATCH):
            yield run.guest + at, min(BATCH, run.count - at)
    yield 0, 0
