"""Deltas: what changed since the parent, written to a store as a qcow2 that names its parent; and a chain read back as one disk.

Owns which clusters a delta holds and how a chain becomes flat again. The full image at its beginning is direct motion's; no
byte rests anywhere else. A delta is read only when every table in it is as this writer makes them, and every part is compared
with its manifest. Refuses to decide whether a backup is a delta: it is given the parent, and says why it had to be full.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import posixpath
from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from agents import manifest as manifests
from agents.buffers import BUFFERS
from agents.hypervisors.base import BlockDevice, ChangeTracking, Extent, Hypervisor, Untracked
from agents.image_stores.base import ImageStore
from agents.motion.base import Progress
from agents.motion.direct import BAD_OBJECT, RANGE, WORKERS, read_image, write_image
from agents.motion.parallel import parallel
from agents.qcow2 import BACKING_MAX, CLUSTER, Layout, Tables, touched
from agents.transfer_record import TransferRecord
from agents.uninterrupted import in_thread
from schema.failure import WorkFailed, WorkRetryable
from schema.image import ImageFormat, ImageRef, Manifest

Span = tuple[int, int]
"""(first cluster, the one behind the last)"""


def backing_name(key: str, parent: str) -> str:
    """The parent's key as seen from the delta's: in a folder with the same keys, qemu's tools find it."""
    return posixpath.relpath(parent, posixpath.dirname(key))


def delta_layout(virtual_size: int, extents: Sequence[Extent], changed: Sequence[Extent], backing: str) -> Layout:
    """The file of a delta: of the changed clusters those that hold data, and zero clusters for those that no longer do."""
    dirty = touched(changed)
    data = _common(touched(extent for extent in extents if not extent.zero), dirty)
    kept = [Extent(offset=first * CLUSTER, length=(end - first) * CLUSTER, zero=False) for first, end in data]
    return Layout(virtual_size, kept, zeros=_without(dirty, data), backing=backing.encode())


def _common(one: Sequence[Span], other: Sequence[Span]) -> list[Span]:
    """What is in both."""
    found: list[Span] = []
    at = 0
    for first, end in one:
        while at < len(other) and other[at][1] <= first:
            at += 1
        index = at
        while index < len(other) and other[index][0] < end:
            found.append((max(first, other[index][0]), min(end, other[index][1])))
            index += 1
    return found


def _without(spans: Sequence[Span], gone: Sequence[Span]) -> list[Span]:
    """What is in `spans` and not in `gone`, which lies within them."""
    found: list[Span] = []
    starts = [first for first, _ in gone]
    for first, end in spans:
        for low, high in gone[bisect_left(starts, first):bisect_left(starts, end)]:
            if first < low:
                found.append((first, low))
            first = high
        if first < end:
            found.append((first, end))
    return found


async def write_delta(device: BlockDevice, changed: Sequence[Extent], parent: ImageRef, store: ImageStore, *, store_id: UUID,
                      key: str, kind: str, thing_id: UUID, job_id: UUID, work: str, installation: str, progress: Progress,
                      workers: int = WORKERS, record: TransferRecord | None = None) -> ImageRef:
    """Write what `changed` says of the device to `key` as a delta of `parent`, with its manifest.

    The layout belongs to this one try: when the same order is done again, the disk may have been written meanwhile and more of
    it be marked, so parts of two tries do not fit together. Raises what the store raises; nothing is left then."""
    progress("scan", 0, 0)
    extents = await device.extents()
    layout = await asyncio.to_thread(delta_layout, device.size, extents, changed, backing_name(key, parent.key))
    return await write_image(device, store, store_id=store_id, key=key, kind=kind, thing_id=thing_id, job_id=job_id, work=work,
                             installation=installation, progress=progress, workers=workers, layout=layout, parent=parent.key,
                             record=record)


async def changes(hypervisor: Hypervisor, path: str, name: str) -> Sequence[Extent]:
    """What changed in a disk since its record `name` was begun. Raises Untracked."""
    if not isinstance(hypervisor, ChangeTracking):
        raise Untracked(f"{hypervisor.NAME} records no changes")
    return await hypervisor.changed(path, name)


async def usable(store: ImageStore, parent: ImageRef, size: int, key: str) -> None:
    """Raises Untracked unless a disk of `size` bytes can be written to `key` as a delta of `parent`, which is there, whole by
    its manifest, and the object that the log knows."""
    if parent.virtual_size != size:
        raise Untracked(f"the disk has {size} bytes, the previous snapshot {parent.virtual_size}")
    if parent.format is not ImageFormat.QCOW2:
        raise Untracked(f"the previous snapshot is {parent.format}, not qcow2")
    if len(backing_name(key, parent.key).encode()) > BACKING_MAX:
        raise Untracked("the name of the previous snapshot's object is too long for a header")
    try:
        manifest = await manifests.find_manifest(store, parent.key)
        info = await store.stat(parent.key)
    except WorkRetryable:
        raise
    except WorkFailed as error:
        raise Untracked(error.failure.cause) from None
    if manifest is None or info is None:
        raise Untracked("the previous snapshot's object is not in the store")
    if manifest.root != parent.root or info.size != manifest.physical_size:
        raise Untracked("the previous snapshot's object is not what was written")


async def read_chain(store: ImageStore, chain: Sequence[ImageRef], path: str, *, hypervisor: Hypervisor, progress: Progress,
                     workers: int = WORKERS, resume: bool = False) -> int:
    """Read a chain, its full image first, into the absent file `path` as one flat disk. Returns the bytes moved.

    With `resume`, what a process that was killed left in it of the full image is not read again.
    Raises WorkFailed naming the object and the bytes that are not what was written."""
    links = await _manifests(store, chain)
    total = chain[0].physical_size + sum(manifest.physical_size for manifest in links)
    done = 0

    def onward(stage: str, moved: int, _: int) -> None:
        progress(stage, done + moved, total)

    done += await read_image(store, chain[0], path, hypervisor=hypervisor, progress=onward, workers=workers,
                             resume=resume)
    if links:
        await hypervisor.adopt(path, format=ImageFormat.QCOW2, grow_to=0)
        async with hypervisor.open(path, writable=True) as device:
            for manifest in links:
                done += await _apply(store, manifest, device, onward, workers)
            await device.flush()
    return done


async def _manifests(store: ImageStore, chain: Sequence[ImageRef]) -> list[Manifest]:
    """The manifests of the deltas, each the one that the log knows, and a delta of the one before."""
    found = []
    for parent, image in itertools.pairwise(chain):
        manifest = await manifests.read_manifest(store, image.key)
        if manifest.root != image.root:
            raise manifests.other_object(manifest, image.root)
        if not is_delta_of(manifest, parent):
            raise WorkFailed(f"the object {image.key} is a delta of {manifest.parent or 'nothing'}, not of {parent.key}")
        found.append(manifest)
    return found


def is_delta_of(manifest: Manifest, parent: ImageRef) -> bool:
    """Whether an object was written as what changed since `parent`, or since one in whose place that stands by now."""
    return manifest.parent in (parent.key, *parent.replaces) and manifest.parent != ""


class Front(Protocol):
    """An object that is read from its beginning."""

    manifest: Manifest
    at: int
    """Bytes read so far."""

    async def read(self, length: int) -> bytes:
        """The next bytes, all of them. Raises Damaged when they are not what was written, or not there."""


class _Front:
    """Reads an object from its beginning, once; what it read counts for the comparison of parts."""

    def __init__(self, store: ImageStore, manifest: Manifest) -> None:
        self._store, self.manifest = store, manifest
        self.at = 0
        self.digest = hashlib.sha256()

    async def read(self, length: int) -> bytes:
        """The next bytes, all of them."""
        read = bytearray()
        while len(read) < length:
            left = self.manifest.part_size - self.at % self.manifest.part_size
            data = await self._store.read(self.manifest.key, self.at, min(RANGE, length - len(read), left))
            if not data:
                raise manifests.ended(self.manifest, self.at)
            read += data
            await in_thread(self.digest.update, data)
            self.at += len(data)
            if self.at % self.manifest.part_size == 0 or self.at == self.manifest.physical_size:
                compare(self.manifest, (self.at - 1) // self.manifest.part_size, self.digest.hexdigest())
                self.digest = hashlib.sha256()
        return bytes(read)


def compare(manifest: Manifest, number: int, digest: str) -> None:
    """Raises Damaged naming the bytes of a part that is not what was written."""
    if digest != manifest.parts[number]:
        raise manifests.bad_part(manifest, number, digest)


async def read_tables(front: Front) -> Layout:
    """The layout of a delta, from its own tables. Raises WorkFailed when they are not as written here."""
    try:
        tables = Tables(await front.read(CLUSTER))
        if tables.l1_at + tables.l1_bytes > front.manifest.physical_size:
            raise ValueError("its tables are not in it")
        while front.at < tables.l1_at:
            await in_thread(tables.take_counts, await front.read(min(RANGE, tables.l1_at - front.at)))
        numbers = tables.take_l1(await front.read(tables.l1_bytes))
        batch = RANGE // CLUSTER
        for at in range(0, len(numbers), batch):
            some = numbers[at:at + batch]
            data = await front.read(len(some) * CLUSTER)
            await asyncio.to_thread(_take, tables, some, data)
        layout = await asyncio.to_thread(tables.layout)
    except ValueError as error:
        raise WorkFailed(f"the object {front.manifest.key} is not the delta that was written: {error}",
                         remedy=BAD_OBJECT) from None
    if layout.size != front.manifest.physical_size or layout.virtual_size != front.manifest.virtual_size:
        raise WorkFailed(f"the object {front.manifest.key} has other sizes than its manifest", remedy=BAD_OBJECT)
    return layout


def _take(tables: Tables, numbers: Sequence[int], data: bytes) -> None:
    for n, number in enumerate(numbers):
        tables.take_l2(number, data[n * CLUSTER:(n + 1) * CLUSTER])


async def _apply(store: ImageStore, manifest: Manifest, device: BlockDevice, progress: Progress, workers: int) -> int:
    """Write one delta over the disk. Every byte of its object is read once and compared with the manifest."""
    front = _Front(store, manifest)
    layout = await read_tables(front)
    if layout.virtual_size != device.size:
        raise WorkFailed(f"the object {manifest.key} is of a disk of {layout.virtual_size} bytes, its parent of {device.size}",
                         remedy=BAD_OBJECT)
    if layout.backing.decode(errors="replace") != backing_name(manifest.key, manifest.parent):
        raise WorkFailed(f"the object {manifest.key} names another parent than its manifest", remedy=BAD_OBJECT)
    for first, end in layout.zeros:
        start = first * CLUSTER
        await device.zero(start, min(end * CLUSTER, device.size) - start)
    done, begun = front.at, front.at // manifest.part_size

    async def one(number: int) -> None:
        nonlocal done
        number += begun
        start = number * manifest.part_size
        end = min(start + manifest.part_size, manifest.physical_size)
        digest, at = (front.digest, front.at) if number == begun else (hashlib.sha256(), start)
        while at < end:
            async with BUFFERS.room(2 * RANGE):
                data = await store.read(manifest.key, at, min(RANGE, end - at))
                if not data:
                    raise manifests.ended(manifest, at)
                await in_thread(digest.update, data)
                await _put(device, layout, at, data)
                at += len(data)
                done += len(data)
                del data
            progress("read", done, manifest.physical_size)
        compare(manifest, number, digest.hexdigest())

    if front.at < manifest.physical_size:
        await parallel(len(manifest.parts) - begun, workers, one)
    return done


async def _put(device: BlockDevice, layout: Layout, offset: int, data: bytes) -> None:
    """Guest bytes of a range of the object, to their places."""
    view = memoryview(data)
    for piece in layout.pieces(offset, len(data)):
        length = min(piece.length, layout.virtual_size - piece.guest)  # the last cluster may reach beyond the disk's end
        if piece.data is None and length > 0:
            start = piece.offset - offset
            await device.write(piece.guest, view[start:start + length])


__all__ = ["Front", "backing_name", "changes", "delta_layout", "is_delta_of", "read_chain", "read_tables", "usable",
           "write_delta"]
