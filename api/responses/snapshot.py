"""Snapshots as CloudStack's response objects."""

from __future__ import annotations

from typing import Any

from api.responses.shown import OWNED, Names, Row, Show, filled, name_of, owned, pending, tags, when

FIELDS: dict[str, dict[str, str]] = {
    "snapshot": {
        "id": "string", "name": "string", "state": "string", "status": "string", "created": "date", **OWNED,
        "snapshottype": "string", "intervaltype": "string", "locationtype": "string", "volumeid": "string",
        "volumename": "string", "volumetype": "string", "volumestate": "string", "physicalsize": "long",
        "virtualsize": "long", "chainsize": "long", "downloaddetails": "list", "policyid": "string",
        "revertable": "boolean", "zoneid": "string", "zonename": "string",
        "datastoreid": "string", "datastorename": "string", "datastorestate": "string", "datastoretype": "string",
        "tags": "list", "jobid": "string", "jobstatus": "integer"},
}


READY = "Download Complete"
"""CloudStack's text of a copy that is there."""


def snapshot(row: Row, names: Names, zone_id: str = "") -> dict[str, Any]:
    """A snapshot, as it is in a zone (empty: in its volume's)."""
    zone_id = zone_id or row["zone_id"]
    source = names.volumes.get(row["volume_id"])
    if source is None and row.get("volume_name") is not None:  # a row of the list, which has it
        source = {"name": row["volume_name"], "state": row["volume_state"], "removed": row["volume_removed"]}
    copies = [(copy, names.stores.get(copy["store_id"])) for copy in names.copies.get(row["id"], [])]
    copy, store = next(((copy, store) for copy, store in copies if store and store.get("zone_id") in (None, zone_id)),
                       copies[0] if copies else (None, None))
    ready = copy is not None and copy["state"] == "Ready"
    kind = row.get("snapshot_type") or "MANUAL"
    return filled(
        id=row["id"], name=row["name"], state=row["state"], status=row.get("error") or (READY if ready else None),
        created=when(row["created"]), **owned(row), snapshottype=kind, intervaltype=kind, policyid=row.get("policy_id"),
        locationtype=row.get("location_type"), chainsize=row.get("chain_size"),
        downloaddetails=[{"datastore": each["name"], "downloadPercent": "100", "downloadState": "DOWNLOADED"}
                         for held, each in copies if each and held["state"] == "Ready"], volumeid=row["volume_id"],
        volumename=source["name"] if source else None, volumetype="DATADISK",
        volumestate=source["state"] if source else None, physicalsize=row.get("physical_size"),
        virtualsize=row.get("size"), zoneid=zone_id, zonename=name_of(names.zones, zone_id),
        revertable=row["state"] == "BackedUp" and source is not None and not source.get("removed"),
        datastoreid=copy["store_id"] if copy else None,
        datastorename=store["name"] if store else None, datastorestate=copy["state"] if copy else None,
        datastoretype="Image" if copy else None, tags=tags("Snapshot", row), **pending(row))


OBJECTS: dict[str, Show] = {"snapshot": snapshot}
TABLES = {"snapshot": "snapshot"}
