"""Volumes: disks on a primary store. The whole conversation, in the order it happens."""

from __future__ import annotations

from uuid import UUID

from schema.failure import Failure
from schema.identity import ROOT_OWNER, Owner
from schema.image import DiskRef, PrimarySpec
from schema.message import Command, Event


class CreateVolume(Command, type="volume.create"):
    """Make a volume: empty (size), from a template or from a snapshot (size may enlarge it)."""

    name: str
    size: int | None = None
    """GiB, as in CloudStack's API."""
    zone_id: UUID | None = None
    """Required with snapshot_id, as the founding specification has it."""
    snapshot_id: UUID | None = None
    template_id: UUID | None = None
    disk_offering_id: str | None = None
    """UUID of the disk offering; None or empty: the size is given, or its source's."""
    min_iops: int | None = None
    max_iops: int | None = None
    display_volume: bool = True
    """False: only root admins see it in lists."""
    custom_id: UUID | None = None
    """The volume's id; None: it is derived from the job's."""
    storage_id: UUID | None = None
    """The primary store; None: the one of the zone with the most room."""


class UpdateVolume(Command, type="volume.update"):
    """Rename, protect, show or hide a volume: what is not None is new."""

    id: UUID
    name: str | None = None
    display_volume: bool | None = None
    delete_protection: bool | None = None
    """True: it is neither destroyed nor deleted."""
    custom_id: UUID | None = None
    """Nothing but its own id: ids are for ever."""

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.id}"


class DeleteVolume(Command, type="volume.delete"):
    """Delete a volume and its bytes."""

    id: UUID

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.id}"


class DestroyVolume(Command, type="volume.destroy"):
    """Destroy a volume: it can be recovered for a while. With expunge it is deleted at once."""

    id: UUID
    expunge: bool = False

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.id}"


class ExpungeVolume(Command, type="volume.expunge"):
    """The time of a destroyed volume has come."""

    id: UUID
    destroyed_by: UUID
    """The job that destroyed it: a later destruction has its own time."""

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.id}"


class RecoverVolume(Command, type="volume.recover"):
    """Make a destroyed volume Ready again."""

    id: UUID

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.id}"


class ResizeVolume(Command, type="volume.resize"):
    """Give a volume at rest another size, another offering, or both."""

    id: UUID
    size: int | None = None
    """GiB."""
    shrink_ok: bool = False
    """It may become smaller: what is cut off must hold nothing."""
    disk_offering_id: UUID | None = None
    min_iops: int | None = None
    max_iops: int | None = None

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.id}"


class VolumeRequested(Event, type="volume.requested"):
    """It exists and its disk is being made."""

    volume_id: UUID
    name: str
    zone_id: UUID
    primary: PrimarySpec
    virtual_size: int
    """Bytes; 0 when the source decides."""
    template_id: UUID | None = None
    snapshot_id: UUID | None = None
    hypervisor: str = "KVM"
    job_id: UUID
    owner: Owner = ROOT_OWNER
    disk_offering_id: UUID | None = None
    min_iops: int | None = None
    max_iops: int | None = None
    display: bool = True


class VolumeReady(Event, type="volume.ready"):
    """Its disk can be used."""

    volume_id: UUID
    disk: DiskRef
    physical_size: int = 0
    reason: str = ""
    """Why its image store was read, where the primary store was to have a copy of its template."""


class VolumeFailed(Event, type="volume.failed"):
    """Its disk could not be made; nothing of it remains."""

    volume_id: UUID
    failure: Failure


class VolumeRenamed(Event, type="volume.renamed"):
    """It has another name."""

    volume_id: UUID
    name: str


class VolumeUpdated(Event, type="volume.updated"):
    """What is not None is new."""

    volume_id: UUID
    display: bool | None = None
    delete_protection: bool | None = None


class VolumeDestroyed(Event, type="volume.destroyed"):
    """It is not in use any more, and can be recovered (state Destroy)."""

    volume_id: UUID
    job_id: UUID
    expunge_after_s: int
    """Seconds from then on after which it is expunged."""


class VolumeRecovered(Event, type="volume.recovered"):
    """It is Ready again."""

    volume_id: UUID


class VolumeResizeStarted(Event, type="volume.resize_started"):
    """It is being resized (state Resizing)."""

    volume_id: UUID
    job_id: UUID
    virtual_size: int
    """Bytes that it shall have."""


class VolumeResized(Event, type="volume.resized"):
    """Its disk has another size; the job has not ended."""

    volume_id: UUID
    disk: DiskRef
    physical_size: int = 0


class VolumeResizeEnded(Event, type="volume.resize_ended"):
    """It is Ready, with its new size, or (failure) with the one that it had."""

    volume_id: UUID
    virtual_size: int
    disk_offering_id: UUID | None = None
    """None: as before. So are the others."""
    min_iops: int | None = None
    max_iops: int | None = None
    failure: Failure | None = None


class VolumeSnapshotStarted(Event, type="volume.snapshot_started"):
    """A snapshot of it is being taken: it is busy (state Snapshotting)."""

    volume_id: UUID
    snapshot_id: UUID
    job_id: UUID


class VolumeReleased(Event, type="volume.released"):
    """The snapshot was taken or given up: state Ready again; `backing_up` says whether its bytes are still read."""

    volume_id: UUID
    snapshot_id: UUID
    backing_up: bool
    head: UUID | None = None
    """The snapshot that is backed up now and that the disk records changes since; None: as before."""


class VolumeRevertStarted(Event, type="volume.revert_started"):
    """It is being given a snapshot's content again: it is busy (state RevertSnapshotting)."""

    volume_id: UUID
    snapshot_id: UUID
    job_id: UUID


class VolumeReverted(Event, type="volume.reverted"):
    """It holds what it held when the snapshot was taken (state Ready). The record of what changed since its last backup went with
    what it held: the next one is full."""

    volume_id: UUID
    snapshot_id: UUID
    disk: DiskRef
    physical_size: int = 0


class VolumeRevertFailed(Event, type="volume.revert_failed"):
    """It holds what it held before (state Ready)."""

    volume_id: UUID
    snapshot_id: UUID
    failure: Failure


class VolumeDeleteRequested(Event, type="volume.delete_requested"):
    """It is being deleted (state Expunging)."""

    volume_id: UUID
    job_id: UUID


class VolumeDeleted(Event, type="volume.deleted"):
    """Its bytes are gone."""

    volume_id: UUID
