"""Templates' bytes on primary stores in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change
from schema import template_seed

TABLES = ("template_spool_ref",)


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    template_id = str(event.template_id)
    match event:
        case template_seed.TemplateSeedRequested():
            primary = event.primary
            yield "template_spool_ref", f"{template_id}/{primary.id}", {
                "template_id": template_id, "pool_id": str(primary.id), "zone_id": str(primary.zone_id),
                "store_id": str(event.store_id), "key": event.key, "state": "Creating", "job_id": str(event.job_id),
                "created": at}
        case template_seed.TemplateSeedReady():
            yield "template_spool_ref", f"{template_id}/{event.primary_id}", {
                "state": "Ready", "path": event.path, "size": event.size, "physical_size": event.physical_size}
        case template_seed.TemplateSeedDeleteRequested():
            yield "template_spool_ref", f"{template_id}/{event.primary_id}", {
                "state": "Destroying", "job_id": str(event.job_id)}
        case template_seed.TemplateSeedFailed() | template_seed.TemplateSeedDeleted():
            yield "template_spool_ref", f"{template_id}/{event.primary_id}", None
