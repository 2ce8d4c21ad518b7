"""Direct motion: between a block device and an image store, with nothing in between. No byte rests anywhere else.

Owns both directions: a disk written to a store as a plain qcow2 whose layout is fixed before its first byte, so parts are
independent, parallel and re-readable; an object read by parallel ranges straight into the draft of a disk, every part
compared with its manifest. Memory comes from the process's buffers: parts too large for them are streamed, so it is bounded
whatever the disk's size. Cancelled or failed, it leaves nothing in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar
from uuid import UUID

from agents import leftovers, stall
from agents import manifest as manifests
from agents.buffers import BUFFERS, Buffers
from agents.hypervisors.base import BlockDevice, Hypervisor, ReadsHere
from agents.image_stores.base import Bytes, ImageStore, Limits, ReadsInto, StreamedUpload, Upload
from agents.motion import resuming
from agents.motion.base import Progress
from agents.motion.new_file import NewFile, runs
from agents.motion.parallel import parallel
from agents.motion.resuming import found, identity
from agents.motion.streamed import LENT, WHOLE, LentPart, StreamedPart
from agents.primary_stores.base import explain
from agents.qcow2 import Layout, Piece
from agents.transfer_record import TransferRecord
from agents.uninterrupted import in_thread, to_the_end
from schema.failure import Failed, WorkFailed
from schema.image import ImageFormat, ImageRef, Manifest

T = TypeVar("T")

WORKERS = 6
PART = 8 << 20
"""Bytes of a part, unless the store or the object's size asks for more."""
FEW_PARTS = 16
"""Parts of an object at least, where larger ones would be cheaper: they are moved side by side, and resumed from."""
MOST_PARTS = 10_000
"""Parts of an object in any store: a manifest names each of them."""
RANGE = 4 << 20
"""Bytes of one ranged read."""
WIDE = 8 << 20
"""Of one that goes straight into a buffer: a store looks its chunks up for each, and half as many ranges cost it a tenth less."""
AT_WORK = 2
"""Ranges of each worker: one on its way, one that is compared and written."""
BAD_OBJECT = "restore another snapshot, and check the store"


Summed = Callable[[Bytes], None]
"""Adds data to its part's sum. Blocking."""
Take = Callable[[Bytes, int, Summed | None], Awaitable[None]]
"""Takes bytes and their offset in the object; calls the third, if any, with them, in a thread that works on them anyway."""


class FastDevice(Protocol):
    """A device that can fill a buffer of the caller's."""

    async def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer."""


def part_size(size: int, limits: Limits, wanted: int | None = None) -> int:
    """A part size that keeps an object of `size` bytes within the store's limits. Raises WorkFailed when none does."""
    part = max(wanted or PART, limits.min_part, -(-size // (min(limits.max_parts, MOST_PARTS) - 8)))
    part = -(-part // (1 << 20)) * (1 << 20) if size > part else part
    if part > limits.max_part:
        raise WorkFailed(f"an object of {size} bytes is larger than the store takes", field="size")
    return part


def good_part(size: int, limits: Limits) -> int:
    """Bytes of a part that suits the store and the object, for a motion that can stream its parts."""
    return max(PART, min(limits.good_part, size // FEW_PARTS))


async def write_image(device: BlockDevice, store: ImageStore, *, store_id: UUID, key: str, kind: str, thing_id: UUID,
                      job_id: UUID,
                      work: str, installation: str, progress: Progress, workers: int = WORKERS,
                      part: int | None = None, layout: Layout | None = None, parent: str = "",
                      replaces: Sequence[str] = (), record: TransferRecord | None = None, buffers: Buffers = BUFFERS,
                      whole: int = WHOLE) -> ImageRef:
    """Write the device to `key` as a plain qcow2 with its manifest. Raises what the store raises; nothing is left then.

    Parts of more than `whole` bytes are streamed; what is in memory comes from `buffers`.

    With `layout`, what that says and no more, as a delta of the object `parent`; it stands in the place of `replaces`.
    With `record`, parts that a process which was killed had written of the same transfer are not written again: the device's
    content must not have changed since."""
    if layout is None:
        progress("scan", 0, 0)
        extents = await device.extents()
        layout = await asyncio.to_thread(Layout, device.size, extents)
        del extents
    size = part_size(layout.size, store.limits, part or good_part(layout.size, store.limits))
    count = -(-layout.size // size)
    digests: list[str] = [""] * count
    upload: Upload | None = None
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        if digests[number]:
            return
        assert upload is not None
        offset = number * size
        length = min(size, layout.size - offset)
        if size > whole:
            fill = partial(_fill, device, layout)
            source = (LentPart(fill, partial(_fill_here, device, layout), offset, length, buffers=buffers)
                      if isinstance(device, ReadsHere) else StreamedPart(fill, offset, length, buffers=buffers))
            acknowledged = await streaming(upload, size).part_from(number + 1, source)
            digests[number] = source.sha256
            assert source.sha256, "a store that did not read the part to its end did not write it either"
        else:
            async with buffers.buffer(size) as buffer:
                view = memoryview(buffer)[:length]
                digests[number] = await _fill_and_sum(device, layout, offset, view)
                acknowledged = await upload.part(number + 1, view, sha256=digests[number])
        if record is not None and acknowledged is not None:
            await record.add(number + 1, digests[number], acknowledged)
        done += length
        progress("write", done, layout.size)

    try:
        about = await asyncio.to_thread(identity, store_id, key, size, layout) if record is not None else ""
        upload, kept = await resuming.begin(store, key, part_size=size, size=layout.size, about=about, record=record)
        for number, sha256 in kept.items():
            digests[number - 1] = sha256
            done += min(size, layout.size - (number - 1) * size)
        progress("write", done, layout.size)  # from here on bytes should move
        # The last part is a short one: begun last, it would be waited for by workers that have nothing to do any more.
        await parallel(count, workers, lambda turn: one((turn - 1) % count))
        progress("verify", done, layout.size)
        made = await upload.complete(layout.size) if upload is not None else None
        root = manifests.root_of(digests)
        await manifests.write_manifest(store, Manifest(
            installation=installation, kind=kind, thing_id=thing_id, job_id=job_id, work=work, key=key,
            format=ImageFormat.QCOW2, virtual_size=device.size, physical_size=layout.size, part_size=size, parts=digests,
            root=root, parent=parent, replaces=list(replaces), created=datetime.now(UTC).isoformat()), made=made)
    except BaseException:
        await leave_nothing(store, upload, key)
        raise
    return ImageRef(store_id=store_id, key=key, format=ImageFormat.QCOW2, virtual_size=device.size,
                    physical_size=layout.size, root=root, parent=parent, replaces=list(replaces))


def streaming(upload: Upload, size: int) -> StreamedUpload:
    """The upload, if it takes parts as they are read. Raises WorkFailed."""
    if not isinstance(upload, StreamedUpload):
        raise WorkFailed(f"the store wants parts of {size} bytes and cannot take them as they are read", field="size",
                         remedy="use a store whose plug-in has part_from, or a smaller disk")
    return upload


async def _fill(device: BlockDevice, layout: Layout, offset: int, view: memoryview, then: Callable[[], T]) -> T:
    """The bytes of one part into `view`: metadata made here, guest data read straight into its place; what `then`, which blocks,
    says of it: in the same thread where the device allows that, since its cache has the bytes."""
    if isinstance(device, ReadsHere):
        def both() -> T:
            _fill_here(device, layout, offset, view)
            return then()

        return await in_thread(both)
    for piece, target in await asyncio.to_thread(_places, layout, offset, view):
        await read_device(device, target, piece.guest)  # one by one: parallelism is between parts
        stall.moved()
    return await in_thread(then)


async def _fill_and_sum(device: BlockDevice, layout: Layout, offset: int, view: memoryview) -> str:
    """The bytes of one part into `view`; their sum. A thread that may read by itself sums each slice at once: its processor's
    cache has it, and not the whole part."""
    if not isinstance(device, ReadsHere):
        return await _fill(device, layout, offset, view, partial(_sha256, view))

    tell = stall.from_thread()

    def both() -> str:
        digest = hashlib.sha256()
        for at in range(0, len(view), LENT):
            piece = view[at:at + LENT]
            _fill_here(device, layout, offset + at, piece)
            digest.update(piece)
            tell()  # a slow disk may take a minute for a part
        return digest.hexdigest()

    return await in_thread(both)


def _fill_here(device: ReadsHere, layout: Layout, offset: int, view: memoryview) -> None:
    """The same in this thread."""
    for piece, target in _places(layout, offset, view):
        device.read_here(target, piece.guest)


def _places(layout: Layout, offset: int, view: memoryview) -> list[tuple[Piece, memoryview]]:
    """Where the device's bytes belong. All else is made: the tables, and zeros for what lies past the end of the disk."""
    places = []
    for piece in layout.pieces(offset, len(view)):
        target = view[piece.offset - offset:piece.offset - offset + piece.length]
        if piece.data is not None:
            target[:] = piece.data
            continue
        there = max(0, min(piece.length, layout.virtual_size - piece.guest))
        target[there:] = bytes(piece.length - there)
        if there:
            places.append((piece, target[:there]))
    return places


async def read_device(device: BlockDevice, target: memoryview, offset: int) -> None:
    """Fill `target` with the device's bytes from `offset` on, without a copy where the device can."""
    if not len(target):
        return
    into = getattr(device, "read_into", None)
    if into is not None:
        await into(target, offset)
    else:
        target[:] = await device.read(offset, len(target))


async def read_device_then(device: BlockDevice, target: memoryview, offset: int, then: Callable[[], T]) -> T:
    """`read_device`, and `then` off the event loop; in the thread that read where the device allows it."""
    if isinstance(device, ReadsHere):
        def both() -> T:
            device.read_here(target, offset)
            return then()

        return await in_thread(both)
    await read_device(device, target, offset)
    return await in_thread(then)


def _sha256(data: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


async def leave_nothing(store: ImageStore, upload: Upload | None, key: str) -> None:
    """After a failure: no upload, no object, no manifest. Finished even when the caller is cancelled once more; the caller
    raises what happened first. A store that is away keeps what it has: then the work's end says that something remains."""

    async def clean() -> None:
        if upload is not None:
            with contextlib.suppress(Failed):  # what deletes the object ends its uploads too
                await upload.abort()
        await manifests.delete_object(store, key)

    async def bounded() -> None:
        try:
            async with asyncio.timeout(stall.cleaning()):
                await clean()
        except (Failed, TimeoutError):
            leftovers.remains(key)

    with contextlib.suppress(asyncio.CancelledError):
        await to_the_end(bounded())


async def read_image(store: ImageStore, image: ImageRef, path: str, *, hypervisor: Hypervisor, progress: Progress,
                     workers: int = WORKERS, resume: bool = False) -> int:
    """Read an object into the absent file `path`, as a qcow2 disk. Returns the bytes moved.

    With `resume`, the file may be there: what a process that was killed left of this very order. A qcow2 object is
    copied as it is (what is inside foreign ones is qemu's to read), a raw one is written through a new qcow2. Raises
    WorkFailed naming the bytes that do not equal their manifest.
    """
    manifest = await manifests.read_manifest(store, image.key)
    if manifest.root != image.root:
        raise manifests.other_object(manifest, image.root)
    if manifest.format is ImageFormat.QCOW2:
        return await _read_file(store, manifest, path, progress, workers, resume)
    await hypervisor.create(path, manifest.virtual_size)
    async with hypervisor.open(path, writable=True) as device:

        async def take(data: Bytes, offset: int, summed: Summed | None) -> None:
            view = memoryview(data)
            if summed is not None:
                await in_thread(summed, view)
            for start, end in await asyncio.to_thread(runs, data):
                await device.write(offset + start, view[start:end])

        done = await _read_parts(store, manifest, take, progress, workers)
        progress("flush", done, manifest.physical_size)
        await device.flush()
    return done


async def _read_file(store: ImageStore, manifest: Manifest, path: str, progress: Progress, workers: int, resume: bool) -> int:
    """The object's bytes as they are, into a new file, or into what is there of it, or onto a device that is all zeros."""
    try:
        device = await in_thread(Path(path).is_block_device)
        resume = resume and not device  # a device was made zeros: nothing is there
        file = await NewFile.open(path, manifest.physical_size, there=resume, device=device)
        try:
            there = await found(file.descriptor, manifest, progress, workers) if resume else {}

            async def take(data: Bytes, offset: int, summed: Summed | None) -> None:
                await file.write(data, offset, holes=offset // manifest.part_size not in there, first=summed)

            whole = {number for number, right in there.items() if right}
            done = await _read_parts(store, manifest, take, progress, workers, whole)
            progress("flush", done, manifest.physical_size)
            await file.flush()
        finally:
            file.close()
    except OSError as error:
        raise explain(error) from None
    return done


class _Sum:
    """The sum of a part that is read range after range, each of them once more where that is needed."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._before = self._digest.copy()

    def seen(self, at: int, data: memoryview) -> None:
        """See Seen, of one range."""
        if not at:
            self._digest = self._before.copy()
        self._digest.update(data)

    def add(self, data: Bytes) -> None:
        """The whole of one range."""
        self.seen(0, memoryview(data))

    def done(self) -> None:
        """The range is there: another follows."""
        self._before = self._digest.copy()

    def found(self) -> str:
        """Hexadecimal."""
        return self._before.hexdigest()


async def _read_parts(store: ImageStore, manifest: Manifest, take: Take, progress: Progress, workers: int,
                      there: Collection[int] = ()) -> int:
    """Hand every byte of the object, but of the parts (from 0) that are `there`, to `take`, in ranges, and compare each part with
    the manifest.

    What is taken becomes a disk only when this returns, so a range need not wait for the rest of its part: memory is
    what `BUFFERS` has, whatever the parts. Raises WorkFailed naming the bytes of the first bad part."""
    done = sum(min(manifest.part_size, manifest.physical_size - number * manifest.part_size) for number in there)

    async def one(number: int) -> None:
        nonlocal done
        if number in there:
            return
        start = at = number * manifest.part_size
        end = min(start + manifest.part_size, manifest.physical_size)
        digest = _Sum()
        while at < end:
            async with _range(store, manifest.key, at, end - at, digest) as (data, summed):
                if not len(data):
                    raise manifests.ended(manifest, at)
                await take(data, at, summed)
                digest.done()
                at += len(data)
                done += len(data)
            progress("read", done, manifest.physical_size)
        if digest.found() != manifest.parts[number]:
            raise manifests.bad_part(manifest, number, digest.found())

    progress("read", done, manifest.physical_size)
    await parallel(len(manifest.parts), AT_WORK * workers, one)
    return done


@contextlib.asynccontextmanager
async def _range(store: ImageStore, key: str, offset: int, length: int,
                 digest: _Sum) -> AsyncIterator[tuple[Bytes, Summed | None]]:
    """What the store has from there on, `length` bytes at most, within the process's buffers, while this is open; and what sums
    it, where it is not summed yet."""
    if isinstance(store, ReadsInto):
        async with BUFFERS.buffer(WIDE) as buffer:
            yield memoryview(buffer)[:await store.read_into(key, offset, memoryview(buffer)[:length], digest.seen)], None
    else:
        async with BUFFERS.room(2 * RANGE):  # such a store joins what it received: twice, for a moment
            yield await store.read(key, offset, min(RANGE, length)), digest.add
