"""The strategy `seed`: a disk made of a template's copy that lies on the same primary store. No byte crosses the network.

Owns the copying of one file to another: the file system shares the blocks where it can (reflink), else the kernel copies them,
else this process does, by small pieces; holes stay holes. A seed that is not there, is not as long as when it was verified, or
cannot be read is no failure: the image store has the bytes too, is read in its place, and the reason is told.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from agents.motion.at_rest import restore
from agents.motion.base import Motion, Progress, Secrets
from agents.primary_stores.base import KeepsSeeds, explain
from agents.toolbox import Toolbox
from agents.uninterrupted import in_thread
from schema.agent import CreateDisk
from schema.failure import WorkFailed
from schema.motion import SEED

STEP = 16 << 20
"""Bytes between two looks at whether the work was cancelled."""
PIECE = 1 << 20
"""Bytes in memory where the kernel does not copy by itself."""
FICLONE = 0x40049409
LOST = frozenset({errno.ENOENT, errno.EIO, errno.ESTALE})
"""What a seed that has gone, or that its disk cannot read, is answered with."""
NOT_SO = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.EPERM})
"""What a kernel or a file system answers that cannot share or copy blocks."""
log = logging.getLogger(__name__)


async def from_seed(order: CreateDisk, disk: str, tools: Toolbox, secrets: Secrets, progress: Progress) -> str:
    """The seed's bytes into the absent file `disk`. Why the image store was read in its place; empty when it was not."""
    reason = await _copied(order, disk, tools, progress)
    if reason:
        log.warning("a disk is made from its image store: %s", reason, extra={"action": "seed_lost"})
        await restore(order, disk, tools, secrets, progress)
    return reason


async def _copied(order: CreateDisk, disk: str, tools: Toolbox, progress: Progress) -> str:
    primary = tools.primary(order.primary)
    found = await primary.seed(order.seed) if isinstance(primary, KeepsSeeds) else None
    if found is None:
        return f"the template's copy {order.seed} is not on the primary store"
    path, size = found
    if size != order.seed_size:
        return f"the template's copy {order.seed} has {size} bytes, not the {order.seed_size} that were verified"
    try:
        await copy_file(path, disk, size, progress)
    except OSError as error:
        if error.errno not in LOST:
            raise explain(error) from None
        await in_thread(lambda: Path(disk).unlink(missing_ok=True))
        return f"the template's copy {order.seed} cannot be read: {error.strerror}"
    return ""


async def copy_file(source: str, target: str, size: int, progress: Progress) -> None:
    """The first `size` bytes of a file into an absent one. Raises OSError, WorkFailed when the file ends before."""
    progress("copy", 0, size)
    here, there = await in_thread(_opened, source, target)
    try:
        if not await in_thread(_shared, here, there):
            await in_thread(os.ftruncate, there, size)
            at = 0
            while at < size:  # a cancel is seen after each step
                at = await in_thread(_step, here, there, at, size)
                progress("copy", at, size)
        progress("copy", size, size)
    finally:
        os.close(here)
        os.close(there)


def _opened(source: str, target: str) -> tuple[int, int]:
    here = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return here, os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except BaseException:
        os.close(here)
        raise


def _shared(here: int, there: int) -> bool:
    """Whether the file system let both files have the same blocks."""
    try:
        fcntl.ioctl(there, FICLONE, here)
    except OSError as error:
        if error.errno in NOT_SO:
            return False
        raise
    return True


def _step(here: int, there: int, at: int, size: int) -> int:
    """Copy from `at` on, about STEP bytes of data; where the next step begins."""
    left = STEP
    for start, end in _data(here, at, size):
        end = min(end, start + left)
        while start < end:
            count = _piece(here, there, start, end - start)
            start += count
            left -= count
        at = start
        if left <= 0:
            _behind(there, at)
            return at
    return size


def _data(here: int, at: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the file has data: what is between reads as zeros."""
    while at < size:
        try:
            start = os.lseek(here, at, os.SEEK_DATA)
            at = min(size, os.lseek(here, start, os.SEEK_HOLE))
        except OSError as error:
            if error.errno != errno.ENXIO:  # a hole to the end
                raise
            return
        if start < size:
            yield start, at


def _piece(here: int, there: int, at: int, length: int) -> int:
    try:
        count = os.copy_file_range(here, there, length, at, at)
    except OSError as error:
        if error.errno not in NOT_SO:
            raise
        data = os.pread(here, min(length, PIECE), at)
        count = os.pwrite(there, data, at) if data else 0
    if not count:
        raise WorkFailed("the template's copy became shorter while it was read", field="templateid", remedy="try again")
    return count


def _behind(there: int, at: int) -> None:
    """What was written goes to the disk, and does not push out the guests' pages. Advice: it neither waits nor fails."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(there, 0, at, os.POSIX_FADV_DONTNEED)


LOCAL = Motion(name="seed", moves={SEED: from_seed}, passes=0, rate=400 << 20)
