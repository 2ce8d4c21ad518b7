"""The hypervisor contract on KVM (qemu's real programs) and memory, and what is KVM's own."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import qemu as programs
from agents.hypervisors.base import Hypervisor, ReadsHere, Untracked
from agents.hypervisors.kvm import KvmHypervisor, NbdDevice
from agents.hypervisors.memory import DISKS, MemoryHypervisor
from schema.failure import WorkFailed, WorkRetryable
from schema.image import ImageFormat
from tests.contract.change_tracking import ChangeTrackingContract, blocks
from tests.contract.hypervisor import CLUSTER, MIB, HypervisorContract, data, image_file, snapped, spans, whole
from tests.contract.resizing import ResizingContract


class TestMemory(HypervisorContract, ChangeTrackingContract, ResizingContract):
    @pytest.fixture
    def hypervisor(self) -> Hypervisor:
        return MemoryHypervisor()

    async def test_another_object_sees_the_same_disks(self, path: str) -> None:
        await MemoryHypervisor().create(path, MIB)
        async with MemoryHypervisor().open(path) as device:
            assert device.size == MIB

    @pytest.mark.parametrize("damage", ["not qcow2", "backing", "compressed"])
    async def test_images_that_are_qemus_to_read_are_refused(self, path: str, damage: str) -> None:
        image_file(Path(path), data(2 * CLUSTER))
        file = bytearray(Path(path).read_bytes())
        match damage:
            case "not qcow2":
                file[:4] = b"RAW!"
            case "backing":
                file[15] = 200
            case _:
                file[4 * CLUSTER] |= 0x40  # the first L2 entry: header, refcount table and block, L1, L2
        Path(path).write_bytes(file)
        with pytest.raises(WorkFailed, match=r"qcow2|backing|compressed"):
            await MemoryHypervisor().adopt(path, format=ImageFormat.QCOW2, grow_to=0)
        assert path not in DISKS


def img(*arguments: str) -> str:
    """qemu-img, an independent judge."""
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


def children(parent: int) -> list[tuple[int, str]]:
    """Living direct children of a process: (pid, program)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = entry.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue
        state, ppid = rest.split()[:2]
        if int(ppid) == parent and state != "Z":
            found.append((int(entry.parent.name), name))
    return found


def exporters(parent: int) -> list[int]:
    """The exporting programs among them."""
    return [pid for pid, name in children(parent) if name.startswith("qemu")]


def socket_folders() -> set[str]:
    """Private folders of exports that are there now."""
    return {str(path) for path in Path(tempfile.gettempdir()).glob("sb-nbd-*")}


@pytest.mark.needs_qemu
@pytest.mark.usefixtures("qemu")
class TestKvm(HypervisorContract, ChangeTrackingContract, ResizingContract):
    @pytest.fixture
    def hypervisor(self) -> Hypervisor:
        return KvmHypervisor()

    @pytest.fixture(autouse=True)
    def short_folder(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """A place for sockets that nobody else uses, with a path short enough for one."""
        with tempfile.TemporaryDirectory(prefix="sbk-", dir="/tmp") as folder:
            monkeypatch.setattr(tempfile, "tempdir", folder)
            monkeypatch.setenv("TMPDIR", folder)
            yield
            assert socket_folders() == set() and exporters(os.getpid()) == [], "something is left behind"

    async def test_extents_are_those_of_qemu_img_map(self, hypervisor: Hypervisor, path: str, tmp_path: Path) -> None:
        await hypervisor.create(path, 256 * MIB + 512)
        async with hypervisor.open(path, writable=True) as device:
            for n in range(40):
                await device.write((n * 7919 % 256) * MIB + n * 512, data(30_000, n))
            await device.write(256 * MIB, data(512))
            await device.zero(100 * MIB, 3 * MIB)
            await device.flush()
        async with hypervisor.open(path) as device:
            ours = spans(await device.extents())
        theirs: list[tuple[int, int]] = []
        for run in json.loads(img("map", "-f", "qcow2", "--output=json", path)):
            if not run["zero"]:
                start, end = run["start"], run["start"] + run["length"]
                theirs[-1:] = [(theirs[-1][0], end)] if theirs and theirs[-1][1] == start else [*theirs[-1:], (start, end)]
        assert ours == theirs and len(ours) > 20

    async def test_qemu_img_sees_the_same_content(self, hypervisor: Hypervisor, path: str, tmp_path: Path) -> None:
        content = data(CLUSTER) + bytes(MIB) + data(12_345, 2)
        content += bytes(-len(content) % 512)
        await hypervisor.create(path, len(content))
        async with hypervisor.open(path, writable=True) as device:
            await device.write(0, content)
            await device.flush()
        await hypervisor.take_snapshot(path, "t")
        async with hypervisor.open(path, writable=True) as device:
            await device.zero(0, device.size)
            await device.flush()
        raw = tmp_path / "raw"
        raw.write_bytes(content)
        img("check", "-f", "qcow2", path)
        img("convert", "-l", "snapshot.name=t", "-f", "qcow2", "-O", "raw", path, str(tmp_path / "of-the-tag"))
        img("compare", "-f", "raw", "-F", "raw", str(raw), str(tmp_path / "of-the-tag"))
        with pytest.raises(subprocess.CalledProcessError):
            img("compare", "-f", "raw", "-F", "qcow2", str(raw), path)

    @pytest.mark.parametrize("tag", ["", "t"])
    async def test_an_exporter_that_is_killed_is_an_error_and_no_end(self, hypervisor: Hypervisor, path: str, tag: str) -> None:
        content = await snapped(hypervisor, path, 8 * MIB)
        async with hypervisor.open(path, tag=tag, writable=not tag) as device:
            if not tag:
                await device.write(0, b"flushed")
                await device.flush()
                content = b"flushed" + content[7:]
            victims = exporters(os.getpid())
            assert len(victims) == 1, victims
            os.kill(victims[0], signal.SIGKILL)
            with pytest.raises(WorkRetryable, match="block export"):
                async with asyncio.timeout(60):
                    for _ in range(1000):
                        await device.read(0, MIB)
        async with hypervisor.open(path, tag=tag) as device:
            assert await whole(device) == content

    async def test_a_disk_in_use_says_so(self, hypervisor: Hypervisor, path: str) -> None:
        await hypervisor.create(path, MIB)
        await hypervisor.take_snapshot(path, "t")
        async with hypervisor.open(path, writable=True):
            for act in (hypervisor.take_snapshot(path, "u"), hypervisor.drop_snapshot(path, "t")):
                with pytest.raises(WorkRetryable, match="in use by another process"):
                    await act
            for how in ({"writable": True}, {}, {"tag": "t"}):
                with pytest.raises(WorkRetryable, match="in use by another process"):
                    async with hypervisor.open(path, **how):
                        pass
        await hypervisor.drop_snapshot(path, "t")
        assert await hypervisor.snapshots(path) == []

    def test_words_that_only_contain_lock_are_no_lock(self) -> None:
        for said in ("qemu-storage-daemon: --blockdev: unknown driver", "Could not read refcount block: Input/output error"):
            assert not isinstance(programs.failed("x", said), WorkRetryable)
        full = programs.failed("qemu-img", "qemu-img: No space left on device")
        assert full.failure.remedy and "full" in full.failure.cause

    @pytest.mark.parametrize(("number", "kind", "words"), [(errno.ENOSPC, WorkFailed, "primary store is full"),
                                                           (errno.EIO, WorkRetryable, "Input/output error")])
    async def test_what_the_disk_below_says(self, hypervisor: Hypervisor, path: str, number: int, kind: type[WorkFailed],
                                            words: str) -> None:
        """qemu's own fault injection: every write of the file fails."""
        await hypervisor.create(path, MIB)

        def failing(folder: Path) -> list[str]:
            arguments = programs.daemon(path, "qcow2", writable=True, connections=2)(folder)
            below = {"driver": "blkdebug", "node-name": "bad", "image": "file", "inject-error": [
                {"event": "write_aio", "iotype": "write", "errno": number, "once": False}]}
            disk = json.loads(arguments[4]) | {"file": "bad"}
            return [*arguments[:3], "--blockdev", json.dumps(below), "--blockdev", json.dumps(disk), *arguments[5:]]

        async with programs.export(failing) as served:
            device = await NbdDevice.connect(served.socket, 2)
            try:
                with pytest.raises(WorkFailed, match=words) as failure:
                    await device.write(0, data(CLUSTER))
                    await device.flush()
            finally:
                await device.aclose()
        assert type(failure.value) is kind

    async def test_threads_of_others_read_it(self, hypervisor: Hypervisor, path: str) -> None:
        """More of them than there are connections, while the loop reads too; of the disk, and of a snapshot in it."""
        content = await snapped(hypervisor, path, 8 * MIB)

        def read(device: ReadsHere, start: int) -> None:
            buffer = bytearray(CLUSTER + 512)
            for at in range(start, 8 * MIB - len(buffer), MIB + 512):
                device.read_here(memoryview(buffer), at)
                assert buffer == content[at:at + len(buffer)]

        for tag in ("", "t"):
            async with hypervisor.open(path, tag=tag) as device:
                assert isinstance(device, ReadsHere)
                others = asyncio.gather(*(asyncio.to_thread(read, device, start) for start in range(0, 12 * CLUSTER, CLUSTER)))
                assert bytes(await device.read(MIB, 3 * MIB)) == content[MIB:4 * MIB]
                await others

    async def test_a_closed_device_is_an_error(self, hypervisor: Hypervisor, path: str) -> None:
        await hypervisor.create(path, MIB)
        async with hypervisor.open(path) as device:
            connection = device._all[0]  # type: ignore[attr-defined] # what a late thread would hold
        for act in (connection.extents, connection.flush, lambda: connection.write(0, b"x"), lambda: connection.read_into(memoryview(bytearray(1)), 0)):
            with pytest.raises(WorkFailed, match="closed"):
                act()
        connection.close()

    @pytest.mark.parametrize("options", [["-o", "compat=0.10"], ["-c"], ["-o", "cluster_size=4096"], ["-c", "-o", "compression_type=zstd"]],
                             ids=["v2", "compressed", "small-clusters", "zstd"])
    async def test_foreign_images_are_taken(self, hypervisor: Hypervisor, path: str, tmp_path: Path, options: list[str]) -> None:
        content = (b"storebus " * 30_000).ljust(MIB, b"\0")
        (tmp_path / "raw").write_bytes(content)
        img("convert", "-f", "raw", "-O", "qcow2", *options, str(tmp_path / "raw"), path)
        assert await hypervisor.adopt(path, format=ImageFormat.QCOW2, grow_to=2 * MIB) == 2 * MIB
        await hypervisor.take_snapshot(path, "t")
        async with hypervisor.open(path, tag="t") as device:
            assert await whole(device) == content + bytes(MIB)

    @pytest.mark.parametrize("kind", ["backing", "data file", "not qcow2", "corrupt", "truncated", "encrypted", "many snapshots"])
    async def test_images_that_must_not_become_disks(self, hypervisor: Hypervisor, path: str, tmp_path: Path, kind: str) -> None:
        match kind:
            case "backing":
                img("create", "-q", "-f", "raw", str(tmp_path / "base"), "1M")
                img("create", "-q", "-f", "qcow2", "-b", str(tmp_path / "base"), "-F", "raw", path)
                expected = "backing file"
            case "data file":
                img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", path, "1M")
                expected = "data_file"
            case "not qcow2":
                Path(path).write_bytes(data(MIB))
                expected = "qcow2"
            case "encrypted":
                img("create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o",
                    "encrypt.format=aes,encrypt.key-secret=s", path, "1M")
                expected = "encrypted"
            case "many snapshots":
                img("create", "-q", "-f", "qcow2", path, "1M")
                for n in range(33):
                    img("snapshot", "-c", f"s{n}", path)
                expected = "snapshots"
            case _:
                image_file(Path(path), data(8 * CLUSTER))
                with Path(path).open("r+b") as file:
                    if kind == "corrupt":
                        file.seek(2 * CLUSTER)  # the refcount block: used clusters said to be free
                        file.write(bytes(64))
                    else:
                        file.truncate(6 * CLUSTER)
                expected = "qemu-img" if kind == "corrupt" else "truncated"
        with pytest.raises(WorkFailed, match=expected) as refused:
            await hypervisor.adopt(path, format=ImageFormat.QCOW2, grow_to=0)
        assert not isinstance(refused.value, WorkRetryable)

    async def test_snapshots_that_came_with_an_image_are_dropped(self, hypervisor: Hypervisor, path: str) -> None:
        img("create", "-q", "-f", "qcow2", path, "1M")
        img("snapshot", "-c", "theirs", path)
        await hypervisor.adopt(path, format=ImageFormat.QCOW2, grow_to=4 * MIB)
        assert await hypervisor.snapshots(path) == []

    async def test_an_exporter_dies_with_its_agent(self, hypervisor: Hypervisor, path: str) -> None:
        await hypervisor.create(path, MIB)
        agent = subprocess.Popen([sys.executable, "-c", textwrap.dedent("""
            import asyncio, sys
            from agents.hypervisors.kvm import KvmHypervisor, NbdDevice
            async def main():
                async with KvmHypervisor().open(sys.argv[1], writable=True):
                    print("open", flush=True)
                    await asyncio.sleep(60)
            asyncio.run(main())"""), path], stdout=subprocess.PIPE)
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"open\n"
        served = exporters(agent.pid)
        assert len(served) == 1
        left = socket_folders()
        agent.kill()
        agent.wait()
        agent.stdout.close()
        end = time.monotonic() + 5
        while Path(f"/proc/{served[0]}").exists() and time.monotonic() < end:
            await asyncio.sleep(0.02)
        assert not Path(f"/proc/{served[0]}").exists()
        for name in left:  # as if a minute had gone by
            os.utime(name, (0, 0))
        async with hypervisor.open(path, writable=True) as device:  # the lock went with it
            await device.write(0, b"x")
            assert not socket_folders() & left, "folders of the dead are removed by the next who opens a disk"

    async def test_a_cancelled_open_leaves_no_process(self, hypervisor: Hypervisor, path: str) -> None:
        await hypervisor.create(path, MIB)

        async def hold() -> None:
            async with hypervisor.open(path):
                await asyncio.sleep(60)

        for pause in (0, 0.001, 0.004, 0.01, 0.02, 0.05, 0.3):
            task = asyncio.create_task(hold())
            await asyncio.sleep(pause)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert exporters(os.getpid()) == []

    async def test_a_writer_that_was_killed_leaves_a_record_that_is_not_believed(self, path: str) -> None:
        kvm = KvmHypervisor()
        await kvm.create(path, MIB)
        await kvm.track(path, "sb-1")
        with pytest.raises(WorkRetryable):
            async with kvm.open(path, writable=True) as device:
                await device.write(0, data(CLUSTER))
                await device.flush()
                for pid in exporters(os.getpid()):
                    os.kill(pid, signal.SIGKILL)
                await device.flush()
        with pytest.raises(Untracked, match="killed"):
            await kvm.changed(path, "sb-1")
        async with kvm.open(path, writable=True) as device:  # and an orderly end later does not make it good
            await device.write(0, data(CLUSTER))
        with pytest.raises(Untracked, match="killed"):
            await kvm.changed(path, "sb-1")
        await kvm.track(path, "sb-1")
        assert list(await kvm.changed(path, "sb-1")) == []
        img("check", "-f", "qcow2", path)

    @pytest.mark.parametrize(("how", "why"), [(["--disable"], "not recording"), (["-g", "131072"], "131072 bytes")])
    async def test_a_record_made_otherwise_is_not_believed(self, path: str, how: list[str], why: str) -> None:
        kvm = KvmHypervisor()
        await kvm.create(path, MIB)
        img("bitmap", "--add", *how, "-f", "qcow2", path, "sb-1")
        with pytest.raises(Untracked, match=why):
            await kvm.changed(path, "sb-1")

    async def test_an_image_from_elsewhere_brings_no_record_along(self, path: str) -> None:
        kvm = KvmHypervisor()
        await kvm.create(path, MIB)
        await kvm.track(path, "sb-1")
        img("bitmap", "--add", "-f", "qcow2", path, "theirs")
        await kvm.adopt(path, format=ImageFormat.QCOW2, grow_to=2 * MIB)
        assert "bitmaps" not in img("info", path)
        with pytest.raises(Untracked):
            await kvm.changed(path, "sb-1")

    async def test_qemu_img_finds_nothing_wrong_with_records_and_snapshots_together(self, path: str) -> None:
        kvm = KvmHypervisor()
        await kvm.create(path, 8 * MIB)
        for n in range(4):
            await kvm.track(path, f"sb-{n}")
            await kvm.take_snapshot(path, f"sb-{n}")
            async with kvm.open(path, writable=True) as device:
                await device.write(n * MIB, data(CLUSTER, n))
            img("check", "-f", "qcow2", path)
            await kvm.drop_snapshot(path, f"sb-{n}")
            await kvm.keep_changes(path, f"sb-{n}")
            img("check", "-f", "qcow2", path)
            assert blocks(await kvm.changed(path, f"sb-{n}")) == {16 * n}
