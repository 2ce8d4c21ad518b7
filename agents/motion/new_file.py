"""A disk's file while it is filled: holes where there are zeros, and what was written goes to the disk at once.

Owns the descriptors, and how much of the file waits in the host's memory: none where the file system writes past its page cache
(O_DIRECT), little elsewhere. So the guests' pages are not pushed out by a disk that nobody has read yet, and the flush at the end
finds little to do. Refuses to know where the bytes come from and what is in them.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Self

from agents.image_stores.base import Bytes
from agents.uninterrupted import in_thread

BLOCK = 1 << 16
_ZEROS = bytes(BLOCK)
ALIGNED = 4096
"""Bytes of a block that is written past the page cache."""
WAITING = 8
"""Ranges that may be on their way to the disk before the oldest of them is let go of."""


class NewFile:
    """A file, or the block device that stands for one. Every method but `open` runs while the descriptor is open."""

    def __init__(self, descriptor: int, past: int | None) -> None:
        self.descriptor = descriptor
        self._past = past
        """Writes past the page cache; None where that cannot be."""
        self._behind: deque[tuple[int, int]] = deque()

    @classmethod
    async def open(cls, path: str, size: int, *, there: bool, device: bool) -> Self:
        """The file, absent unless `there`, or the block device, with room for `size` bytes. Raises OSError."""
        return cls(*await in_thread(_opened, path, size, there, device))

    async def write(self, data: Bytes, offset: int, *, holes: bool, first: Callable[[Bytes], None] | None = None) -> None:
        """All of it; with `holes`, which is only right where nothing was written before, but the zeros. Raises OSError.

        `first` is called with it beforehand, in the same thread: to start another costs more than to sum a small piece."""
        await in_thread(self._write, data, offset, holes, first)

    def _write(self, data: Bytes, offset: int, holes: bool, first: Callable[[Bytes], None] | None) -> None:
        view = memoryview(data)
        if first is not None:
            first(view)
        cached = False
        for start, end in runs(view) if holes else [(0, len(view))]:
            at = start + self._write_past(view[start:end], offset + start)
            while at < end:
                at += os.pwrite(self.descriptor, view[at:end], offset + at)
                cached = True
        if not cached:
            return
        self._behind.append((offset, len(view)))
        # The first time starts the writing, the second lets go of what is written. Both are advice: neither waits or fails.
        self._advise(offset, len(view))
        if len(self._behind) > WAITING:
            with contextlib.suppress(IndexError):  # another thread was quicker
                self._advise(*self._behind.popleft())

    def _write_past(self, view: memoryview, offset: int) -> int:
        """Bytes of `view` that were written past the page cache: whole blocks of it, or none. Raises OSError."""
        length = len(view) - len(view) % ALIGNED
        at = 0
        while self._past is not None and at < length and not offset % ALIGNED:
            try:
                wrote = os.pwrite(self._past, view[at:length], offset + at)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break  # the buffer does not begin where a block does, or the file system wants larger ones
            at += wrote - wrote % ALIGNED
            if wrote % ALIGNED:
                break
        return at

    def _advise(self, offset: int, length: int) -> None:
        with contextlib.suppress(OSError):
            os.posix_fadvise(self.descriptor, offset, length, os.POSIX_FADV_DONTNEED)

    async def flush(self) -> None:
        """Everything written is on stable storage. Raises OSError."""
        await in_thread(os.fsync, self.descriptor)

    def close(self) -> None:
        """Let go of it. No thread writes to it any more: each was waited for."""
        os.close(self.descriptor)
        if self._past is not None:
            os.close(self._past)


def _past(descriptor: int) -> int | None:
    """The same file once more, for writing past the page cache."""
    with contextlib.suppress(OSError):
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
    return None


def _opened(path: str, size: int, there: bool, device: bool) -> tuple[int, int | None]:
    flags = 0 if device else os.O_CREAT | os.O_NOFOLLOW | (0 if there else os.O_EXCL)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        if not device:
            os.ftruncate(descriptor, size)
        elif os.lseek(descriptor, 0, os.SEEK_END) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, _past(descriptor)


def runs(data: Bytes) -> list[tuple[int, int]]:
    """Ranges of `data` that are not all zeros, by blocks of 64 KiB, joined."""
    found: list[tuple[int, int]] = []
    view = memoryview(data)
    for at in range(0, len(view), BLOCK):
        block = view[at:at + BLOCK]
        # Views are compared byte by byte, copies at once; nearly always the first byte tells.
        if not block[0] and block.tobytes() == (_ZEROS if len(block) == BLOCK else _ZEROS[:len(block)]):
            continue
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + len(block))
        else:
            found.append((at, at + len(block)))
    return found
