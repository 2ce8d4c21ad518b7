"""Machines as CloudStack's response objects."""

from __future__ import annotations

from typing import Any

from api.responses.shown import OWNED, Names, Row, Show, filled, name_of, owned, when

FIELDS: dict[str, dict[str, str]] = {
    "virtualmachine": {
        "id": "string", "name": "string", "displayname": "string", "instancename": "string", "state": "string", **OWNED,
        "zoneid": "string", "zonename": "string", "hostid": "string", "hostname": "string", "hypervisor": "string",
        "memory": "integer", "haenable": "boolean", "created": "date", "trouble": "string", "nic": "list", "tags": "list"},
}


def machine(row: Row, names: Names) -> dict[str, Any]:
    """A machine that an agent reports; `trouble` (extension): why it does not run, though it should."""
    return filled(
        id=row["id"], name=row["name"], displayname=row["name"], instancename=row["name"], state=row["state"], **owned(row),
        zoneid=row["zone_id"], zonename=name_of(names.zones, row["zone_id"]), hostid=row["host_id"], hostname=row["agent"],
        hypervisor=row["hypervisor"], memory=row["memory_mib"] or None, haenable=False, created=when(row["created"]),
        trouble=row["trouble"], nic=[], tags=[])


OBJECTS: dict[str, Show] = {"machine": machine}
TABLES = {"virtualmachine": "machine"}
