"""Adoption: an object that somebody else put into an image store is looked at where it lies, and described by a manifest.

Owns the one reading in which it is inspected and summed, by the download's rules and limits, and the manifest beside it. Refuses
to write or remove the object itself: its bytes stay whose they are. Rule: what has a manifest already is somebody's, and is not
taken.
"""

from __future__ import annotations

import functools
import hashlib
from datetime import UTC, datetime

from agents import manifest as manifests
from agents.image_stores.base import ImageStore
from agents.inspection import Inspection
from agents.motion.base import Progress
from agents.qcow2_whole import prove_whole
from agents.uninterrupted import in_thread
from schema.agent import AdoptImage
from schema.checksum import parse_checksum
from schema.failure import BadParameter, Failed, WorkRetryable
from schema.image import ImageFormat, ImageRef, Manifest

PART = 8 << 20
PARTS = 5000
"""Parts of one object, about; a manifest takes 10,000."""


async def adopt(order: AdoptImage, store: ImageStore, progress: Progress) -> ImageRef:
    """Look at an object, and describe it. Raises BadParameter with nothing written where it may not be taken."""
    checksum = parse_checksum(order.checksum)
    await _free(order, store)
    info = await store.stat(order.key)
    if info is None:
        raise BadParameter(f"the image store {order.store.name} has no object {order.key}", field="url",
                           remedy="check the address")
    if info.size > order.max_bytes:
        raise BadParameter(f"the image has {info.size} bytes; at most {order.max_bytes} are taken", field="url")
    cut = _part(info.size)
    inspection = Inspection(order.format, max_virtual_size=order.max_virtual_size)
    whole, asked = hashlib.sha256(), hashlib.new(checksum[0], usedforsecurity=False) if checksum else None
    parts: list[str] = []

    def look(data: bytes) -> None:
        inspection.feed(data)
        whole.update(data)
        part.update(data)
        if asked is not None:
            asked.update(data)

    at = 0
    while at < info.size:
        part = hashlib.sha256()
        end = min(at + cut, info.size)
        while at < end:
            data = await store.read(order.key, at, min(manifests.READ_BYTES, end - at))
            if not data:
                raise WorkRetryable(f"the object {order.key} ends at byte {at}: it is being changed", field="url",
                                    remedy="it is tried again")
            await in_thread(look, data)
            at += len(data)
            progress("read", at, info.size)
        parts.append(part.hexdigest())
    virtual = await in_thread(inspection.finish)
    if checksum is not None and asked is not None and asked.hexdigest() != checksum[1]:
        raise BadParameter(f"the {checksum[0]} of what lies there is {asked.hexdigest()}", field="checksum",
                           remedy="compare it with the publisher's")
    if order.format is ImageFormat.QCOW2:
        await prove_whole(functools.partial(store.read, order.key), info.size)
    return await _describe(order, store, cut, parts, whole.hexdigest(), virtual, info.size)


def _part(size: int) -> int:
    """Bytes of each part that is summed: such that a manifest holds them all."""
    return max(PART, -(-size // PARTS // PART) * PART)


async def _free(order: AdoptImage, store: ImageStore) -> None:
    """Raises BadParameter when the object is somebody's already; an earlier try of this very order is not."""
    try:
        found = await manifests.find_manifest(store, order.key)
    except WorkRetryable:
        raise
    except Failed as error:
        raise BadParameter(f"something that is no manifest lies beside it: {error.failure.cause}", field="url",
                           remedy="remove it, if it is yours, or copy the object to another name") from None
    if found is not None and found.work.partition(".")[0] != str(order.work_id):
        raise BadParameter(f"the object belongs to the {found.kind} {found.thing_id} of the installation {found.installation}",
                           field="url", remedy="copy it to another name")


async def _describe(order: AdoptImage, store: ImageStore, cut: int, parts: list[str], whole: str, virtual: int,
                    size: int) -> ImageRef:
    root = manifests.root_of(parts)
    await manifests.write_manifest(store, Manifest(
        installation=order.store.prefix, kind=order.kind, thing_id=order.thing_id, job_id=order.job_id, work=order.work_name,
        key=order.key, format=order.format, virtual_size=virtual, physical_size=size, part_size=cut, parts=parts, root=root,
        sha256=whole, created=datetime.now(UTC).isoformat()))
    return ImageRef(store_id=order.store.id, key=order.key, format=order.format, virtual_size=virtual, physical_size=size,
                    root=root, sha256=whole)


async def disown(store: ImageStore, key: str, thing_id: str) -> None:
    """Remove the manifest of an adopted object, if it is this thing's. The object stays."""
    try:
        found = await manifests.find_manifest(store, key)
    except WorkRetryable:
        raise
    except Failed:
        return  # it is no manifest of ours
    if found is not None and str(found.thing_id) == thing_id:
        await store.delete(manifests.manifest_key(key))


__all__ = ["adopt", "disown"]
