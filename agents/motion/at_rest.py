"""The strategy `direct`: between a URL or a disk at rest and an image store, with nothing in between.

Owns which of the ways of this package carries an order: a whole image or what changed, compressed or as it is. Refuses to know
how each of them does it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from agents.download import fetch
from agents.hypervisors.base import Untracked
from agents.motion.base import Motion, Progress, Secrets
from agents.motion.compressed import write_compressed
from agents.motion.delta import changes, read_chain, usable, write_delta
from agents.motion.direct import write_image
from agents.toolbox import Toolbox, both
from schema.agent import CreateDisk, FetchImage, ImageResult, MakeSeed, Result, RevertDisk, WriteSnapshot
from schema.failure import Refused
from schema.image import ImageFormat
from schema.motion import BACKUP, FETCH, RESTORE


async def download(order: FetchImage, disk: str, tools: Toolbox, secrets: Secrets, progress: Progress) -> ImageResult:
    """A URL into the store."""
    async with tools.store(order.store, secrets) as store:
        return ImageResult(image=await fetch(order, store, tools.guard, progress, tools.record(order.work_name)))


async def backup(order: WriteSnapshot, disk: str, tools: Toolbox, secrets: Secrets, progress: Progress) -> ImageResult:
    """From the block export straight into the store."""
    where: dict[str, Any] = {
        "store_id": order.store.id, "key": order.key, "kind": order.kind, "thing_id": order.thing_id, "job_id": order.job_id,
        "work": order.work_name, "installation": order.store.prefix, "progress": progress, "workers": tools.workers}
    if order.compression not in ("", "zstd"):
        raise Refused(f"{order.compression} is no compression that this agent knows", field="compression", remedy="none or zstd")
    record = tools.record(order.work_name)  # a compressed object's parts depend on all before them: it begins again
    whole: Any = write_compressed if order.compression else partial(write_image, record=record)
    if order.parent is None:
        async with both(tools.store(order.store, secrets), tools.hypervisor.open(disk, tag=order.tag)) as (store, device):
            return ImageResult(image=await whole(device, store, **where))
    async with tools.store(order.store, secrets) as store:
        try:
            changed = await changes(tools.hypervisor, disk, order.parent_tag)
            async with tools.hypervisor.open(disk, tag=order.tag) as device:
                await usable(store, order.parent, device.size, order.key)
                return ImageResult(image=await write_delta(device, changed, order.parent, store, record=record, **where))
        except Untracked as why:
            reason = why.failure.cause
        async with tools.hypervisor.open(disk, tag=order.tag) as device:
            return ImageResult(image=await whole(device, store, **where), reason=reason)


async def restore(order: CreateDisk | RevertDisk | MakeSeed, disk: str, tools: Toolbox, secrets: Secrets,
                  progress: Progress) -> Result:
    """By ranged reads straight into the new disk, a chain flattened on the way."""
    assert order.store is not None
    assert order.image is not None
    base = [] if isinstance(order, MakeSeed) else order.base  # a template's image is whole
    async with tools.store(order.store, secrets) as store:
        await read_chain(store, [*base, order.image], disk, hypervisor=tools.hypervisor, progress=progress,
                         workers=tools.workers, resume=order.image.format is ImageFormat.QCOW2)
    return Result()


DIRECT = Motion(name="direct", moves={FETCH: download, BACKUP: backup, RESTORE: restore}, reads=("ranged_read",),
                writes=("parallel_parts",), rate=200 << 20)
