"""The strategy `store-to-store`: an object and its manifest from one image store into another, through this host's memory.

Owns the copy: ranged reads, every part compared with the source's manifest before it is sent, written in parts whose digests
the target checks, the manifest last. Memory is workers times the part size. Cancelled or failed, it leaves nothing in the target
and changes nothing in the source. Refuses deltas: a chain never spans two stores. No command uses it yet: its order is its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from agents import manifest as manifests
from agents.image_stores.base import ImageStore, Limits, Upload
from agents.motion.base import Motion, Progress, Secrets
from agents.motion.direct import BAD_OBJECT, BUFFERS, RANGE, WORKERS, leave_nothing
from agents.motion.parallel import parallel
from agents.uninterrupted import in_thread, to_the_end
from schema.failure import Refused, WorkFailed
from schema.image import ImageRef, Manifest, StoreSpec
from schema.motion import COPY

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
    async with tools.store(order.source, _of(secrets, "source.")) as source, \
            tools.store(order.target, _of(secrets, "target.")) as target:
        return await copy(source, order.image, target, store_id=order.target.id, key=order.key, job_id=order.job_id,
                          work=order.work, installation=order.target.prefix, progress=progress, workers=tools.workers)


def _of(secrets: Secrets, prefix: str) -> Mapping[str, str]:
    return {name.removeprefix(prefix): value for name, value in secrets.items() if name.startswith(prefix)}


async def copy(source: ImageStore, image: ImageRef, target: ImageStore, *, store_id: UUID, key: str, job_id: UUID, work: str,
               installation: str, progress: Progress, workers: int = WORKERS) -> ImageRef:
    """Write `image` of `source` as the object `key` of `target`, with its manifest. The new object.

    Raises Refused for a delta and for an object that the target cannot hold, WorkFailed naming the bytes that do not equal
    their manifest, and what the stores raise; nothing of it is left in the target then."""
    manifest = await manifests.read_manifest(source, image.key)
    if manifest.root != image.root:
        raise WorkFailed(f"the object {image.key} is not the one that the log knows: its root differs", remedy=BAD_OBJECT)
    if manifest.parent:
        raise Refused(f"the object {image.key} is a delta of {manifest.parent}, and a chain never spans two stores", field="key",
                      remedy="copy a full image")
    together = parts_together(manifest, target.limits)
    size = manifest.part_size * together
    digests = [""] * -(-manifest.physical_size // size)
    done = 0
    upload: Upload | None = None

    async def one(number: int) -> None:
        nonlocal done
        assert upload is not None
        start = number * size
        buffer = memoryview(bytearray(min(size, manifest.physical_size - start)))
        for at in range(number * together, min((number + 1) * together, len(manifest.parts))):
            await _read_part(source, manifest, at, buffer[at * manifest.part_size - start:][:manifest.part_size])
        digests[number] = manifest.parts[number] if together == 1 else await in_thread(_sha256, buffer)
        await upload.part(number + 1, buffer, sha256=digests[number])
        done += len(buffer)
        progress("copy", done, manifest.physical_size)

    try:
        upload = await to_the_end(target.begin(key, part_size=size), undo=lambda begun: begun.abort())
        progress("copy", 0, manifest.physical_size)  # from here on bytes should move
        await parallel(len(digests), max(1, min(workers, BUFFERS // size)), one)
        progress("verify", done, manifest.physical_size)
        await upload.complete(manifest.physical_size)
        root = manifests.root_of(digests)
        await manifests.write_manifest(target, manifest.model_copy(update={
            "installation": installation, "job_id": job_id, "work": work, "key": key, "part_size": size, "parts": digests,
            "root": root, "created": datetime.now(UTC).isoformat()}))
    except BaseException:
        await leave_nothing(target, upload, key)
        raise
    return image.model_copy(update={"store_id": store_id, "key": key, "root": root})


def parts_together(manifest: Manifest, limits: Limits) -> int:
    """How many parts of the source make one of the target: the fewest that its limits allow. Raises Refused.

    Whole ones, so that each is compared with its own digest before any of it is sent."""
    fewest = max(1, -(-limits.min_part // manifest.part_size), -(-len(manifest.parts) // limits.max_parts))
    if len(manifest.parts) == 1:
        fewest = 1  # the only part is the last one, which may be short
    if manifest.part_size * fewest > limits.max_part and manifest.physical_size > limits.max_part:
        raise Refused(f"the object {manifest.key} was written in parts of {manifest.part_size} bytes, and the other store takes "
                      f"{limits.max_parts} parts of at most {limits.max_part}", field="key", remedy="copy it to another store")
    return fewest


async def _read_part(source: ImageStore, manifest: Manifest, number: int, target: memoryview) -> None:
    """One part of the source into `target`. Raises WorkFailed when it is not what its manifest says."""
    first, digest, at = number * manifest.part_size, hashlib.sha256(), 0
    while at < len(target):
        data = await source.read(manifest.key, first + at, min(RANGE, len(target) - at))
        if not data:
            raise WorkFailed(f"the object {manifest.key} ends at byte {first + at}", remedy=BAD_OBJECT)
        target[at:at + len(data)] = data
        await in_thread(digest.update, data)
        at += len(data)
    if digest.hexdigest() != manifest.parts[number]:
        raise WorkFailed(f"the object {manifest.key}: bytes {first} to {first + len(target) - 1} are not what was written",
                         remedy=BAD_OBJECT)


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


STORE_TO_STORE = Motion(name="store-to-store", moves={COPY: carry}, reads=("ranged_read",), writes=("parallel_parts",), passes=2,
                        rate=200 << 20)
"""Each byte comes and goes: it crosses this host's network twice."""

__all__ = ["STORE_TO_STORE", "Copy", "carry", "copy", "parts_together"]
