"""Primary stores: where disks live, on one host. They come from an agent's settings, or are made by a command."""

from __future__ import annotations

from uuid import UUID

from schema.failure import Failure
from schema.image import PrimarySpec
from schema.message import Command, Event


class CreateStoragePool(Command, type="primary_store.create"):
    """Open a folder, or block devices, of a KVM agent's host as a primary store."""

    name: str
    url: str
    """`file://<host>/<path>`: the agent's host, and a folder there that exists."""
    zone_id: UUID
    provider: str = "DefaultPrimary"
    """DefaultPrimary and Folder: disks are files in it; Block: each is a device named in `details`."""
    scope: str = "HOST"
    hypervisor: str = "KVM"
    details: dict[str, str] = {}
    """Of Block: `devices`, comma-separated absolute paths."""


class DeleteStoragePool(Command, type="primary_store.delete"):
    """Close a primary store on which no volume lives. Its folder stays."""

    id: UUID
    forced: bool = False
    """Refused: volumes are deleted by name, not with their store."""

    def key(self, job_id: UUID) -> str:
        """The primary store."""
        return f"primary_store-{self.id}"


class PrimaryStoreRequested(Event, type="primary_store.requested"):
    """Somebody asked for it; its agent is to look whether it can be."""

    primary: PrimarySpec
    hypervisor: str
    job_id: UUID


class PrimaryStoreAnnounced(Event, type="primary_store.announced"):
    """An agent reaches this primary store."""

    primary: PrimarySpec
    hypervisor: str
    """KVM, VMware, XenServer, Memory"""
    total_bytes: int = 0


class PrimaryStoreRejected(Event, type="primary_store.rejected"):
    """It could not be opened, or nobody wants it any more."""

    primary_id: UUID
    failure: Failure


class PrimaryStoreDeleteRequested(Event, type="primary_store.delete_requested"):
    """It takes no new volumes, and holds none."""

    primary_id: UUID
    job_id: UUID


class PrimaryStoreDeleted(Event, type="primary_store.deleted"):
    """Its agent has closed it."""

    primary_id: UUID
