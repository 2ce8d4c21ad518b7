"""Backing up a disk to S3 and to Swift and restoring it: 512 MiB of data in a 2 GiB qcow2, through the mover as shipped, against
the usual two steps, and against the slower of reading alone and uploading alone. The compressed backup has half-compressible data."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from agents import qemu
from agents.hypervisors.kvm import KvmHypervisor, NbdDevice
from agents.image_stores.registry import open_store
from agents.motion.parallel import parallel
from agents.mover import Mover
from agents.qemu import run as tool
from bench.measure import Result, interleaved
from bench.sides import Side
from schema.agent import CreateDisk, ImageResult, WriteSnapshot
from schema.codec import encode
from schema.image import DiskRef, ImageRef, PrimarySpec
from schema.message import Order

DATA, DISK, PART = 512 << 20, 2 << 30, 8 << 20
ROUNDS = 5
"""Of each row here: what writing a new file costs differs from run to run more than anything else."""


def _half(dice: random.Random) -> bytes:
    """8 MiB of which every second 4 KiB is noise, the rest text."""
    text = (b"2026-11-23 10:15:01 host systemd[1]: Started session of user root, for the same reason as ever.\n" * 50)[:4096]
    return b"".join(dice.randbytes(4096) + text for _ in range(1024))


async def make_disk(folder: Path, *, half: bool = False) -> Path:
    """Noise (or half of it) in runs of 8 MiB, every fourth of them, with a snapshot."""
    path = folder / "disk.qcow2"
    kvm = KvmHypervisor()
    await kvm.create(str(path), DISK)
    dice = random.Random(1)
    async with kvm.open(str(path), writable=True) as device:
        for at in range(0, DISK, 32 << 20):
            await device.write(at, _half(dice) if half else dice.randbytes(8 << 20))
        await device.flush()
    await kvm.take_snapshot(str(path), "s")
    return path


def peak_memory(root: int) -> int:
    """Resident bytes of a process and all below it, now. Cheap: it is asked while the clock runs."""
    total = 0
    queue = [root]
    while queue:
        pid = queue.pop()
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in Path(f"/proc/{pid}/task").iterdir():
                queue += map(int, (task / "children").read_text().split())
    return total


class Site:
    """A disk, a store, a mover, and the usual tools beside them."""

    def __init__(self, side: Side, *, half: bool = False) -> None:
        self.side, self.half = side, half
        self.folder = Path(tempfile.mkdtemp(prefix="sb-bench-"))
        self.primary = PrimarySpec(id=uuid4(), name="p", kind="folder", path=str(self.folder), zone_id=uuid4(), agent="a")
        self.mover = Mover({"workers": 4})
        self.peaks: list[int] = []
        self.sizes: list[int] = []
        self.disk: Path

    async def __aenter__(self) -> Self:
        store = await open_store(self.side.spec, self.side.secrets)
        try:
            await store.test(self.side.spec.prefix)
        finally:
            await store.aclose()
        self.disk = await make_disk(self.folder, half=self.half)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.mover.aclose()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def order(self, order: Order) -> tuple[float, dict[str, Any]]:
        """Seconds and result of an order, with the memory watched."""
        watching = asyncio.create_task(_watch(self.mover, self.peaks))
        began = time.perf_counter()
        done = await self.mover.run(order, encode(order), self.side.secrets, lambda *_: None)
        took = time.perf_counter() - began
        watching.cancel()
        return took, done["result"]

    async def backup(self, compression: str = "") -> tuple[float, ImageRef]:
        """Our backup of the snapshot."""
        took, result = await self.order(WriteSnapshot(
            job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", tag="s", store=self.side.spec, key=f"bench/{uuid4()}.qcow2",
            thing_id=uuid4(), disk=DiskRef(primary=self.primary, volume_id=uuid4(), path=self.disk.name, virtual_size=DISK),
            compression=compression))
        image = ImageResult.model_validate(result).image
        self.sizes.append(image.physical_size)
        return took, image

    async def usual_backup(self) -> float:
        """qemu-img convert, then the store's usual client."""
        target = self.folder / "peer.qcow2"
        began = time.perf_counter()
        await tool("qemu-img", "convert", "-f", "qcow2", "-l", "snapshot.name=s", "-O", "qcow2", str(self.disk), str(target))
        await self.side.upload(target)
        took = time.perf_counter() - began
        target.unlink()
        return took

    async def raw_read(self) -> float:
        """The data of the snapshot over NBD, and nothing done with it: as many requests of 8 MiB as the mover has workers."""
        began = time.perf_counter()
        async with qemu.export(qemu.snapshot(str(self.disk), "s", connections=4)) as export:
            device = await NbdDevice.connect(export.socket, 4)
            runs = [(at, min(PART, found.offset + found.length - at)) for found in await device.extents() if not found.zero
                    for at in range(found.offset, found.offset + found.length, PART)]

            async def one(number: int) -> None:
                at, length = runs[number]
                buffer = buffers.pop()
                await device.read_into(memoryview(buffer)[:length], at)
                buffers.append(buffer)

            buffers = [bytearray(PART) for _ in range(4)]
            await parallel(len(runs), 4, one)
            await device.aclose()
        return time.perf_counter() - began

    async def raw_upload(self, data: bytes) -> float:
        """As many bytes from memory by the store's usual client."""
        began = time.perf_counter()
        await self.side.upload_memory(data)
        return time.perf_counter() - began

    @property
    def noise(self) -> Path:
        """A file of as many bytes as the disk has data. The first look makes it: not while a clock runs, as it is on the disk then."""
        path = self.folder / "noise"
        if not path.exists():
            path.write_bytes(random.Random(2).randbytes(PART) * (DATA // PART))
            os.sync()
        return path

    @property
    def peak(self) -> float:
        """MB of the mover and its children."""
        return max(self.peaks) / (1 << 20)

    @property
    def failed(self) -> list[str]:
        """Where memory was not kept to."""
        return [f"{self.peak:.0f} MB of memory"] if self.peak >= 300 else []


async def run(side: Side) -> Result:
    """Backup: ours and the usual way, in turn; every object is deleted after its run."""
    async with Site(side) as site:
        async def ours() -> float:
            took, _ = await site.backup()
            await side.clean()
            return took

        async def peer() -> float:
            took = await site.usual_backup()
            await side.clean()
            return took

        async def peer_and_least() -> float:
            took = await peer()
            least.append(await side.least(noise))
            await side.clean()
            return took

        await ours()  # the server grows its volumes with the first writes
        least: list[float] = []
        noise = site.noise
        mine, theirs = await interleaved(ours, peer_and_least, ROUNDS)
        bound = statistics.median(least)
        return Result(f"back up 512 MiB of data in a 2 GiB disk to {side.name}", "s", mine, theirs, f"qemu-img convert + {side.upload_name}",
                      side.floor, 1.4, higher_is_better=False, failed=site.failed, notes=[
                          f"ours: 4 parts in flight, of the size that the store likes (S3 8 MiB, Swift 32 MiB), SHA-256 of each part, checks by the store, manifest; peak of mover and qemu {site.peak:.0f} MB (at most 300)",
                          f"together {DATA / (1 << 20) / statistics.median(mine):.0f} MiB/s; the server runs on the same two cores",
                          (f"the least here, {bound:.2f} s: the server taking and checking as many bytes from a sender that does nothing "
                           f"(sendfile, no disk, no sum), at best {statistics.median(theirs) / bound:.2f}x")])


async def run_halves(side: Side) -> Result:
    """Backup against the slower of its two halves: reading alone over NBD, uploading alone from memory."""
    async with Site(side) as site:
        data = random.Random(2).randbytes(PART) * (DATA // PART)
        parts: list[tuple[float, float]] = []

        async def ours() -> float:
            took, _ = await site.backup()
            await side.clean()
            return took

        async def slower() -> float:
            parts.append((await site.raw_read(), await site.raw_upload(data)))
            await side.clean()
            return max(parts[-1])

        await ours()
        mine, theirs = await interleaved(ours, slower, ROUNDS)
        return Result(f"back up to {side.name}, against the slower of its two halves", "s", mine, theirs,
                      f"reading alone over NBD, or {side.raw_name}", 0.8, 0.8, higher_is_better=False, failed=site.failed,
                      notes=["reading, uploading: " + ", ".join(f"{read:.2f} + {upload:.2f} s" for read, upload in parts)])


async def run_compressed(side: Side) -> Result:
    """Backup with zstd of half-compressible data, against the same usual way."""
    async with Site(side, half=True) as site:
        async def ours() -> float:
            took, _ = await site.backup("zstd")
            await side.clean()
            return took

        async def peer() -> float:
            took = await site.usual_backup()
            await side.clean()
            return took

        await ours()
        mine, theirs = await interleaved(ours, peer, ROUNDS)
        fewer = DATA / max(site.sizes)
        return Result("back up to S3 with zstd, half-compressible data", "s", mine, theirs, f"qemu-img convert + {side.upload_name}", 1.8, 1.8, higher_is_better=False,
                      failed=site.failed + ([f"{fewer:.2f} times fewer bytes"] if fewer < 1.5 else []), notes=[
                          f"{max(site.sizes) / (1 << 20):.0f} MiB for {DATA >> 20} MiB of data: {fewer:.2f} times fewer bytes (at least 1.5); peak {site.peak:.0f} MB"])


async def run_restore(side: Side) -> Result:
    """Restore of the object to a disk, against download_file and qemu-img convert."""
    async with Site(side) as site:
        _, image = await site.backup()

        async def ours() -> float:
            volume = uuid4()
            took, _ = await site.order(CreateDisk(job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", primary=site.primary,
                                                  volume_id=volume, virtual_size=DISK, image=image, store=side.spec))
            (site.folder / f"{volume}.qcow2").unlink()
            return took

        async def peer() -> float:
            downloaded, target = site.folder / "down.qcow2", site.folder / "up.qcow2"
            began = time.perf_counter()
            await side.download(image.key, downloaded)
            await tool("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", str(downloaded), str(target))
            took = time.perf_counter() - began
            downloaded.unlink()
            target.unlink()
            return took

        mine, theirs = await interleaved(ours, peer, ROUNDS)
        await side.clean()
        return Result("restore a disk from S3", "s", mine, theirs, "boto3 download_file (10 threads, 8 MiB) + qemu-img convert", 1.3, 1.3,
                      higher_is_better=False, failed=site.failed, notes=[
                          f"ours: every part compared with its manifest, qemu-img check, fsync before the disk counts as there; peak {site.peak:.0f} MB (at most 300)"])


async def _watch(mover: Mover, peaks: list[int]) -> None:
    while True:
        if mover.pid:
            peaks.append(peak_memory(mover.pid))
        await asyncio.sleep(0.2)
