"""Snapshots and their copies in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change, copy, owned, sizes
from schema import snapshot

TABLES = ("snapshot", "snapshot_store_ref", "snapshot_zone_ref")


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    key = str(event.snapshot_id)
    match event:
        case snapshot.SnapshotRequested():
            yield "snapshot", key, {
                "name": event.name, "volume_id": str(event.volume_id), "zone_id": str(event.zone_id),
                "state": "Creating", "size": event.disk.virtual_size, "on_primary": False,
                "job_id": str(event.job_id), "snapshot_type": event.snapshot_type, "location_type": "PRIMARY",
                "policy_id": str(event.policy_id) if event.policy_id else None, "created": at, **owned(event.owner)}
            yield "snapshot_zone_ref", f"{key}/{event.zone_id}", {
                "snapshot_id": key, "zone_id": str(event.zone_id), "created": at}
        case snapshot.SnapshotTaken():
            yield "snapshot", key, {"state": "CreatedOnPrimary", "size": event.virtual_size, "on_primary": True}
        case snapshot.SnapshotBackupStarted():
            yield "snapshot", key, {"state": "BackingUp", "depth": event.depth, "reason": event.reason,
                                    "parent_id": str(event.parent) if event.parent else None}
        case snapshot.SnapshotBackedUp():
            image = event.image
            full = {} if image.parent else {"parent_id": None, "depth": 0, "reason": event.reason}
            yield "snapshot", key, {"state": "BackedUp", "location_type": "SECONDARY", **full, **sizes(image),
                                    "chain_size": event.chain_size or None}
            yield "snapshot_store_ref", f"{key}/{image.store_id}", {
                "snapshot_id": key, "store_id": str(image.store_id), "key": image.key, "state": "Ready",
                "root": image.root, "created": at, **sizes(image)}
        case snapshot.SnapshotQuarantined():
            yield "snapshot", key, {"error": event.damage.text}
            yield from copy("snapshot", key, event.store_id, {"state": "Quarantined"})
        case snapshot.SnapshotQuarantineLifted():
            yield "snapshot", key, {"error": None}
            yield from copy("snapshot", key, event.store_id, {"state": "Hidden" if event.hidden else "Ready"})
        case snapshot.SnapshotCollapsed():
            image = event.image
            yield "snapshot", key, {"parent_id": str(event.parent) if event.parent else None, "depth": event.depth,
                                    "reason": event.reason, "error": None, "chain_size": event.chain_size, **sizes(image)}
            yield from copy("snapshot", key, image.store_id, {
                "key": image.key, "root": image.root, "state": "Hidden" if event.hidden else "Ready", **sizes(image)})
        case snapshot.SnapshotShifted():
            yield "snapshot", key, {"depth": event.depth} | ({"chain_size": event.chain_size} if event.chain_size else {})
        case snapshot.SnapshotZoneAdded():
            yield "snapshot_zone_ref", f"{key}/{event.zone_id}", {
                "snapshot_id": key, "zone_id": str(event.zone_id), "created": at}
        case snapshot.SnapshotZoneRemoved():
            yield "snapshot_zone_ref", f"{key}/{event.zone_id}", None
        case snapshot.SnapshotCopyStarted():
            yield "snapshot_store_ref", f"{key}/{event.store_id}", {
                "snapshot_id": key, "store_id": str(event.store_id), "state": "Copying", "created": at}
        case snapshot.SnapshotCopied():
            yield from copy("snapshot", key, event.store_id, {
                "key": event.image.key, "state": "Ready", "root": event.image.root, **sizes(event.image)})
        case snapshot.SnapshotCopyDeleteRequested():
            yield from copy("snapshot", key, event.store_id, {"state": "Destroying"})
        case snapshot.SnapshotCopyFailed() | snapshot.SnapshotCopyDeleted():
            yield from copy("snapshot", key, event.store_id, None)
        case snapshot.SnapshotOffPrimary():
            yield "snapshot", key, {"on_primary": False}
        case snapshot.SnapshotFailed():
            yield "snapshot", key, {"state": "Error", "on_primary": False, "error": event.failure.text, "parent_id": None}
            yield from copy("snapshot", key, event.store_id, None)
        case snapshot.SnapshotDeleteRequested():
            yield "snapshot", key, {"state": "Destroying", "removed": at}
            yield from copy("snapshot", key, event.store_id, {"state": "Destroying"})
        case snapshot.SnapshotHidden():
            yield "snapshot", key, {"state": "Destroyed"}
            yield from copy("snapshot", key, event.store_id, {"state": "Hidden"})
        case snapshot.SnapshotDeleted():
            yield "snapshot", key, {"state": "Destroyed"}
            yield from copy("snapshot", key, event.store_id, None)
        case _:
            pass
