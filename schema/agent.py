"""Agents: what they announce, what they are ordered to do, what they report. Handlers and agents meet only here."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from schema.failure import Damage, Failure
from schema.image import DiskRef, ImageFormat, ImageRef, PrimarySpec, StoreSpec
from schema.machine import MachineSpec
from schema.message import Event, Kind, Message, Order, Report
from schema.motion import MotionSpec
from schema.scrub import ScrubTarget, Stray, Unread


class ProviderSpec(BaseModel):
    """An image store plug-in that an agent carries, as listStorageProviders shows it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    scope: str
    """ZONE or REGION: how far a store of this provider reaches."""
    settings: dict[str, Any]
    """JSON Schema of its details; secret ones carry `"format": "password"`."""
    capabilities: list[str] = []


class PrimaryUsage(BaseModel):
    """Room on a primary store, as its agent measured it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: UUID
    total_bytes: int
    free_bytes: int


class AgentHello(Message, type="agent.hello"):
    """An agent started or changed: what it is and what it reaches."""

    KIND = Kind.REPORT

    agent: str
    zone_id: UUID
    roles: list[str]
    """storage (downloads, deletes, probes), hypervisor"""
    hypervisor: str = ""
    providers: list[ProviderSpec] = []
    primaries: list[PrimarySpec] = []
    public_key: str
    """Base64 X25519 key to which the vault seals what this agent may see."""
    proof: str
    """Hex HMAC-SHA256 of `<agent>|<public_key>` under the enrolment token."""
    key: str = ""
    motions: list[MotionSpec] | None = None
    """How it can move bytes; None: an agent of before there were plans, which moves them directly."""
    usage: list[PrimaryUsage] = []
    """Of its primary stores, now. Never in the log: it changes all the time."""
    version: str = ""
    """Of its Storebus; empty: one from before it was told. Never in the log."""
    machines: list[MachineSpec] | None = None
    """Every machine that it has; None: an agent that has none to tell of. Each has a stream of its own in the log."""


class AgentAnnounced(Event, type="agent.announced"):
    """An enrolled agent said what it is."""

    agent: str
    zone_id: UUID
    roles: list[str]
    hypervisor: str = ""
    providers: list[ProviderSpec] = []
    primaries: list[PrimarySpec] = []
    public_key: str
    motions: list[MotionSpec] | None = None


# --- orders to a storage agent -------------------------------------------------------------------------------------


class TestImageStore(Order, type="order.test_image_store"):
    """List, put, get, range, multipart, delete: each step named in the failure."""

    __test__ = False  # not a pytest class

    store: StoreSpec


class FetchImage(Order, type="order.fetch_image"):
    """Download a URL into the store, inspected while it streams; report an ImageFetched."""

    url: str
    format: ImageFormat
    checksum: str = ""
    store: StoreSpec
    key: str
    """Object key to write."""
    kind: str
    thing_id: UUID
    max_bytes: int
    max_virtual_size: int
    motion: str = "direct"
    """The strategy that the plan chose."""


class AdoptImage(Order, type="order.adopt_image"):
    """Look at an object that lies in the store already, as a download is looked at, and write a manifest beside it. Its bytes are
    only read. Reports an ImageResult."""

    store: StoreSpec
    key: str
    format: ImageFormat
    checksum: str = ""
    kind: str
    thing_id: UUID
    max_bytes: int
    max_virtual_size: int


class DisownImage(Order, type="order.disown_image"):
    """Delete the manifest that AdoptImage wrote for this thing; the object stays. An absent one counts as deleted."""

    store: StoreSpec
    key: str
    thing_id: UUID


class DeleteImages(Order, type="order.delete_images"):
    """Delete objects with their manifests and any unfinished multipart upload of them. Absent ones count as deleted."""

    store: StoreSpec
    keys: list[str]


class MergeImages(Order, type="order.merge_images"):
    """Make one new object of links of a chain: what the last of them holds, as a full image, or as a delta of `parent`.
    Nothing of the links is changed. Reports an ImageResult."""

    store: StoreSpec
    """Where it is written."""
    source: StoreSpec | None = None
    """Where the links rest; None: in `store`."""
    links: list[ImageRef]
    """Each a delta of the one before. One full image alone is copied as it is."""
    parent: ImageRef | None = None
    """What the first link is a delta of, in `store`; None: the first link is a full image."""
    key: str
    """Object key to write."""
    kind: str
    thing_id: UUID
    replaces: list[str] = []
    """Keys of objects in whose place the new one will stand."""
    motion: str = "store-to-store"
    """The strategy that the plan chose."""


class ScrubObjects(Order, type="order.scrub_objects"):
    """Read these objects and compare every part, the root, the size and the manifest with what was written; name the objects
    in the store that are not known. Nothing is changed; what is left of links that have ended goes first. Reports a Scrubbed."""

    store: StoreSpec
    objects: list[ScrubTarget]
    known: str = ""
    """Base64 of the marks (schema.scrub.mark) of all objects that may be there and are of this slice."""
    slices: int = 1
    slice: int = 0
    """Objects whose mark, as a number modulo `slices`, is this are looked for among the known."""


class MakeLink(Order, type="order.make_link"):
    """Make a URL by which anyone may get an object for a while. Reports a LinkMade, with the URL sealed."""

    store: StoreSpec
    key: str
    """The object's."""
    lifetime_s: int
    """1 to 604800."""
    revocable: bool = True
    """False: it costs nothing, and is good until its end whatever happens."""
    seal_to: str
    """Base64 X25519 key of the vault."""


class RevokeLink(Order, type="order.revoke_link"):
    """Make a link's URL give nothing from now on. One that has ended or was revoked counts as revoked."""

    store: StoreSpec
    link_id: str
    """As LinkMade said it."""


# --- orders to a hypervisor's agent --------------------------------------------------------------------------------


class CreateDisk(Order, type="order.create_disk"):
    """Make a disk: empty, or with the bytes of an image read straight from its store. Reports a DiskCreated."""

    primary: PrimarySpec
    volume_id: UUID
    virtual_size: int
    """Bytes; 0 takes the image's own."""
    image: ImageRef | None = None
    store: StoreSpec | None = None
    base: list[ImageRef] = []
    """Where the image is a delta: the full image it goes back to, and the deltas between, in order. All in `store`."""
    motion: str = "direct"
    """The strategy that the plan chose; without meaning where no image is read."""
    seed: str = ""
    """Name of the image's copy on the primary store, of which the disk is made; where it is not there, or not of `seed_size`
    bytes, the image is read from `store`, and the result says why."""
    seed_size: int = 0


class ResizeDisk(Order, type="order.resize_disk"):
    """Give a disk at rest `virtual_size` bytes. Smaller only with `shrink`, and only where what is cut off reads as zeros. Its
    records of changes go: they are of another size. `disk` has the size from before. Reports a DiskResized."""

    disk: DiskRef
    virtual_size: int
    shrink: bool = False


class RevertDisk(Order, type="order.revert_disk"):
    """Put the bytes of an image in the place of what a disk holds: all at once, when they are all there. Reports a DiskCreated;
    cancelled or failed, the disk holds what it held."""

    disk: DiskRef
    virtual_size: int
    """Bytes that the disk has at least afterwards."""
    image: ImageRef
    store: StoreSpec
    base: list[ImageRef] = []
    """As CreateDisk's."""
    motion: str = "direct"
    """The strategy that the plan chose."""


class DeleteDisk(Order, type="order.delete_disk"):
    """Delete a volume's disk, and whatever attempts of it left behind. An absent one counts as deleted."""

    primary: PrimarySpec
    volume_id: UUID
    path: str = ""


class MakeSeed(Order, type="order.make_seed"):
    """Copy a template's image to a primary store, under a name that is no volume's, for volumes to be made of it there. Reports a
    SeedMade."""

    primary: PrimarySpec
    template_id: UUID
    image: ImageRef
    store: StoreSpec
    motion: str = "direct"
    """The strategy that the plan chose."""


class DropSeed(Order, type="order.drop_seed"):
    """Delete a template's copy on a primary store, and whatever attempts of it left behind. An absent one counts as deleted."""

    primary: PrimarySpec
    template_id: UUID


class OpenPrimary(Order, type="order.open_primary"):
    """Look whether this place may be a primary store (it exists, is writable, and empty or ours), mark it, and announce it from
    now on."""

    primary: PrimarySpec
    devices: list[str] = []
    """Of a store of block devices: those that it may use."""


class ClosePrimary(Order, type="order.close_primary"):
    """Announce this primary store no more; what lies there stays. One that is not open counts as closed."""

    primary: PrimarySpec


class AttachDisk(Order, type="order.attach_disk"):
    """Attach a disk to a machine: at once if it runs, else from its next start on. Reports a DiskAttached."""

    disk: DiskRef
    machine_id: UUID
    device_id: int


class DetachDisk(Order, type="order.detach_disk"):
    """Detach a volume's disk from a machine. One that is not attached counts as detached."""

    disk: DiskRef
    machine_id: UUID


class TakeSnapshot(Order, type="order.take_snapshot"):
    """Freeze the disk's content under `tag`, and record under the same name what changes from then on. Reports a
    SnapshotFrozen."""

    disk: DiskRef
    tag: str
    store: StoreSpec | None = None
    """Where the backup will go, if its free room is to be looked at."""


class WriteSnapshot(Order, type="order.write_snapshot"):
    """Write the content under `tag` straight to the store as a qcow2 object: whole, or where `parent` is given and the
    record of changes under `parent_tag` can be trusted, only what changed since. Reports an ImageResult."""

    disk: DiskRef
    tag: str
    store: StoreSpec
    key: str
    thing_id: UUID
    parent: ImageRef | None = None
    parent_tag: str = ""
    kind: str = "snapshot"
    """What the manifest calls the thing: snapshot, volume_copy."""
    compression: str = ""
    """zstd: a whole image's clusters are compressed on the way. A delta's never are."""
    motion: str = "direct"
    """The strategy that the plan chose."""


class DropSnapshot(Order, type="order.drop_snapshot"):
    """Remove `tag` from the disk, with its record of changes, or with every one but `keep`. What is absent counts as removed."""

    disk: DiskRef
    tag: str
    keep: str | None = None
    """The one record that stays; None: only the record of `tag` goes."""


# --- orders about orders -------------------------------------------------------------------------------------------


class CancelWork(Order, type="order.cancel"):
    """Stop the work with this order's `work_id`: bytes stop within 5 s and nothing remains. Reports WorkCancelled,
    or the final report if the work had ended before."""


class ReleaseWork(Order, type="order.release"):
    """The final report of `work_id` is in the log; the agent may forget it."""


# --- reports -------------------------------------------------------------------------------------------------------


class WorkAccepted(Report, type="work.accepted"):
    """The order is in the agent's journal. Also the answer to an order that it already has."""


class WorkCompleted(Report, type="work.completed"):
    """Done; `result` is the order's result object."""

    result: dict[str, Any] = {}
    bytes: int = 0


class WorkFailed(Report, type="work.failed"):
    """Not done, and nothing of it remains."""

    failure: Failure


class WorkCancelled(Report, type="work.cancelled"):
    """Stopped, and nothing of it remains."""


class WorkProgress(Report, type="work.progress"):
    """Transient, at most one a second for each order; never in the log."""

    stage: str
    """download, read, write, verify, ..."""
    bytes: int
    """Acknowledged by the destination."""
    total: int = 0
    """0 while unknown."""
    rate: int = 0
    """Bytes a second, smoothed."""
    eta: int | None = None
    """Seconds."""


# --- results, as `WorkCompleted.result` ----------------------------------------------------------------------------


class Result(BaseModel):
    """Base of what a completed order answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ImageResult(Result):
    """Of FetchImage, WriteSnapshot and MergeImages."""

    image: ImageRef
    reason: str = ""
    """Why it is whole, where a delta was asked for."""


class DiskCreated(Result):
    """Of CreateDisk and RevertDisk."""

    disk: DiskRef
    physical_size: int
    reason: str = ""
    """Why the image store was read, where a copy on the primary store was named."""


class SeedMade(Result):
    """Of MakeSeed."""

    path: str
    """Its name on the primary store."""
    size: int
    """Bytes of its file."""
    physical_size: int
    """Bytes that it takes there."""


class DiskResized(Result):
    """Of ResizeDisk."""

    virtual_size: int
    """As the disk has it: a whole number of sectors."""
    physical_size: int = 0


class DiskAttached(Result):
    """Of AttachDisk."""

    plugged: bool
    """Into a machine that runs; False: it gets the disk when it starts."""


class SnapshotFrozen(Result):
    """Of TakeSnapshot."""

    virtual_size: int
    physical_size: int = 0
    """Bytes that the disk takes on its primary store."""
    free_bytes: int | None = None
    """Room on the store that was named; None: it tells none, or none was named."""


class Scrubbed(Result):
    """Of ScrubObjects."""

    objects: int
    """Objects that were read to their end, the damaged ones too."""
    bytes: int
    damaged: list[Damage] = []
    """One for each object that is not what was written, those that are missing among them."""
    unread: list[Unread] = []
    unknown: list[Stray] = []
    unknown_count: int = 0
    """All of them, also those beyond the most that are named."""


class LinkMade(Result):
    """Of MakeLink."""

    link_id: str
    """No secret. Empty: it cannot be revoked."""
    expires_at: datetime
    """From then on the store refuses it (UTC)."""
    work_id: UUID
    """The work that the URL is sealed for."""
    sealed_url: str
    """Base64; only the vault reads it, for this work (`Vault.unseal`)."""


class StoreTested(Result):
    """Of TestImageStore: what the store turned out to be able to do."""

    capabilities: list[str] = []
    clock_skew_s: int = 0
    steps: list[str] = []
    """What each step found, in the order they were taken."""
