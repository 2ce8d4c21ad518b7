"""Images and where they rest: what orders, reports and events say about bytes. Pure data."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel, ConfigDict

GIB = 1 << 30


class Frozen(BaseModel):
    """A value inside a message."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ImageFormat(StrEnum):
    """Formats that the spine takes in. Names are qemu's; the API's spelling is the upper case one."""

    QCOW2 = "qcow2"
    RAW = "raw"
    ISO = "iso"
    """ISO 9660, for machines to mount and boot from; no volume is made of it."""


class StoreSpec(Frozen):
    """All that an agent needs to reach an image store. `details` holds vault references in place of secrets."""

    id: UUID
    name: str
    provider: str
    """Name of the plug-in, lower case: s3, folder, memory, ..."""
    url: str
    details: dict[str, str] = {}
    prefix: str
    """First part of every object key: the installation id, so that two installations may share a bucket."""


class ImageRef(Frozen):
    """An image that rests in an image store. The object is a plain image; `<key>.manifest.json` describes it."""

    store_id: UUID
    key: str
    """Object key below the store's root, already with the installation's prefix."""
    format: ImageFormat
    virtual_size: int
    """Bytes that a machine sees."""
    physical_size: int
    """Bytes of the object."""
    root: str
    """Hex SHA-256 over the parts' SHA-256 digests, in order: what the manifest is checked against."""
    sha256: str = ""
    """Hex SHA-256 of the whole object where it is known."""
    parent: str = ""
    """Key of the object, in the same store, that this one is a delta of; empty for a full image."""
    replaces: list[str] = []
    """Keys of objects in whose place it stands: deltas that name one of them are deltas of this one."""


class PrimarySpec(Frozen):
    """A primary store as an agent announced it."""

    id: UUID
    name: str
    kind: str
    """Name of the plug-in: folder, memory, ..."""
    path: str
    zone_id: UUID
    agent: str
    """The agent that reaches it."""


UNPLACED = PrimarySpec(id=UUID(int=0), name="", kind="", path="", zone_id=UUID(int=0), agent="")
"""The primary store of a volume that has no disk yet."""


class DiskRef(Frozen):
    """A volume's disk on its primary store."""

    primary: PrimarySpec
    volume_id: UUID
    path: str
    """Path within the primary store, e.g. `<volume id>.qcow2`; only the plug-in interprets it."""
    format: ImageFormat = ImageFormat.QCOW2
    virtual_size: int


class Manifest(Frozen):
    """What lies beside every object as `<key>.manifest.json`: written last, deleted first.

    A store can be understood, verified and re-adopted from its manifests without the database.
    """

    version: int = 1
    installation: str
    kind: str
    """template, snapshot, volume"""
    thing_id: UUID
    job_id: UUID
    work: str
    """`<work id>.<attempt>` that wrote it."""
    key: str
    format: ImageFormat
    virtual_size: int
    physical_size: int
    part_size: int
    """Bytes of each part but the last."""
    parts: list[str]
    """Hex SHA-256 of each part, in order."""
    root: str
    sha256: str = ""
    parent: str = ""
    """Key of the object this one is a delta of; empty for a full image."""
    replaces: list[str] = []
    """Keys of objects in whose place it stands: deltas that name one of them are deltas of this one."""
    created: str
    """RFC 3339, UTC."""
