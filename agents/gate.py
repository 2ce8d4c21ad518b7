"""The gate for a disk file: what came from an image store is looked at again before any program of qemu's reads it.

An object was inspected when it was taken in, but a store may be written to by others, and what is restored was written by a
guest. The rules are the download's: `inspection`, `qcow2_header`, `qcow2_whole`. Owns their order for a file. Refuses what
is neither a regular file nor a block device, and to change anything.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from oslo_utils.imageutils import format_inspector

from agents.inspection import LOOK, Inspection
from agents.qcow2_whole import prove_whole
from agents.uninterrupted import in_thread
from schema.failure import BadParameter, WorkFailed
from schema.image import ImageFormat

MAX_VIRTUAL = 64 << 40
"""Bytes of the largest disk that is adopted."""

LIKE_RAW = frozenset({"raw", "gpt", "iso"})
"""What oslo tells apart and qemu reads as raw bytes."""


async def prove_disk(path: str) -> int:
    """The virtual size of the qcow2 file at `path`. Raises WorkFailed saying which rule it breaks."""
    descriptor = await in_thread(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        virtual, size = await in_thread(_look, descriptor)

        async def read(offset: int, length: int) -> bytes:
            return await in_thread(os.pread, descriptor, length, offset)

        await prove_whole(read, size)
    except BadParameter as refused:
        raise WorkFailed(f"the disk is refused: {refused.failure.cause}",
                         remedy="the object in the image store may not be used: register it again, or restore it") from None
    finally:
        os.close(descriptor)
    return virtual


async def driver_of(path: str) -> str:
    """qemu's name of the format that a file of the operator's own has, so that nothing need guess it.

    Raises WorkFailed when it is not safe to be read, whatever it is."""
    try:
        found = await in_thread(format_inspector.detect_file_format, path)
        name = str(found) if found is not None else "raw"
        if found is not None and name not in LIKE_RAW:
            found.safety_check()
    except (format_inspector.ImageFormatError, format_inspector.SafetyCheckFailed) as error:
        raise WorkFailed(f"{Path(path).name} is refused: {error}", remedy="give another image") from None
    if name == ImageFormat.QCOW2:
        await prove_disk(path)
    return "raw" if name in LIKE_RAW else {"vhd": "vpc"}.get(name, name)


def _look(descriptor: int) -> tuple[int, int]:
    """(virtual size, bytes of the file) after its beginning was inspected. Blocking."""
    found = os.fstat(descriptor)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise WorkFailed("the disk is refused: it is neither a regular file nor a block device")
    size = os.lseek(descriptor, 0, os.SEEK_END)
    inspection = Inspection(ImageFormat.QCOW2, max_virtual_size=MAX_VIRTUAL)
    head = os.pread(descriptor, LOOK, 0)
    inspection.feed(head)
    return inspection.finish(size), size
