"""What a machine needs to run Storebus: Python, room, qemu's tools, libnbd.

Owns these checks. Refuses to look at any server.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys

from agents import qemu, sandbox
from api.doctor.finding import Finding
from api.output import size_text
from api.settings import Settings

ROOM = 1 << 30
"""Bytes that should be free in the data directory."""
QEMU = {"qemu-img": "qemu-utils", "qemu-storage-daemon": "qemu-system-common"}
"""Tool -> Debian's package of it."""


async def python(settings: Settings) -> Finding:
    """The interpreter."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("ok", version)


async def data_dir(settings: Settings) -> Finding:
    """May it be written, and has it room."""
    def look() -> Finding:
        here = settings.data_dir
        while not here.exists() and here != here.parent:
            here = here.parent
        if not os.access(here, os.W_OK):
            return Finding("fault", f"{here} may not be written by this user",
                           f"choose another with --data-dir, or run: chown {os.geteuid()} {here}")
        disk = shutil.disk_usage(here)
        text = f"{settings.data_dir}, {size_text(disk.free)} of {size_text(disk.total)} free"
        if disk.free < ROOM:
            return Finding("fault", text, "free some space, or choose another folder with --data-dir")
        return Finding("ok", text)

    return await asyncio.to_thread(look)


async def qemu_tools(settings: Settings) -> Finding:
    """qemu's programs, and whether they can be shut in."""
    missing = [tool for tool in QEMU if shutil.which(tool) is None]
    if missing:
        return Finding("fault", f"{', '.join(missing)} not found: no volume can be made here",
                       f"apt-get install {' '.join(sorted({QEMU[tool] for tool in missing}))}")
    text = (await qemu.version()).split("\n")[0]
    if not await asyncio.to_thread(sandbox.isolated):
        return Finding("warning", f"{text}; its programs share this host's network: namespaces are not allowed here",
                       "allow `unshare --net` (as root), or unprivileged user namespaces")
    return Finding("ok", text)


async def libnbd(settings: Settings) -> Finding:
    """The library that reads and writes volumes."""
    import ctypes

    try:
        await asyncio.to_thread(ctypes.CDLL, "libnbd.so.0")
    except OSError:
        return Finding("fault", "libnbd.so.0 not found: no volume can be read or written here", "apt-get install libnbd0")
    return Finding("ok", "libnbd.so.0")


__all__ = ["data_dir", "libnbd", "python", "qemu_tools"]
