"""One block device of this host: its size, who uses it, what is on it, and making it zeros.

Owns the questions to the kernel and to blkid. Refuses to decide what a device is for. A device counts as empty only when nothing
that blkid knows is on it and its first and last mebibyte are zeros: whatever is in doubt is somebody's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import subprocess

EDGE = 1 << 20
"""Bytes at both ends that must be zeros: labels of partitions, RAID and volume managers lie there."""
ZERO_STEP = 256 << 20
"""Bytes made zeros by one request, between which a caller may stop."""
BLKZEROOUT = 0x127F
BLKID_S = 30
_NOTHING = 2
"""What blkid ends with when it finds nothing."""


def size_of(path: str) -> int:
    """Bytes of the device. Raises OSError; ENOTBLK when it is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK))
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def trouble(path: str) -> str:
    """Why the device may not be taken; empty when it is free and empty. Blocking."""
    try:
        size = size_of(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)  # the kernel knows mounts, swap, RAID, LVM and dm
    except OSError as error:
        known = {errno.EBUSY: "it is mounted or in use", errno.ENOTBLK: "it is not a block device",
                 errno.ENOENT: "it is not there"}
        return known.get(error.errno or 0, str(error.strerror))
    try:
        if size < 2 * EDGE:
            return f"it has {size} bytes only"
        for offset in (0, size - EDGE):
            if any(os.pread(descriptor, EDGE, offset)):
                return f"it is not empty: {_signature(path) or 'an unknown content'}"
    finally:
        os.close(descriptor)
    found = _signature(path)
    return f"it is not empty: {found}" if found else ""


def _signature(path: str) -> str:
    """What blkid sees on the device; empty for nothing. Raises OSError when it cannot be asked."""
    try:
        done = subprocess.run(["blkid", "-p", "-o", "value", "-s", "TYPE", "-s", "PTTYPE", path],
                              check=False, capture_output=True, timeout=BLKID_S)
    except FileNotFoundError:
        raise OSError(errno.ENOENT, "blkid is not installed (apt-get install util-linux)") from None
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"blkid did not answer in {BLKID_S} s") from None
    if done.returncode == _NOTHING:
        return ""
    return " ".join(done.stdout.decode(errors="replace").split()) or "what blkid cannot tell apart"


def zero(path: str) -> None:
    """Make the whole device zeros, durably; unstored where it can do that. Raises EBUSY when it is in use. Blocking."""
    descriptor = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        for at in range(0, size, ZERO_STEP):
            fcntl.ioctl(descriptor, BLKZEROOUT, struct.pack("=QQ", at, min(ZERO_STEP, size - at)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
