"""Plain clusters are read from a snapshot's file, all others by qemu: the bytes are those that qemu alone gives, whatever the file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agents.hypervisors import kvm
from agents.hypervisors.clusters import TABLES, Clusters
from agents.hypervisors.kvm import KvmHypervisor
from agents.qcow2_whole import HEADER
from schema.failure import WorkRetryable

pytestmark = pytest.mark.needs_qemu
TAG = "sb-one"
KB, MB = 1 << 10, 1 << 20


async def ran(*words: str) -> None:
    """One of qemu's programs."""
    await asyncio.to_thread(subprocess.run, words, check=True, capture_output=True)


class Asked:
    """What was read by qemu: (offset, bytes) of each request."""

    def __init__(self) -> None:
        self.qemu: list[tuple[int, int]] = []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, qemu: None) -> Asked:
    """Notes what is asked of qemu."""
    seen, real = Asked(), kvm.libnbd.Connection.read_into

    def read_into(self: Any, buffer: memoryview, offset: int) -> None:
        seen.qemu.append((offset, len(buffer)))
        real(self, buffer, offset)

    monkeypatch.setattr(kvm.libnbd.Connection, "read_into", read_into)
    return seen


async def made(path: Path, size: int, *options: str, writes: list[str], after: list[str] = []) -> None:  # noqa: B006 - it is only read
    """A disk with qemu-io's writes, a snapshot of them, and what was written afterwards."""
    await ran("qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), str(size))
    for commands, then in ((writes, True), (after, False)):
        words = [word for command in commands for word in ("-c", command)]
        if words:
            await ran("qemu-io", "-f", "qcow2", *words, str(path))
        if then:
            await ran("qemu-img", "snapshot", "-c", TAG, str(path))


async def same(path: Path, dice: random.Random, *, ranges: int = 60) -> None:
    """The device's bytes are those of a copy that qemu made of the snapshot: as a whole, and in ranges of every kind."""
    raw = path.with_suffix(".raw")
    await ran("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", f"snapshot.name={TAG}", str(path), str(raw))
    body = raw.read_bytes()
    async with KvmHypervisor().open(str(path), tag=TAG) as device:
        assert device.size == len(body)
        for at in range(0, len(body), MB):
            assert bytes(await device.read(at, min(MB, len(body) - at))) == body[at:at + MB], at
        for _ in range(ranges):
            at = dice.randrange(len(body))
            length = min(len(body) - at, dice.choice([1, 511, 512, 4096, 65536, 65537, 300_000, 3 * MB]))
            assert bytes(await device.read(at, length)) == body[at:at + length], (at, length)


WRITES = ["write -P 1 0 3M", "write -P 2 5M 64k", "write -P 3 5184k 100k", "write -z 1M 128k", "write -P 9 7000000 70000", "discard 2M 64k",
          "write -P 4 12M 1M"]
AFTER = ["write -P 77 0 2M", "write -P 78 6M 1M", "write -z 12M 64k", "discard 12800k 64k"]


@pytest.mark.parametrize("options", [
    [], ["-o", "compat=0.10"], ["-o", "cluster_size=4k"], ["-o", "cluster_size=2M"], ["-o", "cluster_size=512"], ["-o", "refcount_bits=8"],
    ["-o", "extended_l2=on,cluster_size=128k"], ["-o", "lazy_refcounts=on"], ["-o", "compression_type=zstd"], ["-o", "preallocation=full"],
], ids=lambda options: options[-1] if options else "as we make them")
async def test_its_bytes_are_qemus(tmp_path: Path, seed: int, asked: Asked, options: list[str]) -> None:
    path = tmp_path / "disk.qcow2"
    await made(path, 16 * MB + 512, *options, writes=WRITES, after=AFTER)
    await same(path, random.Random(seed))


async def test_what_is_plain_is_not_asked_of_qemu(tmp_path: Path, asked: Asked) -> None:
    path = tmp_path / "disk.qcow2"
    await made(path, 16 * MB, writes=["write -P 1 0 8M", "write -z 1M 128k"], after=["write -P 7 0 8M"])
    async with KvmHypervisor().open(str(path), tag=TAG) as device:
        assert bytes(await device.read(0, 10 * MB)) == b"\1" * MB + bytes(128 * KB) + b"\1" * (7 * MB - 128 * KB) + bytes(2 * MB)
    assert sorted(asked.qemu) == [(MB, 128 * KB), (8 * MB, 2 * MB)]


async def test_compressed_clusters_and_those_of_a_backing_file_are_qemus(tmp_path: Path, seed: int, asked: Asked) -> None:
    base, path = tmp_path / "base.qcow2", tmp_path / "disk.qcow2"
    await ran("qemu-img", "create", "-q", "-f", "qcow2", str(base), "8M")
    await ran("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 4M", str(base))
    await made(path, 8 * MB, "-b", str(base), "-F", "qcow2", writes=["write -c -P 1 0 64k", "write -c -P 2 64k 64k", "write -P 3 1M 1M"])
    await same(path, random.Random(seed))
    asked.qemu.clear()
    async with KvmHypervisor().open(str(path), tag=TAG) as device:
        assert bytes(await device.read(0, 2 * MB)) == b"\1" * 65536 + b"\2" * 65536 + b"\5" * (MB - 131072) + b"\3" * MB
    assert asked.qemu == [(0, MB)]


async def test_a_snapshot_among_others_is_found_by_its_whole_name(tmp_path: Path, seed: int, asked: Asked) -> None:
    path = tmp_path / "disk.qcow2"
    await ran("qemu-img", "create", "-q", "-f", "qcow2", str(path), "4M")
    for number, name in enumerate(["sb-on", "sb-one-more", "ünï", TAG, "x" * 200, "1"], 1):
        await ran("qemu-io", "-f", "qcow2", "-c", f"write -P {number} 0 1M", str(path))
        await ran("qemu-img", "snapshot", "-c", name, str(path))
    async with KvmHypervisor().open(str(path), tag=TAG) as device:
        assert bytes(await device.read(0, MB)) == b"\4" * MB
    assert not asked.qemu


async def test_more_tables_than_are_kept(tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reach = tmp_path / "disk.qcow2", 32 * KB
    places = range(0, 3 * TABLES * reach, reach)
    await made(path, 3 * TABLES * reach, "-o", "cluster_size=512", writes=[f"write -P {at // reach % 250 + 1} {at} 512" for at in places])
    async with KvmHypervisor().open(str(path), tag=TAG) as device:
        for at in [*places, *reversed(places)]:
            assert bytes(await device.read(at, 512)) == bytes([at // reach % 250 + 1]) * 512
        assert device._clusters is not None and len(device._clusters._tables) <= TABLES
    assert not asked.qemu


def entry_at(path: Path) -> int:
    """Where in the file the first L2 entry of the snapshot lies; of a disk with one table."""
    body = path.read_bytes()
    l1_at = HEADER.unpack_from(body)[8]
    return int.from_bytes(body[l1_at:l1_at + 8], "big") & 0x00FFFFFFFFFFFE00


@pytest.mark.parametrize("entry", [(1 << 63) | 0x60200, (1 << 63) | (1 << 40), 1 << 62], ids=["no cluster's place", "behind the end", "compressed"])
async def test_what_is_not_right_is_left_to_qemu(tmp_path: Path, asked: Asked, entry: int) -> None:
    """What somebody may have done to the L2 entry of the second cluster: qemu knows what to say of it, or that it reads as zeros."""
    path = tmp_path / "disk.qcow2"
    await made(path, 4 * MB, writes=["write -P 1 0 256k"])
    with path.open("r+b") as file:
        file.seek(entry_at(path) + 8)
        file.write(entry.to_bytes(8, "big"))
    async with KvmHypervisor().open(str(path), tag=TAG) as device:
        asked.qemu.clear()
        try:
            assert bytes(await device.read(0, 256 * KB))[:65536] == b"\1" * 65536
        except WorkRetryable as refused:
            assert "read" in str(refused)
    assert asked.qemu[0][0] == 65536


@pytest.mark.parametrize("damage", ["features", "encrypted", "no snapshot", "short list", "no file", "link"])
def test_a_file_that_is_not_known_is_left_to_qemu(tmp_path: Path, qemu: None, damage: str) -> None:
    path = tmp_path / "disk.qcow2"
    for words in (["create", "-q", "-f", "qcow2", str(path), "1M"], ["snapshot", "-c", TAG, str(path)]):
        subprocess.run(["qemu-img", *words], check=True)
    whole = Clusters.of(str(path), TAG)
    assert whole is not None
    whole.close()
    body = bytearray(path.read_bytes())
    if damage == "features":
        body[79] |= 1 << 2
    elif damage == "encrypted":
        body[35] = 1
    elif damage == "short list":
        body[60:64] = (1000).to_bytes(4, "big")
        body = body[:int.from_bytes(body[64:72], "big") + 20]
    path.write_bytes(body)
    if damage in ("no file", "link"):
        path.rename(tmp_path / "other")
        if damage == "link":
            path.symlink_to(tmp_path / "other")
    assert Clusters.of(str(path), "sb-two" if damage == "no snapshot" else TAG) is None


async def test_without_its_exporter_nothing_is_believed(tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock goes with who holds it: from then on the file may be written to by anybody."""
    path = tmp_path / "disk.qcow2"
    await made(path, 4 * MB, writes=["write -P 1 0 4M"])
    async with KvmHypervisor().open(str(path), tag=TAG) as device:
        assert bytes(await device.read(0, MB)) == b"\1" * MB
        for words in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                said = words.read_bytes()
                if said.startswith(b"qemu-nbd") and str(path).encode() in said:
                    os.kill(int(words.parent.name), signal.SIGKILL)
        with pytest.raises(WorkRetryable, match="ended"):
            for _ in range(200):
                await device.read(0, MB)
    assert not asked.qemu, "it was not qemu that was asked"
