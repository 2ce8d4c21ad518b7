"""The survey: which objects rest in which image store, as the log tells it, and when each was last read in a scrub.

Owns the fold that a scrub chooses from and that its findings are compared with. It is brought up to date only when a scrub is
decided, so nothing else pays for it. It may lag behind the log by a moment; what follows from it (a quarantine) is decided
again on the thing's own stream. Refuses to know how objects are read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from schema import scrub, snapshot, template, volume_copy, volume_upload
from schema.message import Message
from schema.scrub import ScrubTarget

TYPES = ("snapshot.requested", "snapshot.backed_up", "snapshot.failed", "snapshot.delete_requested", "snapshot.hidden",
         "snapshot.deleted", "snapshot.collapse_started", "snapshot.collapse_failed", "snapshot.collapsed", "snapshot.absorbed",
         "snapshot.swept", "snapshot.copy_started", "snapshot.copied", "snapshot.copy_failed", "snapshot.copy_delete_requested",
         "snapshot.copy_deleted", "snapshot.quarantined", "snapshot.quarantine_lifted", "template.registered", "template.ready",
         "template.failed", "template.delete_requested", "template.deleted", "template.quarantined",
         "template.quarantine_lifted", "template.copy_requested", "template.copy_ready", "template.copy_failed",
         "template.copy_delete_requested", "template.copy_deleted", "volume_copy.requested", "volume_copy.failed",
         "volume_copy.deleted", "volume.upload_requested", "volume.upload_failed", "volume.image_dropped", "scrub.started",
         "scrub.ended", "scrub.stopped")
"""Event types that it is folded from."""
MOST = 400
"""Objects of one scrub: what an order can name."""

Thing = tuple[str, UUID]
"""(kind, id)"""


@dataclass(frozen=True, slots=True)
class Resident:
    """What keeps a store from being deleted."""

    kind: str
    """template, snapshot, hidden snapshot, volume, volume_copy."""
    id: UUID
    name: str


@dataclass(frozen=True, slots=True)
class Copy:
    """An object that the log knows."""

    thing: Thing
    store_id: UUID
    target: ScrubTarget
    looked: int
    """Position in the log at which it was last known to be read whole: when it was written, or by a scrub."""
    quarantined: bool = False
    leaving: bool = False
    """It is being deleted."""


@dataclass(slots=True)
class Survey:
    """The fold. `position` says up to where."""

    position: int = 0
    copies: dict[str, Copy] = field(default_factory=dict)
    """By key."""
    coming: dict[Thing, set[UUID]] = field(default_factory=dict)
    """Things of which an object is being written, and where; uploaded volumes until they have a disk, and copies of
    volumes until their links end."""
    names: dict[Thing, str] = field(default_factory=dict)
    """Of what rests somewhere or is coming: its name when it was made."""
    hidden: set[Thing] = field(default_factory=set)
    """Deleted snapshots whose bytes others need."""
    _keys: dict[Thing, dict[UUID, str]] = field(default_factory=dict)
    """Thing -> store -> the key of its copy there."""
    _running: dict[UUID, list[str]] = field(default_factory=dict)
    """Scrubs that have not ended: the keys they read."""
    scrubs: Counter[UUID] = field(default_factory=Counter)
    """Store -> how many scrubs of it were begun."""

    def apply(self, event: Message, position: int) -> None:
        """Take one event in. Events are given in the log's order, each once."""
        match event:
            case scrub.ScrubStarted():
                self.scrubs[event.store_id] += 1
                self._running[event.scrub_id] = [target.key for target in event.objects]
            case scrub.ScrubStopped():
                self._running.pop(event.scrub_id, None)
            case scrub.ScrubEnded():
                unread = {each.key for each in event.unread}
                for key in self._running.pop(event.scrub_id, []):
                    if key not in unread:
                        self._change(key, looked=position)
            case volume_copy.VolumeCopyRequested():
                self._comes(("volume_copy", event.copy_id), event.store_id, f"of {event.volume_id}")
            case volume_copy.VolumeCopyFailed() | volume_copy.VolumeCopyDeleted():
                self.coming.pop(("volume_copy", event.copy_id), None)
                self._gone(("volume_copy", event.copy_id))
            case volume_upload.VolumeUploadRequested():
                self._comes(("volume", event.volume_id), event.store_id, event.name)
            case volume_upload.VolumeUploadFailed() | volume_upload.VolumeImageDropped():
                self.coming.pop(("volume", event.volume_id), None)
                self._gone(("volume", event.volume_id))
            case snapshot.SnapshotRequested():
                self._comes(("snapshot", event.snapshot_id), event.store_id, event.name)
            case template.TemplateRegistered():
                self._comes(("template", event.template_id), event.store_id, event.name)
            case template.TemplateCopyRequested():
                self.coming.setdefault(("template", event.template_id), set()).add(event.store_id)
            case _:
                self._thing(event, position)

    def _comes(self, thing: Thing, store_id: UUID, name: str) -> None:
        self.coming[thing], self.names[thing] = {store_id}, name

    def _came(self, thing: Thing, store_id: UUID) -> None:
        where = self.coming.get(thing, set())
        where.discard(store_id)
        if not where:
            self.coming.pop(thing, None)

    def _thing(self, event: Any, position: int) -> None:
        snapshot_id = getattr(event, "snapshot_id", None)
        thing: Thing = ("snapshot", snapshot_id) if snapshot_id is not None else ("template", event.template_id)
        match event:
            case snapshot.SnapshotCopyStarted():
                self.coming.setdefault(thing, set()).add(event.store_id)
            case snapshot.SnapshotCopyFailed():
                self._came(thing, event.store_id)
                self._left(thing, event.store_id)
            case (snapshot.SnapshotBackedUp() | snapshot.SnapshotCopied() | template.TemplateReady()
                  | template.TemplateCopyReady()):
                image = event.image
                self._came(thing, image.store_id)
                self._keys.setdefault(thing, {})[image.store_id] = image.key
                self.copies[image.key] = Copy(thing, image.store_id, ScrubTarget(
                    key=image.key, size=image.physical_size, root=image.root), position)
            case snapshot.SnapshotCollapseStarted():
                self.coming.setdefault(thing, set()).add(event.store_id)
            case snapshot.SnapshotCollapseFailed():
                self.coming.pop(thing, None)
            case snapshot.SnapshotCollapsed():
                image = event.image
                self._change(self._key(thing, image.store_id), leaving=True)  # known until it is gone
                self._came(thing, image.store_id)
                self._keys.setdefault(thing, {})[image.store_id] = image.key
                self.copies[image.key] = Copy(thing, image.store_id, ScrubTarget(
                    key=image.key, size=image.physical_size, root=image.root), position)
            case snapshot.SnapshotAbsorbed():
                self._each(thing, leaving=True)
            case snapshot.SnapshotSwept():
                self.copies.pop(event.key, None)
            case snapshot.SnapshotFailed() | template.TemplateFailed():
                self.coming.pop(thing, None)
                self._gone(thing)
            case snapshot.SnapshotDeleted() if self._keys.get(thing, {}).keys() - {event.store_id}:
                self._left(thing, event.store_id)  # its copies elsewhere go by jobs of their own
            case snapshot.SnapshotDeleted() | template.TemplateDeleted():
                self._gone(thing)
            case snapshot.SnapshotDeleteRequested() | template.TemplateDeleteRequested():
                self._each(thing, leaving=True)
            case snapshot.SnapshotHidden():
                self._change(self._key(thing, event.store_id), leaving=False)
                self.hidden.add(thing)
            case snapshot.SnapshotQuarantined() | template.TemplateQuarantined():
                self._change(self._key(thing, event.store_id), quarantined=True)
            case snapshot.SnapshotQuarantineLifted() | template.TemplateQuarantineLifted():
                self._change(self._key(thing, event.store_id), quarantined=False)
            case template.TemplateCopyFailed():
                self._came(thing, event.store_id)
            case template.TemplateCopyDeleteRequested() | snapshot.SnapshotCopyDeleteRequested():
                self._change(self._key(thing, event.store_id), leaving=True)
            case template.TemplateCopyDeleted() | snapshot.SnapshotCopyDeleted():
                self._left(thing, event.store_id)

    def _left(self, thing: Thing, store_id: UUID | None) -> None:
        key = self._key(thing, store_id)
        if key and store_id is not None:
            del self._keys[thing][store_id]
            self.copies.pop(key, None)

    def _key(self, thing: Thing, store_id: UUID | None) -> str:
        return self._keys.get(thing, {}).get(store_id, "") if store_id is not None else ""

    def _each(self, thing: Thing, **fields: Any) -> None:
        for key in self._keys.get(thing, {}).values():
            self._change(key, **fields)

    def _change(self, key: str, **fields: Any) -> None:
        known = self.copies.get(key)
        if known is not None:
            self.copies[key] = replace(known, **fields)

    def _gone(self, thing: Thing) -> None:
        for key in self._keys.pop(thing, {}).values():
            self.copies.pop(key, None)
        self.names.pop(thing, None)
        self.hidden.discard(thing)

    # --- what is asked of it ---

    def resting(self, store_id: UUID) -> Iterator[Copy]:
        """What rests in a store and is not being deleted."""
        return (copy for copy in self.copies.values() if copy.store_id == store_id and not copy.leaving)

    def residents(self, store_id: UUID) -> list[Resident]:
        """Whatever keeps a store from being deleted: what rests there, also while it is being deleted, and what is coming."""
        things = sorted({copy.thing for copy in self.copies.values() if copy.store_id == store_id}
                        | {thing for thing, where in self.coming.items() if store_id in where},
                        key=lambda thing: (thing[0], self.names.get(thing, ""), str(thing[1])))
        return [Resident(f"hidden {thing[0]}" if thing in self.hidden else thing[0], thing[1], self.names.get(thing, ""))
                for thing in things]

    def pick(self, store_id: UUID, share: float) -> tuple[list[ScrubTarget], int]:
        """(what a scrub of so much of a store reads, how many objects rest there). The quarantined ones first, so that a
        repaired one is found at once; then those that were looked at longest ago."""
        resting = sorted(self.resting(store_id), key=lambda copy: (not copy.quarantined, copy.looked))
        marked = sum(copy.quarantined for copy in resting)
        wanted = min(MOST, max(marked, math.ceil(len(resting) * share)))
        return [copy.target for copy in resting[:wanted]], len(resting)

    def there(self, key: str) -> Copy | None:
        """The object, unless it is gone or being deleted."""
        copy = self.copies.get(key)
        return None if copy is None or copy.leaving else copy

    def stray(self, key: str) -> bool:
        """Whether nobody knows an object that was seen in a store: neither is it known, nor does it belong to a thing that is
        being written."""
        return key not in self.copies and scrub.owner_of(key) not in self.coming
