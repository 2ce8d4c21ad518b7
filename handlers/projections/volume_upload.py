"""Uploaded volumes in the read tables, and what they have in image stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change, owned, sizes
from schema import volume_upload


def _ref(event: Any, columns: dict[str, Any] | None) -> Change:
    """What it has in an image store."""
    return "volume_store_ref", f"{event.volume_id}/{event.store_id}", columns


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    key = str(event.volume_id)
    match event:
        case volume_upload.VolumeUploadRequested():
            yield "volume", key, {
                "name": event.name, "zone_id": str(event.zone_id), "state": "UploadOp", "size": 0, "job_id": str(event.job_id),
                "created": at, "hypervisor": "KVM", "type": "DATADISK", "display": True, "delete_protection": False,
                "disk_offering_id": str(event.disk_offering_id) if event.disk_offering_id else None, **owned(event.owner)}
            yield _ref(event, {
                "volume_id": key, "store_id": str(event.store_id), "zone_id": str(event.zone_id), "kind": "upload",
                "key": event.adopted or None, "state": "Creating", "job_id": str(event.job_id), "created": at})
        case volume_upload.VolumeUploaded():
            image = event.image
            yield "volume", key, {"state": "Uploaded", **sizes(image)}
            yield "volume_store_ref", f"{key}/{image.store_id}", {
                "key": image.key, "state": "Ready", "root": image.root, "sha256": image.sha256, **sizes(image)}
        case volume_upload.VolumeUploadFailed():
            yield "volume", key, {"state": "Failed", "error": event.failure.text}
            yield _ref(event, None)
        case volume_upload.VolumePlacing():
            yield "volume", key, {"state": "Copying", "primary_id": str(event.primary.id), "hypervisor": event.hypervisor,
                                  "job_id": str(event.job_id)}
        case volume_upload.VolumeNotPlaced():
            yield "volume", key, {"state": "Uploaded", "primary_id": None}
        case volume_upload.VolumeImageDropped():
            yield _ref(event, None)
        case _:
            pass
