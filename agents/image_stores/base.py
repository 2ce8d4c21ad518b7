"""ImageStore: the plug-in interface for places that keep immutable images by key (S3, Swift, NFS-like folders).

One file is one store: settings, scope and capabilities as class attributes, the methods below, and an entry point in
the group `storebus.image_store`. `tests/contract/image_store.py` proves it. A store raises only Refused, WorkFailed,
WorkRetryable and Unknown (schema.failure), each saying what is wrong in the operator's words, never a secret.
A method may be called twice with the same arguments and means it once. Keys are made by Storebus (uuids and
slashes), never by users.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, runtime_checkable

from pydantic import BaseModel

from schema.image import StoreSpec

Bytes = bytes | bytearray | memoryview
Seen = Callable[[int, memoryview], None]
"""Told of bytes in a buffer as they come, off the event loop, while the processor's cache has them: (where in it, the bytes).
From its beginning and in their order; a reading that is begun again tells from 0 on again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """An object as the store lists it."""

    key: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one object of this store may be; the image writer chooses its part size within them."""

    min_part: int
    """Bytes of the smallest part but the last."""
    max_part: int
    max_parts: int
    good_part: int = 0
    """Bytes of a part from which on a byte costs the store no less; 0: a part more or less costs it nothing that counts. Uploads
    of a store that says so are StreamedUpload."""
    parts_may_skip: bool = False
    """True when parts of zeros need not be written (a file with holes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInfo:
    """A part of an unfinished upload, as the store states it."""

    size: int
    """Bytes."""
    etag: str
    """What the store knows this content by: compared for equality with what it said when it acknowledged the part."""


class Upload(Protocol):
    """One object being written in parts of one size (the last may be shorter). Invisible until completed."""

    async def part(self, number: int, data: Bytes, *, sha256: str = "") -> PartInfo | None:
        """Write part `number` (from 1), in any order, several at once. Returns when the store acknowledged it, its
        integrity checked by the store (SHA-256, Content-MD5, ETag) or re-read. May be sent twice.

        `sha256`: the hex SHA-256 of `data` where the caller has it already; what is stored then has it.
        A store with resume_upload answers what its listing of this part will say."""

    async def complete(self, size: int) -> ObjectInfo:
        """Make the object visible whole; `size` is its length in bytes. The answer is what the store shows of it afterwards."""

    async def abort(self) -> None:
        """Leave nothing behind. Also after a failure of `complete`."""


class PartSource(Protocol):
    """A part that is too large to be held in memory."""

    size: int
    """Bytes."""

    @property
    def sha256(self) -> str:
        """Hexadecimal; empty until the first whole reading."""

    def slices(self) -> AsyncGenerator[memoryview, None]:
        """The part from its beginning, as often as it is asked for; a slice is valid until the next is asked for. Raises
        WorkFailed at the end of a reading that differs from the one before. Whoever stops early closes it (aclosing)."""


@runtime_checkable
class LentSource(PartSource, Protocol):
    """One that a thread of the store's may read by itself: to read, sum and send in one thread costs least."""

    def lent(self) -> AbstractAsyncContextManager[Callable[[], Generator[memoryview, None, None]]]:
        """While it is open, what is called for each reading, in one thread at a time: its slices, as those of `slices`, each read
        when it is asked for. Blocking. Whoever stops early closes them. Nothing here says that bytes moved: the thread does."""


@runtime_checkable
class StreamedUpload(Protocol):
    """What an upload has beside the methods of Upload when it takes parts larger than memory should hold."""

    async def part_from(self, number: int, source: PartSource) -> PartInfo | None:
        """As `part`, with the bytes of `source`, which is read whole once or more, and never held whole."""


class ResumedUpload(Upload, Protocol):
    """An upload that an earlier process began. Each part of the object is either kept or written again; other parts of it
    that happen to be there do not count."""

    async def parts(self) -> Mapping[int, PartInfo]:
        """What the store has of it now, by part number. A store that can see that a part is damaged leaves it out."""

    async def keep(self, number: int, *, sha256: str) -> None:
        """Count this part as written. `sha256` is what the caller knows it by: a store may want it again to complete.
        Raises WorkFailed when the store does not have the part."""


@runtime_checkable
class Resumable(Protocol):
    """What a store with the capability resume_upload has beside the methods of ImageStore."""

    async def resume(self, key: str, *, part_size: int) -> ResumedUpload | None:
        """The one unfinished upload of exactly this key, its parts kept since whoever wrote them died.

        None when there is none, when there are several, when its writer kept no account of it, or when what it holds
        cannot have been written in parts of `part_size`: then `begin`, which ends it. Only for a caller that knows the
        earlier writer to be dead: two writers of one upload are not kept apart by every store."""


@runtime_checkable
class Measured(Protocol):
    """What a store with the capability free_room has beside the methods of ImageStore."""

    async def free_bytes(self) -> int | None:
        """Bytes that can still be written; None when it sets no limit."""


@runtime_checkable
class ReadsInto(Protocol):
    """What a store that can fill a buffer of the caller's has beside the methods of ImageStore. Memory that is used again costs
    a third of memory that is new for each range."""

    async def read_into(self, key: str, offset: int, buffer: memoryview, seen: Seen | None = None) -> int:
        """As `read`, into the buffer: how many bytes of it were filled, all but past the end. `seen` was told of each of them.
        Nothing writes to the buffer, and `seen` is not called, once this has returned or raised."""


@runtime_checkable
class Remote(Protocol):
    """What a store that is spoken to over a network has beside the methods of ImageStore, for its test."""

    @property
    def secured(self) -> str:
        """In the operator's words, how the connection is secured."""

    async def clock_ahead(self) -> float | None:
        """Seconds by which the store's clock is ahead of this host's, to a second or so; None when it tells no time."""


@runtime_checkable
class Linkable(Protocol):
    """What a store with the capability presigned_get has beside the methods of ImageStore. `links` makes the links of it."""

    async def presign(self, key: str, expires_s: int) -> str:
        """A URL by which anyone may get this object, and no other, for 1 second to 7 days. It is a secret."""

    async def alias(self, key: str, to: str) -> None:
        """Make `to`, which is no object yet, an object with the bytes of `key`, made by the store itself: none pass through
        here. Deleting `to` leaves `key` whole; after a failure the caller deletes `to`. Raises WorkFailed when `key` is
        absent, Refused when the store cannot."""


@runtime_checkable
class CopiesItself(Protocol):
    """What a store that makes copies by itself has beside the methods of ImageStore."""

    async def copy_inside(self, key: str, to: str) -> None:
        """Make `to`, which is no object yet, an object with the bytes of `key` that needs `key` no more; none of them pass
        through here. After a failure the caller deletes `to`. Raises WorkFailed when `key` is absent, Refused when the store
        cannot."""


class ImageStore(Protocol):
    """A store that is open. Made by `open`; closed by `aclose`."""

    PROVIDER: ClassVar[str]
    """Lower-case name, e.g. `s3`."""
    SCOPE: ClassVar[str]
    """ZONE or REGION: how far one store reaches."""
    CAPABILITIES: ClassVar[frozenset[str]]
    """Of: ranged_read, parallel_parts, presigned_get (see Linkable), integrity_md5, resume_upload (see Resumable), free_room
    (see Measured)."""
    Settings: ClassVar[type[BaseModel]]
    """The `details` it takes; secret ones are pydantic SecretStr (so `format: password` in the schema)."""

    @classmethod
    async def open(cls, spec: StoreSpec, secrets: Mapping[str, str]) -> Self:
        """Connect. `secrets` maps the name of a detail to its clear value.

        Raises Refused naming the detail at fault, WorkRetryable when the store is away for now."""

    @property
    def limits(self) -> Limits:
        """What one object may be."""

    async def stat(self, key: str) -> ObjectInfo | None:
        """The object, or None."""

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Exactly these bytes (fewer only past the end). Raises WorkFailed when the object is absent."""

    async def put(self, key: str, body: bytes) -> None:
        """Write a small object (a manifest) at once and whole; replaces."""

    async def begin(self, key: str, *, part_size: int) -> Upload:
        """Start writing an object in parts of `part_size` bytes. An unfinished upload of this key is ended first."""

    async def delete(self, key: str) -> None:
        """The object, and unfinished uploads of it, are gone when this returns. Absent is fine."""

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """All complete objects below the path `prefix` (whole components: `a/b` has `a/b/c`, not `a/bc`; empty: all),
        in pages, in constant memory."""

    async def unfinished(self, prefix: str) -> Sequence[str]:
        """Keys below the path `prefix` that have an unfinished upload."""

    async def test(self, prefix: str) -> Sequence[str]:
        """List, put, get, range, multipart, delete a probe below `prefix`, as a new store is added (`probe.py`).

        What each step found, a line each. Raises Refused naming the step, the cause, the remedy and the steps that had
        passed; leaves nothing behind."""

    async def aclose(self) -> None:
        """Let go of connections."""
