"""Direct motion: between a block device and an image store, with nothing in between. No byte rests anywhere else.

Owns both directions: a disk written to a store as a plain qcow2 whose layout is fixed before its first byte, so parts are
independent, parallel and re-readable; an object read by parallel ranges straight into the draft of a disk, every part
compared with its manifest. Memory is workers times the part size. Cancelled or failed, it leaves nothing in the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

from agents import manifest as manifests
from agents.hypervisors.base import BlockDevice, Hypervisor
from agents.image_stores.base import ImageStore, Limits, Upload
from agents.motion.base import Progress
from agents.qcow2 import Layout
from schema.failure import Failed, WorkFailed
from schema.image import ImageFormat, ImageRef, Manifest

WORKERS = 6
PART = 8 << 20
"""Bytes of a part, unless the store or the object's size asks for more."""
RANGE = 4 << 20
"""Bytes of one ranged read."""


class FastDevice(Protocol):
    """A device that can fill a buffer of the caller's."""

    async def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer."""


def part_size(size: int, limits: Limits, wanted: int | None = None) -> int:
    """A part size that keeps an object of `size` bytes within the store's limits. Raises WorkFailed when none does."""
    part = max(wanted or PART, limits.min_part, -(-size // (limits.max_parts - 8)))
    part = -(-part // (1 << 20)) * (1 << 20) if size > part else part
    if part > limits.max_part:
        raise WorkFailed(f"an object of {size} bytes is larger than the store takes", field="size")
    return part


async def write_image(device: BlockDevice, store: ImageStore, *, store_id: UUID, key: str, kind: str, thing_id: UUID,
                      job_id: UUID,
                      work: str, installation: str, progress: Progress, workers: int = WORKERS,
                      part: int | None = None) -> ImageRef:
    """Write the device to `key` as a plain qcow2 with its manifest. Raises what the store raises; nothing is left then."""
    progress("scan", 0, 0)
    layout = Layout(device.size, await device.extents())
    size = part_size(layout.size, store.limits, part)
    count = -(-layout.size // size)
    digests: list[str] = [""] * count
    upload = await store.begin(key, part_size=size)
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        offset = number * size
        buffer = await _fill(device, layout, offset, min(size, layout.size - offset))
        digest, _ = await asyncio.gather(asyncio.to_thread(_sha256, buffer), upload.part(number + 1, buffer))
        digests[number] = digest
        done += len(buffer)
        progress("write", done, layout.size)

    try:
        await _parallel(count, workers, one)
        progress("verify", done, layout.size)
        await upload.complete(layout.size)
        root = manifests.root_of(digests)
        await manifests.write_manifest(store, Manifest(
            installation=installation, kind=kind, thing_id=thing_id, job_id=job_id, work=work, key=key,
            format=ImageFormat.QCOW2, virtual_size=device.size, physical_size=layout.size, part_size=size, parts=digests,
            root=root, created=datetime.now(UTC).isoformat()))
    except BaseException:
        await leave_nothing(store, upload, key)
        raise
    return ImageRef(store_id=store_id, key=key, format=ImageFormat.QCOW2, virtual_size=device.size,
                    physical_size=layout.size, root=root)


async def _fill(device: BlockDevice, layout: Layout, offset: int, length: int) -> bytearray:
    """The bytes of one part: metadata made here, guest data read straight into its place."""
    buffer = bytearray(length)
    view = memoryview(buffer)
    reads: list[Awaitable[None]] = []
    for piece in layout.pieces(offset, length):
        target = view[piece.offset - offset:piece.offset - offset + piece.length]
        if piece.data is not None:
            target[:] = piece.data
        else:
            reads.append(_read(device, target[:max(0, min(piece.length, device.size - piece.guest))], piece.guest))
    for read in reads:  # one after another: parallelism is between parts
        await read
    return buffer


async def _read(device: BlockDevice, target: memoryview, offset: int) -> None:
    if not len(target):
        return
    into = getattr(device, "read_into", None)
    if into is not None:
        await into(target, offset)
    else:
        target[:] = await device.read(offset, len(target))


async def _parallel(count: int, workers: int, one: Callable[[int], Awaitable[None]]) -> None:
    """Run one(0..count-1), `workers` at once; the first failure stops the rest and is raised."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    tasks = [asyncio.create_task(worker()) for _ in range(min(workers, count))]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _sha256(data: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


async def leave_nothing(store: ImageStore, upload: Upload, key: str) -> None:
    """After a failure: no upload, no object, no manifest. Finished even when the caller is cancelled once more."""

    async def clean() -> None:
        await upload.abort()
        await manifests.delete_object(store, key)

    task = asyncio.ensure_future(clean())
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
        except Failed:
            break  # the store is away: begin() of the next attempt, or the undo of the job, removes it


async def read_image(store: ImageStore, image: ImageRef, path: str, *, hypervisor: Hypervisor, progress: Progress,
                     workers: int = WORKERS) -> int:
    """Read an object into the absent file `path`, as a qcow2 disk. Returns the bytes moved.

    A qcow2 object is copied as it is (what is inside foreign ones is qemu's to read), a raw one is written through a new
    qcow2. Raises WorkFailed naming the bytes that do not equal their manifest.
    """
    manifest = await manifests.read_manifest(store, image.key)
    if manifest.root != image.root:
        raise WorkFailed(f"the object {image.key} is not the one that the log knows: its root differs")
    done = 0
    descriptor = -1

    async def part(number: int) -> None:
        nonlocal done
        start = number * manifest.part_size
        data = await _fetch(store, manifest, number)
        if descriptor >= 0:
            await asyncio.to_thread(_pwrite_sparse, descriptor, data, start)
        else:
            await _write_sparse(device, data, start)
        done += len(data)
        progress("read", done, manifest.physical_size)

    count = len(manifest.parts)
    if manifest.format is ImageFormat.QCOW2:
        descriptor = await asyncio.to_thread(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            await asyncio.to_thread(os.ftruncate, descriptor, manifest.physical_size)
            await _parallel(count, workers, part)
            progress("flush", done, manifest.physical_size)
            await asyncio.to_thread(os.fsync, descriptor)
        except OSError as error:
            raise WorkFailed(f"the primary store: {error.strerror}", remedy="free space, or add a store") from None
        finally:
            os.close(descriptor)
        return done
    await hypervisor.create(path, manifest.virtual_size)
    async with hypervisor.open(path, writable=True) as device:
        await _parallel(count, workers, part)
        progress("flush", done, manifest.physical_size)
        await device.flush()
    return done


async def _fetch(store: ImageStore, manifest: Manifest, number: int) -> bytearray:
    """One part, by ranged reads, compared with its digest."""
    start = number * manifest.part_size
    end = min(start + manifest.part_size, manifest.physical_size)
    buffer = bytearray()
    while start + len(buffer) < end:
        at = start + len(buffer)
        buffer += await store.read(manifest.key, at, min(RANGE, end - at))
    if await asyncio.to_thread(_sha256, buffer) != manifest.parts[number]:
        raise WorkFailed(f"the object {manifest.key}: bytes {start} to {end} are not what was written",
                         remedy="restore another snapshot, and check the store")
    return buffer


BLOCK = 1 << 16
_ZEROS = bytes(BLOCK)


def _runs(data: bytearray) -> list[tuple[int, int]]:
    """Ranges of `data` that are not all zeros, by blocks of 64 KiB, joined."""
    found: list[tuple[int, int]] = []
    view = memoryview(data)
    for at in range(0, len(data), BLOCK):
        block = view[at:at + BLOCK]
        if block == _ZEROS[:len(block)]:
            continue
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + len(block))
        else:
            found.append((at, at + len(block)))
    return found


def _pwrite_sparse(descriptor: int, data: bytearray, offset: int) -> None:
    view = memoryview(data)
    for start, end in _runs(data):
        at = start
        while at < end:
            at += os.pwrite(descriptor, view[at:end], offset + at)


async def _write_sparse(device: BlockDevice, data: bytearray, offset: int) -> None:
    view = memoryview(data)
    for start, end in _runs(data):
        await device.write(offset + start, view[start:end])
