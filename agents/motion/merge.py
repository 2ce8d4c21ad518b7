"""Merging: links of a chain in an image store become one object, which holds what the last of them holds.

Owns which link each cluster is taken from: the newest that says anything of it; zeros stay zeros. The result is a full image, or
a delta of what the first link was a delta of, with the same tables as if it had been written so at once; where the full image is
compressed its clusters are copied as they are. No part of a link gives a byte before it was compared with its manifest. Every
link is one that Storebus wrote: of others nothing is read. Cancelled or failed, nothing is left in the store.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast
from uuid import UUID

from agents import manifest as manifests
from agents.hypervisors.base import BlockDevice, Extent
from agents.image_stores.base import ImageStore, Upload
from agents.motion.base import Progress
from agents.motion.delta import backing_name, is_delta_of, read_tables
from agents.motion.direct import BAD_OBJECT, WORKERS, leave_nothing, part_size, write_image
from agents.motion.overlay import Overlay
from agents.motion.parts import PART, Parts
from agents.motion.streamed import WHOLE
from agents.motion.verified import Kept, VerifiedObject
from agents.qcow2 import BACKING_MAX, CLUSTER, HEADER, L2_ENTRIES, Layout
from agents.qcow2_compressed import HAS_TYPE, RUN, CompressedFile, CompressedTables, Stored
from agents.transfer_record import TransferRecord
from agents.uninterrupted import in_thread, to_the_end
from schema.failure import Refused, WorkFailed
from schema.image import ImageFormat, ImageRef, Manifest

AT_ONCE = 3
"""Parts of the new object that are made at once: more of them would read more places of the links by turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is written where, and for whom."""

    store: ImageStore
    store_id: UUID
    key: str
    kind: str
    thing_id: UUID
    job_id: UUID
    work: str
    installation: str
    replaces: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Link:
    """A link that has been looked into."""

    file: VerifiedObject
    tables: Layout | CompressedTables


async def merge(source: ImageStore, links: Sequence[ImageRef], parent: ImageRef | None, target: Target, *, progress: Progress,
                workers: int = WORKERS, record: TransferRecord | None = None) -> ImageRef:
    """Write what the last of `links` holds as one object; a delta of `parent`, or a full image where that is None.

    Raises Damaged naming the part that is not what was written, Refused for links that Storebus did not write or that are too
    large, and what the stores raise; nothing is left then. With `record`, what a process that was killed had written of a plain
    object is not written again."""
    kept = Kept()
    try:
        progress("read", 0, 0)
        found = [await _look(source, image, kept) for image in links]
        _prove_chain(links, found, parent)
        workers = min(workers, AT_ONCE)
        base, *above = found
        if isinstance(base.tables, CompressedTables):
            return await _write_compressed(base.file, base.tables, above, target, progress, workers)
        return await _write_plain(found, parent, target, progress, workers, record)
    finally:
        kept.close()


class _Front:
    """An object from its beginning, for whoever takes in its tables."""

    def __init__(self, file: VerifiedObject) -> None:
        self._file, self.manifest, self.at = file, file.manifest, 0

    async def read(self, length: int) -> bytes:
        """See delta.Front."""
        data = await _bytes(self._file, self.at, length)
        self.at += length
        return data


async def _bytes(file: VerifiedObject, at: int, length: int) -> bytes:
    buffer = bytearray(length)
    await file.read_into(memoryview(buffer), at)
    return bytes(buffer)


async def _look(store: ImageStore, image: ImageRef, kept: Kept) -> _Link:
    """The object that the log knows, and what its tables say."""
    manifest = await manifests.read_manifest(store, image.key)
    if manifest.root != image.root:
        raise manifests.other_object(manifest, image.root)
    if manifest.format is not ImageFormat.QCOW2 or manifest.physical_size < CLUSTER:
        raise Refused(f"the object {image.key} is no qcow2 that Storebus wrote", field="links", remedy="copy it as it is")
    file = VerifiedObject(store, manifest, kept)
    head = await _bytes(file, 0, CLUSTER)
    if not HEADER.unpack_from(head)[13] & HAS_TYPE:
        return _Link(file, await read_tables(_Front(file)))
    try:
        tables = CompressedTables(head, manifest.physical_size)
        tables.take_l1(await _bytes(file, tables.l1_at, 8 * tables.l1_size))
    except ValueError as error:
        raise WorkFailed(f"the object {image.key} is not the image that was written: {error}", remedy=BAD_OBJECT) from None
    return _Link(file, tables)


def _prove_chain(links: Sequence[ImageRef], found: Sequence[_Link], parent: ImageRef | None) -> None:
    """Raises WorkFailed unless each is a delta of the one before it, and the first one of `parent`."""
    for number, (below, link) in enumerate(zip([parent, *links], found, strict=False)):
        manifest = link.file.manifest
        if below is not None and not is_delta_of(manifest, below):
            raise WorkFailed(f"the object {manifest.key} is a delta of {manifest.parent or 'nothing'}, not of {below.key}")
        if below is None and manifest.parent:
            raise WorkFailed(f"the object {manifest.key} is a delta of {manifest.parent}, and was given for a full image")
        if isinstance(link.tables, CompressedTables):
            if number or below is not None:
                raise WorkFailed(f"the object {manifest.key} is compressed, and no full image", remedy=BAD_OBJECT)
        elif manifest.parent and link.tables.backing.decode(errors="replace") != backing_name(manifest.key, manifest.parent):
            raise WorkFailed(f"the object {manifest.key} names another parent than its manifest", remedy=BAD_OBJECT)
    for one, other in itertools.pairwise(found):
        if one.tables.virtual_size != other.tables.virtual_size:
            raise WorkFailed(f"the object {other.file.manifest.key} is of a disk of {other.tables.virtual_size} bytes, its "
                             f"parent of {one.tables.virtual_size}", remedy=BAD_OBJECT)


# --- plain -----------------------------------------------------------------------------------------------------------


class _Seen:
    """Plain links seen as one disk: what `write_image` reads from."""

    def __init__(self, size: int, links: Sequence[_Link], overlay: Overlay) -> None:
        self.size, self._overlay = size, overlay
        self._files = [link.file for link in links]
        self._layouts = [cast(Layout, link.tables) for link in links]

    async def read_into(self, view: memoryview, offset: int) -> None:
        """See direct.FastDevice. Only where there is data."""
        at = 0
        while at < len(view):
            cluster, inside = divmod(offset + at, CLUSTER)
            held = self._overlay.who(cluster)
            assert held is not None, "the layout was made from the same overlay"
            step = min(len(view) - at, (held.end - cluster) * CLUSTER - inside)
            place = self._layouts[held.link].place(cluster) * CLUSTER + inside
            await self._files[held.link].read_into(view[at:at + step], place)
            at += step


async def _write_plain(links: Sequence[_Link], parent: ImageRef | None, target: Target, progress: Progress, workers: int,
                       record: TransferRecord | None) -> ImageRef:
    layouts = [cast(Layout, link.tables) for link in links]
    size = layouts[-1].virtual_size
    backing = backing_name(target.key, parent.key) if parent is not None else ""
    if len(backing.encode()) > BACKING_MAX:
        raise Refused("the name of the parent's object is too long for a header", field="parent")
    overlay = await in_thread(Overlay, layouts)
    layout = await in_thread(_layout, size, overlay, backing)
    return await write_image(
        cast(BlockDevice, _Seen(size, links, overlay)),  # with a layout, it is only read from
        target.store, store_id=target.store_id, key=target.key, kind=target.kind, thing_id=target.thing_id, job_id=target.job_id,
        work=target.work, installation=target.installation, progress=progress, workers=workers, layout=layout,
        parent=parent.key if parent is not None else "", replaces=target.replaces, record=record)


def _layout(size: int, overlay: Overlay, backing: str) -> Layout:
    """The new file. Of a full image nothing need say that it is zeros."""
    extents = [Extent(offset=held.first * CLUSTER, length=(held.end - held.first) * CLUSTER, zero=False) for held in overlay.held]
    return Layout(size, extents, zeros=overlay.zeros if backing else (), backing=backing.encode())


# --- compressed ------------------------------------------------------------------------------------------------------


async def _write_compressed(base: VerifiedObject, tables: CompressedTables, above: Sequence[_Link], target: Target,
                            progress: Progress, workers: int) -> ImageRef:
    """From the beginning to the end, the compressed clusters as they are."""
    total = base.manifest.physical_size + sum(link.file.manifest.physical_size for link in above)
    size = part_size(total + total // 8 + 2 * RUN, target.store.limits, PART)
    if size > WHOLE:
        raise Refused(f"the compressed object {base.manifest.key} is too large to be merged in this store: its parts would have "
                      f"{size} bytes, and {WHOLE} is the most that is held", field="links")
    overlay = await in_thread(Overlay, [cast(Layout, link.tables) for link in above])
    upload: Upload | None = None
    try:
        upload = await to_the_end(target.store.begin(target.key, part_size=size), undo=lambda begun: begun.abort())
        parts = Parts(upload, size, workers, progress, total)
        progress("write", 0, total)  # from here on bytes should move
        file = CompressedFile(tables.virtual_size)
        try:
            await parts.add(bytes(CLUSTER))  # the header's room
            async for guest, packed, raw in _clusters(base, tables, _Seen(tables.virtual_size, above, overlay), overlay):
                for data in file.add(guest, packed, raw):
                    await parts.add(data)
                parts.done = min(total, file.size)
            for data in file.end():
                await parts.add(data)
            await parts.end(file.header)
        except BaseException:
            await parts.stop()
            raise
        progress("verify", parts.moved, total)
        made = await upload.complete(file.size)
        root = manifests.root_of(parts.digests)
        await manifests.write_manifest(target.store, Manifest(
            installation=target.installation, kind=target.kind, thing_id=target.thing_id, job_id=target.job_id, work=target.work,
            key=target.key, format=ImageFormat.QCOW2, virtual_size=tables.virtual_size, physical_size=file.size, part_size=size,
            parts=parts.digests, root=root, replaces=list(target.replaces), created=datetime.now(UTC).isoformat()),
            made=made)
    except BaseException:
        await leave_nothing(target.store, upload, target.key)
        raise
    return ImageRef(store_id=target.store_id, key=target.key, format=ImageFormat.QCOW2, virtual_size=tables.virtual_size,
                    physical_size=file.size, root=root, replaces=list(target.replaces))


async def _clusters(base: VerifiedObject, tables: CompressedTables, above: _Seen,
                    overlay: Overlay) -> AsyncIterator[tuple[int, memoryview | None, memoryview]]:
    """(guest cluster, compressed or None, raw) of all that hold data, in guest order; good until the next is asked for."""
    room, nothing = memoryview(bytearray(CLUSTER)), memoryview(b"")
    for number in range(tables.l1_size):
        first, at = number * L2_ENTRIES, tables.table_at(number)
        if not at and not overlay.touches(first, first + L2_ENTRIES):
            continue
        stored: list[Stored | None] = [None] * L2_ENTRIES
        if at:
            data = await _bytes(base, at, CLUSTER)
            try:
                stored = await in_thread(tables.stored, data)
            except ValueError as error:
                raise WorkFailed(f"the object {base.manifest.key} is not the image that was written: {error}",
                                 remedy=BAD_OBJECT) from None
        for guest in range(first, min(first + L2_ENTRIES, -(-tables.virtual_size // CLUSTER))):
            held, below = overlay.who(guest), stored[guest - first]
            if held is not None:
                await above.read_into(room, guest * CLUSTER)
                yield guest, None, room
            elif below is not None and not overlay.zero(guest):
                view = room[:below.length]
                await base.read_into(view, below.at)
                yield guest, view if below.packed else None, nothing if below.packed else view


__all__ = ["Target", "merge"]
