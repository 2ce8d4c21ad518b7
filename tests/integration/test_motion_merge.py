"""Merging links of a chain with real disks and stores: the one object that comes out holds what the chain held; qemu-img judges.

What it holds is compared with what the disk held when the snapshot was taken; the links are as they were; whatever fails, nothing
of the new object is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agents.hypervisors.base import Extent
from agents.hypervisors.memory import MemoryHypervisor
from agents.image_stores.folder import FolderImageStore
from agents.image_stores.memory import MemoryImageStore, bucket
from agents.manifest import manifest_key, read_manifest, verify_object
from agents.motion.overlay import Overlay
from agents.motion.verified import KEPT
from agents.mover import Mover, MoverDied
from agents.operations import OPERATIONS
from agents.qcow2 import CLUSTER, Layout
from agents.toolbox import Toolbox
from schema.agent import ImageResult, MergeImages, WriteSnapshot
from schema.failure import Damaged, Failed, Refused, WorkFailed
from schema.image import ImageFormat, ImageRef
from tests.conftest import SOAK
from tests.integration.test_motion_delta import SIZE, Disk, disk, spec, whole
from tests.services.s3_fixture import s3_server
from tests.services.swift_fixture import swift_server
from tests.support.images import MIB, img, put_image

__all__ = ["disk", "s3_server", "swift_server"]
ON_A_FOLDER = pytest.mark.parametrize("disk", ["folder"], indirect=True)


def order_of(disk: Disk, first: int, last: int, **fields: Any) -> MergeImages:
    """Links `first` to `last` of the disk's chain, in the place of the last of them."""
    chain = disk.chain(last)
    links = chain[first:]
    return MergeImages(**{
        "job_id": uuid4(), "work_id": uuid4(), "attempt": 1, "agent": "a", "reply_key": "k", "store": disk.spec, "links": links,
        "parent": chain[first - 1] if first else None, "key": f"{disk.spec.prefix}/snapshot/{last}-{uuid4()}/merged.qcow2",
        "kind": "snapshot", "thing_id": uuid4(), "replaces": [links[-1].key]} | fields)


async def merged(disk: Disk, first: int, last: int, **fields: Any) -> ImageRef:
    """The same, done; the disk's chain goes through the new object from then on."""
    order = order_of(disk, first, last, **fields)
    result: ImageResult = await OPERATIONS[MergeImages](order, disk.tools, disk.secrets, lambda *_: None)
    assert result.image.parent == (order.parent.key if order.parent else "")
    await verify_object(disk.store, order.key, root=result.image.root)
    return result.image


def put_in_place(disk: Disk, last: int, image: ImageRef) -> None:
    """What the log does: the new object is link `last`; children's parents are found by `replaces`."""
    disk.images[last] = image
    below = {replaced: one.key for one in disk.images for replaced in one.replaces}
    disk.chain = lambda number: _chain(disk, number, below)  # type: ignore[method-assign] # the chain as the log knows it


def _chain(disk: Disk, number: int, below: dict[str, str]) -> list[ImageRef]:
    by_key = {image.key: image for image in disk.images}
    found = [disk.images[number]]
    while found[0].parent:
        found.insert(0, by_key[below.get(found[0].parent, found[0].parent)])
    return found


async def judge(disk: Disk, number: int) -> None:
    """As Disk.judge, with a merged object also where those look that name what it replaces."""
    for image in disk.chain(number):
        for name in image.replaces:
            file = disk.folder / "objects" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(await whole(disk.store, image))
    await disk.judge(number)


async def keys(disk: Disk) -> set[str]:
    assert not await disk.store.unfinished(disk.spec.prefix)
    return {info.key async for info in disk.store.list(disk.spec.prefix)}


async def chain(disk: Disk, links: int, *, compression: str = "") -> None:
    """A chain of so many links."""
    await disk.change(writes=12)
    if compression:
        made = disk.do

        async def compressed(kind: Any, **fields: Any) -> Any:
            return await made(kind, **(fields | {"compression": compression} if kind is WriteSnapshot else fields))

        disk.do = compressed  # type: ignore[method-assign] # every full backup of this disk
        text = b"line of a log that says much the same \n" * (3 * MIB // 40)
        async with disk.tools.hypervisor.open(disk.path, writable=True) as device:
            await device.write(5 * MIB, text)
        disk.content[5 * MIB:5 * MIB + len(text)] = text
    await disk.snapshot()
    for number in range(links - 1):
        await disk.change()
        await disk.snapshot(parent=number)
        assert disk.images[-1].parent


@pytest.mark.needs_qemu
class TestMerged:
    """What comes out."""

    @pytest.mark.soak(but=("folder-0-4", "s3-1-3", "swift-3-4"))
    @pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 3), (0, 4), (3, 4)])
    async def test_it_holds_what_the_chain_held(self, disk: Disk, first: int, last: int) -> None:
        await chain(disk, 5)
        before = await keys(disk)
        image = await merged(disk, first, last)
        assert await keys(disk) == before | {image.key, manifest_key(image.key)}, "the links are as they were"
        assert image.replaces == (await read_manifest(disk.store, image.key)).replaces == [disk.images[last].key]
        total = sum(link.physical_size for link in disk.images[first:last + 1])
        assert image.physical_size < total, "tables are there once, and what was written over is not"
        put_in_place(disk, last, image)
        for number in [*range(first), *range(last, 5)]:
            await judge(disk, number)

    @pytest.mark.soak(but=("folder",))
    async def test_a_compressed_base_stays_compressed(self, disk: Disk) -> None:
        await chain(disk, 3, compression="zstd")
        total = sum(link.physical_size for link in disk.images)
        image = await merged(disk, 0, 2)
        file = disk.folder / "merged"
        file.write_bytes(await whole(disk.store, image))
        assert "compression type: zstd" in img("info", "-f", "qcow2", str(file))
        assert image.physical_size < total
        put_in_place(disk, 2, image)
        await judge(disk, 2)
        await disk.change()
        await disk.snapshot(parent=2)
        again = await merged(disk, 0, 3)  # and once more: it is read as it was written
        assert again.physical_size < image.physical_size + disk.images[3].physical_size
        put_in_place(disk, 3, again)
        await judge(disk, 3)

    @ON_A_FOLDER
    async def test_a_child_of_a_merged_one_is_merged_and_so_on(self, disk: Disk) -> None:
        """Each new link is written on what the merge before made; the names of what it replaces go on."""
        await chain(disk, 3)
        for last in range(2, 5 if SOAK else 4):
            image = await merged(disk, 0, last - 1)
            put_in_place(disk, last - 1, image)
            for number in (last - 1, last):
                await judge(disk, number)  # the child, which was written before the merge, too
            image = await merged(disk, 0, last - 1, replaces=[*image.replaces, image.key])  # the same one once more
            put_in_place(disk, last - 1, image)
            await disk.change()
            assert (await disk.snapshot(parent=last)).parent == disk.images[last].key, disk.reasons
            for number in (last - 1, last, last + 1):
                await judge(disk, number)

    @ON_A_FOLDER
    async def test_zeros_stay_zeros_and_take_no_room(self, disk: Disk) -> None:
        async with disk.tools.hypervisor.open(disk.path, writable=True) as device:
            await device.write(0, random.Random(1).randbytes(20 * MIB))
        disk.content[:20 * MIB] = random.Random(1).randbytes(20 * MIB)
        await disk.snapshot()
        await disk.change(writes=1)
        await disk.snapshot(parent=0)
        async with disk.tools.hypervisor.open(disk.path, writable=True) as device:
            await device.zero(0, SIZE)
        disk.content[:] = bytes(SIZE)
        await disk.snapshot(parent=1)
        metadata = 5
        delta = await merged(disk, 1, 2)
        assert delta.physical_size == metadata * CLUSTER, "zero clusters: what lies below must not shine through"
        full = await merged(disk, 0, 2)
        assert full.physical_size == (metadata - 1) * CLUSTER, "a full image says nothing of them"
        put_in_place(disk, 2, delta)
        await judge(disk, 2)

    @ON_A_FOLDER
    async def test_a_full_image_alone_is_copied_as_it_is(self, disk: Disk) -> None:
        await chain(disk, 1)
        thing = uuid4()
        image = await merged(disk, 0, 0, replaces=[], kind="template", thing_id=thing)
        manifest = await read_manifest(disk.store, image.key)
        assert (manifest.kind, manifest.thing_id, image.root) == ("template", thing, disk.images[0].root)

    @pytest.mark.parametrize("disk", [pytest.param("s3", marks=pytest.mark.needs_s3)], indirect=True)
    async def test_s3_makes_the_copy_by_itself(self, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
        await chain(disk, 1)
        monkeypatch.setattr("agents.motion.store_to_store.copy", None)  # no byte comes this way
        image = await merged(disk, 0, 0, replaces=[], kind="template")
        await disk.store.delete(manifest_key(disk.images[0].key))
        await disk.store.delete(disk.images[0].key)
        await verify_object(disk.store, image.key)

    @pytest.mark.soak(but=("folder", "swift"))
    async def test_into_another_store(self, disk: Disk, tmp_path: Path) -> None:
        await chain(disk, 3)
        (tmp_path / "other").mkdir()
        there = spec("folder", f"folder://{tmp_path / 'other'}")
        await (await FolderImageStore.open(there, {})).test("probe")
        secrets = {f"source.{name}": value for name, value in disk.secrets.items()}
        for first, last in ((0, 2), (0, 0)):
            order = order_of(disk, first, last, source=disk.spec, store=there, replaces=[], kind="template")
            result = await OPERATIONS[MergeImages](order, disk.tools, secrets, lambda *_: None)
            (tmp_path / "raw").write_bytes(disk.frozen[last])
            img("compare", "-f", "raw", "-F", "qcow2", str(tmp_path / "raw"), str(tmp_path / "other" / order.key))
            assert result.image.store_id == there.id  # type: ignore[attr-defined] # an ImageResult


@pytest.mark.needs_qemu
@ON_A_FOLDER
class TestRefused:
    """Links that are not what was written, and faults: nothing is left."""

    @pytest.mark.soak(but=("base--folder", "delta-zstd-folder", "cut--folder", "gone-zstd-folder"))
    @pytest.mark.parametrize("compression", ["", "zstd"])
    @pytest.mark.parametrize("where", ["base", "delta", "cut", "gone"])
    async def test_damage_is_named_and_nothing_is_left(self, disk: Disk, where: str, compression: str) -> None:
        await chain(disk, 3, compression=compression)
        bad = disk.images[0 if where == "base" else 1]
        file = disk.folder / "store" / bad.key
        body = bytearray(file.read_bytes())
        if where == "cut":
            os.truncate(file, bad.physical_size - CLUSTER)
        elif where == "gone":
            await disk.store.delete(manifest_key(bad.key))
        else:
            body[len(body) // 2] ^= 1
            file.write_bytes(body)
        before = await keys(disk)
        with pytest.raises(Damaged) as damaged:
            await merged(disk, 0, 2)
        assert damaged.value.failure.damage is not None
        assert damaged.value.failure.damage.object == bad.key
        assert await keys(disk) == before
        assert KEPT.lent == 0

    async def test_links_in_another_order_are_refused(self, disk: Disk) -> None:
        await chain(disk, 3)
        before = await keys(disk)
        one, two, three = disk.images
        for links, parent in (([one, three], None), ([two, three], None), ([three], one), ([two, one], one)):
            with pytest.raises(Failed):
                await merged(disk, 0, 2, links=links, parent=parent)
        with pytest.raises(Damaged, match="not the one that the log knows"):
            await merged(disk, 0, 2, links=[one.model_copy(update={"root": "00" * 32}), two, three])
        assert await keys(disk) == before

    async def test_what_a_stranger_wrote_is_refused(self, disk: Disk) -> None:
        await chain(disk, 2)
        foreign = disk.folder / "foreign"
        img("create", "-f", "qcow2", str(foreign), str(SIZE))
        image = await put_image(disk.store, foreign.read_bytes(), ImageFormat.QCOW2, SIZE)
        with pytest.raises(WorkFailed):
            await merged(disk, 0, 1, links=[image], replaces=["x"])
        raw = await put_image(disk.store, bytes(MIB), ImageFormat.RAW, MIB)
        with pytest.raises(Refused, match="no qcow2 that Storebus wrote"):
            await merged(disk, 0, 1, links=[raw], replaces=["x"])

    @pytest.mark.parametrize("compression", ["", "zstd"])
    async def test_cancelled_anywhere_it_is_whole_or_nothing(self, disk: Disk, compression: str) -> None:
        await chain(disk, 3, compression=compression)
        before = await keys(disk)
        for wait in (0.0, 0.01, 0.03, 0.06, 0.1):
            order = order_of(disk, 0, 2)
            task = asyncio.create_task(OPERATIONS[MergeImages](order, disk.tools, disk.secrets, lambda *_: None))
            await asyncio.sleep(wait)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
                await verify_object(disk.store, order.key)
                await disk.store.delete(manifest_key(order.key))
                await disk.store.delete(order.key)
            assert await keys(disk) == before
            assert KEPT.lent == 0


@pytest.mark.needs_qemu
@ON_A_FOLDER
@pytest.mark.soak(but=("zstd-folder",))
@pytest.mark.parametrize("compression", ["", "zstd"])
async def test_kill_9_at_any_moment_leaves_the_object_and_nothing_else(disk: Disk, compression: str, tmp_path: Path) -> None:
    """The mover is killed again and again; the same order, given once more, goes on or begins anew."""
    async with disk.tools.hypervisor.open(disk.path, writable=True) as device:
        for at in range(0, SIZE - 1536, MIB):
            disk.content[at:at + MIB] = disk.dice.randbytes(MIB)
            await device.write(at, disk.content[at:at + MIB])
    await chain(disk, 3, compression=compression)
    before, order, kills = await keys(disk), order_of(disk, 0, 2), 0
    for _ in range(40):
        mover = Mover({"workers": 2, "records": str(tmp_path / "records"), "bytes_per_second": 10 * MIB})
        running = asyncio.create_task(mover.run(order, order.model_dump_json().encode(), {}, lambda *_: None))
        done, _ = await asyncio.wait([running], timeout=0.6 + disk.dice.random() * 1.5 if kills < 4 else 60)
        mover.kill()
        await mover.aclose()
        try:
            answer = await running
            break
        except MoverDied:
            assert not done
            kills += 1
    assert kills > 0
    image = ImageRef.model_validate(answer["result"]["image"])
    assert await keys(disk) == before | {image.key, manifest_key(image.key)}
    put_in_place(disk, 2, image)
    await judge(disk, 2)


class Shaken:
    """A chain in a memory store whose calls fail when the test says so."""

    @classmethod
    async def start(cls, folder: Path, seed: int) -> Disk:
        chosen = spec("memory", f"memory://{uuid4()}")
        made = Disk(folder, await MemoryImageStore.open(chosen, {}), chosen, {}, Toolbox(hypervisor_name="memory"),
                    dice=random.Random(seed))
        (folder / "primary").mkdir()
        await MemoryHypervisor().create(made.path, made.size)
        Path(made.path).touch()
        made.content = bytearray(made.size)
        await chain(made, 4)
        return made


@pytest.mark.parametrize("operation", ["read", "begin", "part", "complete", "put", "stat"])
async def test_a_store_that_fails_at_any_call_is_left_as_it_was(tmp_path: Path, seed: int, operation: str) -> None:
    made = await Shaken.start(tmp_path, seed)
    before = await keys(made)
    inside = bucket(made.spec.url)
    hits = 0
    for fails_at in range(1, 40):
        seen = 0

        async def broken(what: str, key: str) -> None:
            nonlocal seen, hits
            if what == operation:
                seen += 1
                if seen == fails_at:  # noqa: B023 - used within this turn of the loop
                    hits += 1
                    raise WorkFailed("it broke")

        inside.before = broken
        try:
            await OPERATIONS[MergeImages](order_of(made, 0, 3), made.tools, {}, lambda *_: None)
        except WorkFailed:
            inside.before = None
            assert await keys(made) == before
            continue
        finally:
            inside.before = None
        break
    assert hits > 0


async def test_parts_larger_than_memory_holds_are_read_again_and_compared(tmp_path: Path, seed: int,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """No part is kept: whatever read sees that the object was changed, it is noticed."""
    made = await Shaken.start(tmp_path, seed)
    monkeypatch.setattr(KEPT, "total", 0)
    inside = bucket(made.spec.url)
    base = made.images[0].key
    good = inside.objects[base]
    bad = bytearray(good)
    for at in range(100, len(bad), CLUSTER):
        bad[at] ^= 1
    reads, changes_at = 0, 1 << 30

    async def turns(what: str, key: str) -> None:
        nonlocal reads
        if what == "read" and key == base:
            reads += 1
            if reads == changes_at:
                inside.objects[base] = bytes(bad)

    inside.before = turns
    before = await keys(made)
    await OPERATIONS[MergeImages](order := order_of(made, 0, 3), made.tools, {}, lambda *_: None)
    total = reads
    assert total > -(-len(good) // (2 * MIB)) + 3, "it was read again"
    await made.store.delete(order.key)
    await made.store.delete(manifest_key(order.key))
    for each in range(1, total + 1):
        reads, changes_at = 0, each
        with pytest.raises(Damaged):
            await OPERATIONS[MergeImages](order_of(made, 0, 3), made.tools, {}, lambda *_: None)
        inside.objects[base] = good
        assert await keys(made) == before


def test_the_newest_that_says_anything_of_a_cluster_has_it(seed: int) -> None:
    """Against a plain list of clusters."""
    dice = random.Random(seed)
    for _ in range(200):
        count, links = 60, []
        truth: list[int | str | None] = [None] * count
        for number in range(dice.randint(1, 5)):
            said: list[str | None] = [dice.choice([None, None, "data", "zero"]) for _ in range(count)]
            links.append(Layout(count * CLUSTER, [Extent(offset=at * CLUSTER, length=CLUSTER, zero=False)
                                                  for at in range(count) if said[at] == "data"],
                                zeros=[(at, at + 1) for at in range(count) if said[at] == "zero"], backing=b"b"))
            truth = [number if what == "data" else "zero" if what == "zero" else old
                     for what, old in zip(said, truth, strict=True)]
        overlay = Overlay(links)
        found = [held.link if (held := overlay.who(at)) is not None else "zero" if overlay.zero(at) else None for at in range(count)]
        assert found == truth
        assert all(overlay.touches(at, at + 1) == (truth[at] is not None) for at in range(count))

