"""The strategy `store-to-store`: an object and its manifest from one image store into another, through this host's memory.

Owns the copy: ranged reads, every part compared with the source's manifest, written in parts whose digests the target checks, the
manifest last. Memory comes from the process's buffers; large parts are streamed, and compared while they are sent. Cancelled or
failed, it leaves nothing in the target and changes nothing in the source. Refuses deltas: a chain never spans two stores. Links
of a chain that become one object are `merge`'s; a full image alone is copied, within a store by the store itself where it can.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, cast
from uuid import UUID

from agents import manifest as manifests
from agents.buffers import BUFFERS
from agents.image_stores.base import CopiesItself, ImageStore, Limits, Upload
from agents.motion.base import Motion, Progress, Secrets
from agents.motion.direct import RANGE, WORKERS, leave_nothing, streaming
from agents.motion.merge import Target, merge
from agents.motion.parallel import parallel
from agents.motion.streamed import WHOLE, Fill, StreamedPart
from agents.toolbox import both
from agents.uninterrupted import in_thread, to_the_end
from schema.agent import ImageResult, MergeImages
from schema.failure import Refused
from schema.image import ImageRef, Manifest, StoreSpec
from schema.motion import COPY, MERGE

if TYPE_CHECKING:
    from agents.toolbox import Toolbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What is copied where."""

    source: StoreSpec
    target: StoreSpec
    image: ImageRef
    """In the source, as the log knows it."""
    key: str
    """Of the new object."""
    job_id: UUID
    work: str
    """`<work id>.<attempt>` that writes it."""


async def carry(order: Copy, disk: str, tools: Toolbox, secrets: Secrets, progress: Progress) -> ImageRef:
    """Between the stores of an order. The names of their secrets begin with `source.` and `target.`."""
    async with both(tools.store(order.source, _of(secrets, "source.")),
                    tools.store(order.target, _of(secrets, "target."))) as (source, target):
        return await copy(source, order.image, target, store_id=order.target.id, key=order.key, job_id=order.job_id,
                          work=order.work, installation=order.target.prefix, progress=progress, workers=tools.workers)


async def carry_merge(order: MergeImages, disk: str, tools: Toolbox, secrets: Secrets, progress: Progress) -> ImageResult:
    """Links of a chain into one object. The names of the secrets of another source begin with `source.`."""
    async with contextlib.AsyncExitStack() as stack:
        if order.source is None:
            source = target = await stack.enter_async_context(tools.store(order.store, secrets))
        else:
            source, target = await stack.enter_async_context(both(
                tools.store(order.source, _of(secrets, "source.")),
                tools.store(order.store, {name: value for name, value in secrets.items() if not name.startswith("source.")})))
        if len(order.links) == 1 and order.parent is None and not order.replaces:
            image = await _copied(order, source, target, tools, progress)
        else:
            into = Target(store=target, store_id=order.store.id, key=order.key, kind=order.kind, thing_id=order.thing_id,
                          job_id=order.job_id, work=order.work_name, installation=order.store.prefix, replaces=order.replaces)
            image = await merge(source, order.links, order.parent, into, progress=progress, workers=tools.workers,
                                record=tools.record(order.work_name))
        return ImageResult(image=image)


async def _copied(order: MergeImages, source: ImageStore, target: ImageStore, tools: Toolbox, progress: Progress) -> ImageRef:
    """One full image as it is."""
    (image,) = order.links
    if order.source is None and isinstance(source, CopiesItself):
        with contextlib.suppress(Refused):  # such a store said that it can, and cannot: its bytes come through here
            return await copy_inside(source, image, key=order.key, kind=order.kind, thing_id=order.thing_id,
                                     job_id=order.job_id, work=order.work_name, progress=progress)
    return await copy(source, image, target, store_id=order.store.id, key=order.key, job_id=order.job_id, work=order.work_name,
                      installation=order.store.prefix, progress=progress, workers=tools.workers,
                      owner=(order.kind, order.thing_id))


async def copy_inside(store: CopiesItself, image: ImageRef, *, key: str, kind: str, thing_id: UUID, job_id: UUID, work: str,
                      progress: Progress) -> ImageRef:
    """Have the store make `key` of `image`, by itself, and write its manifest: its parts are the same. No byte is read, so none
    is compared: whoever reads it does that. Raises Refused where the store cannot, and what it raises; nothing is left then."""
    within = cast(ImageStore, store)
    manifest = await _known(within, image)
    try:
        progress("copy inside the store", 0, manifest.physical_size)  # no stage that is watched: nothing moves here
        await store.copy_inside(image.key, key)
        await manifests.write_manifest(within, manifest.model_copy(update={
            "kind": kind, "thing_id": thing_id, "job_id": job_id, "work": work, "key": key, "replaces": [],
            "created": datetime.now(UTC).isoformat()}))
    except BaseException:
        await leave_nothing(within, None, key)
        raise
    return image.model_copy(update={"key": key, "replaces": []})


async def _known(store: ImageStore, image: ImageRef) -> Manifest:
    """The manifest of a full image. Raises Damaged when it is another than the log knows, Refused for a delta."""
    manifest = await manifests.read_manifest(store, image.key)
    if manifest.root != image.root:
        raise manifests.other_object(manifest, image.root)
    if manifest.parent:
        raise Refused(f"the object {image.key} is a delta of {manifest.parent}, and a chain never spans two stores", field="key",
                      remedy="copy a full image")
    return manifest


def _of(secrets: Secrets, prefix: str) -> Mapping[str, str]:
    return {name.removeprefix(prefix): value for name, value in secrets.items() if name.startswith(prefix)}


async def copy(source: ImageStore, image: ImageRef, target: ImageStore, *, store_id: UUID, key: str, job_id: UUID, work: str,
               installation: str, progress: Progress, workers: int = WORKERS,
               owner: tuple[str, UUID] | None = None) -> ImageRef:
    """Write `image` of `source` as the object `key` of `target`, with its manifest; `owner`: (kind, id) of the thing that it is
    for from now on. The new object.

    Raises Refused for a delta and for an object that the target cannot hold, WorkFailed naming the bytes that do not equal
    their manifest, and what the stores raise; nothing of it is left in the target then."""
    manifest = await _known(source, image)
    kind, thing_id = owner or (manifest.kind, manifest.thing_id)
    together = parts_together(manifest, target.limits)
    size = manifest.part_size * together
    digests = [""] * -(-manifest.physical_size // size)
    done = 0
    upload: Upload | None = None

    async def one(number: int) -> None:
        nonlocal done
        assert upload is not None
        start = number * size
        length = min(size, manifest.physical_size - start)
        fill = _checked(source, manifest, start)
        if size > WHOLE:
            part = StreamedPart(fill, start, length)
            await streaming(upload, size).part_from(number + 1, part)
            digests[number] = part.sha256
        else:
            async with BUFFERS.buffer(size) as buffer:
                view = memoryview(buffer)[:length]
                digest = hashlib.sha256()
                await fill(start, view, partial(digest.update, view if together > 1 else b""))
                digests[number] = manifest.parts[number] if together == 1 else digest.hexdigest()
                await upload.part(number + 1, view, sha256=digests[number])
        done += length
        progress("copy", done, manifest.physical_size)

    try:
        upload = await to_the_end(target.begin(key, part_size=size), undo=lambda begun: begun.abort())
        progress("copy", 0, manifest.physical_size)  # from here on bytes should move
        await parallel(len(digests), workers, one)
        progress("verify", done, manifest.physical_size)
        made = await upload.complete(manifest.physical_size)
        root = manifests.root_of(digests)
        await manifests.write_manifest(target, manifest.model_copy(update={
            "installation": installation, "job_id": job_id, "work": work, "key": key, "part_size": size, "parts": digests,
            "kind": kind, "thing_id": thing_id, "replaces": [], "root": root, "created": datetime.now(UTC).isoformat()}),
            made=made)
    except BaseException:
        await leave_nothing(target, upload, key)
        raise
    return image.model_copy(update={"store_id": store_id, "key": key, "root": root, "replaces": []})


def parts_together(manifest: Manifest, limits: Limits) -> int:
    """How many parts of the source make one of the target: the fewest that its limits allow. Raises Refused.

    Whole ones, so that each is compared with its own digest."""
    fewest = max(1, -(-limits.min_part // manifest.part_size), -(-len(manifest.parts) // limits.max_parts))
    if len(manifest.parts) == 1:
        fewest = 1  # the only part is the last one, which may be short
    if manifest.part_size * fewest > limits.max_part and manifest.physical_size > limits.max_part:
        raise Refused(f"the object {manifest.key} was written in parts of {manifest.part_size} bytes, and the other store takes "
                      f"{limits.max_parts} parts of at most {limits.max_part}", field="key", remedy="copy it to another store")
    return fewest


def _checked(source: ImageStore, manifest: Manifest, start: int) -> Fill:
    """Reads the object from `start`, the beginning of a part, in order; again when it is asked for `start` again. Raises
    WorkFailed at the end of a part that is not what its manifest says."""
    digest = hashlib.sha256()

    async def fill(offset: int, view: memoryview, then: Callable[[], None]) -> None:
        nonlocal digest
        if offset == start:
            digest = hashlib.sha256()
        at = 0
        while at < len(view):
            number = (offset + at) // manifest.part_size
            end = min((number + 1) * manifest.part_size, manifest.physical_size)
            data = await source.read(manifest.key, offset + at, min(RANGE, len(view) - at, end - offset - at))
            if not data:
                raise manifests.ended(manifest, offset + at)
            view[at:at + len(data)] = data
            await in_thread(digest.update, data)
            at += len(data)
            if offset + at == end:
                if digest.hexdigest() != manifest.parts[number]:
                    raise manifests.bad_part(manifest, number, digest.hexdigest())
                digest = hashlib.sha256()
        await in_thread(then)

    return fill



STORE_TO_STORE = Motion(name="store-to-store", moves={COPY: carry, MERGE: carry_merge}, reads=("ranged_read",),
                        writes=("parallel_parts",), passes=2, rate=200 << 20)
"""Each byte comes and goes: it crosses this host's network twice."""

__all__ = ["STORE_TO_STORE", "Copy", "carry", "copy", "parts_together"]
