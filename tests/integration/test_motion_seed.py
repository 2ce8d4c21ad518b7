"""A template's copy on a primary store, on real files: made, used without the image store, missed, damaged, stopped."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents import leftovers
from agents.motion import seed as seeds
from agents.operations import OPERATIONS
from agents.toolbox import Toolbox
from schema.agent import CreateDisk, DeleteDisk, DiskCreated, DropSeed, FetchImage, ImageResult, MakeSeed, SeedMade
from schema.failure import Failed, Refused, WorkFailed
from schema.image import ImageFormat, ImageRef, PrimarySpec, StoreSpec
from schema.message import Order
from tests.services.http_files import HttpFiles
from tests.support.images import MIB, img
from tests.support.memory import forget_peak, peak

pytestmark = pytest.mark.needs_qemu


@dataclass
class Place:
    """An image store and a primary store, each a folder."""

    base: Path
    web: HttpFiles
    template: UUID = field(default_factory=uuid4)
    progress: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("store", "primary"):
            (self.base / name).mkdir()
        self.spec = StoreSpec(id=uuid4(), name="s", provider="folder", url=f"folder://{self.base / 'store'}", prefix="inst")
        self.primary = PrimarySpec(id=uuid4(), name="p", kind="folder", path=str(self.base / "primary"), zone_id=uuid4(), agent="a")

    def order(self, of: type[Order], **fields: Any) -> Any:
        about: dict[str, Any] = {"job_id": uuid4(), "work_id": uuid4(), "attempt": 1, "agent": "a", "reply_key": "k"}
        return of(**about, **fields)

    async def run(self, order: Order) -> Any:
        tools = Toolbox(download_allow=self.web.allow)
        return await OPERATIONS[type(order)](order, tools, {}, lambda *said: self.progress.append(said))

    async def image(self, body: bytes, form: ImageFormat) -> ImageRef:
        """A template's object."""
        async with Toolbox().store(self.spec, {}) as store:
            await store.test("probe")  # as it is added
        self.web.bodies["image"] = body
        fetched: ImageResult = await self.run(self.order(
            FetchImage, url=self.web.url("file/image"), format=form, key=f"inst/template/{self.template}/image", kind="template",
            thing_id=self.template, max_bytes=1 << 30, max_virtual_size=1 << 40, store=self.spec))
        return fetched.image

    async def seed(self, image: ImageRef) -> SeedMade:
        made: SeedMade = await self.run(self.order(
            MakeSeed, primary=self.primary, template_id=self.template, image=image, store=self.spec))
        return made

    def volume(self, image: ImageRef, seed: SeedMade, **more: Any) -> CreateDisk:
        given = {"virtual_size": 0, "seed": seed.path, "seed_size": seed.size} | more
        order: CreateDisk = self.order(
            CreateDisk, primary=self.primary, volume_id=uuid4(), image=image, store=self.spec, motion="seed", **given)
        return order

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.base / "primary").iterdir())

    def away(self) -> None:
        """The image store is no more."""
        (self.base / "store").rename(self.base / "gone")


@pytest.fixture
def place(tmp_path: Path, files: HttpFiles, qemu_tools: None) -> Place:
    return Place(tmp_path, files)


@pytest.fixture(scope="module")
def files() -> Any:
    web = HttpFiles()
    yield web
    web.close()


def disk(tmp_path: Path, form: ImageFormat, size: int = 64) -> Path:
    """An image with data at both ends and a hole between."""
    raw, image = tmp_path / "raw", tmp_path / "image"
    with raw.open("wb") as file:
        file.write(random.Random(1).randbytes(3 * MIB))
        file.seek((size - 1) * MIB)
        file.write(random.Random(2).randbytes(MIB))
    if form is ImageFormat.RAW:
        return raw
    img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    return image


def _no_reflink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "_shared", lambda here, there: False)


def _by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    _no_reflink(monkeypatch)
    monkeypatch.setattr(os, "copy_file_range", refuse)


@pytest.mark.parametrize("way", [lambda _: None, _no_reflink, _by_pieces], ids=["as it is", "no reflink", "by pieces"])
@pytest.mark.parametrize("form", [ImageFormat.QCOW2, ImageFormat.RAW])
async def test_a_volume_is_made_without_the_image_store(place: Place, tmp_path: Path, form: ImageFormat, way: Any,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    image_file = disk(tmp_path, form)
    image = await place.image(image_file.read_bytes(), form)
    made = await place.seed(image)
    assert place.names() == [made.path] == [f"{place.template}.seed.qcow2"]
    assert made.size == (place.base / "primary" / made.path).stat().st_size
    place.away()
    way(monkeypatch)
    place.progress.clear()
    created: DiskCreated = await place.run(place.volume(image, made, virtual_size=100 * MIB))
    volume = place.base / "primary" / created.disk.path
    img("check", "-f", "qcow2", str(volume))
    img("compare", "-f", str(form), "-F", "qcow2", str(image_file), str(volume))
    assert (created.reason, created.disk.virtual_size) == ("", 100 * MIB)
    assert volume.stat().st_blocks * 512 < 7 * MIB, "holes are not filled"
    assert place.progress[-1] == ("copy", made.size, made.size)
    img("check", "-f", "qcow2", str(place.base / "primary" / made.path))
    img("compare", "-f", str(form), "-F", "qcow2", str(image_file), str(place.base / "primary" / made.path))


async def test_what_is_not_there_or_not_whole_is_read_from_the_store(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_file = disk(tmp_path, ImageFormat.QCOW2)
    image = await place.image(image_file.read_bytes(), ImageFormat.QCOW2)
    made = await place.seed(image)
    path = place.base / "primary" / made.path

    async def reason() -> str:
        created: DiskCreated = await place.run(place.volume(image, made))
        img("compare", "-f", "qcow2", "-F", "qcow2", str(image_file), str(place.base / "primary" / created.disk.path))
        return created.reason

    with monkeypatch.context() as broken:
        def fail(here: int, there: int, at: int, size: int) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        _no_reflink(broken)
        broken.setattr(seeds, "_step", fail)
        assert "cannot be read: Input/output error" in await reason()
    assert await reason() == ""
    os.truncate(path, made.size - 1)
    assert f"{made.size - 1} bytes" in await reason()
    path.unlink()
    assert "is not on the primary store" in await reason()
    place.away()
    with pytest.raises(Failed):
        await place.run(place.volume(image, made))
    assert not [name for name in place.names() if name.startswith(".")], "no draft stays"


async def test_a_bad_object_makes_no_copy(place: Place, tmp_path: Path) -> None:
    image = await place.image(disk(tmp_path, ImageFormat.QCOW2).read_bytes(), ImageFormat.QCOW2)
    with (place.base / "store" / image.key).open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"damage")
    with pytest.raises(WorkFailed) as failure:
        await place.seed(image)
    assert failure.value.failure.damage is not None and place.names() == []


async def test_a_cancel_stops_the_copying_at_once_and_leaves_the_seed_alone(place: Place, tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    image = await place.image(disk(tmp_path, ImageFormat.QCOW2).read_bytes(), ImageFormat.QCOW2)
    made = await place.seed(image)
    step = seeds._step

    def slow(here: int, there: int, at: int, size: int) -> int:
        time.sleep(0.2)
        return min(step(here, there, at, size), at + 4096)  # a disk that is slow

    _no_reflink(monkeypatch)
    monkeypatch.setattr(seeds, "_step", slow)
    task = asyncio.create_task(place.run(place.volume(image, made)))
    await asyncio.sleep(0.5)
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begun < 2 and place.names() == [made.path]


async def test_memory_stays_small(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "large"
    with source.open("wb") as file:
        for _ in range(128):
            file.write(os.urandom(MIB))
    _by_pieces(monkeypatch)
    before = forget_peak()
    await seeds.copy_file(str(source), str(tmp_path / "copy"), 128 * MIB, lambda *_: None)
    assert peak() - before < 24 * MIB
    assert source.read_bytes() == (tmp_path / "copy").read_bytes()


async def test_volumes_and_seeds_of_one_id_do_not_meet(place: Place, tmp_path: Path) -> None:
    """A root admin chooses the ids of volumes."""
    image = await place.image(disk(tmp_path, ImageFormat.QCOW2).read_bytes(), ImageFormat.QCOW2)
    made = await place.seed(image)
    created: DiskCreated = await place.run(place.volume(image, made).model_copy(update={"volume_id": place.template}))
    assert place.names() == sorted([made.path, created.disk.path])
    await place.run(place.order(DeleteDisk, primary=place.primary, volume_id=place.template))
    assert place.names() == [made.path]
    made = await place.seed(image)  # again: its report was lost
    making = place.order(MakeSeed, primary=place.primary, template_id=place.template, image=image, store=place.spec)
    (place.base / "primary" / f".{place.template}.{making.work_name}.seed.qcow2").write_bytes(b"half")
    clean = leftovers.cleaning(making)
    assert isinstance(clean, DropSeed)
    for _ in range(2):
        await place.run(clean)
        assert place.names() == []


async def test_a_primary_store_of_devices_refuses(place: Place, tmp_path: Path) -> None:
    image = await place.image(disk(tmp_path, ImageFormat.QCOW2).read_bytes(), ImageFormat.QCOW2)
    block = place.primary.model_copy(update={"kind": "block", "path": str(tmp_path / "links")})
    with pytest.raises(Refused, match="whole disks only"):
        await place.run(place.order(MakeSeed, primary=block, template_id=place.template, image=image, store=place.spec))
    await place.run(place.order(DropSeed, primary=block, template_id=place.template))
