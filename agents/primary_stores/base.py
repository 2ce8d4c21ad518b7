"""PrimaryStore: the plug-in interface for places where disks live (a folder, block devices).

Owns the names and life of disk files. Refuses to know what is inside them: that is the hypervisor's. A disk under
construction has a name of its attempt and becomes the volume's by `commit`; nobody ever sees half a disk.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from uuid import UUID

from schema.failure import WorkFailed

FULL = "free space, or add a store"
REMEDY = {errno.ENOSPC: FULL, errno.EDQUOT: "raise the quota", errno.EACCES: "let the agent write there",
          errno.EROFS: "mount it writable"}


def explain(error: OSError, root: object = "") -> WorkFailed:
    """What a system error of a primary store means to an operator."""
    what = "it is full: " if error.errno == errno.ENOSPC else ""
    return WorkFailed(f"the primary store{f' {root}' if root else ''}: {what}{error.strerror}", field="primary",
                      remedy=REMEDY.get(error.errno or 0, "see the host's log"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes of the place and how many of them are free."""

    total: int
    free: int


@runtime_checkable
class KeepsDrafts(Protocol):
    """What a primary store whose drafts are files has beside the methods of PrimaryStore."""

    async def kept(self, volume_id: UUID, work_name: str, suffix: str, *, size: int = 0) -> str:
        """As `draft`, but what an earlier run of this attempt left in the file stays, whatever it is."""


@runtime_checkable
class Bounded(Protocol):
    """What a primary store whose places have a fixed size has beside the methods of PrimaryStore."""

    async def fits(self, name: str, size: int) -> None:
        """Raises WorkFailed when the disk of this name cannot have so many virtual bytes where it lies."""


@runtime_checkable
class KeepsSeeds(Protocol):
    """What a primary store whose disks are files has beside the methods of PrimaryStore: copies of templates lie among them,
    which are no volume's. One is made as a disk is, of the template's id and the suffix SEED."""

    async def seed(self, name: str) -> tuple[str, int] | None:
        """Local path and bytes of the file of a committed seed; None when it is not there."""

    async def drop_seed(self, template_id: UUID) -> None:
        """Remove the template's seed and its drafts, durably; absent is fine. Whatever volume has this id stays."""


SEED = "seed.qcow2"
"""The suffix of a seed."""


class PrimaryStore(Protocol):
    """An open primary store."""

    async def draft(self, volume_id: UUID, work_name: str, suffix: str, *, size: int = 0) -> str:
        """Local path for a new disk of this attempt, a file that is absent or a device that is all zeros; what an earlier run
        of it left is removed. `size`: the disk's virtual bytes, for a store that must choose a place large enough."""

    async def commit(self, volume_id: UUID, work_name: str, suffix: str) -> str:
        """Make the draft the volume's disk, durably (fsync, rename, fsync). Returns its name within the store. Twice is
        once."""

    async def discard(self, volume_id: UUID, work_name: str, suffix: str) -> None:
        """Remove the draft; absent is fine."""

    def locate(self, name: str) -> str:
        """Local path of a committed disk, no symbolic link. Raises WorkFailed when the name leaves the store."""

    async def exists(self, name: str) -> bool:
        """Whether the disk is there."""

    async def delete(self, volume_id: UUID) -> None:
        """Remove the volume's disk and drafts, durably; absent is fine. Whatever template has this id keeps its seed."""

    async def names(self) -> list[str]:
        """All files here that Storebus made, drafts too."""

    async def usage(self) -> Usage:
        """Space."""
