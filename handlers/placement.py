"""Placement: which image store, which primary store, which agent. Pure functions of the directory.

Refuses to reserve anything: capacity and residence are counters, taken in the append that follows. What it says of room is as
old as the decision; when another append took the room first, the whole choice is made again.
"""

from __future__ import annotations

from uuid import UUID

from handlers.directory import Directory, Store
from schema.failure import BadParameter, NoRoom, Unavailable
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


def free(directory: Directory, store: Store) -> int | None:
    """Bytes of its capacity that are neither used nor reserved; None: the operator set no capacity."""
    return None if store.capacity is None else max(0, store.capacity - directory.used.get(store.spec.id, 0))


def image_store(directory: Directory, zone_id: UUID | None, *, prefer: UUID | None = None, provider: str = "",
                need: int = 1) -> Store:
    """An image store for a new object: it reaches the zone (any, for a whole region), is of the `provider` (empty: any), takes
    new objects, an agent carries it, and `need` bytes are free. `prefer` if it is one, else the one with the most room.

    Raises Unavailable, or NoRoom, each naming what was in the way."""
    reach = [store for store in directory.of_role() if store.state == "Ready"
             and (store.scope == "REGION" or zone_id is None or store.zone_id == zone_id)]
    if not reach:
        raise Unavailable("no image store reaches this zone", field="zoneid", remedy="add one with addImageStore")
    kind = [store for store in reach if provider.lower() in ("", store.spec.provider)]
    if not kind:
        raise Unavailable(f"no image store of the provider {provider} reaches this zone", field="provider",
                          remedy=f"here are: {', '.join(sorted({store.spec.provider for store in reach}))}; "
                                 "configureBackupProvider chooses among them for backups")
    writable = [store for store in kind if not store.read_only]
    if not writable:
        names = ", ".join(sorted(store.spec.name for store in kind))
        raise Unavailable(f"every image store here is read-only ({names}) and takes no new objects", field="zoneid",
                          remedy="updateImageStore readonly=false, or add another")
    carried = [store for store in writable if _carriers(directory, store.spec.provider, store.zone_id)]
    if not carried:
        storage_agent(directory, writable[0].spec.provider, writable[0].zone_id)
    rooms = {store.spec.id: free(directory, store) for store in carried}
    roomy = [store for store in carried if (room := rooms[store.spec.id]) is None or room >= max(1, need)]
    if not roomy:
        raise no_room(carried, need)
    # A store without a capacity has as much room as anybody knows.
    return min(roomy, key=lambda store: (store.spec.id != prefer, rooms[store.spec.id] is not None,
                                         -(rooms[store.spec.id] or 0), str(store.spec.id)))


def backup_store(directory: Directory, zone_id: UUID | None, *, prefer: UUID | None = None) -> Store:
    """An image store for a backup: of the provider that configureBackupProvider chose, if it chose one. `prefer`: the store of
    what it may be a delta of. Raises as `image_store`."""
    return image_store(directory, zone_id, prefer=prefer, provider=directory.backup_provider)


def no_room(stores: list[Store], need: int, measured: int | None = None) -> NoRoom:
    """The refusal of `need` bytes by these stores; `measured`: what the only one of them said was free."""
    names = ", ".join(sorted(store.spec.name for store in stores))
    if measured is not None:
        return NoRoom(f"the image store {names} is full: no room for {need} bytes beside what is on its way: {measured} bytes "
                      "are free", field="url", remedy="free space there, wait for what is on its way, or add a store")
    return NoRoom(f"no room for {need} bytes: the capacity of {names} is used or reserved", field="zoneid", remedy=
                  "wait for what is on its way, delete images, raise it (updateImageStore capacitybytes), or add a store")


def primary(directory: Directory, zone_id: UUID, storage_id: UUID | None = None) -> tuple[PrimarySpec, str]:
    """A primary store of the zone and its hypervisor: the one named, else the one with the most free bytes; where nobody said
    how many, by id. Raises BadParameter, Unavailable."""
    found = sorted((entry for entry in directory.primaries.values() if entry[0].zone_id == zone_id),
                   key=lambda entry: (-directory.free.get(entry[0].id, 0), str(entry[0].id)))
    if storage_id is not None:
        found = [entry for entry in found if entry[0].id == storage_id]
        if not found:
            raise BadParameter(f"no primary store of the zone has the id {storage_id}", field="storageid",
                               remedy="listStoragePools shows them")
    if not found:
        raise Unavailable("no primary store is known in this zone", field="zoneid",
                          remedy="start a KVM agent there: it announces its primary store")
    return found[0]


def primary_of(directory: Directory, zone_id: UUID, agent: str) -> UUID:
    """The primary store of one host with the most free bytes. Raises Unavailable."""
    found = [spec for spec, _ in directory.primaries.values() if spec.zone_id == zone_id and spec.agent == agent]
    if not found:
        raise Unavailable(f"no primary store is known on the host {agent}", field="virtualmachineid",
                          remedy="createStoragePool opens one there")
    return min(found, key=lambda spec: (-directory.free.get(spec.id, 0), str(spec.id))).id


def storage_agent(directory: Directory, provider: str, zone_id: UUID | None) -> str:
    """A storage agent that carries `provider`, in the zone when one is named. Raises Unavailable."""
    carriers = _carriers(directory, provider, zone_id)
    if not carriers:
        raise Unavailable(f"no storage agent carries the provider {provider}", field="provider",
                          remedy="start one: storebus serve agent --role storage")
    return carriers[0]


def _carriers(directory: Directory, provider: str, zone_id: UUID | None) -> list[str]:
    return sorted(
        name for name, agent in directory.agents.items()
        if "storage" in agent.roles and (zone_id is None or agent.zone_id == zone_id)
        and any(spec.name.lower() == provider for spec in agent.providers)
    )
