"""Scrubbing: what rests in a store is read again, every byte, and compared with what was written. Nothing is changed.

Owns what is looked at and how findings are told: all of an object's parts, its root, its size and its manifest; and objects
that nobody knows (names of links that may be there are known). Refuses to judge: what was deleted meanwhile looks damaged or
missing here, and the handlers know better. An object that cannot be read is no damage; several in a row are a store that is away.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime

from agents.image_stores.base import ImageStore
from agents.image_stores.links import ended_by
from agents.manifest import manifest_key, object_key, verify_object
from agents.motion.base import Progress
from schema.agent import Scrubbed, ScrubObjects
from schema.failure import Damage, Damaged, WorkRetryable
from schema.scrub import MARK_BYTES, Stray, Unread, mark, slice_of

IN_A_ROW = 3
"""Objects that cannot be read one after another before the scrub gives up: the store is away."""
NAMED = 100
"""Unknown objects that are named; the rest is counted."""
CAUSE = 200
"""Characters of a cause that are kept."""


async def scrub(order: ScrubObjects, store: ImageStore, progress: Progress) -> Scrubbed:
    """Read what is ordered. Raises what the store raises when it is away."""
    total, done, whole = sum(target.size for target in order.objects), 0, 0
    damaged: list[Damage] = []
    unread: list[Unread] = []
    in_a_row = 0

    def moved(size: int) -> None:
        nonlocal done
        done += size
        progress("scrub", done, max(total, done))

    progress("scrub", 0, total)
    for target in order.objects:
        try:
            await verify_object(store, target.key, root=target.root, moved=moved)
        except Damaged as found:
            damaged.append(found.damage)
        except WorkRetryable as away:
            in_a_row += 1
            if in_a_row == IN_A_ROW:
                raise
            unread.append(Unread(key=target.key, cause=away.failure.cause[:CAUSE]))
            continue
        whole, in_a_row = whole + 1, 0
    progress("list", done, max(total, done))
    unknown, count = await strangers(order, store)
    return Scrubbed(objects=whole, bytes=done, damaged=damaged, unread=unread, unknown=unknown, unknown_count=count)


async def strangers(order: ScrubObjects, store: ImageStore) -> tuple[list[Stray], int]:
    """Objects of the installation that are not known: (the first of them, how many)."""
    marks = base64.b64decode(order.known)
    known = {marks[at:at + MARK_BYTES] for at in range(0, len(marks), MARK_BYTES)}
    found: dict[str, int] = {}
    count = 0
    now = datetime.now(UTC)
    async for info in store.list(order.store.prefix):
        owner = object_key(info.key) or info.key
        marked = mark(owner)
        if marked in known or slice_of(marked, order.slices) != order.slice or _probe(order.store.prefix, owner):
            continue
        if ended_by(order.store.prefix, info.key, now) is False:
            continue
        if owner in found:  # its manifest, or the object of a manifest
            found[owner] = max(found[owner], info.size) if owner == info.key else found[owner]
            continue
        if len(found) < NAMED:
            found[owner], count = info.size, count + 1
        elif owner == info.key:
            count += 1
    strays = []
    for key, size in found.items():
        if await store.stat(key) is None and await store.stat(manifest_key(key)) is None:
            count -= 1  # it went while the store was listed
        else:
            strays.append(Stray(key=key, size=size))
    return strays, count


def _probe(prefix: str, key: str) -> bool:
    """Whether it is what the test of a store writes and removes."""
    return key.startswith(f"{prefix}/probe/")
