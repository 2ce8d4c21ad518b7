"""Where a transfer begins: at its first part, or where a process that was killed had come to.

Owns the decision which parts need not be sent again: those that the agent's record and the store's own list agree about, of a
transfer that is the same in every byte (store, key, part size, layout). Refuses to believe either alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from uuid import UUID

from agents.image_stores.base import ImageStore, Resumable, ResumedUpload, Upload
from agents.qcow2 import Layout
from agents.transfer_record import Part, TransferRecord
from agents.uninterrupted import to_the_end
from schema.failure import Failed


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


__all__ = ["begin", "identity"]
