"""Backing up a disk to S3: 512 MiB of data in a 2 GiB qcow2, through the mover as shipped, against the usual two steps."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from agents.hypervisors.kvm import KvmHypervisor
from agents.mover import Mover
from agents.qemu import run as tool
from api.demo_s3 import SeaweedFS
from bench.measure import Result, interleaved
from schema.agent import WriteSnapshot
from schema.codec import encode
from schema.image import DiskRef, PrimarySpec, StoreSpec

DATA, DISK = 512 << 20, 2 << 30


async def make_disk(folder: Path) -> Path:
    """Noise in runs of 8 MiB, every fourth of them, with a snapshot."""
    path = folder / "disk.qcow2"
    kvm = KvmHypervisor()
    await kvm.create(str(path), DISK)
    dice = random.Random(1)
    async with kvm.open(str(path), writable=True) as device:
        for at in range(0, DISK, 32 << 20):
            await device.write(at, dice.randbytes(8 << 20))
        await device.flush()
    await kvm.take_snapshot(str(path), "s")
    return path


def peak_memory(root: int) -> int:
    """Resident bytes of a process and all below it, now."""
    total = 0
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parents.setdefault(int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]), []).append(int(entry.name))
    queue = [root]
    while queue:
        pid = queue.pop()
        queue += parents.get(pid, [])
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


async def run(s3: SeaweedFS) -> Result:
    """Ours and the usual way, in turn; every object is deleted after its run."""
    folder = Path(tempfile.mkdtemp(prefix="sb-bench-"))
    disk = await make_disk(folder)
    client = boto3.client("s3", endpoint_url=s3.endpoint, aws_access_key_id=s3.access_key, aws_secret_access_key=s3.secret_key,
                          region_name="us-east-1", config=Config(max_pool_connections=16))
    primary = PrimarySpec(id=uuid4(), name="p", kind="folder", path=str(folder), zone_id=uuid4(), agent="a")
    spec = StoreSpec(id=uuid4(), name="s", provider="s3", url=f"s3://{s3.bucket}", prefix="bench",
                     details={"accesskey": s3.access_key, "endpoint": s3.endpoint, "bucket": s3.bucket, "secretkey": "vault:x"})
    mover = Mover({"workers": 4})
    peaks: list[int] = []

    async def ours() -> float:
        key = f"bench/{uuid4()}.qcow2"
        order = WriteSnapshot(job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", tag="s", store=spec, key=key, thing_id=uuid4(),
                              disk=DiskRef(primary=primary, volume_id=uuid4(), path=disk.name, virtual_size=DISK))
        watching = asyncio.create_task(_watch(mover, peaks))
        began = time.perf_counter()
        await mover.run(order, encode(order), {"secretkey": s3.secret_key}, lambda *_: None)
        took = time.perf_counter() - began
        watching.cancel()
        await asyncio.to_thread(_clean, client, s3.bucket)
        return took

    async def peer() -> float:
        target = folder / "peer.qcow2"
        began = time.perf_counter()
        await tool("qemu-img", "convert", "-f", "qcow2", "-l", "snapshot.name=s", "-O", "qcow2", str(disk), str(target))
        await asyncio.to_thread(client.upload_file, str(target), s3.bucket, "peer.qcow2", None, None, TransferConfig(
            multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=10))
        took = time.perf_counter() - began
        target.unlink()
        await asyncio.to_thread(_clean, client, s3.bucket)
        return took

    try:
        await ours()  # the server grows its volumes with the first writes
        mine, theirs = await interleaved(ours, peer)
    finally:
        await mover.aclose()
        client.close()
        shutil.rmtree(folder, ignore_errors=True)
    peak = max(peaks) / (1 << 20)
    return Result("back up 512 MiB of data in a 2 GiB disk to S3", "s", mine, theirs, "qemu-img convert + boto3 upload_file (10 threads, 8 MiB)",
                  1.25, 1.4, higher_is_better=False, failed=[f"{peak:.0f} MB of memory"] if peak >= 300 else [], notes=[
                      f"ours: 4 parts of 8 MiB in flight, SHA-256 of each part checked by the store, manifest; peak of mover and qemu {peak:.0f} MB (at most 300)",
                      f"together {DATA / (1 << 20) / sorted(mine)[len(mine) // 2]:.0f} MiB/s; the server runs on the same two cores"])


async def _watch(mover: Mover, peaks: list[int]) -> None:
    while True:
        if mover.pid:
            peaks.append(peak_memory(mover.pid))
        await asyncio.sleep(0.1)


def _clean(client: object, bucket: str) -> None:
    for item in client.list_objects_v2(Bucket=bucket).get("Contents", []):  # type: ignore[attr-defined] # boto3 makes methods at run time
        client.delete_object(Bucket=bucket, Key=item["Key"])  # type: ignore[attr-defined] # as above
