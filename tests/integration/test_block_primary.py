"""Volumes on real block devices (loop devices): refusals, whose bytes are seen, and the whole life of a disk with KVM."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.hypervisors.kvm import KvmHypervisor
from agents.operations import OPERATIONS
from agents.primary_stores.block import BlockPrimaryStore, needed
from agents.toolbox import Toolbox
from schema.agent import CreateDisk, DeleteDisk, DropSnapshot, ResizeDisk, TakeSnapshot, WriteSnapshot
from schema.failure import Refused, WorkFailed
from schema.image import DiskRef, ImageRef, PrimarySpec, StoreSpec
from tests.services.loop_devices import LoopDevices
from tests.support.images import MIB

DISK = 24 * MIB


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "block"


async def test_only_devices_that_are_free_and_empty_are_taken(root: Path, loop_devices: LoopDevices, tmp_path: Path) -> None:
    """A file system, one that is mounted, a partition table, unknown bytes, a file, a name: each is refused with its reason."""
    store = BlockPrimaryStore(root)

    async def refused(device: str, why: str) -> None:
        before = Path(device).read_bytes() if Path(device).exists() else b""
        with pytest.raises(Refused, match=why):
            await store.prepare([device])
        assert (Path(device).read_bytes() if Path(device).exists() else b"") == before

    foreign = loop_devices.make(8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", foreign], check=True, capture_output=True)
    await refused(foreign, "not empty: ext4")
    mounted = tmp_path / "mnt"
    mounted.mkdir()
    if subprocess.run(["mount", foreign, str(mounted)], check=False, capture_output=True).returncode == 0:
        try:
            await refused(foreign, "mounted or in use")
        finally:
            subprocess.run(["umount", str(mounted)], check=True)
    odd = loop_devices.make(8 * MIB)
    for offset in (MIB // 2, 8 * MIB - 512):
        with open(odd, "r+b") as device:
            device.seek(offset)
            device.write(b"x")
        await refused(odd, "unknown content")
        with open(odd, "r+b") as device:
            device.seek(offset)
            device.write(b"\0")
    (tmp_path / "file").write_bytes(bytes(8 * MIB))
    await refused(str(tmp_path / "file"), "not a block device")
    await refused("/dev/nothing-of-the-sort", "not there")
    with pytest.raises(Refused, match="no absolute path"):
        await store.prepare(["sda"])
    with pytest.raises(Refused, match="twice"):
        await store.prepare([odd, odd])
    await store.prepare([odd])
    assert (await store.usage()).free == 8 * MIB


async def test_a_device_that_became_somebody_elses_is_not_taken(root: Path, loop_devices: LoopDevices) -> None:
    """Between the start of the agent and the volume, the operator used it for something else."""
    device = loop_devices.make(8 * MIB)
    store = BlockPrimaryStore(root)
    await store.prepare([device])
    subprocess.run(["mkfs.ext4", "-q", device], check=True, capture_output=True)
    with pytest.raises(WorkFailed, match=f"{device}: it is not empty: ext4"):
        await store.draft(uuid4(), "w.1", "qcow2")
    assert await store.names() == []


async def test_nobody_sees_what_another_had(root: Path, loop_devices: LoopDevices) -> None:
    """A volume's and a draft's bytes are gone from the device, and from the file below it, when the device is free again."""
    device = loop_devices.make(8 * MIB)
    store = BlockPrimaryStore(root)
    await store.prepare([device])
    secret = random.Random(9).randbytes(4096)
    for end in ("delete", "discard", "again"):
        volume = uuid4()
        path = await store.draft(volume, "w.1", "qcow2")
        with open(path, "r+b") as opened:
            opened.seek(5 * MIB)
            opened.write(secret)
        if end == "delete":
            await store.commit(volume, "w.1", "qcow2")
            await store.delete(volume)
        elif end == "discard":
            await store.discard(volume, "w.1", "qcow2")
        else:
            assert await store.draft(volume, "w.1", "qcow2") == path
        assert not any(Path(device).read_bytes())
        assert secret not in loop_devices.file(device).read_bytes()
        assert await store.names() == ([f".{volume}.w.1.qcow2"] if end == "again" else [])


async def test_the_smallest_device_that_is_large_enough(root: Path, loop_devices: LoopDevices) -> None:
    small, large, middle = (loop_devices.make(size) for size in (needed(DISK) - 1 & ~511, needed(4 * DISK), needed(DISK) + 511 & ~511))
    store = BlockPrimaryStore(root)
    await store.prepare([small, large, middle])
    assert [await store.draft(uuid4(), "w.1", "qcow2", size=DISK) for _ in range(2)] == [middle, large]
    with pytest.raises(WorkFailed, match=f"{small}: it has .* are needed"):
        await store.draft(uuid4(), "w.1", "qcow2", size=DISK)
    await BlockPrimaryStore(root).prepare([small, large, middle])  # the agent starts again: what is ours stays ours
    assert len(await store.names()) == 2
    usage = await store.usage()
    assert usage.free == Path(small).stat().st_size or usage.free == needed(DISK) - 1 & ~511


class Cloud:
    """Orders, done as the mover does them, on a block primary and a folder image store."""

    def __init__(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        self.tools = Toolbox()
        self.primary = PrimarySpec(id=uuid4(), name="p", kind="block", path=str(root), zone_id=uuid4(), agent="a")
        self.store = StoreSpec(id=uuid4(), name="s", provider="folder", url=f"folder://{tmp_path / 'images'}", prefix="i")

    async def do(self, kind: Any, **more: Any) -> Any:
        order = kind(job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", **more)
        return await OPERATIONS[kind](order, self.tools, {}, lambda *_: None)

    async def disk(self, size: int, image: ImageRef | None = None, base: list[ImageRef] | None = None) -> DiskRef:
        made = await self.do(CreateDisk, primary=self.primary, volume_id=uuid4(), virtual_size=size, image=image, base=base or [],
                             store=self.store if image else None)
        found: DiskRef = made.disk
        return found

    def path(self, disk: DiskRef) -> str:
        return self.tools.primary(self.primary).locate(disk.path)

    async def content(self, disk: DiskRef, tag: str = "") -> bytes:
        async with KvmHypervisor().open(self.path(disk), tag=tag) as device:
            return bytes(await device.read(0, device.size))

    async def write(self, disk: DiskRef, offset: int, data: bytes) -> None:
        async with KvmHypervisor().open(self.path(disk), writable=True) as device:
            await device.write(offset, data)
            await device.flush()

    async def backup(self, disk: DiskRef, tag: str, **more: Any) -> Any:
        await self.do(TakeSnapshot, disk=disk, tag=tag)
        return await self.do(WriteSnapshot, disk=disk, tag=tag, store=self.store, key=f"i/{tag}.qcow2", thing_id=UUID(int=1), **more)


@pytest.mark.needs_qemu
@pytest.mark.usefixtures("qemu")
async def test_the_whole_life_of_a_disk(root: Path, loop_devices: LoopDevices, tmp_path: Path, seed: int) -> None:
    """Created, written, frozen, written on, backed up full and as a delta, restored to other devices, deleted: byte for byte."""
    await BlockPrimaryStore(root).prepare([loop_devices.make(needed(DISK) + 16 * MIB) for _ in range(3)])
    cloud, dice = Cloud(root, tmp_path), random.Random(seed)
    image_store = await FolderImages.open(cloud.store)
    disk = await cloud.disk(DISK)
    assert disk.virtual_size == DISK and Path(cloud.path(disk)).is_block_device()
    assert not any(await cloud.content(disk))

    await cloud.write(disk, 3 * MIB, dice.randbytes(5 * MIB))
    first = await cloud.content(disk)
    full = await cloud.backup(disk, "sb-one")
    await cloud.write(disk, 7 * MIB, dice.randbytes(2 * MIB))
    second = await cloud.content(disk)
    assert await cloud.content(disk, "sb-one") == first and second != first
    delta = await cloud.backup(disk, "sb-two", parent=full.image, parent_tag="sb-one")
    assert delta.reason == "" and delta.image.parent == full.image.key
    assert delta.image.physical_size < 4 * MIB < full.image.physical_size

    restored = await cloud.disk(DISK, full.image)
    assert await cloud.content(restored) == first
    flat = await cloud.disk(DISK, delta.image, [full.image])
    assert await cloud.content(flat) == second
    for one in (disk, restored, flat):
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", cloud.path(one)], check=True)
    await cloud.do(DropSnapshot, disk=disk, tag="sb-one", keep="sb-two")
    assert await KvmHypervisor().snapshots(cloud.path(disk)) == ["sb-two"]
    with pytest.raises(WorkFailed, match="no device is free"):
        await cloud.disk(DISK)
    for one in (disk, restored, flat):
        path = cloud.path(one)
        await cloud.do(DeleteDisk, primary=cloud.primary, volume_id=one.volume_id)
        assert not any(Path(path).read_bytes())
    assert await BlockPrimaryStore(root).names() == []
    assert image_store is not None


class FolderImages:
    """The folder image store, prepared."""

    @staticmethod
    async def open(spec: StoreSpec) -> bool:
        async with Toolbox().store(spec, {}) as store:
            await store.test("i/probe")
        return True


@pytest.mark.skipif(shutil.which("lvm") is None, reason="LVM: apt-get install lvm2 (optional)")
async def test_a_logical_volume(root: Path, loop_devices: LoopDevices) -> None:
    """A device of LVM's is a device; the one below it is in use."""
    below, group = loop_devices.make(64 * MIB), f"sb{uuid4().hex[:8]}"
    if subprocess.run(["vgcreate", "-qq", group, below], check=False, capture_output=True).returncode:
        pytest.skip("LVM makes no volume group here (optional)")
    try:
        if subprocess.run(["lvcreate", "-qq", "-L", "32M", "-n", "v", group], check=False, capture_output=True).returncode:
            pytest.skip("LVM makes no logical volume here: no device mapper (optional)")
        with pytest.raises(Refused, match="cannot be used"):
            await BlockPrimaryStore(root).prepare([below])
        await BlockPrimaryStore(root).prepare([f"/dev/{group}/v"])
    finally:
        subprocess.run(["vgremove", "-f", "-y", "-qq", group], check=False, capture_output=True)


@pytest.mark.needs_qemu
@pytest.mark.usefixtures("qemu")
async def test_a_disk_grows_on_its_device_and_not_beyond_it(root: Path, loop_devices: LoopDevices, tmp_path: Path) -> None:
    room = needed(2 * DISK) + 511 & ~511
    device = loop_devices.make(room)
    await BlockPrimaryStore(root).prepare([device])
    cloud = Cloud(root, tmp_path)
    disk = await cloud.disk(DISK)
    with pytest.raises(WorkFailed, match=f"the device of the disk has .* a disk of {4 * DISK} needs"):
        await cloud.do(ResizeDisk, disk=disk, virtual_size=4 * DISK)
    assert await KvmHypervisor().measure(cloud.path(disk)) == (DISK, room)
    assert (await cloud.do(ResizeDisk, disk=disk, virtual_size=2 * DISK)).virtual_size == 2 * DISK
    content = random.Random(3).randbytes(2 * DISK)
    async with KvmHypervisor().open(cloud.path(disk), writable=True) as opened:
        for at in range(0, 2 * DISK, MIB):  # every byte of it fits
            await opened.write(at, content[at:at + MIB])
        await opened.flush()
    async with KvmHypervisor().open(cloud.path(disk)) as opened:
        assert bytes(await opened.read(0, 2 * DISK)) == content
    with pytest.raises(WorkFailed, match="cut off"):
        await cloud.do(ResizeDisk, disk=disk, virtual_size=DISK, shrink=True)
