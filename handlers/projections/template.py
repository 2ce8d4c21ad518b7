"""Templates and their copies in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change, copy, owned, sizes
from schema import template

TABLES = ("template", "template_store_ref")


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    key = str(event.template_id)
    match event:
        case template.TemplateRegistered():
            yield "template", key, {
                "name": event.name, "display_text": event.display_text, "url": event.url, "format": event.format,
                "hypervisor": event.hypervisor, "zone_id": str(event.zone_id) if event.zone_id else None,
                "state": "Registering", "checksum": event.checksum, "is_public": event.is_public,
                "is_featured": event.is_featured, "is_extractable": event.is_extractable,
                "os_type_id": event.os_type_id, "job_id": str(event.job_id), "created": at, **owned(event.owner)}
        case template.TemplateReady():
            image = event.image
            yield "template", key, {"state": "Ready", "checksum": f"{{SHA-256}}{image.sha256}", **sizes(image)}
            yield "template_store_ref", f"{key}/{image.store_id}", {
                "template_id": key, "store_id": str(image.store_id), "key": image.key, "state": "Ready",
                "root": image.root, "sha256": image.sha256, "created": at, **sizes(image)}
        case template.TemplateQuarantined():
            yield "template", key, {"error": event.damage.text}
            yield from copy("template", key, event.store_id, {"state": "Quarantined", "error": event.damage.text})
        case template.TemplateQuarantineLifted():
            yield "template", key, {"error": None}
            yield from copy("template", key, event.store_id, {"state": "Ready", "error": None})
        case template.TemplateFailed():
            yield "template", key, {"state": "Failed", "error": event.failure.text}
        case template.TemplateDeleteRequested():
            yield "template", key, {"state": "Deleting", "removed": at}
            yield from copy("template", key, event.store_id, {"state": "Destroying"})
        case template.TemplateDeleted():
            yield "template", key, {"state": "Deleted"}
            yield from copy("template", key, event.store_id, None)
        case _:
            pass
