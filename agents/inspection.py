"""Inspection: what an image is, seen while its bytes stream by and before anything else reads them.

Owns the verdict: the sniffed format must be the declared one and no other, nothing in it may point outside of it, and its
virtual size is capped. The parsing is oslo.utils' format inspector (the one that came out of CVE-2024-32498); this file
refuses to parse images itself, and to interpret compressed or textual bodies at all.
"""

from __future__ import annotations

from typing import Any

from oslo_utils.imageutils import format_inspector

from schema.failure import BadParameter
from schema.image import ImageFormat

LOOK = 1 << 20
"""Bytes after which the format must be plain."""
MAGIC = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z", b"\x7fELF": "an ELF program", b"%PDF": "PDF",
}
TEXT = (b"<!doctype", b"<html", b"<?xml", b"<head", b"{", b"# disk descriptorfile", b"#!")
PARTITIONED = "gpt"
"""A partition table (oslo names MBR so too) is what a raw disk looks like inside."""


class Inspection:
    """Fed with the whole stream, in order. Raises BadParameter as soon as the image cannot be taken."""

    def __init__(self, declared: ImageFormat, *, max_virtual_size: int) -> None:
        self.declared, self.max_virtual_size = declared, max_virtual_size
        self._seen = 0
        self._head = b""
        self._inspectors: dict[str, Any] = {
            name: make() for name, make in format_inspector.ALL_FORMATS.items() if name != "raw"}
        self._decided = False

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """The next bytes. Blocking: called in a thread."""
        data = bytes(chunk)
        if len(self._head) < 512:
            self._head += data[:512 - len(self._head)]
            self._look_at_head()
        for name, inspector in list(self._inspectors.items()):
            try:
                inspector.eat_chunk(data)
            except Exception:  # a parser of some other format gave up: it is not that format
                del self._inspectors[name]
        self._seen += len(data)
        if not self._decided and self._seen >= LOOK:
            self._decide()

    def _look_at_head(self) -> None:
        for magic, name in MAGIC.items():
            if self._head.startswith(magic):
                raise BadParameter(f"the URL gives {name}, not a {self.declared} image", field="url",
                                   remedy="offer the image uncompressed")
        if self._head.lstrip()[:64].lower().startswith(TEXT):
            raise BadParameter(f"the URL gives text (HTML, XML, JSON or a script), not a {self.declared} image", field="url",
                               remedy="give the address of the image itself")

    def _matches(self) -> list[str]:
        return sorted(name for name, inspector in self._inspectors.items() if inspector.format_match)

    def _decide(self) -> None:
        self._decided = True
        found = [name for name in self._matches() if name != PARTITIONED]
        wanted = [] if self.declared is ImageFormat.RAW else [str(self.declared)]
        if found != wanted:
            what = " and ".join(found) or "no known format"
            raise BadParameter(f"the image is declared {self.declared} and is {what}", field="format",
                               remedy="register it with its own format")
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
        self._cap(int(inspector.virtual_size))

    def _cap(self, virtual_size: int) -> None:
        if not 0 < virtual_size <= self.max_virtual_size:
            raise BadParameter(f"the image's virtual size is {virtual_size} bytes; 1 to {self.max_virtual_size} are taken",
                               field="url")

    def finish(self) -> int:
        """The stream has ended: the virtual size. Raises BadParameter when the image cannot be taken."""
        if self._seen == 0:
            raise BadParameter("the URL gives no bytes at all", field="url")
        for name, inspector in list(self._inspectors.items()):
            try:
                inspector.finish()
            except Exception:
                del self._inspectors[name]
        self._decide()
        if self.declared is ImageFormat.RAW:
            size = -(-self._seen // 512) * 512
            self._cap(size)
            return size
        return int(self._inspectors[str(self.declared)].virtual_size)
