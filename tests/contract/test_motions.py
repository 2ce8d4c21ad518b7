"""The contract of motions: what the registry carries, proved on stores. store-to-store runs between each two of memory, folder and
S3 (SeaweedFS); direct and seed have suites of their own (tests/integration/test_motion_*.py)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agents import manifest as manifests
from agents.image_stores.base import ImageStore, Limits
from agents.image_stores.folder import FolderImageStore
from agents.image_stores.memory import MemoryImageStore
from agents.image_stores.s3 import S3ImageStore
from agents.motion.registry import MOTIONS, find
from agents.motion.store_to_store import Copy, parts_together
from agents.toolbox import Toolbox
from schema.failure import Failed, Refused, WorkFailed
from schema.image import ImageFormat, ImageRef, Manifest, StoreSpec
from schema.motion import BACKUP, COPY, FETCH, MERGE, RESTORE, SEED
from tests.contract.image_store import Place, data, keys
from tests.services.s3_fixture import s3_server, s3_spec

__all__ = ["s3_server"]

PART = 5 << 20
"""The least that S3 takes."""
KINDS = ("memory", "folder", pytest.param("s3", marks=pytest.mark.needs_s3))


def place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if kind == "s3":
        server = request.getfixturevalue("s3_server")
        return Place(S3ImageStore, s3_spec(server), {"secretkey": server.secret_key})
    if kind == "folder":
        (folder := tmp_path / str(uuid4())).mkdir()
        return Place(FolderImageStore, StoreSpec(id=uuid4(), name="f", provider="folder", url=f"folder://{folder}", prefix=str(uuid4())))
    return Place(MemoryImageStore, StoreSpec(id=uuid4(), name="m", provider="memory", url=f"memory://{uuid4()}", prefix=str(uuid4())))


@dataclass
class Pair:
    """Two stores, and an object to be copied between them."""

    source: Place
    target: Place
    opened: list[ImageStore] = field(default_factory=list)
    said: list[tuple[str, int, int]] = field(default_factory=list)

    async def stores(self) -> tuple[ImageStore, ImageStore]:
        self.opened += [await self.source.open(), await self.target.open()]
        return self.opened[-2], self.opened[-1]

    async def put(self, body: bytes, *, part: int = PART, parent: str = "") -> ImageRef:
        """An object with its manifest in the source."""
        source, _ = await self.stores()
        key = f"{self.source.spec.prefix}/template/{uuid4()}"
        upload = await source.begin(key, part_size=part)
        parts = [body[at:at + part] for at in range(0, len(body), part)]
        for number, each in enumerate(parts, 1):
            await upload.part(number, each)
        await upload.complete(len(body))
        digests = [hashlib.sha256(each).hexdigest() for each in parts]
        manifest = Manifest(
            installation=self.source.spec.prefix, kind="template", thing_id=uuid4(), job_id=uuid4(), work="w.1", key=key,
            format=ImageFormat.RAW, virtual_size=len(body), physical_size=len(body), part_size=part, parts=digests,
            root=manifests.root_of(digests), sha256=hashlib.sha256(body).hexdigest(), parent=parent, created="2026-01-01T00:00:00Z")
        await manifests.write_manifest(source, manifest)
        return ImageRef(store_id=self.source.spec.id, key=key, format=ImageFormat.RAW, virtual_size=len(body),
                        physical_size=len(body), root=manifest.root, sha256=manifest.sha256, parent=parent)

    def order(self, image: ImageRef) -> Copy:
        return Copy(source=self.source.spec, target=self.target.spec, image=image, job_id=uuid4(), work="copy.1",
                    key=f"{self.target.spec.prefix}/template/{uuid4()}")

    async def run(self, order: Copy, **tools: Any) -> ImageRef:
        """As an agent would: by the registry, with every secret that the two stores need."""
        secrets = {f"{end}.{name}": value for end, at in (("source", self.source), ("target", self.target))
                   for name, value in at.secrets.items()}
        made: ImageRef = await find("store-to-store", COPY)(order, "", Toolbox(**tools), secrets, lambda *said: self.said.append(said))
        return made

    async def nothing_in_the_target(self) -> None:
        _, target = await self.stores()
        assert await keys(target, self.target.spec.prefix) == []
        assert list(await target.unfinished(self.target.spec.prefix)) == []


@pytest.fixture(params=KINDS)
def source_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=KINDS)
def target_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def pair(source_kind: str, target_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(place(source_kind, request, tmp_path), place(target_kind, request, tmp_path))
    for store, each in zip(await pair.stores(), (pair.source, pair.target), strict=True):
        await store.test(each.spec.prefix)  # as it is added
    yield pair
    for each in (pair.source, pair.target):
        store = await each.open()
        for key in {*await keys(store, each.spec.prefix), *await store.unfinished(each.spec.prefix)}:
            await store.delete(key)
        await store.aclose()
    for opened in pair.opened:
        await opened.aclose()


@pytest.mark.soak(but=tuple(f"{pair}-{3 * PART + 4097}" for pair in (
    "memory-memory", "memory-folder", "folder-memory", "folder-folder", "memory-s3", "folder-s3", "s3-folder", "s3-s3")) + tuple(
    f"{pair}-{size}" for pair in ("memory-folder", "s3-memory") for size in (0, 1, PART)))
@pytest.mark.parametrize("size", [0, 1, PART, 3 * PART + 4097])
async def test_the_copy_is_the_object_and_its_manifest_describes_it(pair: Pair, size: int) -> None:
    body = data(size)
    image = await pair.put(body)
    order = pair.order(image)
    made = await pair.run(order)
    source, target = await pair.stores()
    assert (made.store_id, made.key, made.sha256, made.virtual_size) == (order.target.id, order.key, image.sha256, size)
    manifest = await manifests.verify_object(target, order.key)  # read again from the store, every part
    assert manifest.root == made.root == image.root
    assert await target.read(order.key, 0, size + 1) == body if size else manifest.parts == []
    before = await manifests.verify_object(source, image.key)  # and the source is as it was
    same = {"kind", "thing_id", "format", "virtual_size", "physical_size", "sha256", "part_size", "parts", "root"}
    assert manifest.model_dump(include=same) == before.model_dump(include=same)
    assert (manifest.installation, manifest.work, manifest.job_id) == (order.target.prefix, order.work, order.job_id)
    assert not size or pair.said[-1] == ("verify", size, size)


async def test_a_second_run_of_the_same_order_means_it_once(pair: Pair) -> None:
    image = await pair.put(data(2 * PART))
    order = pair.order(image)
    assert await pair.run(order) == await pair.run(order)
    _, target = await pair.stores()
    await manifests.verify_object(target, order.key)


async def test_bytes_that_are_not_what_was_written_are_not_passed_on(pair: Pair) -> None:
    image = await pair.put(data(3 * PART))
    source, _ = await pair.stores()
    upload = await source.begin(image.key, part_size=PART)  # somebody writes over the object, in the same size
    for number in (1, 2, 3):
        await upload.part(number, data(PART, seed=1 if number != 2 else 9))
    await upload.complete(3 * PART)
    with pytest.raises(WorkFailed, match=r"bytes \d+ to \d+ are not what was written"):
        await pair.run(pair.order(image))
    await pair.nothing_in_the_target()


async def test_an_object_that_the_log_does_not_know_is_not_copied(pair: Pair) -> None:
    image = await pair.put(data(PART))
    with pytest.raises(WorkFailed, match="not the one that the log knows"):
        await pair.run(pair.order(image.model_copy(update={"root": "00" * 32})))
    with pytest.raises(WorkFailed, match="no manifest"):
        await pair.run(pair.order(image.model_copy(update={"key": image.key + "x"})))
    await pair.nothing_in_the_target()


async def test_a_delta_stays_with_its_chain(pair: Pair) -> None:
    image = await pair.put(data(PART), parent="p/of/it")
    with pytest.raises(Refused, match="a chain never spans two stores"):
        await pair.run(pair.order(image))
    await pair.nothing_in_the_target()


@pytest.mark.parametrize("source_kind", ["memory", "folder"])  # S3 has no such small parts to begin with
async def test_small_parts_are_joined_until_the_target_takes_them(pair: Pair) -> None:
    body = data(7 * (1 << 20) + 5)
    order = pair.order(await pair.put(body, part=1 << 20))
    await pair.run(order)
    _, target = await pair.stores()
    manifest = await manifests.verify_object(target, order.key)
    least = max(1 << 20, target.limits.min_part)
    assert manifest.part_size == least
    assert len(manifest.parts) == -(-len(body) // least)
    assert await target.read(order.key, 0, len(body)) == body


async def test_cancelled_it_leaves_nothing(pair: Pair) -> None:
    image = await pair.put(data(4 * PART))
    order = pair.order(image)
    begun = asyncio.Event()
    task = asyncio.create_task(pair.run(order, workers=1))

    async def watch() -> None:
        while not pair.said:
            await asyncio.sleep(0)
        begun.set()

    watcher = asyncio.create_task(watch())
    await asyncio.wait_for(begun.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    await watcher
    assert pair.said[-1][1] < 4 * PART
    await pair.nothing_in_the_target()


# --- what needs no store ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "count", "limits", "together"), [
    (8, 10, Limits(min_part=1, max_part=100, max_parts=100), 1),
    (8, 10, Limits(min_part=20, max_part=100, max_parts=100), 3),
    (8, 10, Limits(min_part=1, max_part=100, max_parts=4), 3),
    (8, 1, Limits(min_part=20, max_part=100, max_parts=4), 1),
])
def test_whole_parts_are_joined(part: int, count: int, limits: Limits, together: int) -> None:
    assert parts_together(_manifest(part, count), limits) == together


def test_parts_that_no_limit_allows_are_refused() -> None:
    with pytest.raises(Refused, match="parts of at most 50"):
        parts_together(_manifest(60, 3), Limits(min_part=1, max_part=50, max_parts=100))
    with pytest.raises(Refused, match="1 parts of at most 50"):
        parts_together(_manifest(30, 3), Limits(min_part=1, max_part=50, max_parts=1))


def _manifest(part: int, count: int) -> Manifest:
    return Manifest(installation="i", kind="template", thing_id=uuid4(), job_id=uuid4(), work="w.1", key="k", format=ImageFormat.RAW,
                    virtual_size=part * count, physical_size=part * count, part_size=part, parts=["00" * 32] * count, root="",
                    created="")


def test_the_registry_carries_what_it_says_and_refuses_the_rest() -> None:
    carried = {(name, move) for name, motion in MOTIONS.items() for move in motion.moves}
    assert carried == {("direct", FETCH), ("direct", BACKUP), ("direct", RESTORE), ("store-to-store", COPY),
                       ("store-to-store", MERGE), ("seed", SEED)}
    for name, move in carried:
        assert find(name, move) is MOTIONS[name].moves[move]
    for name, move in (("direct", COPY), ("store-to-store", BACKUP), ("teleport", FETCH)):
        with pytest.raises(Refused, match="does not carry") as refused:
            find(name, move)
        assert refused.value.failure.field == "motion"
        assert isinstance(refused.value, Failed)
