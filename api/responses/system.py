"""Zones, primary stores, plug-ins and the API itself as CloudStack's response objects."""

from __future__ import annotations

from typing import Any

from api.responses.shown import Names, Row, Show, filled, name_of, provider_name, when

FIELDS: dict[str, dict[str, str]] = {
    "zone": {
        "id": "string", "name": "string", "networktype": "string", "allocationstate": "string", "type": "string",
        "securitygroupsenabled": "boolean", "localstorageenabled": "boolean", "dhcpprovider": "string", "tags": "list"},
    "storagepool": {
        "id": "string", "name": "string", "path": "string", "type": "string", "provider": "string", "scope": "string",
        "state": "string", "zoneid": "string", "zonename": "string", "hypervisor": "string", "disksizetotal": "long",
        "created": "date", "agent": "string", "tags": "list"},
    "dataStoreProvider": {
        "name": "string", "type": "string", "scope": "string", "settings": "object", "capabilities": "list"},
    "capability": {
        "cloudstackversion": "string", "securitygroupsenabled": "boolean", "dynamicrolesenabled": "boolean",
        "userpublictemplateenabled": "boolean", "supportELB": "string", "projectinviterequired": "boolean",
        "allowusercreateprojects": "boolean", "customdiskofferingminsize": "long", "customdiskofferingmaxsize": "long",
        "regionsecondaryenabled": "boolean", "kvmsnapshotenabled": "boolean", "allowuserviewdestroyedvm": "boolean",
        "allowuserexpungerecovervm": "boolean", "allowuserexpungerecovervolume": "boolean",
        "allowuserviewalldomainaccounts": "boolean", "defaultuipagesize": "long", "apilimitmax": "integer",
        "apilimitinterval": "integer"},
    "api": {
        "name": "string", "description": "string", "isasync": "boolean", "related": "string", "params": "list",
        "response": "list", "roles": "list"},
}


def zone(row: Row, names: Names) -> dict[str, Any]:
    """A zone."""
    return filled(
        id=row["id"], name=row["name"], networktype="Advanced", allocationstate="Enabled", type="Core",
        securitygroupsenabled=False, localstorageenabled=True, dhcpprovider="VirtualRouter", tags=[])


def storage_pool(row: Row, names: Names) -> dict[str, Any]:
    """A primary store."""
    return filled(
        id=row["id"], name=row["name"], path=row["path"], type="Filesystem", provider=provider_name(row["kind"]),
        scope="HOST", state="Up", zoneid=row["zone_id"], zonename=name_of(names.zones, row["zone_id"]),
        hypervisor=row["hypervisor"], disksizetotal=row["total_bytes"] or None, created=when(row["created"]),
        agent=row["agent"], tags=[])


OBJECTS: dict[str, Show] = {"zone": zone, "primary_store": storage_pool}
