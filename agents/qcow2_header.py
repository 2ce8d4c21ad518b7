"""A qcow2 header from elsewhere: its fields agree with each other, its extensions name nothing outside, its tables are in place.

Owns the first cluster of a file that somebody else made. Refuses to know where the bytes come from, and what the tables lead to
(`qcow2_whole`). Every number is checked before it is used as a size or a place; nothing is read but what is given.
"""

from __future__ import annotations

import struct

from agents.qcow2_whole import HEADER, L1_MAX, REFCOUNTS_MAX, SNAPSHOTS
from schema.failure import BadParameter

FRONT = 64 << 10
"""Bytes of the file's beginning that the checks are given. Header and extensions of an honest file have less."""
BITMAPS, DIRECTORY_MAX = 32, 1 << 20
"""Dirty bitmaps inside an image from elsewhere that are taken, and bytes of their directory."""
_EXTENSION, _BITMAPS = struct.Struct(">II"), struct.Struct(">IIQQ")
_DATA_FILE, _CRYPTO, _DIRTY = 0x44415441, 0x0537BE77, 0x23852875
_CORRUPT = 2
"""Incompatible feature bit 1: qemu itself found it broken."""
_V2, _V3 = 72, 104
"""Bytes of the two versions' headers."""


def prove_sound(front: bytes) -> None:
    """Raises BadParameter naming the field that is wrong. `front`: the file's first FRONT bytes, or all of it."""
    if len(front) < HEADER.size:
        raise _bad("it ends within its header")
    _, version, _, _, bits, size, crypt, l1_size, l1_at, counts_at, counts, snapshots, snapshots_at = HEADER.unpack_from(front)
    features = int.from_bytes(front[72:80], "big") if version >= 3 else 0
    order = int.from_bytes(front[96:100], "big") if version >= 3 else 4
    length = int.from_bytes(front[100:104], "big") if version >= 3 else _V2
    if crypt:
        raise _bad("it is encrypted")
    if features & _CORRUPT:
        raise _bad("it is marked as corrupt")
    if not 9 <= bits <= 21:
        raise _bad(f"its header says clusters of 2^{bits} bytes")
    if length < (_V3 if version >= 3 else _V2) or length > 1 << bits:
        raise _bad(f"its header says that it has {length} bytes itself")
    if order > 6:
        raise _bad(f"its header says reference counts of 2^{order} bits")
    if l1_size < -(-size // (1 << (2 * bits - 3))):
        raise _bad(f"its header says {size} bytes and a table for less")
    if l1_size * 8 > L1_MAX or counts << bits > REFCOUNTS_MAX or not counts:
        raise _bad(f"its header says tables of {l1_size} entries and {counts} clusters")
    if snapshots > SNAPSHOTS:
        raise _bad(f"it holds {snapshots} snapshots of its own; at most {SNAPSHOTS} are taken")
    _places(1 << bits, [("its L1 table", l1_at, l1_size * 8), ("its refcount table", counts_at, counts << bits)])
    if snapshots and snapshots_at < 1 << bits:
        raise _bad("its snapshots lie within its header")
    _extensions(front[:1 << bits], length)


def _places(cluster: int, tables: list[tuple[str, int, int]]) -> None:
    """Tables begin with a cluster, behind the header, and are apart from each other. One without entries lies nowhere."""
    end, before = cluster, "the header"
    for what, at, length in sorted((table for table in tables if table[2]), key=lambda table: table[1]):
        if at % cluster:
            raise _bad(f"{what} does not begin with a cluster")
        if at < end:
            raise _bad(f"{what} overlaps {before}")
        end, before = at + length, what


def _extensions(cluster: bytes, at: int) -> None:
    """The chain of extensions behind the header."""
    while at + _EXTENSION.size <= len(cluster):
        kind, length = _EXTENSION.unpack_from(cluster, at)
        at += _EXTENSION.size
        if kind == 0:
            return
        if length > len(cluster) - at:
            raise _bad(f"the extension 0x{kind:08x} of its header has {length} bytes")
        if kind == _DATA_FILE:
            raise _bad("it names a data file")
        if kind == _CRYPTO:
            raise _bad("it is encrypted")
        if kind == _DIRTY:
            _bitmaps(cluster[at:at + length])
        at += -(-length // 8) * 8


def _bitmaps(body: bytes) -> None:
    if len(body) != _BITMAPS.size:
        raise _bad(f"its record of bitmaps has {len(body)} bytes")
    count, _, size, at = _BITMAPS.unpack(body)
    if count > BITMAPS or size > DIRECTORY_MAX or at >= 1 << 63:
        raise _bad(f"it holds {count} dirty bitmaps in {size} bytes; at most {BITMAPS} are taken")


def prove_tables_came(front: bytes, size: int) -> None:
    """The tables that the header points at lie within the file's `size` bytes. Raises BadParameter."""
    _, _, _, _, bits, _, _, l1_size, l1_at, counts_at, counts, _, _ = HEADER.unpack_from(front)
    end = max(l1_at + 8 * l1_size, counts_at + (counts << bits))
    if end > size:
        raise BadParameter(f"the image is truncated: its tables end at byte {end}, and {size} bytes came",
                           field="url", remedy="check the file at its source")


def _bad(cause: str) -> BadParameter:
    return BadParameter(f"the image is not safe to use: {cause}", field="url", remedy="convert it: qemu-img convert -O qcow2")
