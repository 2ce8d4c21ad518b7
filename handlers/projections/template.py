"""Templates and ISOs in the read tables: what they are, where they are listed, who may use them, their copies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections import template_seed
from handlers.projections.columns import Change, copy, owned, sizes
from schema import template

TABLES = ("template", "template_store_ref", "template_zone", "launch_permission", *template_seed.TABLES)
EVERY = "*"
"""Stands for the zone where a template is listed in every zone."""


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    key = str(event.template_id)
    match event:
        case template.TemplateRegistered():
            yield from _registered(event, key, at)
        case template.TemplateUpdated():
            given = {"name": event.name, "display_text": event.display_text, "os_type_id": event.os_type_id}
            said = {name: value for name, value in given.items() if value is not None}
            yield "template", key, {**said, **_traits(event.traits)}
        case template.TemplatePermitted():
            yield "template", key, {
                "is_public": event.is_public, "is_featured": event.is_featured, "is_extractable": event.is_extractable,
                "granted": [str(each) for each in event.granted]}
            for account in event.removed:
                yield "launch_permission", f"{key}/{account}", None
            for account in event.added:
                yield "launch_permission", f"{key}/{account}", {
                    "template_id": key, "account_id": str(account), "created": at}
        case template.TemplateZonesChanged():
            if event.everywhere:
                yield "template_zone", f"{key}/{EVERY}", None
            yield "template", key, {"zone_id": None, "cross_zones": False}
            for zone_id in event.removed:
                yield "template_zone", f"{key}/{zone_id}", None
            for zone_id in event.added:
                yield "template_zone", f"{key}/{zone_id}", {"template_id": key, "zone_id": str(zone_id), "created": at}
        case _:
            yield from _bytes(event, key, at)


def _registered(event: template.TemplateRegistered, key: str, at: str) -> Iterator[Change]:
    zones = event.zones or ([event.zone_id] if event.zone_id else [])
    yield "template", key, {
        "name": event.name, "display_text": event.display_text, "url": event.url, "format": event.format,
        "hypervisor": event.hypervisor, "zone_id": str(event.zone_id) if event.zone_id else None,
        "state": "Registering", "checksum": event.checksum, "is_public": event.is_public,
        "is_featured": event.is_featured, "is_extractable": event.is_extractable,
        "os_type_id": event.os_type_id, "job_id": str(event.job_id), "created": at, **owned(event.owner),
        "kind": event.kind, "cross_zones": not zones, **_traits(event.traits), "granted": [],
        "volume_id": str(event.volume_id) if event.volume_id else None,
        "snapshot_id": str(event.snapshot_id) if event.snapshot_id else None}
    for zone in [str(each) for each in zones] or [EVERY]:
        yield "template_zone", f"{key}/{zone}", {
            "template_id": key, "zone_id": None if zone == EVERY else zone, "created": at}


def _traits(traits: template.Traits) -> dict[str, Any]:
    return traits.model_dump(mode="json")


def _bytes(event: Any, key: str, at: str) -> Iterator[Change]:
    """Of the copies."""
    match event:
        case template.TemplateReady():
            image = event.image
            checksum = f"{{SHA-256}}{image.sha256}" if image.sha256 else ""
            yield "template", key, {"state": "Ready", "checksum": checksum, **sizes(image)}
            yield from copy("template", key, image.store_id, {"zone_id": str(event.zone_id) if event.zone_id else None})
            yield from _there(event, key, at)
        case template.TemplateCopyRequested():
            yield from copy("template", key, event.store_id, {
                "template_id": key, "store_id": str(event.store_id), "zone_id": str(event.zone_id) if event.zone_id else None,
                "state": "Creating", "job_id": str(event.job_id), "created": at})
        case template.TemplateCopyReady():
            yield from _there(event, key, at)
        case template.TemplateCopyFailed():
            yield from copy("template", key, event.store_id, None)
            if event.zone_id is not None:
                yield "template_zone", f"{key}/{event.zone_id}", {"error": event.failure.text}
        case template.TemplateCopyDeleteRequested():
            yield from copy("template", key, event.store_id, {"state": "Destroying", "job_id": str(event.job_id)})
        case template.TemplateCopyDeleted():
            yield from copy("template", key, event.store_id, None)
        case template.TemplateQuarantined():
            yield "template", key, {"error": event.damage.text}
            yield from copy("template", key, event.store_id, {"state": "Quarantined", "error": event.damage.text})
        case template.TemplateQuarantineLifted():
            yield "template", key, {"error": None}
            yield from copy("template", key, event.store_id, {"state": "Ready", "error": None})
        case template.TemplateFailed():
            yield "template", key, {"state": "Failed", "error": event.failure.text}
        case template.TemplateDeleteRequested():
            yield "template", key, {"state": "Deleting", "removed": at, "job_id": str(event.job_id)}
            for store_id in {event.store_id, *event.stores}:
                yield from copy("template", key, store_id, {"state": "Destroying"})
        case template.TemplateDeleted():
            yield "template", key, {"state": "Deleted"}
            for store_id in {event.store_id, *event.stores}:
                yield from copy("template", key, store_id, None)
        case _:
            yield from template_seed.fold(event, at)


def _there(event: Any, key: str, at: str) -> Iterator[Change]:
    image = event.image
    yield from copy("template", key, image.store_id, {
        "template_id": key, "store_id": str(image.store_id), "key": image.key, "state": "Ready",
        "root": image.root, "sha256": image.sha256, "created": at, **sizes(image)})
