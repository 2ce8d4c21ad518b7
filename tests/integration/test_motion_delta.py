"""Chains with real disks: what each order does on KVM and a store, and what comes out when any link is read back.

The test keeps each snapshot's content as a raw file beside the disk; qemu-img judges the restored disks and, with the objects
downloaded under their keys into a folder, the objects themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.hypervisors.memory import MemoryHypervisor
from agents.image_stores.base import ImageStore
from agents.image_stores.folder import FolderImageStore
from agents.image_stores.memory import MemoryImageStore
from agents.image_stores.s3 import S3ImageStore
from agents.image_stores.swift import SwiftImageStore
from agents.manifest import manifest_key, read_manifest, verify_object
from agents.motion.delta import read_chain
from agents.operations import OPERATIONS
from agents.qcow2 import CLUSTER
from agents.toolbox import Toolbox
from schema.agent import CreateDisk, DropSnapshot, ImageResult, ResizeDisk, TakeSnapshot, WriteSnapshot
from schema.failure import WorkFailed
from schema.image import DiskRef, ImageFormat, ImageRef, PrimarySpec, StoreSpec
from schema.message import Order
from tests.services.s3_fixture import s3_spec
from tests.services.swift_fixture import swift_spec
from tests.support.images import MIB, img

SIZE = 24 * MIB + 1536


@dataclass
class Disk:
    """One volume on a hypervisor, its store, and the content of each snapshot as the test knows it."""

    folder: Path
    store: ImageStore
    spec: StoreSpec
    secrets: dict[str, str]
    tools: Toolbox
    size: int = SIZE
    content: bytearray = field(default_factory=bytearray)
    images: list[ImageRef] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    frozen: list[bytes] = field(default_factory=list)
    volume: UUID = field(default_factory=uuid4)
    dice: random.Random = field(default_factory=random.Random)

    @property
    def ref(self) -> DiskRef:
        primary = PrimarySpec(id=uuid4(), name="p", kind="folder", path=str(self.folder / "primary"), zone_id=uuid4(), agent="a")
        return DiskRef(primary=primary, volume_id=self.volume, path=f"{self.volume}.qcow2", virtual_size=self.size)

    @property
    def path(self) -> str:
        return str(self.folder / "primary" / self.ref.path)

    async def do(self, kind: type[Order], **fields: Any) -> Any:
        order = kind(job_id=uuid4(), work_id=uuid4(), attempt=1, agent="a", reply_key="k", **fields)
        return await OPERATIONS[kind](order, self.tools, self.secrets, lambda *_: None)

    async def create(self) -> None:
        (self.folder / "primary").mkdir(exist_ok=True)
        await self.do(CreateDisk, primary=self.ref.primary, volume_id=self.volume, virtual_size=self.size)
        self.content = bytearray(self.size)

    async def change(self, *, writes: int = 6) -> None:
        """Random writes and zeroes through the agent's own block export."""
        async with self.tools.hypervisor.open(self.path, writable=True) as device:
            for _ in range(writes):
                at = self.dice.randrange(0, self.size, 512)
                length = min(self.dice.choice((512, 70_144, 3 * MIB)), self.size - at)
                if self.dice.random() < 0.4:
                    await device.zero(at, length)
                    self.content[at:at + length] = bytes(length)
                else:
                    self.content[at:at + length] = self.dice.randbytes(length)
                    await device.write(at, self.content[at:at + length])
            await device.flush()

    async def resize(self, size: int) -> None:
        """By the order; what is added is zeros, what is cut off must be."""
        done = await self.do(ResizeDisk, disk=self.ref, virtual_size=size, shrink=size < self.size)
        assert done.virtual_size == size
        self.content = self.content[:size] + bytearray(max(0, size - self.size))
        self.size = size
        img("check", "-f", "qcow2", self.path)

    async def snapshot(self, parent: int | None = None, *, later: bool = False, damage: Any = None) -> ImageRef:
        """Take, back up (against link `parent`, unless None), drop. `later`: the disk is written in between."""
        number, tag = len(self.images), f"sb-{len(self.images)}"
        await self.do(TakeSnapshot, disk=self.ref, tag=tag)
        self.frozen.append(bytes(self.content))
        if later:
            await self.change()
        if damage is not None:
            await damage()
        result: ImageResult = await self.do(
            WriteSnapshot, disk=self.ref, tag=tag, store=self.spec, key=f"{self.spec.prefix}/snapshot/{number}/w.1.qcow2",
            thing_id=uuid4(), parent=self.images[parent] if parent is not None else None,
            parent_tag=f"sb-{parent}" if parent is not None else "")
        self.images.append(result.image)
        self.reasons.append(result.reason)
        await self.do(DropSnapshot, disk=self.ref, tag=tag, keep=tag)
        return result.image

    def chain(self, number: int) -> list[ImageRef]:
        """The links up to one, the full image first."""
        by_key = {image.key: image for image in self.images}
        found = [self.images[number]]
        while found[0].parent:
            found.insert(0, by_key[found[0].parent])
        return found

    async def restored(self, number: int) -> Path:
        """A new disk from a link, by the order that makes volumes."""
        chain = self.chain(number)
        volume = uuid4()
        made = await self.do(CreateDisk, primary=self.ref.primary, volume_id=volume, virtual_size=0, image=chain[-1],
                             base=chain[:-1], store=self.spec)
        return self.folder / "primary" / made.disk.path

    async def judge(self, number: int) -> None:
        """A restored link and, by qemu alone, the objects, hold what the snapshot held; the disk has no backing file."""
        raw = self.folder / "raw"
        raw.write_bytes(self.frozen[number])
        disk = await self.restored(number)
        assert "backing" not in img("info", "-f", "qcow2", str(disk)) and "bitmaps" not in img("info", "-f", "qcow2", str(disk))
        img("check", "-f", "qcow2", str(disk))
        img("compare", "-f", "raw", "-F", "qcow2", str(raw), str(disk))
        disk.unlink()
        for image in self.chain(number):
            file = self.folder / "objects" / image.key
            if not file.exists():
                file.parent.mkdir(parents=True)
                file.write_bytes(await whole(self.store, image))
            img("check", "-f", "qcow2", str(file))
        img("compare", "-f", "raw", "-F", "qcow2", str(raw), str(self.folder / "objects" / self.images[number].key))


async def whole(store: ImageStore, image: ImageRef) -> bytes:
    found = bytearray()
    while len(found) < image.physical_size:
        found += await store.read(image.key, len(found), min(8 * MIB, image.physical_size - len(found)))
    return bytes(found)


def spec(provider: str, url: str) -> StoreSpec:
    return StoreSpec(id=uuid4(), name="s", provider=provider, url=url, prefix=str(uuid4()))


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.needs_s3),
                        pytest.param("swift", marks=pytest.mark.needs_swift)])
async def disk(request: pytest.FixtureRequest, tmp_path: Path, qemu: None, seed: int) -> AsyncIterator[Disk]:
    """A new volume on KVM."""
    secrets: dict[str, str] = {}
    store: ImageStore
    if request.param == "folder":
        (tmp_path / "store").mkdir()
        chosen = spec("folder", f"folder://{tmp_path / 'store'}")
        store = await FolderImageStore.open(chosen, secrets)
    elif request.param == "swift":
        swift = request.getfixturevalue("swift_server")
        chosen, secrets = swift_spec(swift), {"key": swift.key}
        store = await SwiftImageStore.open(chosen, secrets)
    else:
        server = request.getfixturevalue("s3_server")
        chosen, secrets = s3_spec(server), {"secretkey": server.secret_key}
        store = await S3ImageStore.open(chosen, secrets)
    await store.test("probe")
    made = Disk(tmp_path, store, chosen, secrets, Toolbox(), dice=random.Random(seed))
    await made.create()
    yield made
    await store.aclose()


@pytest.mark.needs_qemu
class TestChain:
    """The way of the orders."""

    @pytest.mark.soak(but=("folder", "swift"))
    async def test_every_link_reads_back_as_it_was_taken(self, disk: Disk) -> None:
        await disk.change(writes=12)
        await disk.snapshot()
        for number in range(5):
            await disk.change()
            image = await disk.snapshot(parent=number, later=number % 2 == 0)
            assert image.parent == disk.images[number].key and disk.reasons[-1] == ""
            manifest = await read_manifest(disk.store, image.key)
            assert manifest.parent == image.parent
            await verify_object(disk.store, image.key)
        for number in range(6):
            await disk.judge(number)

    @pytest.mark.soak(but=("folder",))
    async def test_after_a_resize_the_next_backup_is_full_and_the_one_after_it_a_delta(self, disk: Disk) -> None:
        """Grown, shrunk, and shrunk and grown again to the size that the parent has: nothing of the old record is believed."""
        await disk.change(writes=12)
        await disk.snapshot()
        for size, why in ((SIZE + 24 * MIB, "bitmap|bytes"), (SIZE - 8 * MIB, "bitmap|bytes"), (SIZE - 4 * MIB, "bitmap|bytes")):
            if size < disk.size:
                async with disk.tools.hypervisor.open(disk.path, writable=True) as device:
                    await device.zero(size, disk.size - size)
                    await device.flush()
            await disk.resize(size)
            await disk.change()
            image = await disk.snapshot(parent=len(disk.images) - 1)
            assert image.parent == "" and re.search(why, disk.reasons[-1]), disk.reasons
            await disk.change()
            delta = await disk.snapshot(parent=len(disk.images) - 1)
            assert delta.parent == image.key and disk.reasons[-1] == ""
        for number in range(len(disk.images)):
            await disk.judge(number)

    @pytest.mark.soak(but=("s3",))
    async def test_a_disk_that_was_cut_and_has_its_size_again_is_backed_up_whole(self, disk: Disk) -> None:
        """The parent holds what was cut off; the record of changes was cut with it, so a delta would bring it back."""
        async with disk.tools.hypervisor.open(disk.path, writable=True) as device:
            await device.write(SIZE - MIB, b"old" * 1000)
            await device.flush()
        disk.content[SIZE - MIB:SIZE - MIB + 3000] = b"old" * 1000
        await disk.snapshot()
        async with disk.tools.hypervisor.open(disk.path, writable=True) as device:
            await device.zero(SIZE - 2 * MIB, 2 * MIB)
            await device.flush()
        await disk.resize(SIZE - 2 * MIB)
        await disk.resize(SIZE)
        image = await disk.snapshot(parent=0)
        assert image.parent == "" and "bitmap" in disk.reasons[-1]
        await disk.judge(1)

    @pytest.mark.soak(but=("folder",))
    async def test_a_delta_holds_what_changed_and_no_more(self, disk: Disk) -> None:
        async with disk.tools.hypervisor.open(disk.path, writable=True) as device:
            await device.write(0, random.Random(1).randbytes(20 * MIB))
        disk.content[:20 * MIB] = random.Random(1).randbytes(20 * MIB)
        full = await disk.snapshot()
        async with disk.tools.hypervisor.open(disk.path, writable=True) as device:
            for at, what in ((5 * CLUSTER, b"x" * CLUSTER), (300 * CLUSTER, b"y" * 512)):
                await device.write(at, what)
                disk.content[at:at + len(what)] = what
            await device.zero(10 * CLUSTER, 100 * CLUSTER)
            disk.content[10 * CLUSTER:110 * CLUSTER] = bytes(100 * CLUSTER)
        delta = await disk.snapshot(parent=0)
        metadata = 5  # header, refcount table, refcount block, L1, L2
        assert delta.physical_size == (metadata + 2) * CLUSTER < full.physical_size // 40
        nothing = await disk.snapshot(parent=1)
        assert nothing.physical_size == (metadata - 1) * CLUSTER
        for number in range(3):
            await disk.judge(number)


    @pytest.mark.parametrize("disk", ["folder"], indirect=True)
    async def test_a_snapshot_taken_back_leaves_the_record_of_the_one_before(self, disk: Disk) -> None:
        await disk.change()
        await disk.snapshot()
        await disk.change()
        await disk.do(TakeSnapshot, disk=disk.ref, tag="sb-x")
        await disk.change()
        await disk.do(DropSnapshot, disk=disk.ref, tag="sb-x")
        assert "sb-x" not in img("info", "-f", "qcow2", disk.path)
        assert (await disk.snapshot(parent=0)).parent == disk.images[0].key
        await disk.judge(1)


@pytest.mark.needs_qemu
@pytest.mark.parametrize("disk", ["folder"], indirect=True)
class TestFull:
    """A record that cannot be trusted, a parent that is not there: full, with the reason."""

    @pytest.mark.parametrize(("what", "why"), [
        ("no record", "no dirty bitmap"), ("killed", "killed"), ("stopped", "not recording"), ("parent gone", "not in the store"),
        ("parent another", "not what was written"), ("parent cut", "not what was written"), ("grown", "the disk has")])
    async def test_full_with_the_reason(self, disk: Disk, what: str, why: str) -> None:
        await disk.change(writes=12)
        await disk.snapshot()
        first = disk.images[0]
        await disk.change()
        match what:
            case "no record":
                img("bitmap", "--remove", "-f", "qcow2", disk.path, "sb-0")
            case "stopped":
                img("bitmap", "--disable", "-f", "qcow2", disk.path, "sb-0")
            case "killed":
                await killed_while_writing(disk)
            case "parent gone":
                await disk.store.delete(manifest_key(first.key))
            case "parent another":
                disk.images[0] = first.model_copy(update={"root": "00" * 32})
            case "parent cut":
                (disk.folder / "store" / first.key).write_bytes(b"")
            case _:
                img("resize", "-f", "qcow2", disk.path, str(64 * MIB))
                disk.content += bytes(64 * MIB - disk.size)
                disk.size = 64 * MIB
        image = await disk.snapshot(parent=0)
        assert image.parent == "" and why in disk.reasons[-1]
        await disk.change()
        assert (await disk.snapshot(parent=1)).parent == image.key, "the chain begins anew"
        for number in (1, 2):
            await disk.judge(number)

    async def test_a_take_that_comes_again_records_nothing_younger_than_its_snapshot(self, disk: Disk) -> None:
        await disk.do(TakeSnapshot, disk=disk.ref, tag="sb-0")
        img("bitmap", "--remove", "-f", "qcow2", disk.path, "sb-0")  # lost between the snapshot and the second time
        await disk.change()
        await disk.do(TakeSnapshot, disk=disk.ref, tag="sb-0")
        assert "sb-0" not in img("info", "-f", "qcow2", disk.path).partition("bitmaps")[2]


async def killed_while_writing(disk: Disk) -> None:
    """A writer whose export dies: the bytes that it flushed are on the disk, the record is not closed."""
    def exporters() -> set[int]:
        return {int(entry.name) for entry in Path("/proc").glob("[0-9]*")
                if (entry / "comm").exists() and (entry / "comm").read_text().startswith("qemu-storage")
                and disk.path in (entry / "cmdline").read_text()}

    with pytest.raises(WorkFailed):
        async with disk.tools.hypervisor.open(disk.path, writable=True) as device:
            disk.content[:CLUSTER] = b"k" * CLUSTER
            await device.write(0, b"k" * CLUSTER)
            await device.flush()
            for pid in exporters():
                os.kill(pid, signal.SIGKILL)
            await device.flush()


@pytest.mark.needs_qemu
@pytest.mark.parametrize("disk", ["folder"], indirect=True)
class TestRefused:
    """Objects that are not what was written make no disk."""

    @pytest.mark.parametrize("where", ["table", "data", "cut", "other order", "left out"])
    async def test_a_damaged_link_is_named_and_nothing_is_left(self, disk: Disk, where: str) -> None:
        await disk.change(writes=12)
        await disk.snapshot()
        await disk.change()
        middle = await disk.snapshot(parent=0)
        await disk.change()
        await disk.snapshot(parent=1)
        chain = disk.chain(2)
        file = disk.folder / "store" / middle.key
        match where:
            case "other order":
                chain = [chain[0], chain[2]]
            case "left out":
                await disk.store.delete(manifest_key(middle.key))
            case "cut":
                os.truncate(file, middle.physical_size - CLUSTER)
            case _:
                body = bytearray(file.read_bytes())
                body[4 * CLUSTER + 7 if where == "table" else -CLUSTER] ^= 1
                file.write_bytes(body)
        before = sorted((disk.folder / "primary").iterdir())
        with pytest.raises(WorkFailed) as refused:
            await disk.do(CreateDisk, primary=disk.ref.primary, volume_id=uuid4(), virtual_size=0, image=chain[-1],
                          base=chain[:-1], store=disk.spec)
        assert (chain[-1] if where == "other order" else middle).key in refused.value.failure.cause
        assert sorted((disk.folder / "primary").iterdir()) == before


async def test_the_same_in_memory(tmp_path: Path, seed: int) -> None:
    """The memory hypervisor and store: the same orders, the same bytes, without qemu."""
    chosen = spec("memory", f"memory://{uuid4()}")
    disk = Disk(tmp_path, await MemoryImageStore.open(chosen, {}), chosen, {}, Toolbox(hypervisor_name="memory"),
                dice=random.Random(seed))
    memory = MemoryHypervisor()
    (tmp_path / "primary").mkdir()
    await memory.create(disk.path, disk.size)
    Path(disk.path).touch()  # an order looks for the file
    disk.content = bytearray(disk.size)
    await disk.snapshot()
    for number in range(4):
        await disk.change()
        assert (await disk.snapshot(parent=number, later=True)).parent
    for number in range(5):
        path = str(tmp_path / f"{number}.qcow2")
        await read_chain(disk.store, disk.chain(number), path, hypervisor=memory, progress=lambda *_: None)
        await memory.adopt(path, format=ImageFormat.QCOW2, grow_to=0)
        async with memory.open(path) as device:
            assert await device.read(0, disk.size) == disk.frozen[number]


@pytest.mark.needs_qemu
@pytest.mark.parametrize("disk", ["folder"], indirect=True)
async def test_cancelled_anywhere_a_restore_leaves_the_whole_disk_or_nothing(disk: Disk) -> None:
    await disk.change(writes=12)
    await disk.snapshot()
    for number in range(3):
        await disk.change()
        await disk.snapshot(parent=number)
    before = set((disk.folder / "primary").iterdir())
    for wait in (0.0, 0.01, 0.05, 0.1, 0.2):
        task = asyncio.create_task(disk.restored(3))
        await asyncio.sleep(wait)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        (disk.folder / "raw").write_bytes(disk.frozen[3])
        for made in set((disk.folder / "primary").iterdir()) - before:  # the cancel came when it had its name already
            img("compare", "-f", "raw", "-F", "qcow2", str(disk.folder / "raw"), str(made))
            made.unlink()
