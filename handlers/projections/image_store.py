"""Image stores in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change
from schema import image_store
from schema.message import Secret

TABLES = ("image_store",)


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    if isinstance(event, image_store.ImageStoreRequested):
        spec = event.store
        yield "image_store", str(spec.id), {
            "name": spec.name, "provider": spec.provider, "url": spec.url,
            "protocol": spec.url.split("://", 1)[0] if "://" in spec.url else spec.provider, "scope": event.scope,
            "zone_id": str(event.zone_id) if event.zone_id else None, "state": "Testing", "read_only": False,
            "job_id": str(event.job_id), "created": at, "role": event.role,
            "details": {name: None if Secret.is_reference(value) else value for name, value in spec.details.items()}}
        return
    key = str(event.store_id)
    match event:
        case image_store.ImageStoreAdded():
            yield "image_store", key, {"state": "Ready"}
        case image_store.ImageStoreRejected():
            yield "image_store", key, {"state": "Rejected", "error": event.failure.text, "removed": at}
        case image_store.ImageStoreUpdated():
            given = {"name": event.name, "read_only": event.read_only, "capacity_bytes": event.capacity_bytes}
            yield "image_store", key, {name: value for name, value in given.items() if value is not None}
        case image_store.ImageStoreDeleted():
            yield "image_store", key, {"state": "Deleted", "removed": at}
        case _:
            pass
