"""Disk offerings: sizes under a name, which whoever makes a volume chooses from. In the order it happens."""

from __future__ import annotations

from uuid import UUID

from schema.image import Frozen
from schema.message import Command, Event


class OfferingDomain(Frozen):
    """A domain for which an offering is kept. Domains are not renamed, so the path may stand here."""

    id: UUID
    path: str
    """As `schema.identity.Owner.path`: the domains below are meant too."""


class CreateDiskOffering(Command, type="disk_offering.create"):
    """Offer a size, or (customized) any size."""

    name: str
    display_text: str = ""
    disk_size: int | None = None
    """GiB; None where it is customized."""
    customized: bool = False
    tags: str = ""
    """Storage tags, comma separated: kept and shown; placement does not go by them."""
    min_iops: int | None = None
    max_iops: int | None = None
    domain_ids: list[UUID] = []
    """Only these domains and those below them see it; none: everybody."""
    provisioning_type: str = "thin"
    display_offering: bool = True


class UpdateDiskOffering(Command, type="disk_offering.update"):
    """Rename or retag an offering; its size stays."""

    EVENT = "DISK.OFFERING.EDIT"

    id: UUID
    name: str | None = None
    display_text: str | None = None
    tags: str | None = None
    display_offering: bool | None = None

    def key(self, job_id: UUID) -> str:
        """The offering."""
        return f"disk_offering-{self.id}"


class DeleteDiskOffering(Command, type="disk_offering.delete"):
    """Offer it no more. Volumes that were made by it keep it."""

    id: UUID

    def key(self, job_id: UUID) -> str:
        """The offering."""
        return f"disk_offering-{self.id}"


class DiskOfferingCreated(Event, type="disk_offering.created"):
    """It can be chosen."""

    offering_id: UUID
    name: str
    display_text: str
    disk_size: int | None = None
    """GiB; None: whoever makes a volume says it."""
    tags: str = ""
    min_iops: int | None = None
    max_iops: int | None = None
    domains: list[OfferingDomain] = []
    provisioning_type: str = "thin"
    display_offering: bool = True


class DiskOfferingUpdated(Event, type="disk_offering.updated"):
    """What is not None is new."""

    offering_id: UUID
    name: str | None = None
    display_text: str | None = None
    tags: str | None = None
    display_offering: bool | None = None


class DiskOfferingDeleted(Event, type="disk_offering.deleted"):
    """Nobody can choose it any more."""

    offering_id: UUID
