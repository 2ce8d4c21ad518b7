"""Inspection: what an image is, seen while its bytes stream by and before anything else reads them.

Owns the verdict: the sniffed format must be the declared one and no other, nothing in it may point outside of it, and its
virtual size is capped. The parsing is oslo.utils' format inspector (the one that came out of CVE-2024-32498) and, for what it
does not look at, `qcow2_header`. Refuses to interpret compressed or textual bodies at all, and to read more than it is fed.
"""

from __future__ import annotations

import re
from typing import Any

from oslo_utils.imageutils import format_inspector

from agents import qcow2_header
from schema.failure import BadParameter
from schema.image import ImageFormat

LOOK = 1 << 20
"""Bytes after which the format must be plain."""
HEAD = 512
MAGIC = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip", b"PK\x07\x08": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z", b"\x04\x22\x4d\x18": "lz4", b"LZIP": "lzip", b"\x5d\x00\x00": "lzma", b"\x1f\x9d": "compress",
    b"Rar!\x1a": "rar", b"\x7fELF": "an ELF program", b"%PDF": "PDF",
}
DISKS = {
    b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"COWD": "vmdk", b"vhdxfile": "vhdx", b"conectix": "vhd", b"QED\0": "qed",
    b"LUKS\xba\xbe": "luks", b"Bochs Virtual HD Image": "bochs",
    b"WithoutFreeSpace": "parallels", b"WithouFreSpacExt": "parallels",
}
"""Beginnings of disk formats: no raw disk begins so, whether the rest makes sense or not."""
VDI_AT, VDI = 64, b"\x7f\x10\xda\xbe"
TAR_AT, TAR = 257, b"ustar"
TEXT = (b"<!doctype", b"<!--", b"<html", b"<?xml", b"<head", b"<body", b"{", b"# disk descriptorfile", b"#!")
TAILS = {b"conectix": "vhd", b"koly": "dmg"}
"""What the last 512 bytes of a format begin with that looks like a raw disk at its front."""
PLAIN = frozenset({ImageFormat.RAW, ImageFormat.ISO})
"""Formats whose size is that of their bytes, and whose first sector is the image's own to fill."""
PARTITIONED = "gpt"
"""A partition table (oslo names MBR so too) is what a raw disk looks like inside."""
_VMDK_TEXT = re.compile(rb"(?:[ \t]*#[^\n]*\n|[ \t\r]*\n)*version=\d")
"""A VMDK descriptor as qemu recognises one: comments and empty lines do not matter."""


class Inspection:
    """Fed with the whole stream, in order. Raises BadParameter as soon as the image cannot be taken."""

    def __init__(self, declared: ImageFormat, *, max_virtual_size: int) -> None:
        self.declared, self.max_virtual_size = declared, max_virtual_size
        self._seen = 0
        self._head = self._front = self._tail = b""
        self._inspectors: dict[str, Any] = {
            name: make() for name, make in format_inspector.ALL_FORMATS.items() if name != "raw"}
        self._decided = False

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """The next bytes. Blocking: called in a thread."""
        data = bytes(chunk)
        if len(self._head) < HEAD:
            self._head += data[:HEAD - len(self._head)]
            self._look_at_head()
        if len(self._front) < qcow2_header.FRONT:
            self._front += data[:qcow2_header.FRONT - len(self._front)]
        self._tail = (self._tail + data[-HEAD:])[-HEAD:]
        for name, inspector in list(self._inspectors.items()):
            try:
                inspector.eat_chunk(data)
            except Exception:  # a parser of some other format gave up: it is not that format
                del self._inspectors[name]
        self._seen += len(data)
        if not self._decided and self._seen >= LOOK:
            self._decide()

    def _look_at_head(self) -> None:
        found = next((name for magic, name in MAGIC.items() if self._head.startswith(magic)), "")
        if self._head[TAR_AT:TAR_AT + len(TAR)] == TAR or _is_tar(self._head):
            found = "a tar archive"
        if found:
            raise BadParameter(f"the URL gives {found}, not a {self.declared} image", field="url",
                               remedy="offer the image itself, uncompressed")
        if self.declared in PLAIN:
            disk = next((name for magic, name in DISKS.items() if self._head.startswith(magic)), "")
            disk = "vdi" if self._head[VDI_AT:VDI_AT + len(VDI)] == VDI else disk
            if disk:
                self._refuse_format(disk)
        text = self._head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if text[:64].lower().startswith(TEXT) or (len(self._head) == HEAD and _is_text(self._head)):
            self._refuse_text()
        if _VMDK_TEXT.match(self._head):
            self._refuse_format("vmdk (a descriptor)")

    def _refuse_text(self) -> None:
        raise BadParameter(f"the URL gives text (HTML, XML, JSON or a script), not a {self.declared} image", field="url",
                           remedy="give the address of the image itself")

    def _refuse_format(self, what: str) -> None:
        raise BadParameter(f"the image is declared {self.declared} and is {what}", field="format",
                           remedy="register it as what it is: a template in qcow2 or raw, an ISO; others are converted first")

    def _matches(self) -> list[str]:
        return sorted(name for name, inspector in self._inspectors.items() if inspector.format_match)

    def _decide(self) -> None:
        self._decided = True
        found = [name for name in self._matches() if name != PARTITIONED]
        wanted = [] if self.declared is ImageFormat.RAW else [str(self.declared)]
        if found != wanted:
            self._refuse_format(" and ".join(found) or "no known format")
        if wanted:
            self._safe(self._inspectors[str(self.declared)])

    def _safe(self, inspector: Any) -> None:
        try:
            inspector.safety_check()
        except format_inspector.SafetyCheckFailed as failed:
            said = "; ".join(str(violation) for violation in failed.failures.values())
            raise BadParameter(f"the image is not safe to use: {said}", field="url",
                               remedy="flatten it: qemu-img convert -O qcow2") from None
        except Exception as error:
            raise BadParameter(f"the image cannot be understood: {error}", field="url") from None
        self._cap(int(inspector.virtual_size))  # of an ISO: what its volume says of itself; what counts is how much comes
        if self.declared is ImageFormat.QCOW2:
            qcow2_header.prove_sound(self._front)

    def _cap(self, virtual_size: int) -> None:
        least = 0 if self.declared is ImageFormat.QCOW2 else 1  # an empty answer is no raw image; an empty disk says what it is
        if not least <= virtual_size <= self.max_virtual_size:
            raise BadParameter(f"the image's virtual size is {virtual_size} bytes; {least} to {self.max_virtual_size} are taken",
                               field="url")

    def finish(self, size: int = 0) -> int:
        """The stream has ended: the virtual size. Raises BadParameter when the image cannot be taken.

        `size`: bytes of the whole when only its first LOOK bytes were fed, which is enough for any format but raw."""
        self._seen = max(self._seen, size)
        if self._seen == 0:
            raise BadParameter("the URL gives no bytes at all", field="url")
        if _is_text(self._head):
            self._refuse_text()
        for name, inspector in list(self._inspectors.items()):
            try:
                inspector.finish()
            except Exception:
                del self._inspectors[name]
        self._decide()
        if self.declared in PLAIN:
            for magic, name in TAILS.items():
                if self._tail.startswith(magic):
                    self._refuse_format(name)
            size = -(-self._seen // 512) * 512
            self._cap(size)
            return size
        qcow2_header.prove_tables_came(self._front, self._seen)
        return int(self._inspectors[str(self.declared)].virtual_size)


def _is_text(head: bytes) -> bool:
    """Nothing but printable ASCII and white space: no disk begins so."""
    return all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head)


def _is_tar(head: bytes) -> bool:
    """A member's header of the oldest kind, which has no magic: its checksum is right."""
    if len(head) < HEAD or not head[0]:
        return False
    said = head[148:156].strip(b" \0")
    if len(said) < 3 or not set(said) <= set(b"01234567"):
        return False
    return int(said, 8) == sum(head[:148]) + 8 * ord(" ") + sum(head[156:])
