"""Checksums as CloudStack's clients write them. Pure text: nothing is computed here."""

from __future__ import annotations

import hashlib
import re

from schema.failure import BadParameter

ALGORITHMS = {"MD5": "md5", "SHA-1": "sha1", "SHA-224": "sha224", "SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512"}
"""As they are written between braces -> hashlib's name."""
BY_LENGTH = {32: "md5", 40: "sha1", 56: "sha224", 64: "sha256", 96: "sha384", 128: "sha512"}
"""Hex digits of a bare digest -> hashlib's name."""


def parse_checksum(text: str) -> tuple[str, str] | None:
    """(hashlib's name, hex digest) of `{SHA-256}<hex>` or a bare digest (its length says which); None when empty."""
    if not text:
        return None
    matched = re.fullmatch(r"(?:\{([A-Za-z0-9-]+)\})?([0-9a-fA-F]+)", text.strip())
    name = None
    if matched is not None:
        name = ALGORITHMS.get(matched[1].upper()) if matched[1] else BY_LENGTH.get(len(matched[2]))
    if matched is None or name is None or hashlib.new(name, usedforsecurity=False).digest_size * 2 != len(matched[2]):
        raise BadParameter("it is not {ALGORITHM}hex", field="checksum", remedy=f"one of {', '.join(ALGORITHMS)}")
    return name, matched[2].lower()
