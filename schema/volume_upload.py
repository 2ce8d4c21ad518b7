"""Uploads: volumes that come from a URL into an image store, and from there to a primary store. In the order it happens."""

from __future__ import annotations

from uuid import UUID

from schema.failure import Failure
from schema.identity import ROOT_OWNER, Owner
from schema.image import ImageFormat, ImageRef, PrimarySpec
from schema.message import Command, Event


class UploadVolume(Command, type="volume.upload"):
    """Take an image in as a volume: an object of a registered image store where it lies, any other http(s) URL fetched."""

    url: str
    name: str
    zone_id: UUID
    format: ImageFormat
    checksum: str = ""
    """`{ALGORITHM}hex`"""
    image_store_id: UUID | None = None
    """Where it is to rest; None: where there is room."""
    disk_offering_id: UUID | None = None
    """A customized one."""
    adopt: bool = True
    """False: it is never taken from where it lies in a store; what is there may be others'."""


class PlaceVolume(Command, type="volume.place"):
    """Bring an uploaded volume to a primary store of its zone."""

    id: UUID
    storage_id: UUID | None = None
    """Which; None: the one with the most room."""

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.id}"


class DropVolumeImage(Command, type="volume.drop_image"):
    """Remove what a volume has in an image store: its disk is there."""

    id: UUID

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.id}"


class VolumeUploadRequested(Event, type="volume.upload_requested"):
    """It exists and its bytes are being looked at, or fetched (state UploadOp)."""

    volume_id: UUID
    name: str
    zone_id: UUID
    format: ImageFormat
    store_id: UUID
    adopted: str = ""
    """Key of the object that is taken where it lies; empty: it is fetched."""
    disk_offering_id: UUID | None = None
    reserved: int = 0
    """Bytes that are kept free for it on its store."""
    job_id: UUID
    owner: Owner = ROOT_OWNER


class VolumeUploaded(Event, type="volume.uploaded"):
    """It rests in the image store, verified (state Uploaded)."""

    volume_id: UUID
    image: ImageRef
    counted: int


class VolumeUploadFailed(Event, type="volume.upload_failed"):
    """It could not be taken; nothing of it remains."""

    volume_id: UUID
    store_id: UUID
    failure: Failure


class VolumePlacing(Event, type="volume.placing"):
    """Its disk is being made on a primary store (state Copying)."""

    volume_id: UUID
    primary: PrimarySpec
    hypervisor: str = "KVM"
    job_id: UUID


class VolumeNotPlaced(Event, type="volume.not_placed"):
    """Its disk could not be made: it is Uploaded still."""

    volume_id: UUID
    failure: Failure


class VolumeImageDropped(Event, type="volume.image_dropped"):
    """It has nothing in an image store any more."""

    volume_id: UUID
    store_id: UUID
