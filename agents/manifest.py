"""Manifests: what lies beside every object as `<key>.manifest.json`, written last, deleted first.

It owns the manifest's place, its writing, reading and the comparison of an object with it. It refuses to know stores
beyond the ImageStore interface. A manifest is believed only after its root was computed again from its own parts.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from pydantic import ValidationError

from agents.image_stores.base import ImageStore
from schema.failure import WorkFailed
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


def check(manifest: Manifest) -> None:
    """Raise WorkFailed unless the manifest agrees with itself: root, number of parts, sizes."""
    try:
        root = root_of(manifest.parts)
    except ValueError:
        raise WorkFailed(f"the manifest of {manifest.key} is damaged: a part's SHA-256 is not hexadecimal",
                         remedy=_DAMAGED) from None
    if root != manifest.root:
        raise WorkFailed(f"the manifest of {manifest.key} is damaged: its root does not follow from its parts",
                         remedy=_DAMAGED)
    if manifest.part_size < 1 or len(manifest.parts) != -(-manifest.physical_size // manifest.part_size):
        raise WorkFailed(f"the manifest of {manifest.key} is damaged: {len(manifest.parts)} parts of "
                         f"{manifest.part_size} bytes do not make {manifest.physical_size}", remedy=_DAMAGED)


async def write_manifest(store: ImageStore, manifest: Manifest) -> None:
    """Put the manifest beside its complete object: the last act of writing one.

    Raises WorkFailed when the object is not there in the size that the manifest states, and what `put` raises.
    """
    check(manifest)
    info = await store.stat(manifest.key)
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
        raise WorkFailed(f"the manifest of {key} is damaged: it has {info.size} bytes", remedy=_DAMAGED)
    body = await store.read(info.key, 0, info.size)
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        raise WorkFailed(f"the manifest of {key} is damaged: {error.error_count()} fields are missing or wrong",
                         remedy=_DAMAGED) from None
    if manifest.key != key:
        raise WorkFailed(f"the manifest beside {key} describes {manifest.key}", remedy=_DAMAGED)
    check(manifest)
    return manifest


async def read_manifest(store: ImageStore, key: str) -> Manifest:
    """The manifest of the object `key`, its root checked. Raises WorkFailed when absent or damaged."""
    manifest = await find_manifest(store, key)
    if manifest is None:
        raise WorkFailed(f"the object {key} has no manifest: it was never finished, or is being deleted",
                         remedy="make the image again, or delete it")
    return manifest


async def delete_object(store: ImageStore, key: str) -> None:
    """The manifest, then the object and unfinished uploads of either, are gone when this returns. Absent is fine."""
    await store.delete(manifest_key(key))
    await store.delete(key)


async def verify_object(store: ImageStore, key: str) -> Manifest:
    """Read the whole object and compare every part with its manifest.

    Raises WorkFailed naming the first bad part and its bytes, and what `read` raises. Holds at most READERS times
    READ_BYTES in memory.
    """
    manifest = await read_manifest(store, key)
    info = await store.stat(key)
    if info is None or info.size != manifest.physical_size:
        found = "is absent" if info is None else f"has {info.size} bytes"
        raise WorkFailed(f"the object {key} {found}, its manifest says {manifest.physical_size}", remedy=_REPLACE)
    numbers = iter(range(len(manifest.parts)))  # shared: each reader takes the next part
    bad: list[int] = []

    async def reader() -> None:
        for number in numbers:
            if bad:
                return
            if await _digest(store, manifest, number) != manifest.parts[number]:
                bad.append(number)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(READERS, len(manifest.parts))):
                group.create_task(reader())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    if bad:
        number = min(bad)
        start = number * manifest.part_size
        end = min(start + manifest.part_size, manifest.physical_size) - 1
        raise WorkFailed(f"part {number + 1} of {len(manifest.parts)} of the object {key} (bytes {start} to {end}) is "
                         "not what was written: its SHA-256 differs from the manifest", remedy=_REPLACE)
    return manifest


async def _digest(store: ImageStore, manifest: Manifest, number: int) -> str:
    start = number * manifest.part_size
    end = min(start + manifest.part_size, manifest.physical_size)
    digest = hashlib.sha256()
    while start < end:
        data = await store.read(manifest.key, start, min(READ_BYTES, end - start))
        if not data:
            raise WorkFailed(f"the object {manifest.key} ends at byte {start}", remedy=_REPLACE)
        await asyncio.to_thread(digest.update, data)
        start += len(data)
    return digest.hexdigest()


_DAMAGED = "verify the object by other means, then delete it or write its manifest again"
_REPLACE = "the object cannot be used: restore it from elsewhere, or delete it"
