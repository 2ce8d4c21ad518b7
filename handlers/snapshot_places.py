"""Places of a snapshot besides its own: copies in other zones' image stores, and zones in which it may be used.

Owns what a copy's events make of it, and which object is read where. Refuses to decide what is copied: `snapshot_copy` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from uuid import UUID

from handlers import placement
from schema.failure import BadParameter, Damage
from schema.ids import derive
from schema.image import ImageRef
from schema.message import Event
from schema.snapshot import (
    CopySnapshot,
    SnapshotCopied,
    SnapshotCopyDeleted,
    SnapshotCopyDeleteRequested,
    SnapshotCopyFailed,
    SnapshotCopyStarted,
    SnapshotQuarantined,
    SnapshotQuarantineLifted,
    SnapshotZoneAdded,
    SnapshotZoneRemoved,
)

if TYPE_CHECKING:
    from handlers.decider import Context
    from handlers.directory import Store
    from handlers.snapshot_state import SnapshotState

MOST = 8
"""Zones of one command: each is a step of its job."""
AT_REST = (SnapshotCopyStarted, SnapshotCopied, SnapshotCopyFailed, SnapshotCopyDeleteRequested, SnapshotZoneAdded,
           SnapshotZoneRemoved)
"""Events of a snapshot that is backed up, and stays so."""
TRANSITIONS: dict[tuple[str, str], str] = {
    **{("BackedUp", event.TYPE): "BackedUp" for event in AT_REST},
    **{(status, SnapshotCopyDeleted.TYPE): status for status in ("BackedUp", "Destroying", "Hidden", "Destroyed")},
}
"""(state, event) -> state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotCopy:
    """A whole image of a snapshot in a further store."""

    status: str
    """Copying, Ready, Destroying"""
    store_id: UUID
    zone_id: UUID
    counted: int
    """Bytes by which it is counted on its store: reserved until it is Ready."""
    job_id: UUID
    """The job that makes it, or made it."""
    image: ImageRef | None = None
    damage: Damage | None = None
    """It is Quarantined: where its object is not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where else a snapshot is."""

    copies: Mapping[UUID, SnapshotCopy] = field(default_factory=dict)
    """By store."""
    zones: frozenset[UUID] = frozenset()
    """Further zones in which it may be used."""


def evolve(places: Places, event: Event) -> Places:
    """After `event`."""
    match event:
        case SnapshotZoneAdded():
            return replace(places, zones=places.zones | {event.zone_id})
        case SnapshotZoneRemoved():
            return replace(places, zones=places.zones - {event.zone_id})
        case SnapshotCopyStarted():
            return _with(places, SnapshotCopy(status="Copying", store_id=event.store_id, zone_id=event.zone_id,
                                              counted=event.reserved, job_id=event.job_id))
        case SnapshotCopyFailed() | SnapshotCopyDeleted():
            return replace(places, copies={key: copy for key, copy in places.copies.items() if key != event.store_id})
    known = places.copies.get(getattr(event, "store_id", None))  # type: ignore[arg-type] # None is no store's id
    if known is None:
        return places
    match event:
        case SnapshotCopied():
            return _with(places, replace(known, status="Ready", image=event.image, counted=event.counted))
        case SnapshotCopyDeleteRequested():
            return _with(replace(places, zones=places.zones - {known.zone_id}), replace(known, status="Destroying"))
        case SnapshotQuarantined():
            return _with(places, replace(known, damage=event.damage))
        case SnapshotQuarantineLifted():
            return _with(places, replace(known, damage=None))
    return places


def _with(places: Places, copy: SnapshotCopy) -> Places:
    return replace(places, copies={**places.copies, copy.store_id: copy})


@dataclass(frozen=True, slots=True)
class Resting:
    """A snapshot's object that is read in a zone."""

    image: ImageRef
    damage: Damage | None


def region(context: Context, state: SnapshotState) -> bool:
    """Whether the snapshot's own store reaches every zone."""
    store = context.directory.stores.get(state.store_id)
    return store is not None and store.scope == "REGION"


def resting(context: Context, state: SnapshotState, zone_id: UUID) -> Resting | None:
    """The snapshot's object in a zone; None when it has none there."""
    if state.image is not None and (zone_id == state.zone_id or region(context, state)):
        return Resting(state.image, state.damage)
    copy = in_zone(state, zone_id)
    return Resting(copy.image, copy.damage) if copy is not None and copy.image is not None else None


def in_zone(state: SnapshotState, zone_id: UUID) -> SnapshotCopy | None:
    """The snapshot's copy in a zone, if it is ready."""
    return next((copy for copy in state.places.copies.values() if copy.zone_id == zone_id and copy.status == "Ready"), None)


def zones_of(state: SnapshotState) -> set[UUID]:
    """Zones in which the snapshot may be used."""
    return {state.zone_id, *state.places.zones}


def wanted(context: Context, zone_ids: list[UUID], field: str) -> list[UUID]:
    """Zones that there are, each once. Raises BadParameter."""
    found = list(dict.fromkeys(zone_ids))
    for zone_id in found:
        if zone_id not in context.directory.zones:
            raise BadParameter(f"no zone has the id {zone_id}", field=field, remedy="listZones shows them")
    if len(found) > MOST:
        raise BadParameter(f"names {len(found)} zones", field=field, remedy=f"at most {MOST} at once")
    return found


def reachable(context: Context, store: Store, zone_ids: list[UUID]) -> None:
    """Raises BadParameter or Unavailable unless what is backed up to `store` can be copied to all of these zones."""
    for zone_id in wanted(context, zone_ids, "zoneids"):
        if store.scope != "REGION":
            placement.image_store(context.directory, zone_id)


def copy_on(context: Context, state: SnapshotState) -> None:
    """It is backed up: a job of its own copies it to the zones that were asked for when it was taken."""
    further = [zone_id for zone_id in state.wanted if zone_id != state.zone_id]
    if further:
        context.out.submissions.append((derive(context.job_id, "copies"), CopySnapshot(id=state.id, zone_ids=further)))


__all__ = ["MOST", "TRANSITIONS", "Places", "Resting", "SnapshotCopy", "copy_on", "evolve", "in_zone", "reachable", "region",
           "resting", "wanted", "zones_of"]
