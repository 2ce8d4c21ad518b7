"""The compressed writer: what it makes, qemu takes for whole and reads back equal."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard

from agents import qcow2_compressed
from agents.qcow2 import CLUSTER
from agents.qcow2_compressed import CompressedFile

pytestmark = pytest.mark.needs_qemu


def write(path: Path, size: int, clusters: Iterable[tuple[int, bytes]]) -> CompressedFile:
    file = CompressedFile(size)
    with path.open("wb") as out:
        out.seek(CLUSTER)
        for number, raw in clusters:
            packed = zstandard.compress(raw, 1)
            out.writelines(file.add(number, packed if len(packed) < CLUSTER - 4096 else None, raw))
        out.writelines(file.end())
        assert out.tell() == file.size
        out.seek(0)
        out.write(file.header)
    return file


def check(path: Path) -> None:
    said = subprocess.run(["qemu-img", "check", "-f", "qcow2", "--output=json", str(path)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    found = json.loads(said.stdout)
    assert not {"leaks", "corruptions", "check-errors"} & {name for name, value in found.items() if value}


def read(path: Path, tmp_path: Path) -> bytes:
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(tmp_path / "raw")], check=True)
    return (tmp_path / "raw").read_bytes()


@pytest.mark.parametrize("kind", ["noise", "zeros", "text", "half", "mixed", "sparse", "nothing"])
def test_qemu_reads_back_what_was_written(kind: str, tmp_path: Path, qemu_tools: None, seed: int) -> None:
    dice = random.Random(f"{seed}-{kind}")
    size = (700 << 20) + 512 * 5  # two L2 tables, and a last cluster that is not whole
    numbers = {"nothing": [], "sparse": [*sorted(dice.sample(range(size // CLUSTER), 60)), size // CLUSTER]}.get(
        kind, [*range(300), *range(8180, 8200)])

    def raw(number: int) -> bytes:
        made = {"noise": lambda: dice.randbytes(CLUSTER), "zeros": lambda: bytes(CLUSTER),
                "half": lambda: dice.randbytes(dice.randrange(20_000, 50_000)).ljust(CLUSTER, b"\0"),
                "text": lambda: (b"line %d of a log that says much the same\n" % number * CLUSTER)[:CLUSTER]}
        return made[kind if kind in made else dice.choice(list(made))]()

    clusters = {number: raw(number) for number in numbers}
    if size // CLUSTER in clusters:  # what lies behind the disk's end is zeros
        clusters[size // CLUSTER] = clusters[size // CLUSTER][:512 * 5].ljust(CLUSTER, b"\0")
    path = tmp_path / "disk.qcow2"
    write(path, size, clusters.items())
    check(path)
    found = read(path, tmp_path)
    assert len(found) == size
    for number in range(-(-size // CLUSTER)):
        there = found[number * CLUSTER:(number + 1) * CLUSTER]
        assert there == clusters.get(number, bytes(CLUSTER))[:len(there)], f"cluster {number}"


def test_many_refcount_blocks(tmp_path: Path, qemu_tools: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beyond what one refcount block counts (2 GiB), written sparse."""
    path = tmp_path / "disk.qcow2"
    file = CompressedFile(5 << 30)
    hole = bytes(CLUSTER)
    with path.open("wb") as out:
        out.seek(CLUSTER)
        for number in range(0, (5 << 30) // CLUSTER):
            for data in file.add(number, None, hole):
                if bytes(data) == hole:
                    out.seek(len(data), 1)
                else:
                    out.write(data)
        out.writelines(file.end())
        out.seek(0)
        out.write(file.header)
    assert len(file._blocks) >= 3
    check(path)


def test_runs_leave_no_gap(tmp_path: Path, seed: int, qemu_tools: None) -> None:
    """Bytes that do not fill a cluster wait for the next run, unless what comes next must begin at a cluster."""
    dice = random.Random(seed)
    halves = [dice.randbytes(CLUSTER // 2 + 999).ljust(CLUSTER, b"\0") for _ in range(200)]
    path = tmp_path / "disk.qcow2"
    file = write(path, 200 * CLUSTER, enumerate(halves))
    check(path)
    packed = sum(len(zstandard.compress(raw, 1)) for raw in halves)
    assert file.size <= packed + 6 * CLUSTER, "header, L2, L1, refcounts, their table and the end of the last run"
    assert read(path, tmp_path) == b"".join(halves)


def test_a_refcount_block_comes_between_runs(tmp_path: Path, seed: int, qemu_tools: None) -> None:
    """The file's 32768th cluster lies in the midst of compressed ones: nothing of a run may wait on the other side of the block."""
    dice = random.Random(seed)
    path = tmp_path / "disk.qcow2"
    first = 32768 - 60
    file = CompressedFile((first + 300) * CLUSTER)
    hole = bytes(CLUSTER)
    halves = [dice.randbytes(CLUSTER // 2 + 999).ljust(CLUSTER, b"\0") for _ in range(300)]
    with path.open("wb") as out:
        out.seek(CLUSTER)
        for number in range(first):
            for data in file.add(number, None, hole):
                if bytes(data) == hole:
                    out.seek(len(data), 1)
                else:
                    out.write(data)
        for number, raw in enumerate(halves):
            out.writelines(file.add(first + number, zstandard.compress(raw, 1), raw))
        out.writelines(file.end())
        assert out.tell() == file.size
        out.seek(0)
        out.write(file.header)
    assert len(file._blocks) == 2
    check(path)
    subprocess.run(["qemu-img", "dd", "-f", "qcow2", "-O", "raw", f"bs={CLUSTER}", f"skip={first}", f"if={path}", f"of={tmp_path / 'end'}"], check=True)
    assert (tmp_path / "end").read_bytes() == b"".join(halves)


def test_the_order_is_the_disks(tmp_path: Path) -> None:
    file = CompressedFile(10 * CLUSTER)
    file.add(3, None, bytes(CLUSTER))
    for wrong in (3, 2, 10, -1):
        with pytest.raises(ValueError, match="comes after"):
            file.add(wrong, None, bytes(CLUSTER))
    with pytest.raises(ValueError, match="cluster 4 was packed to 65537 bytes"):
        file.add(4, bytes(CLUSTER + 1), b"")
    with pytest.raises(ValueError, match="has not ended"):
        _ = file.header


def test_memory_does_not_grow_with_the_disk() -> None:
    file = CompressedFile(16 << 40)
    for number in range(3 * 8192):
        file.add(number, b"x" * 100, b"")
    assert len(file._run) == qcow2_compressed.RUN + CLUSTER and len(file._counts) <= 32768 and len(file._l2) == 8192
