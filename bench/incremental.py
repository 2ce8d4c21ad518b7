"""An incremental backup against a full one of the same disk: 16 MiB changed, in blocks of 64 KiB all over it, of 2 GiB in 20 GiB."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from agents.hypervisors.kvm import KvmHypervisor
from agents.image_stores.registry import open_store
from agents.manifest import delete_object
from agents.mover import Mover
from bench.measure import Result, interleaved
from bench.sides import Side
from schema.agent import ImageResult, TakeSnapshot, WriteSnapshot
from schema.codec import encode
from schema.image import DiskRef, ImageRef, PrimarySpec
from schema.message import Order

DISK, DATA, CHANGED, BLOCK = 20 << 30, 2 << 30, 16 << 20, 1 << 16
BYTES_SHARE = 0.02
"""Bytes of the incremental object, at most, as a share of the full one's."""


async def run(side: Side) -> Result:
    """Incremental and full in turn; every object but the parent is deleted after its run."""
    folder = Path(tempfile.mkdtemp(prefix="sb-bench-"))
    kvm, mover, dice = KvmHypervisor(), Mover({"workers": 4}), random.Random(1)
    primary = PrimarySpec(id=uuid4(), name="p", kind="folder", path=str(folder), zone_id=uuid4(), agent="a")
    disk = DiskRef(primary=primary, volume_id=uuid4(), path="disk.qcow2", virtual_size=DISK)
    spec, secrets = side.spec, side.secrets
    sizes: dict[bool, int] = {}

    async def do(kind: type[Order], **fields: Any) -> dict[str, Any]:
        order = kind(job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", disk=disk, **fields)
        return await mover.run(order, encode(order), secrets, lambda *_: None)

    async def write(tag: str, parent: ImageRef | None, parent_tag: str) -> ImageRef:
        done = await do(WriteSnapshot, tag=tag, store=spec, key=f"bench/{uuid4()}.qcow2", thing_id=uuid4(), parent=parent,
                        parent_tag=parent_tag)
        return ImageResult.model_validate(done["result"]).image

    async def timed(parent: ImageRef | None) -> float:
        began = time.perf_counter()
        image = await write("sb-2", parent, "sb-1")
        took = time.perf_counter() - began
        assert bool(image.parent) == (parent is not None)
        sizes[parent is not None] = image.physical_size
        store = await open_store(spec, secrets)
        try:
            await delete_object(store, image.key)
        finally:
            await store.aclose()
        return took

    try:
        await kvm.create(str(folder / disk.path), DISK)
        async with kvm.open(str(folder / disk.path), writable=True) as device:
            for at in range(0, DISK, DISK // (DATA >> 23)):
                await device.write(at, dice.randbytes(8 << 20))
            await device.flush()
        await do(TakeSnapshot, tag="sb-1")
        parent = await write("sb-1", None, "")
        async with kvm.open(str(folder / disk.path), writable=True) as device:
            for block in dice.sample(range(DISK // BLOCK), CHANGED // BLOCK):
                await device.write(block * BLOCK, dice.randbytes(BLOCK))
            await device.flush()
        await do(TakeSnapshot, tag="sb-2")
        mine, theirs = await interleaved(lambda: timed(parent), lambda: timed(None))
    finally:
        await mover.aclose()
        shutil.rmtree(folder, ignore_errors=True)
    share = sizes[True] / sizes[False]
    return Result("incremental backup of 16 MiB in 20 GiB to S3", "s", mine, theirs, "our own full backup of the same disk (2 GiB of data)",
                  10, 10, higher_is_better=False, failed=[f"{share:.2%} of the bytes"] if share >= BYTES_SHARE else [], notes=[
                      (f"{sizes[True] / (1 << 20):.1f} MiB against {sizes[False] / (1 << 20):.0f} MiB: {share:.2%} of the bytes (under {BYTES_SHARE:.0%}); "
                      "256 blocks of 64 KiB at random places; bitmap read, object, manifest")])
