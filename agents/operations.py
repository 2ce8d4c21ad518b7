"""The operations: which coroutine does which order. A literal table at the end; read it first.

Each leaves the thing whole or nothing at all, may run twice with the same order, and stops within seconds when it is
cancelled. Refuses to know how orders come and reports go: that is `runtime`; and to move bytes: that is `motion`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents.adoption import adopt, disown
from agents.hypervisors.base import ChangeTracking, Resizable
from agents.image_stores.base import Measured
from agents.image_stores.links import make_link, revoke_link, sweep_links
from agents.machine import Attached
from agents.manifest import delete_object
from agents.motion.base import Progress, Secrets
from agents.motion.registry import find
from agents.primary_stores.base import SEED as SEED_SUFFIX
from agents.primary_stores.base import Bounded, KeepsDrafts, KeepsSeeds, PrimaryStore
from agents.primary_stores.folder import draft_name
from agents.scrubbing import scrub
from agents.toolbox import Toolbox
from bus.grant_sealing import answer_to, seal_to
from schema.agent import (
    AdoptImage,
    AttachDisk,
    ClosePrimary,
    CreateDisk,
    DeleteDisk,
    DeleteImages,
    DetachDisk,
    DiskAttached,
    DiskCreated,
    DiskResized,
    DisownImage,
    DropSeed,
    DropSnapshot,
    FetchImage,
    ImageResult,
    LinkMade,
    MakeLink,
    MakeSeed,
    MergeImages,
    OpenPrimary,
    ResizeDisk,
    Result,
    RevertDisk,
    RevokeLink,
    ScrubObjects,
    SeedMade,
    SnapshotFrozen,
    StoreTested,
    TakeSnapshot,
    TestImageStore,
    WriteSnapshot,
)
from schema.failure import Failed, Refused, WorkFailed
from schema.image import DiskRef, ImageFormat
from schema.message import Order
from schema.motion import BACKUP, FETCH, MERGE, RESTORE, SEED

Operation = Callable[[Any, Toolbox, Secrets, Progress], Awaitable[Result]]
SUFFIX = "qcow2"
log = logging.getLogger(__name__)


async def check_store(order: TestImageStore, tools: Toolbox, secrets: Secrets, progress: Progress) -> StoreTested:
    """Try everything that a store is needed for, on a probe that is gone afterwards."""
    loop, opening = asyncio.get_running_loop(), True
    begun = loop.time()
    try:
        async with tools.store(order.store, secrets) as store:
            progress("test", 0, 0)
            since, opening = loop.time(), False
            steps = list(await store.test(f"{order.store.prefix}/probe/{order.work_name}"))
            steps = [f"connect: passed, {(since - begun) * 1000:.0f} ms", *steps]
            return StoreTested(capabilities=sorted(store.CAPABILITIES), steps=steps)
    except Failed as error:  # away for now is a reason not to add it; the caller may ask again
        cause = f"test step connect: {error.failure.cause}" if opening else error.failure.cause
        raise Refused(cause, field=error.failure.field, remedy=error.failure.remedy) from None


async def fetch_image(order: FetchImage, tools: Toolbox, secrets: Secrets, progress: Progress) -> ImageResult:
    """A URL into the store, by the motion that was planned."""
    done: ImageResult = await find(order.motion, FETCH)(order, "", tools, secrets, progress)
    return done


async def adopt_image(order: AdoptImage, tools: Toolbox, secrets: Secrets, progress: Progress) -> ImageResult:
    """An object where it lies, by the download's gate."""
    async with tools.store(order.store, secrets) as store:
        return ImageResult(image=await adopt(order, store, progress))


async def disown_image(order: DisownImage, tools: Toolbox, secrets: Secrets, progress: Progress) -> Result:
    """It is nobody's again."""
    async with tools.store(order.store, secrets) as store:
        await disown(store, order.key, str(order.thing_id))
    return Result()


async def delete_images(order: DeleteImages, tools: Toolbox, secrets: Secrets, progress: Progress) -> Result:
    """Manifest first, then the bytes."""
    async with tools.store(order.store, secrets) as store:
        for done, key in enumerate(order.keys, 1):
            await delete_object(store, key)
            progress("delete", done, len(order.keys))
    return Result()


async def merge_images(order: MergeImages, tools: Toolbox, secrets: Secrets, progress: Progress) -> ImageResult:
    """Links of a chain into one object, by the motion that was planned."""
    done: ImageResult = await find(order.motion, MERGE)(order, "", tools, secrets, progress)
    return done


async def scrub_objects(order: ScrubObjects, tools: Toolbox, secrets: Secrets, progress: Progress) -> Result:
    """What is left of links that have ended goes; then read, compare, look for strangers, and change nothing."""
    async with tools.store(order.store, secrets) as store:
        if swept := await sweep_links(store, order.store, datetime.now(UTC)):
            log.info("%d links of the image store %s had ended and were removed", len(swept), order.store.name)
        return await scrub(order, store, progress)


async def give_link(order: MakeLink, tools: Toolbox, secrets: Secrets, progress: Progress) -> LinkMade:
    """A link whose URL leaves this process sealed. What is left of links that have ended goes first: they never pile up."""
    async with tools.store(order.store, secrets) as store:
        await sweep_links(store, order.store, datetime.now(UTC))
        progress("link", 0, 0)
        link = await make_link(store, order.store, order.key, order.lifetime_s, revocable=order.revocable)
        sealed = seal_to(base64.b64decode(order.seal_to), link.url.encode(), answer_to(order.work_id))
        return LinkMade(link_id=link.id, expires_at=link.expires_at, work_id=order.work_id,
                        sealed_url=base64.b64encode(sealed).decode())


async def end_link(order: RevokeLink, tools: Toolbox, secrets: Secrets, progress: Progress) -> Result:
    """Its URL gives nothing when this returns."""
    async with tools.store(order.store, secrets) as store:
        await revoke_link(store, order.store, order.link_id)
    return Result()


async def create_disk(order: CreateDisk, tools: Toolbox, secrets: Secrets, progress: Progress) -> DiskCreated:
    """A draft, its content, its name: in this order."""
    primary, hypervisor = tools.primary(order.primary), tools.hypervisor
    name = f"{order.volume_id}.{SUFFIX}"
    # Of an image that is copied as it is, what a process that was killed left of this very order is gone on with.
    goes_on = order.image is not None and order.image.format is ImageFormat.QCOW2 and not order.seed
    begin = primary.kept if goes_on and isinstance(primary, KeepsDrafts) else primary.draft
    draft = await begin(order.volume_id, order.work_name, SUFFIX, size=order.virtual_size)
    reason = ""
    try:
        if order.image is None:
            await hypervisor.create(draft, order.virtual_size)
        else:
            if order.seed:
                reason = await find(order.motion, SEED)(order, draft, tools, secrets, progress)
            else:
                await find(order.motion, RESTORE)(order, draft, tools, secrets, progress)
            await hypervisor.adopt(draft, format=ImageFormat.QCOW2, grow_to=order.virtual_size)
        await primary.commit(order.volume_id, order.work_name, SUFFIX)
    except BaseException:
        await primary.discard(order.volume_id, order.work_name, SUFFIX)
        raise
    virtual, physical = await hypervisor.measure(primary.locate(name))
    disk = DiskRef(primary=order.primary, volume_id=order.volume_id, path=name, virtual_size=virtual)
    return DiskCreated(disk=disk, physical_size=physical, reason=reason)


async def make_seed(order: MakeSeed, tools: Toolbox, secrets: Secrets, progress: Progress) -> SeedMade:
    """A draft, the image as a disk would have it, its name: in this order."""
    primary, hypervisor = tools.primary(order.primary), tools.hypervisor
    if not isinstance(primary, KeepsSeeds):
        raise Refused(f"a primary store of the kind {order.primary.kind} keeps whole disks only, no copies of templates",
                      field="storageid", remedy="volumes there are made from the image store")
    begin = primary.kept if order.image.format is ImageFormat.QCOW2 and isinstance(primary, KeepsDrafts) else primary.draft
    draft = await begin(order.template_id, order.work_name, SEED_SUFFIX)
    try:
        await find(order.motion, RESTORE)(order, draft, tools, secrets, progress)
        await hypervisor.adopt(draft, format=ImageFormat.QCOW2, grow_to=0)
        name = await primary.commit(order.template_id, order.work_name, SEED_SUFFIX)
    except BaseException:
        await primary.discard(order.template_id, order.work_name, SEED_SUFFIX)
        raise
    _, physical = await hypervisor.measure(primary.locate(name))
    found = await primary.seed(name)
    if found is None:
        raise WorkFailed(f"the template's copy {name} went away as soon as it was there", field="primary",
                         remedy="see who removes files there")
    return SeedMade(path=name, size=found[1], physical_size=physical)


async def drop_seed(order: DropSeed, tools: Toolbox, secrets: Secrets, progress: Progress) -> Result:
    """The seed and whatever attempts left."""
    primary = tools.primary(order.primary)
    if isinstance(primary, KeepsSeeds):
        await primary.drop_seed(order.template_id)
    return Result()


async def resize_disk(order: ResizeDisk, tools: Toolbox, secrets: Secrets, progress: Progress) -> DiskResized:
    """Another size, where it fits and nothing is lost."""
    path, primary, hypervisor = _disk(order.disk, tools), tools.primary(order.disk.primary), tools.hypervisor
    if not isinstance(hypervisor, Resizable):
        raise WorkFailed(f"{hypervisor.NAME} resizes no disks here", field="id")
    if isinstance(primary, Bounded) and order.virtual_size > order.disk.virtual_size:
        await primary.fits(order.disk.path, order.virtual_size)
    progress("resize", 0, 0)
    await hypervisor.resize(path, order.virtual_size, shrink=order.shrink)
    virtual, physical = await hypervisor.measure(path)
    return DiskResized(virtual_size=virtual, physical_size=physical)


async def revert_disk(order: RevertDisk, tools: Toolbox, secrets: Secrets, progress: Progress) -> DiskCreated:
    """The image's bytes in the place of the disk's: until the draft has its name the disk holds what it held, from then on
    nothing makes the order fail or be cancelled."""
    primary, hypervisor, spec = tools.primary(order.disk.primary), tools.hypervisor, order.disk
    suffix = Path(spec.path).suffix.removeprefix(".")
    if not await primary.exists(spec.path):
        raise WorkFailed(f"the disk {spec.path} is not on its primary store", field="id",
                         remedy="see whether the primary store is mounted")
    goes_on = order.image.format is ImageFormat.QCOW2
    begin = primary.kept if goes_on and isinstance(primary, KeepsDrafts) else primary.draft
    draft = await begin(spec.volume_id, order.work_name, suffix, size=order.virtual_size)
    try:
        await find(order.motion, RESTORE)(order, draft, tools, secrets, progress)
        await hypervisor.adopt(draft, format=ImageFormat.QCOW2, grow_to=order.virtual_size)
        virtual, physical = await hypervisor.measure(draft)
        progress("swap", 0, 0)
        await _swap(primary, order, suffix)
    except BaseException:
        await primary.discard(spec.volume_id, order.work_name, suffix)
        raise
    return DiskCreated(disk=spec.model_copy(update={"virtual_size": virtual}), physical_size=physical)


async def _swap(primary: PrimaryStore, order: RevertDisk, suffix: str) -> None:
    """The draft becomes the disk. What goes wrong, or is cancelled, after that is told to the log only."""
    try:
        await primary.commit(order.disk.volume_id, order.work_name, suffix)
    except BaseException as error:
        if draft_name(order.disk.volume_id, order.work_name, suffix) in await primary.names():
            raise
        log.warning("the disk %s was reverted; what came after that went wrong: %r", order.disk.path, error)


async def delete_disk(order: DeleteDisk, tools: Toolbox, secrets: Secrets, progress: Progress) -> Result:
    """The disk and whatever attempts left."""
    await tools.primary(order.primary).delete(order.volume_id)
    return Result()


async def open_primary(order: OpenPrimary, tools: Toolbox, secrets: Secrets, progress: Progress) -> Result:
    """The place is judged where it is, by who will use it."""
    await tools.opened.open(order.primary, order.devices)
    return Result()


async def close_primary(order: ClosePrimary, tools: Toolbox, secrets: Secrets, progress: Progress) -> Result:
    """It is announced no more."""
    await tools.opened.close(order.primary)
    return Result()


def _disk(disk: DiskRef, tools: Toolbox) -> str:
    path = tools.primary(disk.primary).locate(disk.path)
    if not Path(path).exists():
        raise WorkFailed(f"the disk {disk.path} is not on its primary store", field="volumeid",
                         remedy="see whether the primary store is mounted")
    return path


async def attach_disk(order: AttachDisk, tools: Toolbox, secrets: Secrets, progress: Progress) -> DiskAttached:
    """Into the machine that runs, or written down for its next start."""
    _disk(order.disk, tools)
    progress("attach", 0, 0)
    machine = tools.machine(order.machine_id)
    return DiskAttached(plugged=await machine.attach(Attached(disk=order.disk, device_id=order.device_id)))


async def detach_disk(order: DetachDisk, tools: Toolbox, secrets: Secrets, progress: Progress) -> Result:
    """Out of the machine, and out of what it gets when it starts."""
    progress("detach", 0, 0)
    await tools.machine(order.machine_id).detach(order.disk.volume_id)
    return Result()


async def take_snapshot(order: TakeSnapshot, tools: Toolbox, secrets: Secrets, progress: Progress) -> SnapshotFrozen:
    """Record changes, then freeze the content: what is written in between is in both, never in neither. Done again after
    the content was frozen, nothing is recorded anew: a record must not be younger than its snapshot."""
    path, hypervisor = _disk(order.disk, tools), tools.hypervisor
    if isinstance(hypervisor, ChangeTracking) and order.tag not in await hypervisor.snapshots(path):
        await hypervisor.track(path, order.tag)
    await hypervisor.take_snapshot(path, order.tag)
    virtual, physical = await tools.hypervisor.measure(path)
    return SnapshotFrozen(virtual_size=virtual, physical_size=physical, free_bytes=await _free(order, tools, secrets))


async def _free(order: TakeSnapshot, tools: Toolbox, secrets: Secrets) -> int | None:
    """Room where the backup will go. A store that is away says nothing now: writing to it will show."""
    if order.store is None:
        return None
    try:
        async with tools.store(order.store, secrets) as store:
            return await store.free_bytes() if isinstance(store, Measured) else None
    except Failed as error:
        log.info("the room on %s is not known: %s", order.store.name, error.failure.cause)
        return None


async def write_snapshot(order: WriteSnapshot, tools: Toolbox, secrets: Secrets, progress: Progress) -> ImageResult:
    """From the disk into the store, by the motion that was planned."""
    done: ImageResult = await find(order.motion, BACKUP)(order, _disk(order.disk, tools), tools, secrets, progress)
    return done


async def drop_snapshot(order: DropSnapshot, tools: Toolbox, secrets: Secrets, progress: Progress) -> Result:
    """Forget the tag, and the records of changes that nothing will ask for."""
    path = tools.primary(order.disk.primary).locate(order.disk.path)
    await tools.hypervisor.drop_snapshot(path, order.tag)
    if isinstance(tools.hypervisor, ChangeTracking):
        if order.keep is None:
            await tools.hypervisor.forget_changes(path, order.tag)
        else:
            await tools.hypervisor.keep_changes(path, order.keep)
    return Result()


OPERATIONS: dict[type[Order], Operation] = {
    TestImageStore: check_store,
    FetchImage: fetch_image,
    AdoptImage: adopt_image,
    DisownImage: disown_image,
    DeleteImages: delete_images,
    MergeImages: merge_images,
    ScrubObjects: scrub_objects,
    MakeLink: give_link,
    RevokeLink: end_link,
    CreateDisk: create_disk,
    RevertDisk: revert_disk,
    ResizeDisk: resize_disk,
    DeleteDisk: delete_disk,
    MakeSeed: make_seed,
    DropSeed: drop_seed,
    TakeSnapshot: take_snapshot,
    WriteSnapshot: write_snapshot,
    DropSnapshot: drop_snapshot,
    OpenPrimary: open_primary,
    ClosePrimary: close_primary,
    AttachDisk: attach_disk,
    DetachDisk: detach_disk,
}
"""Every order but CancelWork and ReleaseWork, which are about other orders."""
