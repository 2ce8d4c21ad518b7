"""Disk: every system call of the folder store, by directory handle, so that a test can raise any error at any of them.

It owns path safety: a key's components are opened one by one with O_NOFOLLOW, so no link and no `..` leads out of the
root. It refuses to know objects, uploads and event loops: all of it is synchronous and runs in threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAX_DEPTH = 64
_TRIES = 5


class Disk:
    """Thin over `os`. Subclass it to inject errors."""

    def open(self, name: str, flags: int, directory: int | None = None) -> int:
        """Open; new files are 0640."""
        return os.open(name, flags | os.O_CLOEXEC, 0o640, dir_fd=directory)

    def close(self, handle: int) -> None:
        """Close."""
        os.close(handle)

    def mkdir(self, name: str, directory: int) -> None:
        """Make a directory, 0750."""
        os.mkdir(name, 0o750, dir_fd=directory)

    def rmdir(self, name: str, directory: int) -> None:
        """Remove an empty directory."""
        os.rmdir(name, dir_fd=directory)

    def pwrite(self, handle: int, data: memoryview, offset: int) -> int:
        """Write at an offset; may write less."""
        return os.pwrite(handle, data, offset)

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        """Read at an offset; may read less."""
        return os.pread(handle, length, offset)

    def fdatasync(self, handle: int) -> None:
        """Make the data durable."""
        os.fdatasync(handle)

    def fsync(self, handle: int) -> None:
        """Make data and metadata (of a directory: its entries) durable."""
        os.fsync(handle)

    def forget(self, handle: int, offset: int, length: int) -> None:
        """Drop clean pages, so that the next read asks the disk or the server."""
        os.posix_fadvise(handle, offset, length, os.POSIX_FADV_DONTNEED)

    def truncate(self, handle: int, size: int) -> None:
        """Set the size; what is added is a hole."""
        os.ftruncate(handle, size)

    def size(self, handle: int) -> int:
        """Bytes of an open file."""
        return os.fstat(handle).st_size

    def stat(self, name: str, directory: int) -> os.stat_result:
        """As it is, links not followed."""
        return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def replace(self, old: str, new: str, directory: int) -> None:
        """Rename within a directory; atomic."""
        os.replace(old, new, src_dir_fd=directory, dst_dir_fd=directory)

    def unlink(self, name: str, directory: int) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=directory)

    def names(self, directory: int) -> Iterator[str]:
        """Names in a directory, as the system gives them."""
        with os.scandir(directory) as entries:
            for entry in entries:
                yield entry.name

    # --- made of the above --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self, handle: int) -> Iterator[int]:
        """Close the handle at the end."""
        try:
            yield handle
        finally:
            self.close(handle)

    @contextlib.contextmanager
    def folder(self, root: int, path: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """The directory `path` below `root`; missing ones are made when asked for. FileNotFoundError otherwise."""
        current = self.open(".", _DIRECTORY, root)
        try:
            for name in path:
                following = self._step(current, name, make)
                self.close(current)
                current = following
            yield current
        finally:
            self.close(current)

    def _step(self, current: int, name: str, make: bool) -> int:
        for _ in range(_TRIES):  # a delete may remove the empty directory between our making and opening it
            try:
                return self.open(name, _DIRECTORY | os.O_NOFOLLOW, current)
            except FileNotFoundError:
                if not make:
                    raise
            with contextlib.suppress(FileExistsError):
                self.mkdir(name, current)
                self.fsync(current)
        raise FileNotFoundError(name)

    def write_all(self, handle: int, data: memoryview, offset: int) -> None:
        """All bytes, however many calls it takes."""
        while data:
            written = self.pwrite(handle, data, offset)
            if written < 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            data, offset = data[written:], offset + written

    def read_all(self, handle: int, length: int, offset: int) -> bytes:
        """`length` bytes, fewer only at the end of the file."""
        pieces: list[bytes] = []
        while length > 0:
            piece = self.pread(handle, length, offset)
            if not piece:
                break
            pieces.append(piece)
            length, offset = length - len(piece), offset + len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def walk(self, root: int, path: Sequence[str]) -> Iterator[tuple[Sequence[str], str, int]]:
        """Every regular file below `path`: its directories, its name, its size. What vanishes meanwhile is left out."""
        try:
            with self.folder(root, path) as directory:
                yield from self._walk(directory, tuple(path))
        except FileNotFoundError:
            return

    def _walk(self, directory: int, path: tuple[str, ...]) -> Iterator[tuple[Sequence[str], str, int]]:
        if len(path) > _MAX_DEPTH:
            return
        below: list[str] = []
        for name in self.names(directory):
            try:
                found = self.stat(name, directory)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode):
                yield path, name, found.st_size
            elif stat.S_ISDIR(found.st_mode) and not name.startswith("."):
                below.append(name)
        for name in below:
            try:
                inner = self.open(name, _DIRECTORY | os.O_NOFOLLOW, directory)
            except FileNotFoundError:
                continue
            with self.held(inner):
                yield from self._walk(inner, (*path, name))
