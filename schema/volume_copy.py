"""Copies of volumes in an image store, from which they are extracted: each lives as long as its link. In the order it happens."""

from __future__ import annotations

from uuid import UUID

from schema.failure import Failure
from schema.identity import ROOT_OWNER, Owner
from schema.image import ImageRef
from schema.message import Command, Event


class ExtractVolume(Command, type="volume.extract"):
    """Copy a volume at rest into its zone's image store, and give a URL, which ends and can be revoked, by which anyone may get
    the copy's bytes."""

    id: UUID
    zone_id: UUID
    """The volume's own."""
    mode: str
    """HTTP_DOWNLOAD"""
    lifetime: int | None = None
    """Seconds, 1 to 604800; None: the installation's."""

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.id}"


class DropVolumeCopy(Command, type="volume_copy.drop"):
    """Remove a copy whose link has ended."""

    id: UUID

    def key(self, job_id: UUID) -> str:
        """The copy."""
        return f"volume_copy-{self.id}"


class VolumeCopyRequested(Event, type="volume_copy.requested"):
    """The volume is being frozen."""

    copy_id: UUID
    """The id of the job that extracts, and of its link."""
    volume_id: UUID
    zone_id: UUID
    store_id: UUID
    tag: str
    job_id: UUID
    owner: Owner = ROOT_OWNER


class VolumeCopyStarted(Event, type="volume_copy.started"):
    """It is being written."""

    copy_id: UUID
    store_id: UUID
    reserved: int
    """Bytes that are kept free for it on its store."""


class VolumeCopyReady(Event, type="volume_copy.ready"):
    """Its bytes are in the store."""

    copy_id: UUID
    image: ImageRef
    counted: int


class VolumeCopyFailed(Event, type="volume_copy.failed"):
    """Nothing of it remains."""

    copy_id: UUID
    store_id: UUID
    failure: Failure


class VolumeCopyDeleteRequested(Event, type="volume_copy.delete_requested"):
    """Its link has ended: its bytes go."""

    copy_id: UUID
    store_id: UUID
    job_id: UUID


class VolumeCopyDeleted(Event, type="volume_copy.deleted"):
    """Its bytes are gone."""

    copy_id: UUID
    store_id: UUID
