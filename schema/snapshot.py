"""Snapshots: taken on the primary store, then backed up to an image store. In the order it happens."""

from __future__ import annotations

from uuid import UUID

from schema.failure import Damage, Failure
from schema.identity import ROOT_OWNER, Owner
from schema.image import DiskRef, ImageRef
from schema.message import Command, Event


class CreateSnapshot(Command, type="snapshot.create"):
    """Take a snapshot of a volume and back it up."""

    volume_id: UUID
    name: str = ""
    async_backup: bool = False
    """End the job once the snapshot is on the primary store; a second job backs it up."""
    tags: dict[str, str] = {}
    """Given to the snapshot."""
    policy_id: UUID | None = None
    """The policy of the same volume that it is taken for: it is of that one's interval, and counts among its snapshots."""
    zone_ids: list[UUID] = []
    """Further zones in which it is to be usable once it is backed up."""
    account: str = ""
    """The account that the volume belongs to; empty: whichever it is."""
    domain_id: UUID | None = None
    """The domain of that account; None: whichever it is."""

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.volume_id}"


class BackupSnapshot(Command, type="snapshot.backup"):
    """Back up a snapshot that is on the primary store."""

    snapshot_id: UUID
    volume_id: UUID

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.volume_id}"


class DeleteSnapshot(Command, type="snapshot.delete"):
    """Delete a snapshot and its bytes."""

    id: UUID
    zone_id: UUID | None = None

    def key(self, job_id: UUID) -> str:
        """The snapshot: its volume may be gone."""
        return f"snapshot-{self.id}"


class RevertSnapshot(Command, type="snapshot.revert"):
    """Give the snapshot's volume the content again that it had when the snapshot was taken."""

    id: UUID

    def key(self, job_id: UUID) -> str:
        """The snapshot."""
        return f"snapshot-{self.id}"


class CollapseSnapshot(Command, type="snapshot.collapse"):
    """Merge a hidden snapshot, and the hidden ones around it, into the one that needs them, if that gives back enough room."""

    id: UUID

    def key(self, job_id: UUID) -> str:
        """The snapshot."""
        return f"snapshot-{self.id}"


class CopySnapshot(Command, type="snapshot.copy"):
    """Make a snapshot usable in further zones: by a copy in an image store of each, or at once where its own store reaches it."""

    id: UUID
    zone_ids: list[UUID]
    source_zone_id: UUID | None = None
    """A zone in which it is; None: whichever it is in."""

    def key(self, job_id: UUID) -> str:
        """The snapshot."""
        return f"snapshot-{self.id}"


class DeleteSnapshotCopy(Command, type="snapshot.delete_copy"):
    """Delete the bytes of one copy of a snapshot that nobody may use any more."""

    EVENT = "SNAPSHOT.DELETE"

    id: UUID
    store_id: UUID

    def key(self, job_id: UUID) -> str:
        """The snapshot."""
        return f"snapshot-{self.id}"


class ExtractSnapshot(Command, type="snapshot.extract"):
    """Give a URL, which ends and can be revoked, by which anyone may get a whole image of a snapshot."""

    id: UUID
    zone_id: UUID
    """Whose copy."""
    mode: str = "HTTP_DOWNLOAD"
    lifetime: int | None = None
    """Seconds, 1 to 604800; None: the installation's."""

    def key(self, job_id: UUID) -> str:
        """The snapshot."""
        return f"snapshot-{self.id}"


class ArchiveSnapshot(Command, type="snapshot.archive"):
    """Back up a snapshot that only lies in its disk, and remove it from there."""

    id: UUID

    def key(self, job_id: UUID) -> str:
        """The snapshot."""
        return f"snapshot-{self.id}"


class SweepReplaced(Command, type="snapshot.sweep_replaced"):
    """Delete the objects in whose place a snapshot's merged one stands, unless somebody still reads them."""

    id: UUID

    def key(self, job_id: UUID) -> str:
        """The snapshot."""
        return f"snapshot-{self.id}"


class SnapshotRequested(Event, type="snapshot.requested"):
    """It exists (Allocated) and is being taken (Creating)."""

    snapshot_id: UUID
    volume_id: UUID
    name: str
    zone_id: UUID
    disk: DiskRef
    tag: str
    """Its name inside the disk."""
    store_id: UUID
    """The image store that it will be backed up to."""
    job_id: UUID
    owner: Owner = ROOT_OWNER
    snapshot_type: str = "MANUAL"
    """MANUAL, or the interval of its policy: HOURLY, DAILY, WEEKLY, MONTHLY."""
    policy_id: UUID | None = None
    """The policy that it was taken for."""
    zone_ids: list[UUID] = []
    """Further zones to which it is copied once it is backed up."""


class SnapshotTaken(Event, type="snapshot.taken"):
    """It is on the primary store (CreatedOnPrimary)."""

    snapshot_id: UUID
    virtual_size: int
    reserved: int = 0
    """Bytes that the image store keeps free for its backup."""


class SnapshotBackupStarted(Event, type="snapshot.backup_started"):
    """Its bytes are on the way to the image store (BackingUp)."""

    snapshot_id: UUID
    store_id: UUID
    key: str
    job_id: UUID
    parent: UUID | None = None
    """The snapshot since which only the changes are written, if the disk's record of them can be trusted."""
    depth: int = 0
    """Links of the chain before this one."""
    reason: str = ""
    """Why it is written whole; empty when `parent` is given."""


class SnapshotBackedUp(Event, type="snapshot.backed_up"):
    """Its bytes are in the image store and verified (BackedUp)."""

    snapshot_id: UUID
    image: ImageRef
    """`parent` in it tells a delta from a full image."""
    reason: str = ""
    """Why it is a full image; empty for a delta."""
    counted: int = 0
    """Bytes by which it is counted on its store from now on, in place of what was reserved."""
    chain_size: int = 0
    """Bytes of its object and of all that it is a delta of; 0: not told."""


class SnapshotLinked(Event, type="snapshot.linked"):
    """Another snapshot is written as what changed since this one: its bytes are needed as long as that one's."""

    snapshot_id: UUID
    child_id: UUID


class SnapshotUnlinked(Event, type="snapshot.unlinked"):
    """That other snapshot is gone, or needs this one no more."""

    snapshot_id: UUID
    child_id: UUID


class SnapshotQuarantined(Event, type="snapshot.quarantined"):
    """Its object was found damaged: its copy is Quarantined, nothing reads it and no delta is built on it."""

    snapshot_id: UUID
    store_id: UUID
    damage: Damage


class SnapshotQuarantineLifted(Event, type="snapshot.quarantine_lifted"):
    """Its object was read again, and is what was written."""

    snapshot_id: UUID
    store_id: UUID
    key: str
    hidden: bool = False
    """It is deleted for its users, and kept for those built on it."""


class SnapshotCollapseStarted(Event, type="snapshot.collapse_started"):
    """Its bytes and those of hidden snapshots before it are being merged into a new object."""

    snapshot_id: UUID
    job_id: UUID
    store_id: UUID
    key: str
    links: list[UUID]
    """The hidden snapshots, the first of the chain first."""
    reserved: int = 0
    """Bytes that the image store keeps free for it."""


class SnapshotCollapsed(Event, type="snapshot.collapsed"):
    """Its object is another one now, which holds what the hidden snapshots held too. The old one rests in the store until nobody
    reads it any more."""

    snapshot_id: UUID
    job_id: UUID
    image: ImageRef
    parent: UUID | None = None
    """What it is a delta of from now on; None: it is a full image."""
    depth: int = 0
    reason: str = ""
    """Why it is a full image."""
    counted: int = 0
    """Bytes by which it is counted on its store from now on."""
    links: list[UUID]
    """The hidden snapshots whose bytes are in it."""
    chain_size: int = 0
    """Bytes of all objects that it consists of now."""
    hidden: bool = False
    """It was deleted for its users meanwhile."""


class SnapshotCollapseFailed(Event, type="snapshot.collapse_failed"):
    """It stays as it was."""

    snapshot_id: UUID
    job_id: UUID
    failure: Failure


class SnapshotAbsorbed(Event, type="snapshot.absorbed"):
    """A hidden snapshot's bytes are in another one's object now; its own goes when nobody reads it any more."""

    snapshot_id: UUID
    by: UUID


class SnapshotShifted(Event, type="snapshot.shifted"):
    """The chain before it has fewer links now."""

    snapshot_id: UUID
    depth: int
    chain_size: int = 0
    """Bytes of all objects that it consists of now; 0: it is still being written."""


class SnapshotSweepStarted(Event, type="snapshot.sweep_started"):
    """Nobody reads the objects any more in whose place its own stands: they are being deleted."""

    snapshot_id: UUID
    job_id: UUID


class SnapshotSwept(Event, type="snapshot.swept"):
    """They are gone."""

    snapshot_id: UUID
    job_id: UUID
    store_id: UUID
    key: str
    """Of the object that it had before."""


class SnapshotOffPrimary(Event, type="snapshot.off_primary"):
    """Its copy inside the disk is gone."""

    snapshot_id: UUID


class SnapshotFailed(Event, type="snapshot.failed"):
    """It could not be taken or backed up (Error); nothing of it remains."""

    snapshot_id: UUID
    failure: Failure
    store_id: UUID | None = None
    """The store that held its object; None when it has none."""


class SnapshotZoneAdded(Event, type="snapshot.zone_added"):
    """It can be used in this zone too."""

    snapshot_id: UUID
    zone_id: UUID


class SnapshotZoneRemoved(Event, type="snapshot.zone_removed"):
    """It cannot be used in this zone any more."""

    snapshot_id: UUID
    zone_id: UUID


class SnapshotCopyStarted(Event, type="snapshot.copy_started"):
    """A whole image of it is on its way to a further image store."""

    snapshot_id: UUID
    zone_id: UUID
    store_id: UUID
    job_id: UUID
    reserved: int
    """Bytes that the store keeps free for it."""


class SnapshotCopied(Event, type="snapshot.copied"):
    """That is there, and verified."""

    snapshot_id: UUID
    store_id: UUID
    image: ImageRef
    counted: int
    """Bytes by which it is counted on its store from now on."""


class SnapshotCopyFailed(Event, type="snapshot.copy_failed"):
    """Nothing of it remains in that store."""

    snapshot_id: UUID
    store_id: UUID
    failure: Failure


class SnapshotCopyDeleteRequested(Event, type="snapshot.copy_delete_requested"):
    """The copy in that store is being deleted: nobody uses it from now on."""

    snapshot_id: UUID
    store_id: UUID
    job_id: UUID


class SnapshotCopyDeleted(Event, type="snapshot.copy_deleted"):
    """Its bytes are gone from that store."""

    snapshot_id: UUID
    store_id: UUID


class SnapshotDeleteAwaited(Event, type="snapshot.delete_awaited"):
    """It is to be deleted as soon as the job that takes it or backs it up, and that is being stopped, has ended."""

    snapshot_id: UUID
    job_id: UUID
    """The deletion's."""


class SnapshotDeleteRequested(Event, type="snapshot.delete_requested"):
    """It is being deleted (Destroying)."""

    snapshot_id: UUID
    job_id: UUID
    store_id: UUID | None = None
    """The store that holds its object; None when it has none."""


class SnapshotHidden(Event, type="snapshot.hidden"):
    """It is deleted for its users (Destroyed); its bytes stay until the last snapshot that needs them is gone."""

    snapshot_id: UUID
    store_id: UUID | None = None


class SnapshotDeleted(Event, type="snapshot.deleted"):
    """Its bytes are gone (Destroyed)."""

    snapshot_id: UUID
    store_id: UUID | None = None
    """The store that holds its object; None when it has none."""
