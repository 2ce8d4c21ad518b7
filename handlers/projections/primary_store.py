"""Primary stores in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change
from schema import primary_store
from schema.image import PrimarySpec

TABLES = ("primary_store",)


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    match event:
        case primary_store.PrimaryStoreRequested():
            yield "primary_store", str(event.primary.id), {
                **_spec(event.primary), "hypervisor": event.hypervisor, "total_bytes": 0, "state": "Creating",
                "job_id": str(event.job_id), "created": at}
        case primary_store.PrimaryStoreAnnounced():
            yield "primary_store", str(event.primary.id), {
                **_spec(event.primary), "hypervisor": event.hypervisor, "total_bytes": event.total_bytes, "state": "Up",
                "removed": None, "created": at}
        case primary_store.PrimaryStoreRejected():
            yield "primary_store", str(event.primary_id), {"state": "Failed", "error": event.failure.text, "removed": at}
        case primary_store.PrimaryStoreDeleteRequested():
            yield "primary_store", str(event.primary_id), {"state": "Removing", "job_id": str(event.job_id)}
        case primary_store.PrimaryStoreDeleted():
            yield "primary_store", str(event.primary_id), {"state": "Removed", "removed": at}
        case _:
            pass


def _spec(primary: PrimarySpec) -> dict[str, Any]:
    return {"name": primary.name, "kind": primary.kind, "path": primary.path, "zone_id": str(primary.zone_id),
            "agent": primary.agent, "scope": "HOST"}
