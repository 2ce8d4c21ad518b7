"""Manifests: what lies beside every object as `<key>.manifest.json`, written last, deleted first.

It owns the manifest's place, its writing, reading and the comparison of an object with it. It refuses to know stores
beyond the ImageStore interface. A manifest is believed only after its root was computed again from its own parts.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from agents.image_stores.base import ImageStore, ObjectInfo
from schema.failure import Damage, Damaged, WorkFailed
from schema.image import Manifest

SUFFIX = ".manifest.json"
MAX_BYTES = 4 << 20
"""A manifest of 10,000 parts has 0.7 MB; more is not a manifest."""
READ_BYTES = 8 << 20
"""Bytes asked for at once while verifying; parts may be larger than memory should hold."""
READERS = 4


def manifest_key(key: str) -> str:
    """Where the manifest of the object `key` lies."""
    return key + SUFFIX


def object_key(key: str) -> str | None:
    """The object that a manifest's key belongs to; None when `key` is not a manifest's."""
    return key.removesuffix(SUFFIX) if key.endswith(SUFFIX) else None


def root_of(parts: Sequence[str]) -> str:
    """Hex SHA-256 over the parts' binary SHA-256 digests in order. `parts` are hex."""
    return hashlib.sha256(b"".join(bytes.fromhex(part) for part in parts)).hexdigest()


def bad_manifest(key: str, why: str) -> Damaged:
    """The manifest of the object `key` is not what was written."""
    return Damaged(f"the manifest of {key} is damaged: {why}", Damage(object=key, what="manifest", found=why), remedy=_DAMAGED)


def other_object(manifest: Manifest, root: str) -> Damaged:
    """The manifest is whole, and of another object than the one that the log knows by `root`."""
    return Damaged(f"the object {manifest.key} is not the one that the log knows: its root differs",
                   Damage(object=manifest.key, what="manifest", expected=root, found=f"the root {manifest.root}"),
                   remedy=_REPLACE)


def bad_part(manifest: Manifest, number: int, found: str, *, bad: int = 0) -> Damaged:
    """Part `number`, counted from 0, has the digest `found` and not the manifest's."""
    start = number * manifest.part_size
    end = min(start + manifest.part_size, manifest.physical_size)
    damage = Damage(object=manifest.key, what="part", part=number + 1, parts=len(manifest.parts), bad=bad, offset=start,
                    length=end - start, expected=manifest.parts[number], found=found)
    return Damaged(f"part {number + 1} of {len(manifest.parts)} of the object {manifest.key}: bytes {start} to {end - 1} are "
                   "not what was written: their SHA-256 differs from the manifest", damage, remedy=_REPLACE)


def bad_size(manifest: Manifest, size: int) -> Damaged:
    """The object has `size` bytes and not the manifest's."""
    return Damaged(f"the object {manifest.key} has {size} bytes, its manifest says {manifest.physical_size}",
                   Damage(object=manifest.key, what="size", expected=str(manifest.physical_size), found=str(size)),
                   remedy=_REPLACE)


def ended(manifest: Manifest, at: int) -> Damaged:
    """The object is shorter than its manifest says."""
    return Damaged(f"the object {manifest.key} ends at byte {at}",
                   Damage(object=manifest.key, what="size", expected=str(manifest.physical_size), found=str(at)), remedy=_REPLACE)


def missing(key: str, what: str) -> Damaged:
    """The object or its manifest is not there."""
    return Damaged(f"the object {key} {what}", Damage(object=key, what="missing", found=f"it {what}"), remedy=_REPLACE)


def check(manifest: Manifest) -> None:
    """Raise Damaged unless the manifest agrees with itself: root, number of parts, sizes."""
    try:
        root = root_of(manifest.parts)
    except ValueError:
        raise bad_manifest(manifest.key, "a part's SHA-256 is not hexadecimal") from None
    if root != manifest.root:
        raise bad_manifest(manifest.key, "its root does not follow from its parts")
    if manifest.part_size < 1 or len(manifest.parts) != -(-manifest.physical_size // manifest.part_size):
        raise bad_manifest(manifest.key, f"{len(manifest.parts)} parts of {manifest.part_size} bytes do not make "
                                         f"{manifest.physical_size}")


async def write_manifest(store: ImageStore, manifest: Manifest, *, made: ObjectInfo | None = None) -> None:
    """Put the manifest beside its complete object: the last act of writing one. `made`: what the store answered when it completed
    the object just now; else it is looked at.

    Raises WorkFailed when the object is not there in the size that the manifest states, and what `put` raises.
    """
    check(manifest)
    info = made or await store.stat(manifest.key)
    if info is None or info.size != manifest.physical_size:
        found = "is absent" if info is None else f"has {info.size} bytes"
        raise WorkFailed(f"the object {manifest.key} {found}, its manifest would say {manifest.physical_size} bytes",
                         remedy="write the object again")
    await store.put(manifest_key(manifest.key), manifest.model_dump_json().encode())


async def find_manifest(store: ImageStore, key: str) -> Manifest | None:
    """The manifest of the object `key`, None when there is none. Raises WorkFailed when it is damaged."""
    info = await store.stat(manifest_key(key))
    if info is None:
        return None
    if info.size > MAX_BYTES:
        raise bad_manifest(key, f"it has {info.size} bytes")
    body = await store.read(info.key, 0, info.size)
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        raise bad_manifest(key, f"{error.error_count()} fields are missing or wrong") from None
    if manifest.key != key:
        raise Damaged(f"the manifest beside {key} describes {manifest.key[:500]}",
                      Damage(object=key, what="manifest", found=f"it describes {manifest.key[:500]}"), remedy=_DAMAGED)
    check(manifest)
    return manifest


async def read_manifest(store: ImageStore, key: str) -> Manifest:
    """The manifest of the object `key`, its root checked. Raises WorkFailed when absent or damaged."""
    manifest = await find_manifest(store, key)
    if manifest is None:
        raise Damaged(f"the object {key} has no manifest: it was never finished, or is being deleted",
                      Damage(object=key, what="missing", found="it has no manifest"), remedy="make the image again, or delete it")
    return manifest


async def delete_object(store: ImageStore, key: str) -> None:
    """The manifest, then the object and unfinished uploads of either, are gone when this returns. Absent is fine."""
    await store.delete(manifest_key(key))
    await store.delete(key)


async def verify_object(store: ImageStore, key: str, *, root: str = "",
                        moved: Callable[[int], None] = lambda size: None) -> Manifest:
    """Read the whole object and compare every part with its manifest, and that with `root` where it is known.

    Raises Damaged naming the first bad part, its bytes and how many are bad, and what `read` raises. `moved` is told the bytes
    of each read. Holds at most READERS times READ_BYTES in memory.
    """
    manifest = await read_manifest(store, key)
    if root and manifest.root != root:
        raise other_object(manifest, root)
    info = await store.stat(key)
    if info is None:
        raise missing(key, "is absent")
    if info.size != manifest.physical_size:
        raise bad_size(manifest, info.size)
    numbers = iter(range(len(manifest.parts)))  # shared: each reader takes the next part
    bad: dict[int, str] = {}

    async def reader() -> None:
        for number in numbers:
            found = await _digest(store, manifest, number, moved)
            if found != manifest.parts[number]:
                bad[number] = found

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(READERS, len(manifest.parts))):
                group.create_task(reader())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    if bad:
        raise bad_part(manifest, min(bad), bad[min(bad)], bad=len(bad))
    return manifest


async def _digest(store: ImageStore, manifest: Manifest, number: int, moved: Callable[[int], None]) -> str:
    start = number * manifest.part_size
    end = min(start + manifest.part_size, manifest.physical_size)
    digest = hashlib.sha256()
    while start < end:
        data = await store.read(manifest.key, start, min(READ_BYTES, end - start))
        if not data:
            raise ended(manifest, start)
        await asyncio.to_thread(digest.update, data)
        start += len(data)
        moved(len(data))
    return digest.hexdigest()


_DAMAGED = "verify the object by other means, then delete it or write its manifest again"
_REPLACE = "the object cannot be used: restore it from elsewhere, or delete it"
