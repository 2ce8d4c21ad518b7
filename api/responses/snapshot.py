"""Snapshots as CloudStack's response objects."""

from __future__ import annotations

from typing import Any

from api.responses.shown import OWNED, Names, Row, Show, filled, name_of, owned, pending, tags, when

FIELDS: dict[str, dict[str, str]] = {
    "snapshot": {
        "id": "string", "name": "string", "state": "string", "status": "string", "created": "date", **OWNED,
        "snapshottype": "string", "intervaltype": "string", "locationtype": "string", "volumeid": "string",
        "volumename": "string", "volumetype": "string", "volumestate": "string", "physicalsize": "long",
        "virtualsize": "long", "revertable": "boolean", "zoneid": "string", "zonename": "string",
        "datastoreid": "string", "datastorename": "string", "datastorestate": "string", "datastoretype": "string",
        "tags": "list", "jobid": "string", "jobstatus": "integer"},
}


def snapshot(row: Row, names: Names) -> dict[str, Any]:
    """A snapshot."""
    source = names.volumes.get(row["volume_id"])
    copy = next(iter(names.copies.get(row["id"], [])), None)
    store = names.stores.get(copy["store_id"]) if copy else None
    return filled(
        id=row["id"], name=row["name"], state=row["state"], status=row.get("error"), created=when(row["created"]),
        **owned(row), snapshottype="MANUAL", intervaltype="MANUAL",
        locationtype="SECONDARY" if copy else "PRIMARY", volumeid=row["volume_id"],
        volumename=source["name"] if source else None, volumetype="DATADISK",
        volumestate=source["state"] if source else None, physicalsize=row.get("physical_size"),
        virtualsize=row.get("size"), revertable=False, zoneid=row["zone_id"],
        zonename=name_of(names.zones, row["zone_id"]), datastoreid=copy["store_id"] if copy else None,
        datastorename=store["name"] if store else None, datastorestate=copy["state"] if copy else None,
        datastoretype="Image" if copy else None, tags=tags("Snapshot", row), **pending(row))


OBJECTS: dict[str, Show] = {"snapshot": snapshot}
TABLES = {"snapshot": "snapshot"}
