"""Whether a qcow2 is whole: every kind that qemu writes passes, and every one that was cut short is named, wherever it was cut."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from agents import qcow2_whole
from agents.qcow2_whole import prove_whole
from schema.failure import BadParameter

KIB, MIB = 1 << 10, 1 << 20
DICE = random.Random(6)


def img(*arguments: object) -> None:
    """qemu-img."""
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def content(size: int) -> bytes:
    """Data, holes, and data that ends within a cluster."""
    body = bytearray(size)
    for at in range(0, size - MIB, 3 * MIB):
        body[at:at + MIB + 100 * KIB] = DICE.randbytes(MIB + 100 * KIB)
    body = body[:size]
    body[size - 30 * KIB:size - 20 * KIB] = DICE.randbytes(10 * KIB)
    return bytes(body)


ZOO: dict[str, tuple[int, list[str]]] = {
    "plain": (16 * MIB, []), "old": (16 * MIB, ["-o", "compat=0.10"]), "small clusters": (8 * MIB, ["-o", "cluster_size=512"]),
    "large clusters": (16 * MIB, ["-o", "cluster_size=2M"]), "compressed": (16 * MIB, ["-c"]),
    "compressed small": (8 * MIB, ["-c", "-o", "cluster_size=4k"]), "odd size": (16 * MIB + 777 * 512, []),
    "odd old": (8 * MIB + 512, ["-o", "compat=0.10"]), "odd compressed": (8 * MIB + 512, ["-c"]),
    "metadata": (16 * MIB, ["-o", "preallocation=metadata"]), "falloc": (16 * MIB, ["-o", "preallocation=falloc"]),
    "lazy": (16 * MIB, ["-o", "lazy_refcounts=on"]), "one bit refcounts": (16 * MIB, ["-o", "refcount_bits=1"]),
}


def make(folder: Path, kind: str) -> Path:
    """An image of this kind."""
    size, options = ZOO[kind]
    raw, image = folder / "raw", folder / "image.qcow2"
    raw.write_bytes(content(size))
    img("convert", "-f", "raw", "-O", "qcow2", *options, raw, image)
    return image


async def judge(body: bytes, *, limit: int = 1 << 30) -> int:
    """Look at it; how many bytes were read."""
    read = 0

    async def give(at: int, length: int) -> bytes:
        nonlocal read
        assert length <= qcow2_whole.WINDOW
        read += length
        assert read <= limit
        return body[at:at + length]

    await prove_whole(give, len(body))
    return read


async def refused(body: bytes) -> str:
    """Why it is refused."""
    with pytest.raises(BadParameter) as refusal:
        await judge(body)
    assert refusal.value.failure.field == "url"
    assert refusal.value.failure.remedy
    return refusal.value.failure.cause


@pytest.mark.needs_qemu
@pytest.mark.parametrize("kind", sorted(ZOO))
async def test_what_qemu_writes_is_whole_and_cut_short_it_is_not(qemu: None, tmp_path: Path, kind: str) -> None:
    body = make(tmp_path, kind).read_bytes()
    await judge(body)
    if kind in ("metadata", "falloc"):  # what is behind their last data is room that was only reserved
        return
    for cut in (len(body) - 64 * KIB, len(body) - 100 * KIB, len(body) // 2, len(body) // 2 // (64 * KIB) * (64 * KIB)):
        assert "truncated" in await refused(body[:cut])


@pytest.mark.needs_qemu
async def test_the_last_sector_counts(qemu: None, tmp_path: Path) -> None:
    """The disk's very last data is missing: nothing but its place says so."""
    raw = tmp_path / "raw"
    raw.write_bytes(DICE.randbytes(4 * MIB))
    for options in ([], ["-c"]):
        img("convert", "-f", "raw", "-O", "qcow2", *options, raw, tmp_path / "image.qcow2")
        body = (tmp_path / "image.qcow2").read_bytes()
        await judge(body)
        assert "truncated" in await refused(body[:-512])


@pytest.mark.needs_qemu
async def test_an_empty_disk_is_whole(qemu: None, tmp_path: Path) -> None:
    for size in ("1M", "100G", "512"):
        img("create", "-q", "-f", "qcow2", tmp_path / "empty.qcow2", size)
        await judge((tmp_path / "empty.qcow2").read_bytes())


@pytest.mark.needs_qemu
async def test_a_disk_that_was_enlarged_is_whole(qemu: None, tmp_path: Path) -> None:
    image = make(tmp_path, "odd size")
    for size in ("+1G", "+700G"):
        img("resize", "-q", "-f", "qcow2", image, size)
        await judge(image.read_bytes())


@pytest.mark.needs_qemu
async def test_snapshots_inside_are_walked_too(qemu: None, tmp_path: Path) -> None:
    """Only the snapshot still refers to what is missing at the end."""
    raw, image = tmp_path / "raw", tmp_path / "image.qcow2"
    raw.write_bytes(DICE.randbytes(2 * MIB))
    img("convert", "-f", "raw", "-O", "qcow2", raw, image)
    img("snapshot", "-c", "first", image)
    img("snapshot", "-c", "second", image)
    body = image.read_bytes()
    await judge(body)
    assert "truncated" in await refused(body[:len(body) - 64 * KIB])
    for number in range(31):
        img("snapshot", "-c", f"more {number}", image)
    assert "33 snapshots" in await refused(image.read_bytes())


@pytest.mark.needs_qemu
@pytest.mark.parametrize(("table", "value", "word"), [
    ("l1", 1 << 40, "L2 table"), ("l1", 3 * 512, "does not begin"), ("l2", 1 << 41, "cluster of data"), ("l2", 65536 + 512, "does not begin"),
    ("l2", (1 << 62) | (1 << 40), "compressed"), ("refcounts", 1 << 40, "refcount block"), ("refcounts", 512, "does not begin"),
])
async def test_a_place_outside_is_named(qemu: None, tmp_path: Path, table: str, value: int, word: str) -> None:
    body = bytearray(make(tmp_path, "plain").read_bytes())
    l1_at, refcounts_at = struct.unpack_from(">QQ", body, 40)
    l2_at = struct.unpack_from(">Q", body, l1_at)[0] & qcow2_whole.OFFSET
    struct.pack_into(">Q", body, {"l1": l1_at, "l2": l2_at, "refcounts": refcounts_at}[table], value)
    assert word in await refused(bytes(body))


@pytest.mark.needs_qemu
async def test_what_is_read_is_bounded(qemu: None, tmp_path: Path) -> None:
    """A table named a million times is read once, giant tables are refused, and an honest image costs its tables only."""
    body = bytearray(make(tmp_path, "plain").read_bytes())
    assert await judge(bytes(body)) < MIB
    l1_at, = struct.unpack_from(">Q", body, 40)
    entry, = struct.unpack_from(">Q", body, l1_at)
    body += bytes(-len(body) % (1 << 16))
    nothing = len(body)
    for table, verdict in ((nothing, ""), (entry, "200 to 1")):  # an empty one, and one that makes a huge disk of little data
        again = body + bytes(1 << 16) + struct.pack(">Q", table) * MIB
        struct.pack_into(">IQ", again, 36, MIB, nothing + (1 << 16))
        struct.pack_into(">Q", again, 24, MIB << 29)
        if verdict:
            assert verdict in await refused(bytes(again))
        else:
            assert await judge(bytes(again), limit=10 * MIB) < 10 * MIB
    struct.pack_into(">I", body, 36, 5 * MIB)
    assert "L1 table" in await refused(bytes(body))
    struct.pack_into(">II", body, 36, 1, 0)
    struct.pack_into(">I", body, 56, 1 << 20)
    assert "refcount table" in await refused(bytes(body))
