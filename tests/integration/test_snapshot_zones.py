"""Chains in two zones, on real bytes: the real deciders, whose orders are carried out by the real operations on qemu's disks and
folder stores. A copy in another zone is a whole image, judged by qemu-img; the first zone's store may be gone, and it still restores."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from agents.hypervisors.kvm import KvmHypervisor
from agents.image_stores.folder import FolderImageStore
from agents.manifest import SUFFIX
from agents.motion.base import no_progress
from agents.motion.registry import MOTIONS
from agents.operations import OPERATIONS
from agents.qemu import run
from agents.toolbox import Toolbox
from handlers.agent import create_zone, proof
from schema.agent import AgentHello, MergeImages, ProviderSpec, WorkCompleted
from schema.ids import derive
from schema.image import PrimarySpec
from schema.image_store import AddImageStore
from schema.message import Command
from schema.motion import MotionSpec
from schema.snapshot import CopySnapshot, CreateSnapshot, DeleteSnapshot, RevertSnapshot
from schema.volume import CreateVolume
from tests.support.cloud import TOKEN, Cloud

pytestmark = pytest.mark.needs_qemu
MIB = 1 << 20


class Real:
    """A cloud of two zones, each with a primary store, a folder of images and an agent that does what it is told."""

    def __init__(self, cloud: Cloud, zones: list[UUID], folder: Path) -> None:
        self.cloud, self.zones, self.folder = cloud, zones, folder
        self.tools = Toolbox(hypervisor_name="kvm")

    @classmethod
    async def start(cls, folder: Path) -> Real:
        cloud = await Cloud.start()
        zones = [await create_zone(cloud.runtime, f"zone-r{number}") for number in range(2)]
        made = cls(cloud, zones, folder)
        for number, zone_id in enumerate(zones):
            for name in ("primary", "images"):
                (folder / f"{name}{number}").mkdir()
            await cloud.handle(AgentHello(
                agent=f"real-{number}", zone_id=zone_id, roles=["storage", "hypervisor"], hypervisor="KVM", public_key="k",
                proof=proof(TOKEN, f"real-{number}", "k"),
                providers=[ProviderSpec(name="folder", scope="ZONE", settings={"properties": {"path": {"type": "string"}}},
                                        capabilities=sorted(FolderImageStore.CAPABILITIES))],
                primaries=[PrimarySpec(id=derive(zone_id, "primary"), name=f"p{number}", kind="folder", zone_id=zone_id,
                                       path=str(folder / f"primary{number}"), agent=f"real-{number}")],
                motions=[MotionSpec(name=motion.name, moves=list(motion.moves), reads=list(motion.reads), writes=list(motion.writes))
                         for motion in MOTIONS.values()]), kind="report")
            await made.done(AddImageStore(name=f"s{number}", provider="folder", zone_id=zone_id,
                                          url=(folder / f"images{number}").as_uri().replace("file", "folder", 1)))
        return made

    async def work(self) -> list[type]:
        """Everything that is asked of the agents, done; which orders there were."""
        done: list[type] = []
        for _ in range(50):
            await self.cloud.submissions()
            orders = await self.cloud.open_orders()
            if not orders:
                return done
            for order in orders:
                done.append(type(order))
                result = await OPERATIONS[type(order)](order, self.tools, {}, no_progress)
                await self.cloud.handle(WorkCompleted(
                    job_id=order.job_id, work_id=order.work_id, attempt=order.attempt, agent=order.agent,
                    result=result.model_dump(mode="json")), kind="report")
        raise AssertionError("the agents do not come to rest")

    async def done(self, command: Command, *, ends: str = "job.completed") -> tuple[UUID, list[type]]:
        job = await self.cloud.send(command)
        orders = [each for _ in range(2) for each in await self.work()]
        assert await self.cloud.ends(job) == [ends], [row.payload for row in await self.cloud.store.read_stream(f"job-{job}")]
        return job, orders

    def disk(self, number: int, volume: UUID) -> Path:
        return self.folder / f"primary{number}" / f"{volume}.qcow2"

    def images(self, number: int) -> list[Path]:
        """Objects of a store, without their manifests."""
        return sorted(path for path in (self.folder / f"images{number}").rglob("*.qcow2") if not path.name.endswith(SUFFIX))

    async def state(self, snapshot: UUID) -> Any:
        return await self.cloud.runtime._state(f"snapshot-{snapshot}")

    async def same(self, one: Path, other: Path) -> None:
        assert "identical" in await run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(one), str(other))


async def write(disk: Path, dice: random.Random) -> None:
    async with KvmHypervisor().open(str(disk), writable=True) as device:
        for _ in range(4):
            await device.write(dice.randrange(0, 60 * MIB, 512), dice.randbytes(dice.choice((512, 70_144, MIB))))
        await device.zero(dice.randrange(0, 40 * MIB, 4096), 3 * MIB)
        await device.flush()


async def test_a_chain_is_one_image_in_the_other_zone_and_outlives_the_first_store(tmp_path: Path, qemu_tools: None, seed: int) -> None:
    real, dice = await Real.start(tmp_path), random.Random(seed)
    volume = derive((await real.done(CreateVolume(name="v", size=1, zone_id=real.zones[0])))[0], "volume")
    disk, made, kept = real.disk(0, volume), [], []
    for number in range(3):
        await write(disk, dice)
        job, _ = await real.done(CreateSnapshot(volume_id=volume, zone_ids=real.zones if number == 2 else []))
        made.append(derive(job, "snapshot"))
        kept.append(shutil.copy(disk, tmp_path / f"kept{number}.qcow2"))
    assert [len(real.images(number)) for number in range(2)] == [3, 1], "the last one is in both zones, whole"
    (copy,) = real.images(1)
    assert "backing" not in await run("qemu-img", "info", "-f", "qcow2", str(copy))
    assert "No errors" in await run("qemu-img", "check", "-f", "qcow2", str(copy))
    await real.same(copy, kept[2])
    _, orders = await real.done(CopySnapshot(id=made[1], zone_ids=[real.zones[1]]))
    assert orders == [MergeImages]

    await real.done(RevertSnapshot(id=made[0]))
    await real.same(disk, kept[0])
    assert sorted(path.name for path in disk.parent.iterdir()) == [disk.name]

    away = shutil.move(tmp_path / "images0", tmp_path / "away")  # the first zone's store burned down
    for number in (1, 2):
        job, _ = await real.done(CreateVolume(name="r", snapshot_id=made[number], zone_id=real.zones[1]))
        await real.same(real.disk(1, derive(job, "volume")), kept[number])
    shutil.move(away, tmp_path / "images0")
    await real.done(DeleteSnapshot(id=made[1], zone_id=real.zones[1]))
    assert len(real.images(1)) == 1 and (await real.state(made[1])).status == "BackedUp"
    for snapshot in made:
        await real.done(DeleteSnapshot(id=snapshot))
    assert real.images(0) == real.images(1) == []
    counters = {name: value for name, (value, _) in (await real.cloud.store.counters()).items() if name.startswith("image_store/")}
    assert set(counters.values()) == {0}, counters


async def test_a_damaged_link_is_not_copied(tmp_path: Path, qemu_tools: None, seed: int) -> None:
    real, dice = await Real.start(tmp_path), random.Random(seed)
    volume = derive((await real.done(CreateVolume(name="v", size=1, zone_id=real.zones[0])))[0], "volume")
    for _ in range(2):
        await write(real.disk(0, volume), dice)
        job, _ = await real.done(CreateSnapshot(volume_id=volume))
    snapshot = derive(job, "snapshot")
    first = min(real.images(0), key=lambda path: path.stat().st_mtime)
    data = bytearray(first.read_bytes())
    data[-1000] ^= 0xFF
    first.write_bytes(data)
    await real.cloud.send(CopySnapshot(id=snapshot, zone_ids=[real.zones[1]]))
    await real.cloud.submissions()
    (order,) = await real.cloud.open_orders()
    with pytest.raises(Exception, match=first.name):
        await OPERATIONS[type(order)](order, real.tools, {}, no_progress)
    assert real.images(1) == []
    await real.cloud.fail(order)
    await real.work()
    assert (await real.state(snapshot)).places.copies == {}
