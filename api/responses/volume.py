"""Volumes as CloudStack's response objects."""

from __future__ import annotations

from typing import Any

from api.responses.shown import OWNED, Names, Row, Show, filled, name_of, owned, pending, tags, when

FIELDS: dict[str, dict[str, str]] = {
    "volume": {
        "id": "string", "name": "string", "state": "string", "status": "string", "type": "string", "size": "long",
        "physicalsize": "long", "virtualsize": "long", "created": "date", "zoneid": "string", "zonename": "string",
        **OWNED, "storage": "string", "storageid": "string", "storagetype": "string",
        "provisioningtype": "string", "templateid": "string", "templatename": "string",
        "templatedisplaytext": "string", "diskofferingid": "string", "diskofferingname": "string",
        "diskofferingdisplaytext": "string", "miniops": "long", "maxiops": "long", "snapshotid": "string",
        "hypervisor": "string", "path": "string",
        "displayvolume": "boolean", "isextractable": "boolean", "destroyed": "boolean", "deleteprotection": "boolean",
        "virtualmachineid": "string", "vmname": "string", "vmdisplayname": "string", "vmstate": "string", "vmtype": "string",
        "deviceid": "long", "attached": "date", "supportsstoragesnapshot": "boolean",
        "tags": "list", "jobid": "string", "jobstatus": "integer"},
}


def volume(row: Row, names: Names) -> dict[str, Any]:
    """A volume."""
    source = names.templates.get(row.get("template_id") or "")
    chosen = names.offerings.get(row.get("disk_offering_id") or "")
    return filled(
        id=row["id"], name=row["name"], state=row["state"], type=row.get("type") or "DATADISK",
        status="Upload Complete" if row["state"] == "Uploaded" else row.get("error"),
        size=row["size"], physicalsize=row.get("physical_size"), virtualsize=row["size"], created=when(row["created"]),
        zoneid=row["zone_id"], zonename=name_of(names.zones, row["zone_id"]), **owned(row),
        storage=name_of(names.primaries, row["primary_id"]), storageid=row["primary_id"],
        storagetype="local" if row["primary_id"] else None,
        provisioningtype="thin", templateid=row.get("template_id"),
        templatename=source["name"] if source else None,
        templatedisplaytext=(source["display_text"] or source["name"]) if source else None,
        diskofferingid=row.get("disk_offering_id"), diskofferingname=chosen["name"] if chosen else None,
        diskofferingdisplaytext=chosen["display_text"] if chosen else None, miniops=row.get("min_iops"),
        maxiops=row.get("max_iops"), snapshotid=row.get("snapshot_id"), hypervisor=row["hypervisor"], path=row.get("path"),
        displayvolume=row.get("display") is not False, isextractable=True,
        destroyed=row["state"] in ("Destroy", "Expunging", "Expunged"), deleteprotection=bool(row.get("delete_protection")),
        supportsstoragesnapshot=False, tags=tags("Volume", row), **_machine(row, names), **pending(row))


def _machine(row: Row, names: Names) -> dict[str, Any]:
    """The machine that it is attached to."""
    if not row.get("machine_id"):
        return {}
    at = names.machines.get(row["machine_id"])
    told = {"vmname": at["name"], "vmdisplayname": at["name"], "vmstate": at["state"]} if at else {}
    return {"virtualmachineid": row["machine_id"], "vmtype": "User", "deviceid": row["device_id"],
            "attached": when(row["attached"]), **told}


OBJECTS: dict[str, Show] = {"volume": volume}
TABLES = {"volume": "volume"}
