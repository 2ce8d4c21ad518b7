"""Image stores as CloudStack's response objects. Secrets are in no read table, so they cannot be shown."""

from __future__ import annotations

from typing import Any

from api.responses.shown import Names, Row, Show, filled, name_of, provider_name

FIELDS: dict[str, dict[str, str]] = {
    "imagestore": {
        "id": "string", "name": "string", "url": "string", "protocol": "string", "providername": "string",
        "scope": "string", "zoneid": "string", "zonename": "string", "readonly": "boolean", "hasannotations": "boolean",
        "tested": "list", "capacitybytes": "long",
        "disksizetotal": "long", "disksizeused": "long"},
    "providers": {"name": "string", "description": "string", "capabilities": "list", "chosen": "boolean"},
}
FIELDS["secondarystorage"] = FIELDS["imagestore"]
"""CloudStack has two keys for the same object."""


def image_store(row: Row, names: Names) -> dict[str, Any]:
    """An image store, or a staging store. What it was told is not shown."""
    return filled(
        id=row["id"], name=row["name"], url=row["url"], protocol=row["protocol"],
        providername=provider_name(row["provider"]), scope=row["scope"], zoneid=row["zone_id"],
        zonename=name_of(names.zones, row["zone_id"]), readonly=bool(row["read_only"]), hasannotations=False,
        capacitybytes=row.get("capacity_bytes") or None, disksizetotal=row.get("capacity_bytes") or None,
        disksizeused=names.used.get(row["id"]))


OBJECTS: dict[str, Show] = {"image_store": image_store}
TABLES = {"imagestore": "image_store"}
