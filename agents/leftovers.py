"""What work may leave behind: the order that removes what an interrupted one left, and the word of what could not be removed.

Owns that word, of each piece of work by itself, wherever below it the cleaning happens. Refuses to remove anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from schema.agent import (
    AdoptImage,
    AttachDisk,
    CreateDisk,
    DeleteDisk,
    DeleteImages,
    DetachDisk,
    DisownImage,
    DropSeed,
    DropSnapshot,
    FetchImage,
    MakeSeed,
    ResizeDisk,
    TakeSnapshot,
    WriteSnapshot,
)
from schema.message import Order


def cleaning(order: Order) -> Order | None:
    """The order that removes what `order` may have left; None when it leaves nothing."""
    about = {"job_id": order.job_id, "work_id": order.work_id, "attempt": order.attempt, "agent": order.agent,
             "reply_key": order.reply_key}
    match order:
        case FetchImage() | WriteSnapshot():
            return DeleteImages.model_validate(about | {"store": order.store, "keys": [order.key]})
        case CreateDisk():
            return DeleteDisk.model_validate(about | {"primary": order.primary, "volume_id": order.volume_id})
        case MakeSeed():
            return DropSeed.model_validate(about | {"primary": order.primary, "template_id": order.template_id})
        case TakeSnapshot():
            return DropSnapshot.model_validate(about | {"disk": order.disk, "tag": order.tag})
        case AdoptImage():
            return DisownImage.model_validate(about | {"store": order.store, "key": order.key, "thing_id": order.thing_id})
        case ResizeDisk():
            return order.model_copy(update={"virtual_size": order.disk.virtual_size, "shrink": True})
        case AttachDisk():
            return DetachDisk.model_validate(about | {"disk": order.disk, "machine_id": order.machine_id})
        case _:
            return None


_REMAINS: ContextVar[list[str] | None] = ContextVar("remains", default=None)


@contextmanager
def noted() -> Iterator[list[str]]:
    """Keys of objects of which `remains` is said within, in this task or in one that it starts."""
    keys: list[str] = []
    token = _REMAINS.set(keys)
    try:
        yield keys
    finally:
        _REMAINS.reset(token)


def remains(key: str) -> None:
    """Something of this key may still be in its store: it could not be removed."""
    keys = _REMAINS.get()
    if keys is not None and key not in keys:
        keys.append(key)
