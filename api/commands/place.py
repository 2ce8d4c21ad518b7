"""Commands of zones, hosts and primary stores: where things are. As `api.registry` collects them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.api_command import ADMIN, ID, IDS, NAME, ZONE, ApiCommand, Mode, Type, derived, listing, parameter
from schema.ids import zone_named
from schema.primary_store import CreateStoragePool, DeleteStoragePool
from schema.zone import CreateZone

ZONE_TEXTS = {"networktype": "Basic or Advanced; kept and shown", "dns1": "a name server; kept and shown",
              "dns2": "another name server", "internaldns1": "a name server for hosts", "internaldns2": "another one for hosts",
              "domain": "the network domain"}
POOL_TEXTS = {"url": "file://<host>/<path>: a folder on a KVM agent's host", "scope": "HOST",
              "details": "of the provider Block: details[0].devices=/dev/disk/by-id/...",
              "provider": "DefaultPrimary or Folder: files in the folder; Block: block devices",
              "forced": "refused: volumes are not deleted with their store"}


def _zone(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    by_name = {each.name: each.field for each in derived(CreateZone, texts=ZONE_TEXTS) if each.field}
    return {by_name[name]: value for name, value in values.items() if name in by_name} | {"id": zone_named(values["name"])}


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="listZones", mode=Mode.LIST, item="zone", noun="zone",
        parameters=listing(ID, IDS, NAME, parameter("networktype", text=ZONE_TEXTS["networktype"]),
                           parameter("available", Type.BOOLEAN, text="accepted: every zone is available")),
        filters={"id": "id", "name": "name", "networktype": "network_type"}, description="Lists zones."),
    ApiCommand(
        name="createZone", mode=Mode.SYNC, item="zone", noun="zone", command=CreateZone, roles=ADMIN, now=True, prepare=_zone,
        parameters=tuple(each for each in derived(CreateZone, texts=ZONE_TEXTS) if each.name != "id"),
        related="listZones",
        description="Makes a zone. Agents that are started with its name (STOREBUS_ZONE) belong to it."),
    ApiCommand(
        name="listHosts", mode=Mode.LIST, item="host", roles=ADMIN,
        parameters=listing(
            ID, NAME, ZONE, parameter("type", choices=("Routing", "SecondaryStorageVM")), parameter("state"),
            parameter("hypervisor"), parameter("virtualmachineid", Type.UUID, text="the UUID of a machine: its host")),
        description="Lists the hosts that agents run on: hypervisors (Routing) and storage agents (SecondaryStorageVM)."),
    ApiCommand(
        name="listStoragePools", mode=Mode.LIST, item="storagepool", noun="primary_store", roles=ADMIN,
        parameters=listing(ID, NAME, ZONE, parameter("path"), parameter("scope", text="HOST, ZONE or CLUSTER; all here are HOST"),
                           parameter("ipaddress", text="the host's name, as in the url"),
                           parameter("status", text="the state: Up, Initializing or Removing")),
        filters={"id": "id", "name": "name", "zoneid": "zone_id", "path": "path", "scope": "scope"},
        description="Lists primary stores, with the room that their agents see."),
    ApiCommand(
        name="createStoragePool", mode=Mode.SYNC, item="storagepool", noun="primary_store", command=CreateStoragePool,
        roles=ADMIN, parameters=derived(CreateStoragePool, texts=POOL_TEXTS), related="listStoragePools",
        description="Opens a folder, or block devices, of a KVM agent's host as a primary store. Its agent judges the place."),
    ApiCommand(
        name="deleteStoragePool", mode=Mode.SYNC, noun="primary_store", command=DeleteStoragePool, roles=ADMIN,
        parameters=derived(DeleteStoragePool, texts=POOL_TEXTS), related="listStoragePools",
        description="Closes a primary store on which no volume lives. Its folder stays."),
)
