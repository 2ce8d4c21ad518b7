"""What an order that was cancelled and then interrupted by a crash may have left, as the order that removes it. Pure."""

from __future__ import annotations

from schema.agent import CreateDisk, DeleteDisk, DeleteImages, DropSnapshot, FetchImage, TakeSnapshot, WriteSnapshot
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
        case TakeSnapshot():
            return DropSnapshot.model_validate(about | {"disk": order.disk, "tag": order.tag})
        case _:
            return None
