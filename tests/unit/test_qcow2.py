"""The qcow2 writer: its files are judged by qemu-img, their parts by independence."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from pathlib import Path

import pytest

from agents.hypervisors.base import Extent
from agents.qcow2 import CLUSTER, L2_ENTRIES, Layout, Tables, data_runs, touched

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


def guest(offset: int, length: int) -> bytes:
    """What the device holds at a place: every 512 bytes name their own."""
    first, last = offset // 512, -(-(offset + length) // 512)
    return b"".join(n.to_bytes(8, "big") * 64 for n in range(first + 1, last + 1))[offset % 512:][:length]


def file_bytes(layout: Layout, offset: int, length: int) -> bytes:
    """A range of the file as an upload makes it."""
    made = b""
    for piece in layout.pieces(offset, length):
        assert piece.offset == offset + len(made), "pieces are in order, without gaps"
        body = piece.data if piece.data is not None else guest(piece.guest, max(0, min(piece.length, layout.virtual_size - piece.guest)))
        made += body.ljust(piece.length, b"\0")
    return made


def extents_of(size: int, spans: list[tuple[int, int]]) -> list[Extent]:
    """Data at the spans, zero elsewhere."""
    found, end = [], 0
    for start, stop in spans:
        if start > end:
            found.append(Extent(offset=end, length=start - end, zero=True))
        found.append(Extent(offset=start, length=stop - start, zero=False))
        end = stop
    return [*found, Extent(offset=end, length=size - end, zero=True)] if end < size else found


def random_spans(dice: random.Random, size: int) -> list[tuple[int, int]]:
    """Sorted, apart from one another, on 512-byte borders."""
    places = sorted(dice.sample(range(size // 512 + 1), min(2 * dice.randrange(1, 40), (size // 512 + 1) // 2 * 2)))
    return [(start * 512, end * 512) for start, end in zip(places[::2], places[1::2], strict=True) if end > start]


def test_runs_are_whole_clusters_joined() -> None:
    extents = extents_of(10 * CLUSTER, [(100, 200), (CLUSTER - 512, CLUSTER + 512), (3 * CLUSTER, 4 * CLUSTER), (4 * CLUSTER + 512, 4 * CLUSTER + 1024)])
    assert [(run.guest, run.count, run.at) for run in data_runs(extents)] == [(0, 2, 0), (3, 2, 2)]


def test_any_range_is_a_slice_of_the_whole(seed: int) -> None:
    dice = random.Random(seed)
    size = 40 * MIB + 512 * 3
    layout = Layout(size, extents_of(size, random_spans(dice, size)))
    whole = file_bytes(layout, 0, layout.size)
    assert len(whole) == layout.size
    for _ in range(50):
        offset = dice.randrange(layout.size)
        length = dice.choice([1, 511, CLUSTER, MIB, 3 * MIB + 7])
        assert file_bytes(layout, offset, length) == whole[offset:offset + length]
    assert file_bytes(layout, layout.size - 1, 100) == whole[-1:]
    assert layout.pieces(layout.size, 1) == []


def test_a_run_that_ends_before_a_table_leaves_it_alone() -> None:
    """Data in the first table's middle and in the second table: 512 MiB each."""
    size = 1100 * MIB
    layout = Layout(size, extents_of(size, [(100 * MIB, 101 * MIB), (700 * MIB, 701 * MIB)]))
    tables = [piece.data for piece in layout.pieces((layout.data_at - 2) * CLUSTER, 2 * CLUSTER)]
    for table, at, first in zip(tables, (100, 188), (0, 16), strict=True):  # 188 MiB into the second table
        assert table is not None and len(table) == CLUSTER, "a table is one cluster"
        entries = struct.unpack(f">{L2_ENTRIES}Q", table)
        used = {n: (entry & ~(1 << 63)) // CLUSTER - layout.data_at for n, entry in enumerate(entries) if entry}
        assert used == {at * 16 + n: first + n for n in range(16)}


def test_a_huge_full_disk_needs_little_memory_and_time() -> None:
    layout = Layout(16 * TIB, [Extent(offset=0, length=16 * TIB, zero=False)])
    assert layout.data_clusters == 16 * TIB // CLUSTER and layout.size < 16 * TIB + 16 * GIB
    for offset in (0, layout.data_at * CLUSTER - MIB, layout.size - MIB):
        assert sum(piece.length for piece in layout.pieces(offset, MIB)) == MIB


@pytest.mark.needs_qemu
@pytest.mark.usefixtures("qemu")
class TestQemuJudges:
    def judge(self, path: Path, layout: Layout, offset_step: int) -> None:
        with path.open("wb") as file:
            for offset in range(0, layout.size, offset_step):
                file.write(file_bytes(layout, offset, offset_step))
        checked = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(path)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert "leak" not in checked.stdout

    @pytest.mark.parametrize("n", range(8))
    def test_random_layouts(self, tmp_path: Path, seed: int, n: int) -> None:
        dice = random.Random(seed * 1000 + n)
        size = dice.choice([512, CLUSTER, CLUSTER + 512, 5 * MIB, 600 * MIB + 512 * dice.randrange(1, 200)])
        spans = random_spans(dice, size)
        if size > 16 * MIB:
            spans = [(start, min(end, start + dice.randrange(512, MIB, 512))) for start, end in spans]
        layout = Layout(size, extents_of(size, spans))
        self.judge(tmp_path / "image", layout, dice.choice([CLUSTER, 100_000, MIB]))
        with (tmp_path / "raw").open("wb") as raw:
            raw.truncate(size)
            for run in layout.runs:
                start = run.guest * CLUSTER
                raw.seek(start)
                raw.write(guest(start, min(run.count * CLUSTER, size - start)))
        same = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(tmp_path / "raw"), str(tmp_path / "image")],
                              capture_output=True, text=True)
        assert same.returncode == 0, same.stdout + same.stderr
        info = subprocess.run(["qemu-img", "info", "-f", "qcow2", "--output=json", str(tmp_path / "image")], check=True, capture_output=True)
        assert json.loads(info.stdout)["virtual-size"] == size  # compare takes a shorter one for equal when the rest is zero

    def test_empty(self, tmp_path: Path) -> None:
        self.judge(tmp_path / "image", Layout(2 * TIB, extents_of(2 * TIB, [])), MIB)
        assert (tmp_path / "image").stat().st_size <= 6 * CLUSTER

    def test_sixteen_tebibytes_with_a_little_at_each_end(self, tmp_path: Path) -> None:
        size = 16 * TIB
        middle = 8 * TIB + L2_ENTRIES * CLUSTER  # the first cluster of an L2 table
        layout = Layout(size, extents_of(size, [(0, 512), (middle - 512, middle + 512), (size - 512, size)]))
        self.judge(tmp_path / "image", layout, 64 * MIB)
        assert layout.size < 2 * MIB
        info = subprocess.run(["qemu-img", "map", "-f", "qcow2", str(tmp_path / "image")], check=True, capture_output=True, text=True)
        assert len(info.stdout.splitlines()) == 4, "three runs of data, below a header"

    def test_more_clusters_than_one_refcount_block_counts(self, tmp_path: Path) -> None:
        size = 2 * GIB + 100 * MIB
        layout = Layout(size, extents_of(size, [(0, size)]))
        path = tmp_path / "image"
        with path.open("wb") as file:  # sparse: the metadata, and holes for the data
            for piece in layout.pieces(0, layout.data_at * CLUSTER):
                assert piece.data is not None
                file.seek(piece.offset)
                file.write(piece.data)
            file.truncate(layout.size)
        checked = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(path)], capture_output=True, text=True)
        assert checked.returncode == 0 and "100.00% allocated" in checked.stdout, checked.stdout + checked.stderr


def img(*arguments: str) -> str:
    """qemu-img, an independent judge."""
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


def cluster(first: int, end: int) -> Extent:
    return Extent(offset=first * CLUSTER, length=(end - first) * CLUSTER, zero=False)


def taken_in(body: bytes) -> Layout:
    """The layout that a file's own tables lead to."""
    tables = Tables(body[:CLUSTER])
    tables.take_counts(body[CLUSTER:tables.l1_at])
    at = tables.l1_at + tables.l1_bytes
    for number in tables.take_l1(body[tables.l1_at:at]):
        tables.take_l2(number, body[at:at + CLUSTER])
        at += CLUSTER
    return tables.layout()


def random_delta(dice: random.Random, clusters: int) -> Layout:
    """Data, zeros and nothing, in no order."""
    kinds = [dice.choice("dz--") for _ in range(clusters)]
    data = [cluster(n, n + 1) for n, kind in enumerate(kinds) if kind == "d"]
    zeros = touched(cluster(n, n + 1) for n, kind in enumerate(kinds) if kind == "z")
    return Layout(clusters * CLUSTER - dice.randrange(0, CLUSTER, 512), data, zeros=zeros, backing=b"../base.qcow2")


def test_a_delta_is_taken_in_as_it_was_made(seed: int) -> None:
    dice = random.Random(seed)
    for clusters in (1, 40, 300, L2_ENTRIES + 100):
        made = random_delta(dice, clusters)
        found = taken_in(file_bytes(made, 0, made.data_at * CLUSTER))
        assert (found.runs, found.zeros, found.backing) == (made.runs, made.zeros, made.backing)
        assert (found.size, found.virtual_size) == (made.size, made.virtual_size)


def test_no_bit_of_the_tables_can_be_otherwise(seed: int) -> None:
    dice = random.Random(seed)
    made = random_delta(dice, 60)
    body = file_bytes(made, 0, made.data_at * CLUSTER)
    for place in [*range(0, 200), *(dice.randrange(len(body)) for _ in range(300))]:
        wrong = bytearray(body)
        wrong[place] ^= 1 << dice.randrange(8)
        try:
            found = taken_in(bytes(wrong))
        except ValueError:
            continue  # what the header alone says (size, parent's name) is compared with the manifest
        assert (found.virtual_size, found.backing) != (made.virtual_size, made.backing)


@pytest.mark.needs_qemu
@pytest.mark.usefixtures("qemu")
class TestDeltaByQemu:
    """A delta over its base, judged by qemu-img."""

    def test_data_zeros_and_what_shines_through(self, tmp_path: Path, seed: int) -> None:
        clusters = 40
        base = Layout(clusters * CLUSTER, [cluster(0, clusters)])
        (tmp_path / "base.qcow2").write_bytes(file_bytes(base, 0, base.size))
        (tmp_path / "d").mkdir()
        made = Layout(clusters * CLUSTER, [cluster(3, 5), cluster(39, 40)], zeros=[(0, 1), (5, 9)], backing=b"../base.qcow2")
        body = bytearray(file_bytes(made, 0, made.size))
        body[made.data_at * CLUSTER:] = b"new!" * (len(body[made.data_at * CLUSTER:]) // 4)
        delta = tmp_path / "d" / "delta.qcow2"
        delta.write_bytes(body)
        expected = bytearray(guest(0, clusters * CLUSTER))
        for first, end, what in ((3, 5, b"new!"), (39, 40, b"new!"), (0, 1, bytes(4)), (5, 9, bytes(4))):
            expected[first * CLUSTER:end * CLUSTER] = what * ((end - first) * CLUSTER // 4)
        (tmp_path / "raw").write_bytes(expected)
        found = json.loads(img("info", "--output=json", str(delta)))
        assert (found["backing-filename"], found["backing-filename-format"]) == ("../base.qcow2", "qcow2")
        img("check", "-f", "qcow2", str(delta))
        img("compare", "-f", "raw", "-F", "qcow2", str(tmp_path / "raw"), str(delta))
        (tmp_path / "base.qcow2").rename(tmp_path / "elsewhere")
        with pytest.raises(subprocess.CalledProcessError):  # tools fail rather than misread
            img("compare", "-f", "raw", "-F", "qcow2", str(tmp_path / "raw"), str(delta))

    def test_a_delta_of_a_large_disk_is_small(self, tmp_path: Path) -> None:
        made = Layout(20 * GIB, [cluster(n * 1280, n * 1280 + 1) for n in range(256)], backing=b"x")
        assert made.size < 20 * MIB
        Layout(16 * TIB, [], zeros=[(0, 16 * TIB // CLUSTER)], backing=b"x").pieces(0, MIB)
