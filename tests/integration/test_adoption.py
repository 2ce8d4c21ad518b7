"""Objects taken where they lie, in real stores: read only, described beside, made a disk of, and let go again."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.image_stores.folder import FolderImageStore
from agents.image_stores.s3 import S3ImageStore
from agents.manifest import manifest_key, verify_object
from agents.operations import OPERATIONS
from agents.toolbox import Toolbox
from schema.agent import AdoptImage, CreateDisk, DisownImage
from schema.failure import BadParameter, WorkFailed
from schema.image import ImageFormat, PrimarySpec, StoreSpec
from tests.services.s3_fixture import s3_spec
from tests.support.images import MIB, img

pytestmark = pytest.mark.needs_qemu


class Place:
    """A store with an image that somebody else put there."""

    def __init__(self, store: Any, spec: StoreSpec, secrets: dict[str, str], folder: Path) -> None:
        self.store, self.spec, self.secrets, self.folder, self.tools = store, spec, secrets, folder, Toolbox()
        self.primary = PrimarySpec(id=uuid4(), name="p", kind="folder", path=str(folder / "primary"), zone_id=uuid4(), agent="a")
        (folder / "primary").mkdir()
        self.home = f"theirs-{uuid4().hex}"

    def at(self, name: str) -> str:
        """The key of an object of somebody else's: the bucket is shared by these tests."""
        return f"{self.home}/{name}"

    async def do(self, kind: Any, /, **more: Any) -> Any:
        order = kind(**{"job_id": uuid4(), "work_id": uuid4(), "agent": "a", "reply_key": "k"} | more)
        return await OPERATIONS[kind](order, self.tools, self.secrets, lambda *_: None)

    async def put(self, key: str, body: bytes) -> None:
        await self.store.put(key, body)

    async def adopt(self, key: str, form: ImageFormat = ImageFormat.QCOW2, **more: Any) -> Any:
        about = {"store": self.spec, "key": key, "format": form, "kind": "volume", "thing_id": UUID(int=5), "max_bytes": 64 * MIB,
                 "max_virtual_size": 1 << 40}
        return (await self.do(AdoptImage, **about | more)).image

    async def keys(self) -> list[str]:
        return sorted([info.key async for info in self.store.list("") if info.key.startswith(f"{self.home}/")])


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.needs_s3)])
async def place(request: pytest.FixtureRequest, tmp_path: Path, qemu: None) -> AsyncIterator[Place]:
    secrets: dict[str, str] = {}
    if request.param == "folder":
        (tmp_path / "store").mkdir()
        spec = StoreSpec(id=uuid4(), name="s", provider="folder", url=f"folder://{tmp_path / 'store'}", prefix=str(uuid4()))
        store: Any = await FolderImageStore.open(spec, secrets)
    else:
        server = request.getfixturevalue("s3_server")
        spec, secrets = s3_spec(server), {"secretkey": server.secret_key}
        store = await S3ImageStore.open(spec, secrets)
    await store.test("probe")
    yield Place(store, spec, secrets, tmp_path)
    await store.aclose()


@pytest.mark.parametrize("form", [ImageFormat.QCOW2, ImageFormat.RAW])
async def test_an_object_becomes_a_disk_and_stays_what_it_is(place: Place, tmp_path: Path, form: ImageFormat) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(4).randbytes(3 * MIB) + bytes(4 * MIB) + random.Random(5).randbytes(MIB))
    if form is ImageFormat.QCOW2:
        img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(tmp_path / "image"))
    body = raw.read_bytes() if form is ImageFormat.RAW else (tmp_path / "image").read_bytes()
    await place.put(place.at("disk.img"), body)
    image = await place.adopt(place.at("disk.img"), form)
    assert (image.virtual_size, image.physical_size, image.key) == (8 * MIB, len(body), place.at("disk.img"))
    await verify_object(place.store, image.key, root=image.root)
    assert await place.keys() == [place.at("disk.img"), manifest_key(place.at("disk.img"))]
    made = await place.do(CreateDisk, primary=place.primary, volume_id=uuid4(), virtual_size=0, image=image, store=place.spec)
    disk = tmp_path / "primary" / made.disk.path
    img("check", "-f", "qcow2", str(disk))
    img("compare", "-f", "raw", "-F", "qcow2", str(raw), str(disk))
    await place.do(DisownImage, store=place.spec, key=image.key, thing_id=UUID(int=6))  # another's word changes nothing
    assert len(await place.keys()) == 2
    for _ in range(2):
        await place.do(DisownImage, store=place.spec, key=image.key, thing_id=UUID(int=5))
        assert await place.keys() == [place.at("disk.img")]
    assert await place.store.read(place.at("disk.img"), 0, len(body) + 1) == body


async def test_what_cannot_be_taken_is_left_alone(place: Place, tmp_path: Path) -> None:
    img("create", "-q", "-f", "qcow2", str(tmp_path / "image"), "8M")
    body = (tmp_path / "image").read_bytes()
    await place.put(place.at("a"), body)
    for more, said in (({"key": place.at("none")}, "has no object"), ({"max_bytes": 1000}, "at most 1000"),
                       ({"max_virtual_size": MIB}, "virtual size"), ({"form": ImageFormat.RAW}, "declared raw and is qcow2"),
                       ({"checksum": "{SHA-256}" + "0" * 64}, "of what lies there")):
        with pytest.raises(BadParameter, match=said):
            await place.adopt(**{"key": place.at("a")} | more)  # type: ignore[arg-type] # of several kinds
        assert await place.keys() == [place.at("a")]
    work = uuid4()
    image = await place.adopt(place.at("a"), work_id=work)
    assert (await place.adopt(place.at("a"), work_id=work, attempt=2)).root == image.root  # a retry of the same order
    with pytest.raises(BadParameter, match="belongs to the volume"):
        await place.adopt(place.at("a"))
    await place.put(place.at("b"), body)
    await place.put(manifest_key(place.at("b")), b"not a manifest")
    with pytest.raises(BadParameter, match="no manifest lies beside it"):
        await place.adopt(place.at("b"))
    await place.do(DisownImage, store=place.spec, key=place.at("b"), thing_id=UUID(int=5))
    assert manifest_key(place.at("b")) in await place.keys()


async def test_an_object_that_is_changed_after_it_was_taken_is_not_read_as_a_disk(place: Place, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(4).randbytes(2 * MIB))
    await place.put(place.at("a"), raw.read_bytes())
    image = await place.adopt(place.at("a"), ImageFormat.RAW)
    await place.put(place.at("a"), raw.read_bytes()[:-1] + b"!")
    with pytest.raises(WorkFailed, match="not what was written"):
        await place.do(CreateDisk, primary=place.primary, volume_id=uuid4(), virtual_size=0, image=image, store=place.spec)
    assert list((tmp_path / "primary").iterdir()) == []
