"""Disk offerings as CloudStack's response objects."""

from __future__ import annotations

from typing import Any

from api.responses.shown import Names, Row, Show, domain_names, filled, when

FIELDS: dict[str, dict[str, str]] = {
    "diskoffering": {
        "id": "string", "name": "string", "displaytext": "string", "disksize": "long", "iscustomized": "boolean",
        "iscustomizediops": "boolean", "miniops": "long", "maxiops": "long", "tags": "string", "provisioningtype": "string",
        "storagetype": "string", "displayoffering": "boolean", "domainid": "string", "domain": "string", "state": "string",
        "created": "date"},
}


def disk_offering(row: Row, names: Names) -> dict[str, Any]:
    """A disk offering; of several domains the ids and names are comma separated, as CloudStack has it."""
    domains = row.get("domains") or []
    return filled(
        id=row["id"], name=row["name"], displaytext=row["display_text"], disksize=row["disk_size"] or 0,
        iscustomized=row["disk_size"] is None, iscustomizediops=row["min_iops"] is None, miniops=row["min_iops"],
        maxiops=row["max_iops"], tags=row["tags"], provisioningtype=row["provisioning_type"], storagetype="shared",
        displayoffering=row["display"], domainid=",".join(each["id"] for each in domains),
        domain=",".join(domain_names(each["path"])["domain"] for each in domains),
        state="Inactive" if row["removed"] else "Active", created=when(row["created"]))


OBJECTS: dict[str, Show] = {"disk_offering": disk_offering}
TABLES = {"diskoffering": "disk_offering"}
