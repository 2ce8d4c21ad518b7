"""What volumes have in image stores, in the read tables: copies that are extracted from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change, sizes
from schema import volume_copy

TABLES = ("volume_store_ref",)


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    key = f"{event.copy_id}/{event.store_id if hasattr(event, 'store_id') else event.image.store_id}"
    match event:
        case volume_copy.VolumeCopyRequested():
            yield "volume_store_ref", key, {
                "volume_id": str(event.volume_id), "store_id": str(event.store_id), "zone_id": str(event.zone_id),
                "kind": "extract", "state": "Allocated", "job_id": str(event.job_id), "created": at}
        case volume_copy.VolumeCopyStarted():
            yield "volume_store_ref", key, {"state": "Creating"}
        case volume_copy.VolumeCopyReady():
            image = event.image
            yield "volume_store_ref", key, {"state": "Ready", "key": image.key, "root": image.root, "sha256": image.sha256,
                                            **sizes(image)}
        case volume_copy.VolumeCopyDeleteRequested():
            yield "volume_store_ref", key, {"state": "Destroying"}
        case volume_copy.VolumeCopyFailed() | volume_copy.VolumeCopyDeleted():
            yield "volume_store_ref", key, None
        case _:
            pass
