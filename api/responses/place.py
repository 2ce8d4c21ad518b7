"""Zones, hosts and primary stores as CloudStack's response objects."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from api.responses.shown import Names, Row, Show, filled, name_of, provider_name, when
from handlers.agent import Heard
from schema.ids import host_named

FIELDS: dict[str, dict[str, str]] = {
    "zone": {
        "id": "string", "name": "string", "networktype": "string", "allocationstate": "string", "type": "string",
        "securitygroupsenabled": "boolean", "localstorageenabled": "boolean", "dhcpprovider": "string", "dns1": "string",
        "dns2": "string", "internaldns1": "string", "internaldns2": "string", "domain": "string", "tags": "list"},
    "host": {
        "id": "string", "name": "string", "type": "string", "state": "string", "resourcestate": "string", "hypervisor": "string",
        "zoneid": "string", "zonename": "string", "created": "date", "lastpinged": "date",
        "capabilities": "string", "version": "string"},
    "storagepool": {
        "id": "string", "name": "string", "path": "string", "ipaddress": "string", "type": "string", "provider": "string",
        "scope": "string", "state": "string", "zoneid": "string", "zonename": "string", "hypervisor": "string",
        "disksizetotal": "long", "disksizeused": "long", "overprovisionfactor": "string",
        "created": "date", "agent": "string", "tags": "list"},
}
SILENT = timedelta(seconds=180)
"""An agent says hello once a minute: after this it is taken for down."""
POOL_STATES = {"Creating": "Initializing"}


def zone(row: Row, names: Names) -> dict[str, Any]:
    """A zone."""
    return filled(
        id=row["id"], name=row["name"], networktype=row["network_type"] or "Advanced", allocationstate="Enabled", type="Core",
        securitygroupsenabled=False, localstorageenabled=True, dhcpprovider="VirtualRouter", dns1=row["dns1"], dns2=row["dns2"],
        internaldns1=row["internal_dns1"], internaldns2=row["internal_dns2"], domain=row["domain"], tags=[])


def host_type(row: Row) -> str:
    """In CloudStack's words."""
    return "Routing" if "hypervisor" in (row["roles"] or ()) else "SecondaryStorageVM"


def host_state(heard: Heard | None, now: datetime) -> str:
    """Up, Down when it was silent for too long, Disconnected when nobody knows when it was heard last."""
    if heard is None:
        return "Disconnected"
    return "Up" if now - heard.at <= SILENT else "Down"


def host(row: Row, names: Names, heard: Heard | None, now: datetime) -> dict[str, Any]:
    """An agent as the host that it runs on."""
    return filled(
        id=str(host_named(row["id"])), name=row["id"], type=host_type(row), state=host_state(heard, now), resourcestate="Enabled",
        hypervisor=row["hypervisor"], zoneid=row["zone_id"], zonename=name_of(names.zones, row["zone_id"]),
        created=when(row["created"]), lastpinged=when(heard.at.isoformat()) if heard else None,
        capabilities=",".join(row["roles"] or ()), version=heard.version if heard else None)


def pool_host(row: Row) -> str:
    """The host's name, as in the url of createStoragePool."""
    return str(row["agent"]).removesuffix("-kvm")


def storage_pool(row: Row, names: Names, room: tuple[int, int] | None = None) -> dict[str, Any]:
    """A primary store; `room`: its bytes and the free ones, as far as its agent said."""
    total = room[0] if room else row["total_bytes"] or None
    return filled(
        id=row["id"], name=row["name"], path=row["path"], ipaddress=pool_host(row), type="Filesystem",
        provider=provider_name(row["kind"]), scope="HOST", state=POOL_STATES.get(row["state"], row["state"] or "Up"),
        zoneid=row["zone_id"], zonename=name_of(names.zones, row["zone_id"]), hypervisor=row["hypervisor"], disksizetotal=total,
        disksizeused=room[0] - room[1] if room else None, overprovisionfactor="1.0",
        created=when(row["created"]), agent=row["agent"], tags=[])


OBJECTS: dict[str, Show] = {"zone": zone, "primary_store": storage_pool}
TABLES = {"zone": "zone", "storagepool": "primary_store"}
