"""Capacity: what an image on its way is reserved, settled and released by. Counters, changed in the decision's own append.

Owns two counters of each image store: `used` (bytes that rest there or are reserved, under the operator's capacity) and
`reserved` (bytes on their way only, under what the store itself said was free). Rules kept here: whatever is reserved is settled
or released exactly once, by the number in the thing's own events; only an admission may be refused, never a settling or a
release. Refuses to choose a store (`placement`) and to know what a thing is.
"""

from __future__ import annotations

from uuid import UUID

from handlers import placement
from handlers.decider import Context
from handlers.directory import Store

DOWNLOAD = 1 << 30
"""Bytes reserved for a download, whose size nobody knows before it is there; less where less is free."""
_CLUSTER = 65536


def used(store_id: UUID) -> str:
    """The counter of bytes that rest on a store or are reserved there."""
    return f"image_store/{store_id}/used"


def reserved(store_id: UUID) -> str:
    """The counter of bytes that are on their way to a store."""
    return f"image_store/{store_id}/reserved"


def download(context: Context, store: Store) -> int:
    """Bytes to reserve for a download."""
    room = placement.free(context.directory, store)
    return min(DOWNLOAD, context.limits.max_image_bytes, DOWNLOAD if room is None else max(1, room))


def backup(virtual: int, physical: int) -> int:
    """The most bytes that a backup of a disk may be: what the disk takes, at most all of it, with qcow2's tables."""
    clusters = -(-virtual // _CLUSTER)
    return min(virtual, physical or virtual) + clusters * 10 + 4 * _CLUSTER


def reserve(context: Context, store: Store, count: int, *, free: int | None = None) -> None:
    """Admit `count` bytes, or the append refuses them; `free`: what the store said it has, if it did."""
    context.count(used(store.spec.id), count, ceiling=store.capacity, lift=store.capacity is None,
                  otherwise=placement.no_room([store], count))
    context.count(reserved(store.spec.id), count, ceiling=free, lift=free is None,
                  otherwise=placement.no_room([store], count, free))


def settle(context: Context, store_id: UUID, before: int, now: int) -> None:
    """What was reserved is there, with `now` bytes."""
    context.count(used(store_id), now - before, lift=True)
    context.count(reserved(store_id), -before, lift=True)


def release(context: Context, store_id: UUID, count: int, *, arrived: bool) -> None:
    """It is gone, or never came (`arrived`: it had been settled)."""
    if count:
        context.count(used(store_id), -count, lift=True)
        if not arrived:
            context.count(reserved(store_id), -count, lift=True)
