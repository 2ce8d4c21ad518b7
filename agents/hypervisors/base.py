"""Hypervisor: the plug-in interface for what runs beside the disks (KVM, later VMware and XenServer).

Seven methods. Owns what is inside a disk: its format, its snapshots, its content as a block device. Refuses to know
image stores and jobs. `tests/contract/hypervisor.py` proves an implementation. Raises only WorkFailed, WorkRetryable
and Unknown. Every method may be called twice with the same arguments and means it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from schema.failure import WorkFailed
from schema.image import ImageFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A run of a block device: bytes that are there, or that read as zeros without being stored."""

    offset: int
    length: int
    zero: bool


class BlockDevice(Protocol):
    """A disk's content while it is open: random access, several calls at once, off the event loop."""

    size: int
    """Bytes, a multiple of 512."""

    async def extents(self) -> Sequence[Extent]:
        """The whole device in order without gaps, neighbours of one kind joined."""

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Exactly these bytes."""

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """These bytes are the device's when `flush` has returned after it."""

    async def zero(self, offset: int, length: int) -> None:
        """This run reads as zeros, unstored where the format can do that."""

    async def flush(self) -> None:
        """Everything written is on stable storage."""


@runtime_checkable
class ReadsHere(Protocol):
    """What a block device has beside the methods of BlockDevice when any thread may read it."""

    def read_here(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer. Blocking: called in a thread, in several at once; whoever called waits for each before the device is
        closed."""


class Hypervisor(Protocol):
    """The hypervisor of one host. Paths are local paths that a PrimaryStore gave."""

    NAME: ClassVar[str]
    """As CloudStack spells it: KVM, VMware, XenServer."""

    async def create(self, path: str, virtual_size: int) -> None:
        """Make an empty disk at an absent path."""

    async def adopt(self, path: str, *, format: ImageFormat, grow_to: int) -> int:  # noqa: A002 - the field's word
        """Check a disk file whose bytes came from an image store (no backing or data file, right format), enlarge it to
        `grow_to` bytes when it is smaller. Returns its virtual size."""

    def open(self, path: str, *, tag: str = "", writable: bool = False,
             format: ImageFormat = ImageFormat.QCOW2) -> AbstractAsyncContextManager[BlockDevice]:  # noqa: A002
        """The content of a disk, or of the snapshot `tag` in it."""

    async def take_snapshot(self, path: str, tag: str) -> None:
        """Freeze the content under `tag`, durably."""

    async def drop_snapshot(self, path: str, tag: str) -> None:
        """Forget `tag`; an absent one, or an absent disk, is fine."""

    async def snapshots(self, path: str) -> list[str]:
        """The tags in a disk."""

    async def measure(self, path: str) -> tuple[int, int]:
        """(virtual bytes, bytes used on the primary store)."""


@runtime_checkable
class ChangeTracking(Protocol):
    """What a hypervisor can do beyond the contract: remember, inside a disk, which blocks were written since a moment.

    A record that cannot be trusted is never used: `changed` raises Untracked with the reason, and the next backup is full.
    """

    async def track(self, path: str, name: str) -> None:
        """Record changes under `name` from now on. One that is already recording goes on; one that is not is replaced."""

    async def changed(self, path: str, name: str) -> Sequence[Extent]:
        """The blocks, at least those, that were written since `track`, in order, whole multiples of GRANULARITY but at the
        disk's end. Raises Untracked when the record is absent, stopped, of another granularity, or was not closed well."""

    async def forget_changes(self, path: str, name: str) -> None:
        """Remove a record. An absent one, or an absent disk, is fine."""

    async def keep_changes(self, path: str, name: str) -> None:
        """Remove every record of ours but this one. An absent disk is fine."""


@runtime_checkable
class Resizable(Protocol):
    """What a hypervisor can do beyond the contract: give a disk at rest another size."""

    async def resize(self, path: str, virtual_size: int, *, shrink: bool) -> int:
        """Give it so many bytes, rounded up to sectors; what is added reads as zeros. Smaller only with `shrink`, and only where
        what is cut off reads as zeros. Every record of changes is forgotten. Returns the size that it has. Raises WorkFailed, and
        the disk is as it was, where a snapshot is inside it too."""


class Untracked(WorkFailed):
    """Nothing reliable is known of what changed; the cause says why."""


GRANULARITY = 1 << 16
"""Bytes of one block of a change record: a cluster of the images that Storebus writes."""
TAG = "sb-"
"""How the names of our snapshots and change records inside a disk begin."""

__all__ = ["GRANULARITY", "TAG", "BlockDevice", "ChangeTracking", "Extent", "Hypervisor", "Resizable", "Untracked"]
