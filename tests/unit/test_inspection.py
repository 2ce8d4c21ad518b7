"""Inspection: crafted images are refused while they stream by, however they are cut, and honest ones are not."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import struct
import subprocess
from pathlib import Path

import pytest

from agents.inspection import Inspection
from schema.failure import BadParameter
from schema.image import ImageFormat
from tests.support.images import iso

QCOW2, RAW = ImageFormat.QCOW2, ImageFormat.RAW
CAP = 1 << 40
CUTS = (1, 7, 64, 511, 512, 513, 4096, 65536, 1 << 20)
NOISE = random.Random(5).randbytes(1 << 16)


def qcow2(size: int = 64 << 20, *, version: int = 3, bits: int = 16, backing: int = 0, crypt: int = 0, incompatible: int = 0,
          length: int = 104, l1_size: int | None = None, l1_at: int = 3 << 16, refcounts_at: int = 1 << 16,
          bytes_in_all: int = 4 << 16) -> bytes:
    """A qcow2 of four clusters with every field as asked."""
    l1 = -(-size // (1 << (2 * bits - 3))) if l1_size is None else l1_size
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, backing, 9 if backing else 0, bits, size, crypt, l1, l1_at,
                       refcounts_at, 1, 0, 0)
    head += struct.pack(">QQQII", incompatible, 0, 0, 4, length)
    return head.ljust(bytes_in_all, b"\0")


def inspect(data: bytes, declared: ImageFormat, *, cut: int = 65536, cap: int = CAP) -> int:
    """Feed it in pieces; the virtual size."""
    inspection = Inspection(declared, max_virtual_size=cap)
    for at in range(0, len(data), cut):
        inspection.feed(data[at:at + cut])
    return inspection.finish()


def refusal(data: bytes, declared: ImageFormat, **more: int) -> BadParameter:
    """The refusal of it."""
    with pytest.raises(BadParameter) as refused:
        inspect(data, declared, **more)
    assert refused.value.failure.remedy or refused.value.failure.field
    return refused.value


CRAFTED: dict[str, tuple[bytes, ImageFormat, str]] = {
    "backing file": (qcow2(backing=512), QCOW2, "backing"),
    "data file": (qcow2(incompatible=4), QCOW2, "data_file"),
    "data file among others": (qcow2(incompatible=0b1101), QCOW2, "data_file"),
    "unknown feature": (qcow2(incompatible=1 << 40), QCOW2, "unknown_features|[Uu]nknown"),
    "extended L2": (qcow2(incompatible=1 << 4), QCOW2, "[Uu]nknown"),
    "highest feature": (qcow2(incompatible=1 << 63), QCOW2, "[Uu]nknown"),
    "corrupt": (qcow2(incompatible=2), QCOW2, "corrupt"),
    "AES": (qcow2(crypt=1), QCOW2, "encrypted"),
    "LUKS": (qcow2(crypt=2), QCOW2, "encrypted"),
    "version 1": (qcow2(version=1), QCOW2, "version|safe"),
    "version 4": (qcow2(version=4), QCOW2, "version|safe"),
    "1 EiB": (qcow2(size=1 << 60, l1_size=1), QCOW2, "virtual size"),
    "8 EiB": (qcow2(size=(1 << 63) + 512, l1_size=1), QCOW2, "virtual size"),
    "over the cap": (qcow2(size=CAP + 512), QCOW2, "virtual size"),
    "tiny clusters": (qcow2(bits=8), QCOW2, "clusters"),
    "giant clusters": (qcow2(bits=22, size=1 << 20, l1_size=1), QCOW2, "clusters"),
    "absurd clusters": (qcow2(bits=0xffffffff, size=1 << 20, l1_size=1), QCOW2, "clusters"),
    "short table": (qcow2(size=1 << 36, l1_size=1), QCOW2, "table"),
    "giant header": (qcow2(length=1 << 20), QCOW2, "header"),
    "small header": (qcow2(length=8), QCOW2, "header"),
    "L1 outside": (qcow2(l1_at=1 << 40), QCOW2, "truncated"),
    "refcounts outside": (qcow2(refcounts_at=1 << 40), QCOW2, "truncated"),
    "cut in its tables": (qcow2()[:3 << 16], QCOW2, "truncated"),
    "cut in its header": (qcow2()[:100], QCOW2, "no known format"),
    "only a magic": (b"QFI\xfb", QCOW2, "no known format"),
    "empty": (b"", QCOW2, "no bytes"),
    "empty raw": (b"", RAW, "no bytes"),
    "noise as qcow2": (NOISE, QCOW2, "no known format"),
    "zeros as qcow2": (bytes(1 << 16), QCOW2, "no known format"),
    "qcow2 as raw": (qcow2(), RAW, "qcow2"),
    "qcow2 with a backing file as raw": (qcow2(backing=512), RAW, "qcow2"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", QCOW2, "HTML"),
    "html as raw": (b"\n\n  <html>" + b"x" * 9000, RAW, "HTML"),
    "html with a mark": (b"\xef\xbb\xbf<html>\xc3\xa4" + b"x" * 600, RAW, "HTML"),
    "html behind a comment": (b"<!-- hi --><html>\xc3\xa4", RAW, "HTML"),
    "json": (b'{"error": "denied"}', QCOW2, "JSON"),
    "json as raw": (b'{"error": "d\xc3\xa9nied"}' + bytes(600), RAW, "JSON"),
    "json: protocol": (b'json:{"driver":"file","filename":"/etc/passwd"}', RAW, "text"),
    "S3's error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", RAW, "XML"),
    "plain words": (b"Not found.\n", RAW, "text"),
    "many plain words": (b"root:x:0:0:root:/root:/bin/bash\n" * 100, RAW, "text"),
    "a script": (b"#!/bin/sh\nrm -rf \xc3\xa4\n", RAW, "script"),
    "a VMDK descriptor": (b"# Disk DescriptorFile\nversion=1\nRW 1 FLAT \"/etc/passwd\" 0\n" + bytes(600), RAW, "text"),
    "gzip": (gzip.compress(qcow2()), QCOW2, "gzip"),
    "gzip as raw": (gzip.compress(bytes(1 << 20)), RAW, "gzip"),
    "bzip2": (bz2.compress(qcow2()), QCOW2, "bzip2"),
    "xz": (lzma.compress(qcow2()), QCOW2, "xz"),
    "lzma": (lzma.compress(qcow2(), format=lzma.FORMAT_ALONE), QCOW2, "lzma"),
    "zstd": (b"\x28\xb5\x2f\xfd" + NOISE, RAW, "zstd"),
    "lz4": (b"\x04\x22\x4d\x18" + NOISE, RAW, "lz4"),
    "zip": (b"PK\x03\x04" + NOISE, RAW, "zip"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + NOISE, RAW, "7z"),
    "tar": (b"image.vmdk".ljust(257, b"\0") + b"ustar\x00" + NOISE, RAW, "tar"),
    "a program": (b"\x7fELF" + NOISE, RAW, "ELF"),
    "VMDK as raw": (b"KDMV" + struct.pack("<IIQQQQIQQQ", 1, 3, 2048, 128, 1, 20, 512, 21, 26, 128) + bytes(1 << 20), RAW, "vmdk"),
    "LUKS as raw": (b"LUKS\xba\xbe\x00\x01" + b"aes".ljust(32, b"\0") + bytes(4096), RAW, "luks"),
    "VHD as raw": (b"conectix" + bytes(1 << 20), RAW, "vhd"),
    "VHDX as raw": (b"vhdxfile" + bytes(1 << 20), RAW, "vhdx"),
    "VDI as raw": (b"<<< disk >>>".ljust(64, b"\n") + b"\x7f\x10\xda\xbe" + bytes(1 << 20), RAW, "vdi"),
    "QED as raw": (b"QED\0" + bytes(1 << 20), RAW, "qed"),
    "a broken qcow2 as raw": (b"QFI\xfb" + NOISE[:100], RAW, "qcow2"),
    "an ISO as raw": (bytes(0x8000) + b"\x01CD001\x01" + bytes(1 << 20), RAW, "iso"),
    "an ISO within a qcow2": (qcow2()[:0x8000] + b"\x01CD001\x01" + bytes(1 << 20), QCOW2, "iso and qcow2"),
    "raw over the cap": (NOISE, RAW, "virtual size"),
}
CRAFTED_CAPS = {"raw over the cap": 1 << 15}


def test_the_corpus_is_large_enough() -> None:
    assert len(CRAFTED) >= 60


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_image_is_refused_in_words(name: str) -> None:
    data, declared, words = CRAFTED[name]
    with pytest.raises(BadParameter, match=words):
        inspect(data, declared, cap=CRAFTED_CAPS.get(name, CAP))


@pytest.mark.parametrize("name", [name for name, (data, _, _) in CRAFTED.items() if len(data) <= 1 << 18])
def test_it_is_refused_however_it_is_cut(name: str) -> None:
    data, declared, _ = CRAFTED[name]
    whole = refusal(data, declared, cap=CRAFTED_CAPS.get(name, CAP)).failure.field
    for cut in CUTS:
        if len(data) // cut <= 3000:
            assert refusal(data, declared, cut=cut, cap=CRAFTED_CAPS.get(name, CAP)).failure.field == whole


@pytest.mark.parametrize("cut", CUTS)
def test_honest_images_are_taken_however_they_are_cut(cut: int) -> None:
    small = qcow2(bits=9, size=1 << 20, l1_at=1536, refcounts_at=512, bytes_in_all=2048)
    assert inspect(small, QCOW2, cut=cut) == 1 << 20
    assert inspect(NOISE[:3000], RAW, cut=cut) == 3072
    assert inspect(bytes(1000), RAW, cut=cut) == 1024


def test_a_partitioned_raw_disk_is_raw() -> None:
    disk = bytearray(1 << 20)
    disk[510:512] = b"\x55\xaa"
    disk[446:462] = struct.pack("<BBBBBBBBII", 0x80, 0, 2, 0, 0x83, 0, 0, 0, 2048, 4096)
    disk[512:520] = b"EFI PART"
    assert inspect(bytes(disk), RAW) == 1 << 20


def test_versions_and_features_that_are_fine_are_taken() -> None:
    assert inspect(qcow2(version=2), QCOW2) == 64 << 20
    assert inspect(qcow2(incompatible=1), QCOW2) == 64 << 20  # dirty: qemu repairs its counts when it opens it
    assert inspect(qcow2(incompatible=8), QCOW2) == 64 << 20  # zstd clusters
    assert inspect(qcow2(size=CAP), QCOW2) == CAP


@pytest.mark.parametrize(("data", "declared"), [
    (gzip.compress(bytes(1 << 26), 9), QCOW2), (b"<html>" + b"x" * (1 << 24), QCOW2), (NOISE * 64, QCOW2), (qcow2(backing=512), QCOW2),
    (qcow2() + NOISE * 64, RAW),
], ids=["a gzip bomb", "a long page", "noise", "backing file", "raw that is qcow2"])
def test_the_first_mebibyte_decides(data: bytes, declared: ImageFormat) -> None:
    inspection = Inspection(declared, max_virtual_size=CAP)
    data = data.ljust(1 << 20, b"\0")
    with pytest.raises(BadParameter):
        for at in range(0, 1 << 20, 65536):
            inspection.feed(data[at:at + 65536])


@pytest.mark.needs_qemu
class TestQemusOwn:
    """Images made by qemu-img itself."""

    def made(self, folder: Path, *arguments: str) -> bytes:
        """What `qemu-img create` makes with these arguments."""
        path = folder / "image"
        subprocess.run(["qemu-img", "create", "-q", *arguments[:-1], str(path), arguments[-1]], check=True)
        return path.read_bytes()

    def test_its_plain_images_are_taken(self, qemu: None, tmp_path: Path) -> None:
        for options in ("compat=1.1", "compat=0.10", "cluster_size=2M", "cluster_size=512", "preallocation=metadata",
                        "compression_type=zstd", "lazy_refcounts=on"):
            assert inspect(self.made(tmp_path, "-f", "qcow2", "-o", options, "16M"), QCOW2) == 16 << 20, options

    def test_a_backing_file_is_refused(self, qemu: None, tmp_path: Path) -> None:
        base = tmp_path / "base.raw"
        base.write_bytes(bytes(1 << 20))
        assert "backing" in refusal(self.made(tmp_path, "-f", "qcow2", "-b", str(base), "-F", "raw", "1M"), QCOW2).failure.text

    def test_a_data_file_is_refused(self, qemu: None, tmp_path: Path) -> None:
        made = self.made(tmp_path, "-f", "qcow2", "-o", f"data_file={tmp_path}/data.raw,data_file_raw=on", "1M")
        assert "data_file" in refusal(made, QCOW2).failure.text

    def test_an_encrypted_one_is_refused(self, qemu: None, tmp_path: Path) -> None:
        for iterations_ms in (10, 50, 200, 1000):  # it times itself, and fails where the host gave it no time
            try:
                made = self.made(tmp_path, "--object", "secret,id=s,data=hunter2", "-f", "qcow2", "-o",
                                 f"encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time={iterations_ms}", "1M")
                break
            except subprocess.CalledProcessError:
                continue
        assert "encrypted" in refusal(made, QCOW2).failure.text

    def test_a_patched_size_is_refused(self, qemu: None, tmp_path: Path) -> None:
        made = bytearray(self.made(tmp_path, "-f", "qcow2", "1M"))
        made[24:32] = struct.pack(">Q", 1 << 60)
        assert "virtual size" in refusal(bytes(made), QCOW2).failure.text

    def test_its_truncation_is_refused(self, qemu: None, tmp_path: Path) -> None:
        made = self.made(tmp_path, "-f", "qcow2", "-o", "preallocation=metadata", "16M")
        assert "truncated" in refusal(made[:190_000], QCOW2).failure.text

    @pytest.mark.parametrize("form", ["vmdk", "vdi", "vpc", "vhdx", "qed"])
    def test_other_formats_are_not_raw(self, qemu: None, tmp_path: Path, form: str) -> None:
        try:
            made = self.made(tmp_path, "-f", form, "4M")
        except subprocess.CalledProcessError:
            pytest.skip(f"this qemu-img does not write {form}")
        for declared in (RAW, QCOW2):
            assert refusal(made, declared).failure.field in ("format", "url")


@pytest.mark.parametrize("data", [iso(), iso(1024), iso(head=b"\x33\xed" + bytes(508) + b"\x55\xaa"), iso() + bytes(100)])
def test_an_iso_is_taken_as_it_is(data: bytes) -> None:
    """Also one that boots from a stick; its size is that of its bytes, whatever its volume says."""
    inspection = Inspection(ImageFormat.ISO, max_virtual_size=1 << 30)
    for at in range(0, len(data), 5000):
        inspection.feed(data[at:at + 5000])
    assert inspection.finish() == -(-len(data) // 512) * 512


@pytest.mark.parametrize("data", [
    bytes(1 << 20), b"QFI\xfb" + bytes(1 << 20), iso(head=b"QFI\xfb\0\0\0\x03"), iso(head=b"KDMV"), iso(head=b"<html>"), iso(head=b"\x7fELF"),
    iso() + b"conectix" + bytes(504), iso()[:17 * 2048 - 2000]])
def test_what_is_no_iso_or_more_than_one_is_refused(data: bytes) -> None:
    """Nothing, a disk, both at once, or one that ends before it says what it is."""
    inspection = Inspection(ImageFormat.ISO, max_virtual_size=1 << 30)
    with pytest.raises(BadParameter):
        inspection.feed(data)
        inspection.finish()


def test_an_iso_is_no_template() -> None:
    for declared in (ImageFormat.RAW, ImageFormat.QCOW2):
        inspection = Inspection(declared, max_virtual_size=1 << 30)
        with pytest.raises(BadParameter):
            inspection.feed(iso())
            inspection.finish()
