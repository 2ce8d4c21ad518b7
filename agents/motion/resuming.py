"""Where a transfer begins: at its first part, or where a process that was killed had come to.

Owns the decision which parts need not be sent again: those that the agent's record and the store's own list agree about, of a
transfer that is the same in every byte (store, key, part size, layout). Refuses to believe either alone. Of the file that
a restore left its own content, compared with the object's manifest, says which parts are there: no record could say it better.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from uuid import UUID

from agents.image_stores.base import ImageStore, Resumable, ResumedUpload, Upload
from agents.motion.base import Progress
from agents.motion.parallel import parallel
from agents.qcow2 import Layout
from agents.transfer_record import Part, TransferRecord
from agents.uninterrupted import in_thread, to_the_end
from schema.failure import Failed
from schema.image import Manifest

READ = 1 << 20
"""Bytes of a file that are read at once."""


def identity(store_id: UUID, key: str, part_size: int, layout: Layout) -> str:
    """What a transfer is about. Two with the same identity write the same bytes, when their device's content never changes."""
    digest = hashlib.sha256(json.dumps([str(store_id), key, part_size, layout.virtual_size, layout.size,
                                        layout.backing.hex()]).encode())
    for run in layout.runs:
        digest.update(b"%d %d %d;" % (run.guest, run.count, run.at))
    for first, end in layout.zeros:
        digest.update(b"%d-%d;" % (first, end))
    return digest.hexdigest()


async def begin(store: ImageStore, key: str, *, part_size: int, size: int, about: str,
                record: TransferRecord | None) -> tuple[Upload | None, Mapping[int, str]]:
    """The upload, and the SHA-256 of the parts (from 1) that it has already. No upload when the object is whole already:
    the process was killed between that and its report.

    Without a record, or in a store that lacks resume_upload, from the beginning."""
    if record is None or not isinstance(store, Resumable):
        return await _new(store, key, part_size), {}
    known = await record.read(about)
    count = -(-size // part_size)
    if known:
        upload = await to_the_end(store.resume(key, part_size=part_size), undo=_ended)
        if upload is not None:
            try:
                kept = await _agreed(upload, known, count)
                await record.begin(about, kept)
            except BaseException:
                await to_the_end(_ended(upload))
                raise
            return upload, {number: part.sha256 for number, part in kept.items()}
        if set(known) >= set(range(1, count + 1)):
            info = await store.stat(key)
            if info is not None and info.size == size:
                return None, {number: known[number].sha256 for number in range(1, count + 1)}
    await record.begin(about, {})
    return await _new(store, key, part_size), {}


async def _new(store: ImageStore, key: str, part_size: int) -> Upload:
    return await to_the_end(store.begin(key, part_size=part_size), undo=lambda begun: begun.abort())


async def _ended(upload: Upload | None) -> None:
    if upload is not None:
        with contextlib.suppress(Failed):
            await upload.abort()


async def _agreed(upload: ResumedUpload, known: Mapping[int, Part], count: int) -> dict[int, Part]:
    """The parts that the record and the store say the same of, kept."""
    listed = await upload.parts()
    agreed = {number: part for number, part in sorted(known.items())
              if 1 <= number <= count and listed.get(number) == part.info}
    for number, part in agreed.items():
        await upload.keep(number, sha256=part.sha256)
    return agreed


async def found(descriptor: int, manifest: Manifest, progress: Progress, workers: int) -> dict[int, bool]:
    """The parts (from 0) of the object that the file has anything of, and whether that is all of it: then the part need not
    be read again. Parts of which the file has nothing at all are not named."""
    parts: dict[int, bool] = {}
    progress("check", 0, manifest.physical_size)

    async def one(number: int) -> None:
        start = number * manifest.part_size
        digest = await in_thread(_digest, descriptor, start, min(start + manifest.part_size, manifest.physical_size))
        if digest:
            parts[number] = digest == manifest.parts[number]

    await parallel(len(manifest.parts), workers, one)
    return parts


def _digest(descriptor: int, start: int, end: int) -> str:
    """The SHA-256 of these bytes of the file; empty when it is a hole there. Blocking."""
    try:
        if os.lseek(descriptor, start, os.SEEK_DATA) >= end:
            return ""
    except OSError as error:
        if error.errno == errno.ENXIO:  # a hole to the end
            return ""
        raise
    digest = hashlib.sha256()
    while start < end:
        data = os.pread(descriptor, min(READ, end - start), start)
        if not data:
            return "short"
        digest.update(data)
        start += len(data)
    return digest.hexdigest()


__all__ = ["begin", "found", "identity"]
