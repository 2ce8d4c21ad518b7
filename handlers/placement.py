"""Placement: which image store, which primary store, which agent. Pure functions of the directory.

Refuses to reserve anything: capacity and residence are counters, taken in the append that follows.
"""

from __future__ import annotations

from uuid import UUID

from handlers.directory import Directory, Store
from schema.failure import BadParameter, Unavailable
from schema.image import PrimarySpec


def zone(directory: Directory, zone_id: UUID | None) -> UUID:
    """The zone named, or the only one. Raises BadParameter."""
    if zone_id is not None:
        if zone_id not in directory.zones:
            raise BadParameter(f"no zone has the id {zone_id}", field="zoneid", remedy="listZones shows them")
        return zone_id
    if len(directory.zones) != 1:
        raise BadParameter("missing", field="zoneid", remedy="name one of listZones")
    return next(iter(directory.zones))


def image_store(directory: Directory, zone_id: UUID | None, *, prefer: UUID | None = None) -> Store:
    """A writable image store that reaches the zone (any, for a whole region), `prefer` if it is one. Raises Unavailable."""
    reach = [store for store in directory.stores.values()
             if store.state == "Ready" and (store.scope == "REGION" or zone_id is None or store.zone_id == zone_id)]
    if not reach:
        raise Unavailable("no image store reaches this zone", field="zoneid", remedy="add one with addImageStore")
    writable = sorted((store for store in reach if not store.read_only), key=lambda store: str(store.spec.id))
    if not writable:
        raise Unavailable("every image store here is read-only", field="zoneid",
                          remedy="updateImageStore readonly=false, or add another")
    return next((store for store in writable if store.spec.id == prefer), writable[0])


def primary(directory: Directory, zone_id: UUID) -> tuple[PrimarySpec, str]:
    """A primary store of the zone and its hypervisor. Raises Unavailable."""
    found = sorted((entry for entry in directory.primaries.values() if entry[0].zone_id == zone_id),
                   key=lambda entry: str(entry[0].id))
    if not found:
        raise Unavailable("no primary store is known in this zone", field="zoneid",
                          remedy="start a KVM agent there: it announces its primary store")
    return found[0]


def storage_agent(directory: Directory, provider: str, zone_id: UUID | None) -> str:
    """A storage agent that carries `provider`, in the zone when one is named. Raises Unavailable."""
    carriers = sorted(
        name for name, agent in directory.agents.items()
        if "storage" in agent.roles and (zone_id is None or agent.zone_id == zone_id)
        and any(spec.name.lower() == provider for spec in agent.providers)
    )
    if not carriers:
        raise Unavailable(f"no storage agent carries the provider {provider}", field="provider",
                          remedy="start one: storebus serve agent --role storage")
    return carriers[0]
