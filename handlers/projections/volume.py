"""Volumes in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections import volume_upload
from handlers.projections.columns import Change, owned
from schema import volume, volume_attach

TABLES = ("volume",)


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    key = str(event.volume_id)
    match event:
        case volume.VolumeRequested():
            yield "volume", key, {
                "name": event.name, "zone_id": str(event.zone_id), "state": "Creating", "size": event.virtual_size,
                "primary_id": str(event.primary.id), "hypervisor": event.hypervisor, "job_id": str(event.job_id),
                "template_id": str(event.template_id) if event.template_id else None,
                "snapshot_id": str(event.snapshot_id) if event.snapshot_id else None, "created": at,
                "disk_offering_id": str(event.disk_offering_id) if event.disk_offering_id else None, "type": "DATADISK",
                "min_iops": event.min_iops, "max_iops": event.max_iops, "display": event.display, "delete_protection": False,
                **owned(event.owner)}
        case volume.VolumeReady():
            yield "volume", key, {"state": "Ready", "size": event.disk.virtual_size, "path": event.disk.path,
                                  "physical_size": event.physical_size}
        case volume.VolumeFailed():
            yield "volume", key, {"state": "Failed", "error": event.failure.text}
        case volume.VolumeRenamed():
            yield "volume", key, {"name": event.name}
        case volume.VolumeUpdated():
            given = {"display": event.display, "delete_protection": event.delete_protection}
            yield "volume", key, {name: value for name, value in given.items() if value is not None}
        case volume.VolumeDestroyed():
            yield "volume", key, {"state": "Destroy"}
        case volume.VolumeRecovered():
            yield "volume", key, {"state": "Ready"}
        case volume.VolumeResizeStarted():
            yield "volume", key, {"state": "Resizing", "job_id": str(event.job_id)}
        case volume.VolumeResized():
            yield "volume", key, {"size": event.disk.virtual_size, "physical_size": event.physical_size}
        case volume.VolumeResizeEnded():
            changed = {"disk_offering_id": str(event.disk_offering_id) if event.disk_offering_id else None,
                       "min_iops": event.min_iops, "max_iops": event.max_iops}
            yield "volume", key, {"state": "Ready", "size": event.virtual_size} | {
                name: value for name, value in changed.items() if value is not None}
        case volume.VolumeSnapshotStarted():
            yield "volume", key, {"state": "Snapshotting"}
        case volume.VolumeReleased():
            yield "volume", key, {"state": "Ready"}
        case volume_attach.VolumeAttachStarted():
            yield "volume", key, {"state": "Attaching", "job_id": str(event.job_id)}
        case volume_attach.VolumeAttached():
            yield "volume", key, {"state": "Ready", "machine_id": str(event.machine_id), "device_id": event.device_id,
                                  "attached": at}
        case volume_attach.VolumeDetachStarted():
            yield "volume", key, {"state": "Detaching", "job_id": str(event.job_id)}
        case volume_attach.VolumeDetached():
            yield "volume", key, {"state": "Ready", "machine_id": None, "device_id": None, "attached": None}
        case volume.VolumeRevertStarted():
            yield "volume", key, {"state": "RevertSnapshotting", "job_id": str(event.job_id)}
        case volume.VolumeReverted():
            yield "volume", key, {"state": "Ready", "size": event.disk.virtual_size, "path": event.disk.path,
                                  "physical_size": event.physical_size}
        case volume.VolumeRevertFailed() | volume_attach.VolumeAttachFailed() | volume_attach.VolumeDetachFailed():
            yield "volume", key, {"state": "Ready"}
        case volume.VolumeDeleteRequested():
            yield "volume", key, {"state": "Expunging", "removed": at}
        case volume.VolumeDeleted():
            yield "volume", key, {"state": "Expunged"}
        case _:
            yield from volume_upload.fold(event, at)
