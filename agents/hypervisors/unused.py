"""Whether the end of a disk holds anything: what a disk that becomes smaller must not.

Owns that one look, for every hypervisor. Reads what is stored, so what was written with zeros counts as nothing. Rule: it stops
at the first byte that is something, and names its place.
"""

from __future__ import annotations

from agents.hypervisors.base import BlockDevice
from agents.uninterrupted import in_thread
from schema.failure import WorkFailed

LOOK = 1 << 20
"""Bytes that are read at once."""


async def prove_unused(device: BlockDevice, size: int) -> None:
    """Raises WorkFailed unless everything from `size` on reads as zeros."""
    for extent in await device.extents():
        at, end = max(extent.offset, size), extent.offset + extent.length
        while not extent.zero and at < end:
            data = await device.read(at, min(LOOK, end - at))
            if await in_thread(any, memoryview(data)):
                raise WorkFailed(f"the disk holds data in what would be cut off, within {len(data)} bytes from {at} on",
                                 field="shrinkok", remedy="make the file system in it smaller, trim (fstrim, blkdiscard) what is "
                                 "behind it, and try again")
            at += len(data)


__all__ = ["prove_unused"]
