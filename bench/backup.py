"""Backing up a disk to S3 and restoring it: 512 MiB of data in a 2 GiB qcow2, through the mover as shipped, against the usual
two steps. The compressed backup has half-compressible data."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from agents.hypervisors.kvm import KvmHypervisor
from agents.mover import Mover
from agents.qemu import run as tool
from api.demo_s3 import SeaweedFS
from bench.measure import Result, interleaved
from schema.agent import CreateDisk, ImageResult, WriteSnapshot
from schema.codec import encode
from schema.image import DiskRef, ImageRef, PrimarySpec, StoreSpec
from schema.message import Order

DATA, DISK = 512 << 20, 2 << 30
TRANSFER = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=10)
PEER = "qemu-img convert + boto3 upload_file (10 threads, 8 MiB)"


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
    """A disk, a bucket, a mover, and the usual tools beside them."""

    def __init__(self, s3: SeaweedFS, *, half: bool = False) -> None:
        self.s3, self.half = s3, half
        self.folder = Path(tempfile.mkdtemp(prefix="sb-bench-"))
        self.client = boto3.client("s3", endpoint_url=s3.endpoint, aws_access_key_id=s3.access_key, aws_secret_access_key=s3.secret_key,
                                   region_name="us-east-1", config=Config(max_pool_connections=16))
        self.primary = PrimarySpec(id=uuid4(), name="p", kind="folder", path=str(self.folder), zone_id=uuid4(), agent="a")
        self.spec = StoreSpec(id=uuid4(), name="s", provider="s3", url=f"s3://{s3.bucket}", prefix="bench",
                              details={"accesskey": s3.access_key, "endpoint": s3.endpoint, "bucket": s3.bucket, "secretkey": "vault:x"})
        self.mover = Mover({"workers": 4})
        self.peaks: list[int] = []
        self.sizes: list[int] = []
        self.disk: Path

    async def __aenter__(self) -> Self:
        self.disk = await make_disk(self.folder, half=self.half)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.mover.aclose()
        self.client.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def order(self, order: Order) -> tuple[float, dict[str, Any]]:
        """Seconds and result of an order, with the memory watched."""
        watching = asyncio.create_task(_watch(self.mover, self.peaks))
        began = time.perf_counter()
        done = await self.mover.run(order, encode(order), {"secretkey": self.s3.secret_key}, lambda *_: None)
        took = time.perf_counter() - began
        watching.cancel()
        return took, done["result"]

    async def backup(self, compression: str = "") -> tuple[float, ImageRef]:
        """Our backup of the snapshot."""
        took, result = await self.order(WriteSnapshot(
            job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", tag="s", store=self.spec, key=f"bench/{uuid4()}.qcow2",
            thing_id=uuid4(), disk=DiskRef(primary=self.primary, volume_id=uuid4(), path=self.disk.name, virtual_size=DISK),
            compression=compression))
        image = ImageResult.model_validate(result).image
        self.sizes.append(image.physical_size)
        return took, image

    async def usual_backup(self) -> float:
        """qemu-img convert, then boto3."""
        target = self.folder / "peer.qcow2"
        began = time.perf_counter()
        await tool("qemu-img", "convert", "-f", "qcow2", "-l", "snapshot.name=s", "-O", "qcow2", str(self.disk), str(target))
        await asyncio.to_thread(self.client.upload_file, str(target), self.s3.bucket, "peer.qcow2", None, None, TRANSFER)
        took = time.perf_counter() - began
        target.unlink()
        return took

    async def clean(self) -> None:
        """Every object is deleted."""
        await asyncio.to_thread(_clean, self.client, self.s3.bucket)

    @property
    def peak(self) -> float:
        """MB of the mover and its children."""
        return max(self.peaks) / (1 << 20)

    @property
    def failed(self) -> list[str]:
        """Where memory was not kept to."""
        return [f"{self.peak:.0f} MB of memory"] if self.peak >= 300 else []


async def run(s3: SeaweedFS) -> Result:
    """Backup: ours and the usual way, in turn; every object is deleted after its run."""
    async with Site(s3) as site:
        async def ours() -> float:
            took, _ = await site.backup()
            await site.clean()
            return took

        async def peer() -> float:
            took = await site.usual_backup()
            await site.clean()
            return took

        await ours()  # the server grows its volumes with the first writes
        mine, theirs = await interleaved(ours, peer)
        return Result("back up 512 MiB of data in a 2 GiB disk to S3", "s", mine, theirs, PEER, 1.25, 1.4, higher_is_better=False,
                      failed=site.failed, notes=[
                          f"ours: 4 parts of 8 MiB in flight, SHA-256 of each part checked by the store, manifest; peak of mover and qemu {site.peak:.0f} MB (at most 300)",
                          f"together {DATA / (1 << 20) / sorted(mine)[len(mine) // 2]:.0f} MiB/s; the server runs on the same two cores"])


async def run_compressed(s3: SeaweedFS) -> Result:
    """Backup with zstd of half-compressible data, against the same usual way."""
    async with Site(s3, half=True) as site:
        async def ours() -> float:
            took, _ = await site.backup("zstd")
            await site.clean()
            return took

        async def peer() -> float:
            took = await site.usual_backup()
            await site.clean()
            return took

        mine, theirs = await interleaved(ours, peer)
        fewer = DATA / max(site.sizes)
        return Result("the same with zstd, half-compressible data", "s", mine, theirs, PEER, 1.8, 1.8, higher_is_better=False,
                      failed=site.failed + ([f"{fewer:.2f} times fewer bytes"] if fewer < 1.5 else []), notes=[
                          f"{max(site.sizes) / (1 << 20):.0f} MiB for {DATA >> 20} MiB of data: {fewer:.2f} times fewer bytes (at least 1.5); peak {site.peak:.0f} MB"])


async def run_restore(s3: SeaweedFS) -> Result:
    """Restore of the object to a disk, against download_file and qemu-img convert."""
    async with Site(s3) as site:
        _, image = await site.backup()

        async def ours() -> float:
            volume = uuid4()
            took, _ = await site.order(CreateDisk(job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", primary=site.primary,
                                                  volume_id=volume, virtual_size=DISK, image=image, store=site.spec))
            (site.folder / f"{volume}.qcow2").unlink()
            return took

        async def peer() -> float:
            downloaded, target = site.folder / "down.qcow2", site.folder / "up.qcow2"
            began = time.perf_counter()
            await asyncio.to_thread(site.client.download_file, s3.bucket, image.key, str(downloaded), None, None, TRANSFER)
            await tool("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", str(downloaded), str(target))
            took = time.perf_counter() - began
            downloaded.unlink()
            target.unlink()
            return took

        mine, theirs = await interleaved(ours, peer)
        await site.clean()
        return Result("restore it to a disk", "s", mine, theirs, "boto3 download_file (10 threads, 8 MiB) + qemu-img convert", 1.3, 1.3,
                      higher_is_better=False, failed=site.failed, notes=[
                          f"ours: every part compared with its manifest, qemu-img check, fsync before the disk counts as there; peak {site.peak:.0f} MB (at most 300)"])


async def _watch(mover: Mover, peaks: list[int]) -> None:
    while True:
        if mover.pid:
            peaks.append(peak_memory(mover.pid))
        await asyncio.sleep(0.2)


def _clean(client: object, bucket: str) -> None:
    for item in client.list_objects_v2(Bucket=bucket).get("Contents", []):  # type: ignore[attr-defined] # boto3 makes methods at run time
        client.delete_object(Bucket=bucket, Key=item["Key"])  # type: ignore[attr-defined] # as above
