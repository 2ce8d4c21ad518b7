"""Scrubs: reading what rests in an image store again, to find what is no longer what was written. In the order it happens."""

from __future__ import annotations

import hashlib
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from schema.failure import Damage
from schema.message import Command, Event

KINDS = ("template", "snapshot")
"""Things whose bytes rest in image stores, and that are scrubbed."""
HELD = (*KINDS, "volume_copy", "volume")
"""Those that objects there belong to."""
MARK_BYTES = 6
"""Of a key's mark: two of a million objects have the same with a chance of one in 500."""


def mark(key: str) -> bytes:
    """A short stand-in for an object's key, so that an order can name every object that is known."""
    return hashlib.sha256(key.encode()).digest()[:MARK_BYTES]


def slice_of(marked: bytes, slices: int) -> int:
    """In which of so many slices a mark is."""
    return int.from_bytes(marked, "big") % slices


def owner_of(key: str) -> tuple[str, UUID] | None:
    """(kind, id) of the thing that an object's key names; None when it is no key of ours."""
    words = key.split("/")
    if len(words) != 4 or words[1] not in HELD:
        return None
    try:
        return words[1], UUID(words[2])
    except ValueError:
        return None


class ScrubTarget(BaseModel):
    """An object that is to be read, and what the log knows of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str
    size: int
    """Bytes of the object."""
    root: str
    """Hex root of its parts' SHA-256 digests."""


class Unread(BaseModel):
    """An object that could not be read, for a reason that says nothing about its bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str
    cause: str


class Stray(BaseModel):
    """An object that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str
    size: int


class ScrubStore(Command, type="image_store.scrub"):
    """Read a share of a store's objects again, those longest unverified first, and compare them with what was written."""

    id: UUID
    share: str = "5%"
    """5% or 0.05: more than nothing, at most 100%."""

    def key(self, job_id: UUID) -> str:
        """The store."""
        return f"image_store-{self.id}"


class ScheduleScrub(Command, type="image_store.schedule_scrub"):
    """Scrub a store every so many seconds from now on; 0: no more."""

    id: UUID
    every_s: int
    share: str = "5%"
    due: int | None = None
    """The run whose time has come; None: the schedule itself is set."""

    def key(self, job_id: UUID) -> str:
        """The store."""
        return f"image_store-{self.id}"


class QuarantineCopy(Command, type="copy.quarantine"):
    """An object was found damaged: whatever reads it is refused from here on. Nothing is deleted."""

    kind: str
    thing_id: UUID
    damage: Damage

    def key(self, job_id: UUID) -> str:
        """The thing whose bytes they are."""
        return f"{self.kind}-{self.thing_id}"


class LiftQuarantine(Command, type="copy.lift_quarantine"):
    """A quarantined object was read again and is what was written."""

    kind: str
    thing_id: UUID
    object_key: str

    def key(self, job_id: UUID) -> str:
        """The thing whose bytes they are."""
        return f"{self.kind}-{self.thing_id}"


class ScrubScheduled(Event, type="scrub_schedule.set"):
    """The store is scrubbed every so many seconds (0: no more); `run` is the number of the next one."""

    store_id: UUID
    every_s: int
    share: str
    run: int


class ScrubStarted(Event, type="scrub.started"):
    """These objects of the store are being read."""

    scrub_id: UUID
    store_id: UUID
    job_id: UUID
    share: str
    of: int
    """Objects that the store has, as the log knows it."""
    objects: list[ScrubTarget]


class ScrubEnded(Event, type="scrub.ended"):
    """They were read; what was found."""

    scrub_id: UUID
    store_id: UUID
    objects: int
    bytes: int
    damaged: list[Damage] = []
    unread: list[Unread] = []
    unknown: list[Stray] = []
    unknown_count: int = 0


class ScrubStopped(Event, type="scrub.stopped"):
    """It did not come to its end: nothing is known of its objects."""

    scrub_id: UUID
    store_id: UUID
