"""libnbd by ctypes: the few calls that moving a disk needs. The protocol is libnbd's; no NBD is spoken here.

Owns one connection each; a handle is used by one thread at a time (ctypes lets the others run meanwhile). Refuses to
know what is on the other side. Needs the distribution's libnbd.so.0 (Debian: libnbd0); there is no wheel of it.
"""

from __future__ import annotations

import ctypes
import errno
import select
from functools import cache

from agents.hypervisors.base import Extent
from schema.failure import Unavailable, WorkFailed, WorkRetryable

INSTALL = "apt-get install --no-install-recommends libnbd0"
HOLE, ZERO = 1, 2
"""Flags of base:allocation."""
ALLOCATION, DIRTY = "base:allocation", "qemu:dirty-bitmap:"
CHANGED = 1
"""The flag of a dirty bitmap's context."""
STATUS_SPAN = (1 << 32) - (1 << 16)
"""Bytes of one block-status or zero request: the protocol's limit is 4 GiB - 1."""
MAX_REQUEST = 256 << 10
"""Bytes of one read or write. The program that serves holds as many for each of its connections, and keeps some more: 18 MB
with 512 KiB, 6 with this, which takes it a tenth longer."""

_EXTENT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64,
                           ctypes.POINTER(ctypes.c_uint32), ctypes.c_size_t, ctypes.POINTER(ctypes.c_int))


class _ExtentCallback(ctypes.Structure):
    _fields_ = [("callback", _EXTENT), ("user_data", ctypes.c_void_p), ("free", ctypes.c_void_p)]


@cache
def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libnbd.so.0")
    except OSError:
        raise Unavailable("libnbd.so.0 is not installed", field="libnbd", remedy=INSTALL) from None
    handle, text, i32, u64, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_size_t
    u32 = ctypes.c_uint32
    for name, result, arguments in (
        ("nbd_create", handle, []), ("nbd_close", None, [handle]), ("nbd_get_error", text, []),
        ("nbd_get_errno", i32, []),
        ("nbd_set_pread_initialize", i32, [handle, ctypes.c_bool]),
        ("nbd_set_export_name", i32, [handle, text]), ("nbd_add_meta_context", i32, [handle, text]),
        ("nbd_connect_unix", i32, [handle, text]), ("nbd_get_size", ctypes.c_int64, [handle]), ("nbd_aio_get_fd", i32, [handle]),
        ("nbd_can_multi_conn", i32, [handle]), ("nbd_can_zero", i32, [handle]),
        ("nbd_can_meta_context", i32, [handle, text]),
        ("nbd_pread", i32, [handle, ctypes.c_void_p, size, u64, u32]),
        ("nbd_pwrite", i32, [handle, ctypes.c_void_p, size, u64, u32]),
        ("nbd_zero", i32, [handle, u64, u64, u32]), ("nbd_flush", i32, [handle, u32]),
        ("nbd_block_status", i32, [handle, u64, u64, _ExtentCallback, u32]),
        ("nbd_shutdown", i32, [handle, u32]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def available() -> bool:
    """Whether the library is here."""
    try:
        _library()
    except Unavailable:
        return False
    return True


class Connection:
    """One connection to one export. Blocking: every method is called in a thread."""

    def __init__(self, socket: str, export: str = "", *, context: str = ALLOCATION) -> None:
        self._lib, self._context = _library(), context.encode()
        self._handle = self._lib.nbd_create()
        if not self._handle:
            raise self._error("nbd_create")
        try:
            # Else each buffer is filled with zeros before it is filled. One that was not read whole is never used: that raises.
            self._ok(self._lib.nbd_set_pread_initialize(self._handle, False), "buffers")
            self._ok(self._lib.nbd_set_export_name(self._handle, export.encode()), "export name")
            self._ok(self._lib.nbd_add_meta_context(self._handle, self._context), "meta context")
            self._ok(self._lib.nbd_connect_unix(self._handle, socket.encode()), "connect")
            self.size: int = self._lib.nbd_get_size(self._handle)
            self._ok(self.size, "size")
        except BaseException:
            self.close()
            raise

    def _error(self, what: str) -> WorkFailed:
        """The library's last error on this thread. What cannot succeed later is definite, a broken connection may pass."""
        text, number = self._lib.nbd_get_error(), self._lib.nbd_get_errno()
        said = f"block export: {what}: {text.decode(errors='replace') if text else 'unknown error'}"
        if number in (errno.ENOSPC, errno.EDQUOT):
            return WorkFailed(f"the primary store is full ({said})", field="primary", remedy="free space, or add a store")
        if number in (errno.EPERM, errno.EINVAL):
            return WorkFailed(said)
        return WorkRetryable(said)

    def _inside(self, offset: int, length: int) -> None:
        """A place beyond the end would be answered with ENOSPC, as if the store were full."""
        if offset < 0 or offset + length > self.size:
            raise WorkFailed(f"bytes {offset} to {offset + length} are not all on a disk of {self.size}")

    @property
    def _open(self) -> int:
        """The handle; a closed one would be a null pointer for the library."""
        if not self._handle:
            raise WorkRetryable("block export: the connection is closed")
        return int(self._handle)

    def _ok(self, result: int, what: str) -> int:
        if result < 0:
            raise self._error(what)
        return result

    @property
    def multi(self) -> bool:
        """Whether several connections see one another's flushed writes."""
        return bool(self._lib.nbd_can_multi_conn(self._open) == 1)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from `offset`."""
        self._inside(offset, len(buffer))
        start = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if len(buffer) else 0
        for at in range(0, len(buffer), MAX_REQUEST):
            length = min(MAX_REQUEST, len(buffer) - at)
            self._ok(self._lib.nbd_pread(self._open, start + at, length, offset + at, 0), "read")

    def prove_there(self) -> None:
        """The server is at the other end still: what was true while it is, was true until now. Raises WorkRetryable."""
        watch = select.poll()
        watch.register(self._lib.nbd_aio_get_fd(self._open), select.POLLIN)
        if watch.poll(0):  # nothing is awaited: it can only be the end
            raise WorkRetryable("block export: read: the server has ended")

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write; durable after `flush`."""
        view = memoryview(data).cast("B")
        self._inside(offset, len(view))
        for at in range(0, len(view), MAX_REQUEST):
            piece = view[at:at + MAX_REQUEST]
            if piece.readonly:  # ctypes lends no address of those
                self._ok(self._lib.nbd_pwrite(self._open, bytes(piece), len(piece), offset + at, 0), "write")
            else:
                start = ctypes.addressof(ctypes.c_char.from_buffer(piece))
                self._ok(self._lib.nbd_pwrite(self._open, start, len(piece), offset + at, 0), "write")

    def zero(self, offset: int, length: int) -> None:
        """Make a run read as zeros."""
        self._inside(offset, length)
        while length > 0:
            step = min(length, STATUS_SPAN)
            self._ok(self._lib.nbd_zero(self._open, step, offset, 0), "zero")
            offset, length = offset + step, length - step

    def flush(self) -> None:
        """Everything written is on stable storage."""
        self._ok(self._lib.nbd_flush(self._open, 0), "flush")

    def extents(self) -> list[Extent]:
        """The device's allocation, neighbours of one kind joined. All of it is data where the server tells nothing."""
        return [Extent(offset=at, length=length, zero=zero) for at, length, zero in self._status(ZERO, unknown=False)]

    def changed(self) -> list[Extent]:
        """The runs that the connection's dirty bitmap has marked. Raises WorkFailed when the server does not offer it."""
        if self._ok(self._lib.nbd_can_meta_context(self._open, self._context), "meta context") != 1:
            raise WorkFailed(f"block export: it does not offer {self._context.decode()}")
        return [Extent(offset=at, length=length, zero=False)
                for at, length, marked in self._status(CHANGED, unknown=True) if marked]

    def _status(self, flag: int, *, unknown: bool) -> list[tuple[int, int, bool]]:
        """(offset, length, whether `flag` is set) over the whole device, equal neighbours joined."""
        found: list[tuple[int, int, bool]] = []
        at = 0
        while at < self.size:
            runs: list[tuple[int, bool]] = []

            def on_extents(_: int, context: bytes, offset: int, entries: object, count: int, error: object,
                           runs: list[tuple[int, bool]] = runs) -> int:
                if context == self._context:
                    runs.extend((entries[n], bool(entries[n + 1] & flag)) for n in range(0, count, 2))  # type: ignore[index] # a ctypes pointer
                return 0

            callback = _ExtentCallback(_EXTENT(on_extents), None, None)
            span = min(STATUS_SPAN, self.size - at)
            self._ok(self._lib.nbd_block_status(self._open, span, at, callback, 0), "block status")
            if not runs:
                runs.append((span, unknown))
            for length, marked in runs:
                length = min(length, self.size - at)  # a server may tell beyond what was asked
                if length <= 0:
                    break
                if found and found[-1][2] == marked:
                    found[-1] = (found[-1][0], found[-1][1] + length, marked)
                else:
                    found.append((at, length, marked))
                at += length
        return found

    def close(self) -> None:
        """Disconnect. Twice is fine."""
        handle, self._handle = self._handle, None
        if handle:
            self._lib.nbd_shutdown(handle, 0)
            self._lib.nbd_close(handle)
