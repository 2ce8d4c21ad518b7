"""The corpus of attacks by image: each named, made by code, small, and aimed at a file and a port that tell when they are touched.

A `Target` watches: the kernel says (inotify) whether anybody opened the file, be it this process or a child, and a listener on
loopback whether anybody connected. What an image is made of is written here by struct, not by the code under test.
"""

from __future__ import annotations

import bz2
import contextlib
import ctypes
import gzip
import io
import lzma
import os
import random
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from schema.image import ImageFormat
from tests.services.http_files import Canary, canary

QCOW2, RAW = ImageFormat.QCOW2, ImageFormat.RAW
KIB, MIB = 1 << 10, 1 << 20
CLUSTER = 64 * KIB
NOISE = random.Random(7).randbytes(CLUSTER)
SECRET = b"root:$6$CANARY$never:19000:0:99999:7:::\n" * 64
_NONBLOCK, _OPENED = os.O_NONBLOCK, 0x00000001 | 0x00000020  # IN_ACCESS, IN_OPEN


class Target:
    """A file that nobody may open and a port that nobody may connect to."""

    def __init__(self, folder: Path, listener: Canary) -> None:
        self.file, self.listener = folder / "secret.raw", listener
        self.file.write_bytes(SECRET.ljust(MIB, b"\n"))
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watch = self._libc.inotify_init1(_NONBLOCK)
        assert self._watch >= 0
        assert self._libc.inotify_add_watch(self._watch, os.fsencode(self.file), _OPENED) >= 0

    def touched(self) -> bool:
        """Whether the file was opened or the port connected to since the last call."""
        reached, self.listener.reached = self.listener.reached, 0
        try:
            return bool(os.read(self._watch, 4096)) or reached > 0
        except BlockingIOError:
            return reached > 0

    def close(self) -> None:
        """Stop watching."""
        os.close(self._watch)


@contextlib.contextmanager
def target(folder: Path) -> Iterator[Target]:
    """A target while this is open."""
    with canary() as listener:
        one = Target(folder, listener)
        try:
            yield one
        finally:
            one.close()


@dataclass(frozen=True, slots=True)
class Attack:
    """One file: its bytes, what it claims to be, and a pattern of the refusal's words."""

    body: bytes
    declared: ImageFormat
    words: str


@dataclass
class Qcow2:
    """A sound qcow2 with one cluster of data, but for what is asked: header, refcount table and block, L1, L2, data."""

    size: int = 64 * MIB
    version: int = 3
    bits: int = 16
    backing: bytes = b""
    crypt: int = 0
    l1_size: int | None = None
    l1_at: int = 3 * CLUSTER
    counts_at: int = CLUSTER
    counts: int = 1
    snapshots: int = 0
    snapshots_at: int = 0
    incompatible: int = 0
    autoclear: int = 0
    order: int = 4
    length: int = 104
    extensions: list[tuple[int, bytes]] = field(default_factory=list)
    l1: list[int] = field(default_factory=lambda: [4 * CLUSTER | 1 << 63])
    l2: list[int] = field(default_factory=lambda: [5 * CLUSTER | 1 << 63])
    uses: list[int] = field(default_factory=lambda: [1] * 6)
    data: bytes = NOISE

    def body(self) -> bytes:
        """The file."""
        l1_size = self.l1_size if self.l1_size is not None else max(len(self.l1), -(-self.size // (1 << 29)))
        more = b"".join(struct.pack(">II", kind, len(text)) + text + bytes(-len(text) % 8) for kind, text in self.extensions)
        more += bytes(8)
        backing_at = 112 + len(more) if self.backing else 0
        head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", self.version, backing_at, len(self.backing), self.bits, self.size, self.crypt,
                           l1_size, self.l1_at, self.counts_at, self.counts, self.snapshots, self.snapshots_at)
        head += struct.pack(">QQQII", self.incompatible, 0, self.autoclear, self.order, self.length)
        head = (head + bytes(8) if self.length == 112 else head) + more
        head = head.ljust(backing_at, b"\0") + self.backing
        return b"".join(part.ljust(CLUSTER, b"\0") for part in (
            head, struct.pack(">Q", 2 * CLUSTER), struct.pack(f">{len(self.uses)}H", *self.uses),
            struct.pack(f">{len(self.l1)}Q", *self.l1), struct.pack(f">{len(self.l2)}Q", *self.l2), self.data))


def _outside(aim: Target) -> dict[str, Attack]:
    """qcow2 that leads out of itself."""
    file, port = os.fsencode(aim.file), aim.listener.port
    away = os.fsencode(os.path.relpath(aim.file, aim.file.parent / "x" / "y"))
    places = {
        "absolute": file, "relative": away, "json file": b'json:{"driver":"raw","file":{"driver":"file","filename":"%s"}}' % file,
        "nbd": b"nbd:127.0.0.1:%d" % port, "nbd url": b"nbd://127.0.0.1:%d/x" % port, "http": b"http://127.0.0.1:%d/x" % port,
        "json nbd": b'json:{"driver":"nbd","host":"127.0.0.1","port":"%d"}' % port, "ssh": b"ssh://127.0.0.1:%d/x" % port,
        "descriptor": b"fd:0", "device": b"/dev/zero", "itself": b"image", "long": b"/" * 1023, "newline": file + b"\n",
    }
    found = {f"qcow2 backing {name}": Attack(Qcow2(backing=place).body(), QCOW2, "backing") for name, place in places.items()}
    for name in ("absolute", "json file", "nbd"):
        named = [(0x44415441, places[name])]
        found[f"qcow2 data file {name}"] = Attack(Qcow2(incompatible=4, extensions=named).body(), QCOW2, "data_file")
        found[f"qcow2 data file {name}, raw"] = Attack(Qcow2(incompatible=4, autoclear=2, extensions=named).body(), QCOW2, "data_file")
        found[f"qcow2 data file {name}, not flagged"] = Attack(Qcow2(extensions=named).body(), QCOW2, "data file")
    found["qcow2 version 2 with backing"] = Attack(Qcow2(version=2, backing=file).body(), QCOW2, "backing")
    found["qcow2 backing and a format"] = Attack(Qcow2(backing=file, extensions=[(0xE2792ACA, b"raw")]).body(), QCOW2, "backing")
    return found


def _lies() -> dict[str, Attack]:
    """qcow2 whose header says what is not so."""
    def bitmaps(count: int, size: int, at: int) -> list[tuple[int, bytes]]:
        return [(0x23852875, struct.pack(">IIQQ", count, 0, size, at))]

    whole = Qcow2().body()
    made: dict[str, tuple[Qcow2, str]] = {
        "unknown feature": (Qcow2(incompatible=1 << 33), "[Uu]nknown"), "every feature": (Qcow2(incompatible=(1 << 64) - 1), "."),
        "extended L2": (Qcow2(incompatible=16), "[Uu]nknown"), "marked corrupt": (Qcow2(incompatible=2), "corrupt"),
        "version 1": (Qcow2(version=1), "version|safe"), "version 4": (Qcow2(version=4), "version|safe"),
        "header of 8 bytes": (Qcow2(length=8), "header"), "header of 4 GiB": (Qcow2(length=(1 << 32) - 1), "header"),
        "clusters of 2 bytes": (Qcow2(bits=1), "clusters"), "clusters of 4 MiB": (Qcow2(bits=22), "clusters"),
        "clusters beyond numbers": (Qcow2(bits=(1 << 32) - 1), "clusters"), "reference counts of 2^7 bits": (Qcow2(order=7), "counts"),
        "reference counts beyond numbers": (Qcow2(order=1 << 31), "counts"), "L1 for less": (Qcow2(size=1 << 36, l1_size=1), "table"),
        "L1 for all": (Qcow2(l1_size=(1 << 32) - 1), "tables"), "L1 beyond the file": (Qcow2(l1_at=1 << 40), "truncated"),
        "L1 in the header": (Qcow2(l1_at=0), "overlaps"), "L1 at the end of numbers": (Qcow2(l1_at=(1 << 64) - CLUSTER), "."),
        "L1 askew": (Qcow2(l1_at=3 * CLUSTER + 512), "cluster"), "L1 on the counts": (Qcow2(l1_at=CLUSTER), "overlaps"),
        "counts in the header": (Qcow2(counts_at=0), "overlaps"), "counts beyond": (Qcow2(counts_at=1 << 50), "truncated"),
        "no counts": (Qcow2(counts=0), "tables"), "counts without end": (Qcow2(counts=(1 << 32) - 1), "tables"),
        "a million snapshots": (Qcow2(snapshots=1 << 20, snapshots_at=5 * CLUSTER), "snapshots"),
        "snapshots in the header": (Qcow2(snapshots=1, snapshots_at=72), "snapshots"),
        "snapshots beyond": (Qcow2(snapshots=1, snapshots_at=1 << 40), "truncated"),
        "snapshot of noise": (Qcow2(snapshots=1, snapshots_at=5 * CLUSTER), "truncated|damaged"),
        "AES": (Qcow2(crypt=1), "encrypted"), "LUKS inside": (Qcow2(crypt=2), "encrypted"), "unknown cipher": (Qcow2(crypt=9), "encrypted"),
        "a crypt header only": (Qcow2(extensions=[(0x0537BE77, bytes(16))]), "encrypted"),
        "bitmaps without end": (Qcow2(autoclear=1, extensions=bitmaps(65535, 1 << 20, CLUSTER)), "bitmaps"),
        "a directory of bitmaps without end": (Qcow2(autoclear=1, extensions=bitmaps(1, 1 << 60, CLUSTER)), "bitmaps"),
        "1 EiB": (Qcow2(size=1 << 60, l1_size=1), "virtual size"), "16 EiB": (Qcow2(size=(1 << 64) - 512, l1_size=1), "virtual size"),
        "L2 beyond": (Qcow2(l1=[1 << 40]), "truncated"),
        "L2 askew": (Qcow2(l1=[4 * CLUSTER + 512]), "cluster"), "data beyond": (Qcow2(l2=[1 << 40]), "truncated"),
        "a compressed cluster beyond": (Qcow2(l2=[1 << 62 | 1 << 40]), "truncated"),
    }
    found = {f"qcow2 {name}": Attack(one.body(), QCOW2, words) for name, (one, words) in made.items()}
    extension = bytearray(whole)
    struct.pack_into(">II", extension, 104, 0x12345678, (1 << 32) - 1)
    found["qcow2 an extension without end"] = Attack(bytes(extension), QCOW2, "extension")
    for cut in (1, 4, 71, 72, 103, 104, 512, CLUSTER, 3 * CLUSTER, 4 * CLUSTER, 5 * CLUSTER, 6 * CLUSTER - 512):
        found[f"qcow2 cut at {cut}"] = Attack(whole[:cut], QCOW2, "no known format|truncated|header|ends|text")
    return found


def _bombs() -> dict[str, Attack]:
    """Small files that become large."""
    def deflated(level: int) -> bytes:
        pack = zlib.compressobj(level, zlib.DEFLATED, -12)
        return (pack.compress(b"\1" * CLUSTER) + pack.flush()).ljust(512, b"\0")

    small = 1 << 62 | 5 * CLUSTER  # one sector, compressed
    zip_end = b"PK\x05\x06" + bytes(18)
    found = {
        "bomb of one compressed cluster": Attack(Qcow2(size=1 << 29, l2=[small] * 8192, uses=[1] * 5 + [8192], data=deflated(9)).body(), QCOW2, "200 to 1"),
        "bomb of one table": Attack(Qcow2(size=1 << 39, l1=[4 * CLUSTER] * 1024, l2=[5 * CLUSTER] * 8192, uses=[1, 1, 1, 1, 1024, 1]).body(), QCOW2, "200 to 1"),
        "bomb of zstd": Attack(Qcow2(size=1 << 29, incompatible=8, l2=[small] * 8192, data=b"\x28\xb5\x2f\xfd" + bytes(60)).body(), QCOW2, "200 to 1"),
        "gzip": Attack(gzip.compress(bytes(MIB)), QCOW2, "gzip"), "gzip in gzip": Attack(gzip.compress(gzip.compress(bytes(MIB))), RAW, "gzip"),
        "bzip2": Attack(bz2.compress(bytes(MIB)), RAW, "bzip2"), "xz": Attack(lzma.compress(bytes(MIB)), RAW, "xz"),
        "zstd": Attack(b"\x28\xb5\x2f\xfd" + NOISE, RAW, "zstd"), "zip": Attack(b"PK\x03\x04" + NOISE, RAW, "zip"),
        "zip of nothing": Attack(zip_end, RAW, "zip"), "raw over the cap": Attack(bytes(3 * MIB), RAW, "virtual size|at most"),
    }
    return found


def _confusion(aim: Target) -> dict[str, Attack]:
    """One format declared, another inside."""
    file, port = os.fsencode(aim.file), aim.listener.port
    iso = bytes(0x8000) + b"\x01CD001\x01" + bytes(MIB)
    hybrid = bytearray(iso)
    hybrid[446:462], hybrid[510:512] = struct.pack("<BBBBBBBBII", 0x80, 0, 2, 0, 0x17, 0, 0, 0, 0, 512), b"\x55\xaa"
    outside = Qcow2(backing=file).body()
    head = b"# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"%s\"\nRW 2048 %s\n"
    texts = {
        "monolithicFlat": head % (b"monolithicFlat", b'FLAT "%s" 0' % file),
        "twoGbMaxExtentSparse": head % (b"twoGbMaxExtentSparse", b'SPARSE "%s"' % file),
        "remote": head % (b"monolithicFlat", b'FLAT "nbd:127.0.0.1:%d" 0' % port),
        "parent": head % (b"monolithicSparse", b'SPARSE "x"') + b'parentFileNameHint="%s"\n' % file,
        "split by newlines": head % (b"monolithicFlat", b'FLAT "' + file + b'\nRW 1 FLAT "/etc/shadow" 0" 0'),
    }
    found = {f"vmdk text {name}, {declared}": Attack(text, declared, "text|vmdk") for name, text in texts.items() for declared in (RAW, QCOW2)}
    found |= {f"vmdk text {name}, dressed up": Attack(b"\n# \xff\xfe\n\n" + text.split(b"\n", 1)[1] + bytes(MIB), RAW, "vmdk") for name, text in texts.items()}
    found |= {f"vmdk sparse {name}": Attack(_sparse_vmdk(text), RAW, "vmdk") for name, text in texts.items()}
    parents = {
        "vhd parent": b"conectix" + bytes(504) + b"cxsparse" + bytes(568) + b"W2ku" + struct.pack(">IIIQ", 512, len(file), 0, 1536) + file + bytes(MIB),
        "vhdx parent": b"vhdxfile" + bytes(MIB) + b"parent_linkage" + file, "vdi parent": b"<<< disk >>>".ljust(64, b"\n") + b"\x7f\x10\xda\xbe" + bytes(MIB),
        "qed backing": b"QED\0" + struct.pack("<IIIQQQQQII", CLUSTER, 4, 1, 1, 0, 0, CLUSTER, MIB, 64, len(file)) + file + bytes(MIB),
        "luks": b"LUKS\xba\xbe\x00\x01" + bytes(MIB), "luks 2": b"LUKS\xba\xbe\x00\x02" + bytes(MIB), "cowd": b"COWD" + bytes(MIB),
        "bochs": b"Bochs Virtual HD Image" + bytes(MIB), "parallels": b"WithoutFreeSpace" + bytes(MIB), "qcow2 outside": outside,
        "iso": iso, "iso and MBR": bytes(hybrid), "iso in qcow2": Qcow2().body()[:0x8000] + iso[0x8000:],
        "qcow2 in iso": outside[:512] + iso[512:], "program": b"\x7fELF" + NOISE, "pdf": b"%PDF-1.7" + NOISE,
        "vhd that is fixed": bytes(MIB) + b"conectix" + bytes(504), "dmg": NOISE + b"koly" + bytes(508),
    }
    found |= {f"{name} as {declared}": Attack(body, declared, ".") for name, body in parents.items() for declared in (RAW, QCOW2)
              if declared is RAW or name != "qcow2 outside"}
    for name, member in {"path": "../../../../etc/cron.d/x", "absolute": "/etc/cron.d/x", "device": "dev"}.items():
        found[f"ova {name}"] = Attack(_ova(member), RAW, "tar")
        found[f"ova {name}, old tar"] = Attack(_ova(member, old=True), RAW, "tar")
    for name, text in {"html": b"<!DOCTYPE html><html>404", "json": b'{"errortext":"no"}', "xml": b"<?xml version='1.0'?><Error/>", "words": b"Not found\n",
                       "passwd": SECRET, "pseudo-protocol": b'json:{"driver":"file","filename":"%s"}' % file, "script": b"#!/bin/sh\n"}.items():
        found |= {f"text {name} as {declared}": Attack(text, declared, "text") for declared in (RAW, QCOW2)}
    found |= {f"nothing as {declared}": Attack(b"", declared, "no bytes") for declared in (RAW, QCOW2)}
    return found


def _sparse_vmdk(descriptor: bytes) -> bytes:
    head = struct.pack("<4sIIQQQQIQQQBcccc", b"KDMV", 1, 3, 2048, 128, 1, 20, 512, 21, 26, 128, 0, b"\n", b" ", b"\r", b"\n")
    return head.ljust(512, b"\0") + descriptor.ljust(20 * 512, b"\0") + bytes(MIB)


def _ova(name: str, *, old: bool = False) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        link = tarfile.TarInfo("box.ovf")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
        tar.addfile(link)
        member = tarfile.TarInfo(name)
        member.size = len(NOISE)
        tar.addfile(member, io.BytesIO(NOISE))
    body = bytearray(made.getvalue())
    if old:  # before there was a magic
        body[257:265] = bytes(8)
        body[148:156] = b"%06o\0 " % (sum(body[:148]) + 8 * 32 + sum(body[156:512]))
    return bytes(body)


def corpus(aim: Target) -> dict[str, Attack]:
    """Every attack by name."""
    return _outside(aim) | _lies() | _bombs() | _confusion(aim)


__all__ = ["NOISE", "Attack", "Qcow2", "Target", "corpus", "target"]
