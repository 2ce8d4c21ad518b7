"""Disk offerings in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change
from schema import offering

TABLES = ("disk_offering",)


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    key = str(event.offering_id)
    match event:
        case offering.DiskOfferingCreated():
            yield "disk_offering", key, {
                "name": event.name, "display_text": event.display_text, "disk_size": event.disk_size, "tags": event.tags,
                "min_iops": event.min_iops, "max_iops": event.max_iops, "provisioning_type": event.provisioning_type,
                "domains": [each.model_dump(mode="json") for each in event.domains], "display": event.display_offering,
                "created": at}
        case offering.DiskOfferingUpdated():
            given = {"name": event.name, "display_text": event.display_text, "tags": event.tags,
                     "display": event.display_offering}
            yield "disk_offering", key, {name: value for name, value in given.items() if value is not None}
        case offering.DiskOfferingDeleted():
            yield "disk_offering", key, {"removed": at}
        case _:
            pass
