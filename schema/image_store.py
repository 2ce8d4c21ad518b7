"""Image stores: S3, Swift, NFS-like folders. The whole conversation, in the order it happens."""

from __future__ import annotations

from uuid import UUID

from schema.failure import Failure
from schema.image import StoreSpec
from schema.message import Command, Event

IMAGE, STAGING = "Image", "ImageCache"
"""What a store is for, in CloudStack's words."""


class AddImageStore(Command, type="image_store.add"):
    """Add an image store after its connection was tested, step by step."""

    name: str = ""
    """Defaults to the url."""
    url: str = ""
    zone_id: UUID | None = None
    """Only for providers that are zone-wide (NFS, folder); S3 and Swift are region-wide."""
    provider: str
    """Name as listStorageProviders gives it; any case."""
    details: dict[str, str] = {}
    """The provider's settings. A value that its schema marks secret is a vault reference."""


class CreateStagingStore(AddImageStore, type="image_store.create_staging"):
    """Add a staging store of a zone (CloudStack's cache storage) after its connection was tested, step by step."""

    provider: str = "NFS"
    scope: str = "ZONE"
    """Nothing else: a staging store serves one zone."""


class UpdateImageStore(Command, type="image_store.update"):
    """Rename an image store, make it read-only, or say how much may rest on it."""

    EVENT = "IMAGE.STORE.ACCESS.UPDATED"

    id: UUID
    name: str | None = None
    read_only: bool | None = None
    capacity_bytes: int | None = None
    """Bytes that may rest on it, those on their way among them; 0: no limit but the store's own."""

    def key(self, job_id: UUID) -> str:
        """The store."""
        return f"image_store-{self.id}"


class DeleteImageStore(Command, type="image_store.delete"):
    """Delete an image store on which nothing resides."""

    id: UUID

    def key(self, job_id: UUID) -> str:
        """The store."""
        return f"image_store-{self.id}"


class DeleteStagingStore(Command, type="image_store.delete_staging"):
    """Delete a staging store that nobody uses."""

    id: UUID

    def key(self, job_id: UUID) -> str:
        """The store."""
        return f"image_store-{self.id}"


class ImageStoreRequested(Event, type="image_store.requested"):
    """A store is being tested; nothing may rest on it yet."""

    store: StoreSpec
    zone_id: UUID | None = None
    scope: str
    """ZONE or REGION"""
    job_id: UUID
    role: str = IMAGE
    """IMAGE: images rest on it. STAGING: only what is on its way through a zone does."""


class ImageStoreTested(Event, type="image_store.tested"):
    """The store did all that images need; what it can do, and what each step of the test found."""

    store_id: UUID
    steps: list[str] = []
    capabilities: list[str] = []


class ImageStoreAdded(Event, type="image_store.added"):
    """The store answered all tests and takes images."""

    store_id: UUID


class ImageStoreRejected(Event, type="image_store.rejected"):
    """The store failed a test; its name is free again."""

    store_id: UUID
    failure: Failure


class RemoveLeftovers(Command, type="image_store.remove_leftovers"):
    """Remove what an attempt left in a store that was away when it should have cleaned up. Tried until the store confirms."""

    id: UUID
    objects: list[str]
    """Where it wrote. What belongs to a thing by now is left alone."""

    def key(self, job_id: UUID) -> str:
        """The store."""
        return f"image_store-{self.id}"


class ImageStoreUpdated(Event, type="image_store.updated"):
    """Its name, its read-only mark or its capacity changed; fields not given stay."""

    store_id: UUID
    name: str | None = None
    read_only: bool | None = None
    capacity_bytes: int | None = None


class ImageStoreDeleted(Event, type="image_store.deleted"):
    """The store is forgotten. Its bytes, if any are foreign, are not touched."""

    store_id: UUID
