"""A disk that fails where a test says: the folder store's system calls, with errors that the system raises for real.

It owns where, how often and what; the calls that go well are the real ones on a real directory. It refuses to know objects.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from agents.image_stores.folder_disk import Disk

PIECE = 10_000
"""Bytes that one call reads or writes at most: short ones are normal."""


class BrokenDisk(Disk):
    """Raises `error` at the call named `at`, once `skip` such calls went well; notes the order of calls."""

    def __init__(self) -> None:
        self.at, self.error, self.skip, self.left = "", 0, 0, 0
        self.calls: list[str] = []
        self.hits = 0
        """Calls that failed, or lied."""
        self.main = threading.get_ident()

    def breaks(self, at: str, error: int, skip: int = 0, *, times: int = 1 << 30) -> None:
        """From now on, `times` times. The error 0 at `pread`: a bit is wrong and nothing is said."""
        self.at, self.error, self.skip, self.left = at, error, skip, times

    def _called(self, name: str) -> bool:
        assert threading.get_ident() != self.main, "file I/O on the event loop"
        self.calls.append(name)
        if name != self.at or self.left < 1:
            return False
        self.skip -= 1
        if self.skip >= 0:
            return False
        self.left -= 1
        self.hits += 1
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return True

    def pwrite(self, handle: int, data: memoryview, offset: int) -> int:
        self._called("pwrite")
        return super().pwrite(handle, data[:PIECE], offset)

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        lies = self._called("pread")
        read = super().pread(handle, min(length, PIECE), offset)
        return bytes([read[0] ^ 1]) + read[1:] if lies and read else read

    def fdatasync(self, handle: int) -> None:
        self._called("fdatasync")
        super().fdatasync(handle)

    def fsync(self, handle: int) -> None:
        self._called("fsync")
        super().fsync(handle)

    def replace(self, old: str, new: str, directory: int) -> None:
        self._called("replace")
        super().replace(old, new, directory)

    def open(self, name: str, flags: int, directory: int | None = None) -> int:
        self._called("create" if flags & os.O_EXCL else "open")
        return super().open(name, flags, directory)

    def unlink(self, name: str, directory: int) -> None:
        self._called("unlink")
        super().unlink(name, directory)

    def stat(self, name: str, directory: int) -> os.stat_result:
        self._called("stat")
        return super().stat(name, directory)

    def names(self, directory: int) -> Iterator[str]:
        for name in super().names(directory):  # a directory that cannot be read to its end
            yield name
            self._called("name")
