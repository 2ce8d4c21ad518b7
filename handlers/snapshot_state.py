"""The state of a snapshot: the fold of its events, and which of them each state allows.

Owns the table of transitions and what each event changes. Refuses to decide: that is `snapshot`, `chain` and `collapse`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

from handlers import snapshot_places
from handlers.decider import IllegalTransition
from handlers.snapshot_places import Places, SnapshotCopy
from schema.failure import Damage
from schema.identity import ROOT_OWNER, Owner
from schema.image import DiskRef, ImageRef
from schema.message import Event
from schema.snapshot import (
    SnapshotAbsorbed,
    SnapshotBackedUp,
    SnapshotBackupStarted,
    SnapshotCollapsed,
    SnapshotCollapseFailed,
    SnapshotCollapseStarted,
    SnapshotDeleteAwaited,
    SnapshotDeleted,
    SnapshotDeleteRequested,
    SnapshotFailed,
    SnapshotHidden,
    SnapshotLinked,
    SnapshotOffPrimary,
    SnapshotQuarantined,
    SnapshotQuarantineLifted,
    SnapshotRequested,
    SnapshotShifted,
    SnapshotSweepStarted,
    SnapshotSwept,
    SnapshotTaken,
    SnapshotUnlinked,
)

TRANSITIONS: dict[tuple[str, str], str] = {
    ("", SnapshotRequested.TYPE): "Creating",
    ("Creating", SnapshotTaken.TYPE): "CreatedOnPrimary",
    ("CreatedOnPrimary", SnapshotBackupStarted.TYPE): "BackingUp",
    ("BackingUp", SnapshotBackedUp.TYPE): "BackedUp",
    ("BackedUp", SnapshotOffPrimary.TYPE): "BackedUp",
    ("Creating", SnapshotFailed.TYPE): "Error",
    ("CreatedOnPrimary", SnapshotFailed.TYPE): "Error",
    ("BackingUp", SnapshotFailed.TYPE): "Error",
    ("BackedUp", SnapshotFailed.TYPE): "Error",  # backed up before the cancel was seen, and taken back
    ("CreatedOnPrimary", SnapshotDeleteRequested.TYPE): "Destroying",
    ("Destroying", SnapshotOffPrimary.TYPE): "Destroying",
    ("BackedUp", SnapshotDeleteRequested.TYPE): "Destroying",
    ("Error", SnapshotDeleteRequested.TYPE): "Destroying",
    ("Destroying", SnapshotDeleted.TYPE): "Destroyed",
    # a deletion that waits for the end of its job
    ("Creating", SnapshotDeleteAwaited.TYPE): "Creating",
    ("BackingUp", SnapshotDeleteAwaited.TYPE): "BackingUp",
    ("BackedUp", SnapshotDeleteAwaited.TYPE): "BackedUp",
    # others that are built on it
    ("BackedUp", SnapshotLinked.TYPE): "BackedUp",
    ("BackedUp", SnapshotUnlinked.TYPE): "BackedUp",
    ("Destroying", SnapshotUnlinked.TYPE): "Destroying",
    ("Destroying", SnapshotHidden.TYPE): "Hidden",
    ("Hidden", SnapshotUnlinked.TYPE): "Hidden",
    # its object, as it was found in the store
    ("BackedUp", SnapshotQuarantined.TYPE): "BackedUp",
    ("BackedUp", SnapshotQuarantineLifted.TYPE): "BackedUp",
    ("Hidden", SnapshotQuarantined.TYPE): "Hidden",
    ("Hidden", SnapshotQuarantineLifted.TYPE): "Hidden",
    ("Hidden", SnapshotDeleteRequested.TYPE): "Destroying",
    # merges of hidden ones into it, and of it into another
    ("Hidden", SnapshotLinked.TYPE): "Hidden",
    ("Hidden", SnapshotAbsorbed.TYPE): "Hidden",
    **{(status, event.TYPE): status for status in ("BackedUp", "Hidden")
       for event in (SnapshotCollapseStarted, SnapshotCollapsed, SnapshotCollapseFailed)},
    **{(status, SnapshotShifted.TYPE): status for status in ("BackingUp", "BackedUp", "Destroying", "Hidden")},
    **{(status, event.TYPE): status for status in ("BackedUp", "Destroying", "Hidden", "Destroyed")
       for event in (SnapshotSweepStarted, SnapshotSwept)},
    # copies elsewhere
    **snapshot_places.TRANSITIONS,
}
"""(state, event) -> state. Everything else is illegal."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """An object that a snapshot had before its present one."""

    key: str
    counted: int
    """Bytes by which it is counted on its store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotState:
    """The fold of a snapshot's events."""

    status: str
    id: UUID
    volume_id: UUID
    zone_id: UUID
    disk: DiskRef
    tag: str
    store_id: UUID
    job_id: UUID
    owner: Owner = ROOT_OWNER
    image: ImageRef | None = None
    on_primary: bool = False
    """It still lies inside its disk: the job that took it has not ended."""
    parent: UUID | None = None
    """The snapshot that its bytes are a delta of, or are being written as one."""
    depth: int = 0
    """Links of the chain before it."""
    reason: str = ""
    """Why it is a full image."""
    children: frozenset[UUID] = frozenset()
    """The snapshots that are deltas of it."""
    ending: UUID | None = None
    """The job that deletes it."""
    working: UUID | None = None
    """The job that takes it or backs it up, or did."""
    policy_id: UUID | None = None
    """The policy that it was taken for."""
    awaited: UUID | None = None
    """The deletion that waits for that job's end."""
    counted: int = 0
    """Bytes by which it is counted on its store: reserved until it is backed up."""
    damage: Damage | None = None
    """Its copy is Quarantined: where its object is not what was written."""
    collapse: UUID | None = None
    """The job that merged hidden ones into it last, or does so."""
    merging: tuple[UUID, ...] = ()
    """The hidden ones that are being merged into it, the first of the chain first."""
    coming: int = 0
    """Bytes reserved for the object that is being merged."""
    absorbed: bool = False
    """It is hidden, and its bytes are in another one's object."""
    absorbs: tuple[UUID, ...] = ()
    """Hidden ones whose bytes are in its object, and whose own objects are still there."""
    replaced: Replaced | None = None
    """The object in whose place its own stands, as long as it is still there."""
    sweep: UUID | None = None
    """The job that deletes those."""
    wanted: tuple[UUID, ...] = ()
    """Further zones to which it is copied once it is backed up."""
    places: Places = field(default_factory=Places)
    """Where else it is."""

    @property
    def copies(self) -> Mapping[UUID, SnapshotCopy]:
        """Its copies in further stores."""
        return self.places.copies


def evolve(state: SnapshotState | None, event: Event) -> SnapshotState:
    """The snapshot after `event`."""
    status = TRANSITIONS.get((state.status if state else "", event.TYPE))
    if status is None:
        raise IllegalTransition(state.status if state else "absent", event)
    if isinstance(event, SnapshotRequested):
        return SnapshotState(status=status, id=event.snapshot_id, volume_id=event.volume_id, zone_id=event.zone_id,
                             disk=event.disk, tag=event.tag, store_id=event.store_id, job_id=event.job_id,
                             working=event.job_id, policy_id=event.policy_id, owner=event.owner,
                             wanted=tuple(event.zone_ids))
    assert state is not None
    if isinstance(event, SnapshotTaken):
        return replace(state, status=status, on_primary=True, counted=event.reserved)
    if isinstance(event, SnapshotOffPrimary):
        return replace(state, status=status, on_primary=False)
    if isinstance(event, SnapshotBackedUp):
        there = replace(state, status=status, image=event.image, counted=event.counted)
        return there if event.image.parent else replace(there, parent=None, depth=0, reason=event.reason)
    if isinstance(event, SnapshotFailed):
        return replace(state, status=status, image=None, on_primary=False, parent=None, counted=0)
    return _linked(replace(state, status=status, places=snapshot_places.evolve(state.places, event)), event)


def _linked(state: SnapshotState, event: Event) -> SnapshotState:
    """What the event says about its place in a chain."""
    match event:
        case SnapshotBackupStarted():
            return replace(state, parent=event.parent, depth=event.depth, reason=event.reason, working=event.job_id)
        case SnapshotDeleteAwaited():
            return replace(state, awaited=event.job_id)
        case SnapshotLinked():
            return replace(state, children=state.children | {event.child_id})
        case SnapshotUnlinked():
            return replace(state, children=state.children - {event.child_id})
        case SnapshotDeleteRequested():
            return replace(state, ending=event.job_id)
        case SnapshotQuarantined() if event.store_id == state.store_id:
            return replace(state, damage=event.damage)
        case SnapshotQuarantineLifted() if event.store_id == state.store_id:
            return replace(state, damage=None)
        case _:
            return _merged(state, event)


def _merged(state: SnapshotState, event: Event) -> SnapshotState:
    """What the event says about merges."""
    match event:
        case SnapshotCollapseStarted():
            return replace(state, collapse=event.job_id, merging=tuple(event.links), coming=event.reserved)
        case SnapshotCollapseFailed():
            return replace(state, merging=(), coming=0)
        case SnapshotCollapsed():
            assert state.image is not None
            return replace(state, image=event.image, parent=event.parent, depth=event.depth, reason=event.reason, damage=None,
                           counted=event.counted, merging=(), coming=0, absorbs=tuple(event.links),
                           replaced=Replaced(state.image.key, state.counted))
        case SnapshotAbsorbed():
            return replace(state, absorbed=True)
        case SnapshotShifted():
            return replace(state, depth=event.depth)
        case SnapshotSweepStarted():
            return replace(state, sweep=event.job_id)
        case SnapshotSwept():
            return replace(state, sweep=None, replaced=None, absorbs=())
        case _:
            return state


def stream(snapshot_id: UUID) -> str:
    """The stream of a snapshot."""
    return f"snapshot-{snapshot_id}"


__all__ = ["TRANSITIONS", "Replaced", "SnapshotState", "evolve", "stream"]
