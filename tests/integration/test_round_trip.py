"""Images made elsewhere go through every store and come back: fetched, restored, judged by tools not written here.

Each is made by qemu-img, served over HTTP, registered by the order that a storage agent is given, and made a disk by the order of
a KVM agent. The object is the file byte for byte, read by each store's own kind of client; the disk has the image's content; what
was sparse stays sparse.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import UUID, uuid4

import boto3
import pytest

from agents.image_stores.registry import open_store
from agents.operations import OPERATIONS
from agents.toolbox import Toolbox
from schema.agent import CreateDisk, DiskCreated, FetchImage, ImageResult
from schema.image import ImageFormat, PrimarySpec, StoreSpec
from schema.message import Order
from tests.services.http_files import HttpFiles, http_files
from tests.services.s3_fixture import s3_spec
from tests.services.swift_fixture import swift_spec
from tests.support.images import MIB, img

pytestmark = pytest.mark.needs_qemu
SIZE = 24 * MIB


def _raw(folder: Path, seed: int) -> Path:
    """A disk's content: noise, text and holes."""
    path, dice = folder / "content.raw", random.Random(seed)
    with path.open("wb") as out:
        out.write(dice.randbytes(3 * MIB))
        out.seek(8 * MIB)
        out.write(b"the same line again\n" * 100_000)
        out.seek(SIZE - 5000)
        out.write(dice.randbytes(5000))
    return path


def _inside(raw: Path, path: Path) -> None:
    """With two snapshots of its own inside."""
    img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))
    for name in ("one", "two"):
        img("snapshot", "-c", name, str(path))


IMAGES: dict[str, tuple[ImageFormat, Any]] = {
    "raw": (ImageFormat.RAW, lambda raw, path: path.write_bytes(raw.read_bytes())),
    "qcow2 v2": (ImageFormat.QCOW2, lambda raw, path: img("convert", "-f", "raw", "-O", "qcow2", "-o", "compat=0.10", str(raw), str(path))),
    "qcow2 v3": (ImageFormat.QCOW2, lambda raw, path: img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))),
    "compressed": (ImageFormat.QCOW2, lambda raw, path: img("convert", "-c", "-f", "raw", "-O", "qcow2", str(raw), str(path))),
    "zstd": (ImageFormat.QCOW2, lambda raw, path: img(
        "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", str(raw), str(path))),
    "small clusters": (ImageFormat.QCOW2, lambda raw, path: img(
        "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=512", str(raw), str(path))),
    "snapshots inside": (ImageFormat.QCOW2, _inside),
    "empty": (ImageFormat.QCOW2, lambda raw, path: img("create", "-q", "-f", "qcow2", str(path), "64M")),
    "0 bytes": (ImageFormat.QCOW2, lambda raw, path: img("create", "-q", "-f", "qcow2", str(path), "0")),
    "1 TiB": (ImageFormat.QCOW2, lambda raw, path: img("create", "-q", "-f", "qcow2", str(path), "1T")),
}


@pytest.fixture(scope="module")
def files() -> Iterator[HttpFiles]:
    """The web server the images come from."""
    with http_files() as server:
        yield server


class Store:
    """A store, and how its own kind of client reads an object."""

    def __init__(self, spec: StoreSpec, secrets: dict[str, str], fetch: Any) -> None:
        self.spec, self.secrets, self.fetch = spec, secrets, fetch


@pytest.fixture(params=["folder", "nfs", pytest.param("s3", marks=pytest.mark.needs_s3), pytest.param("swift", marks=pytest.mark.needs_swift)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """One of each provider."""
    if request.param == "folder":
        root = tmp_path / "store"
        root.mkdir()
        made = Store(StoreSpec(id=uuid4(), name="s", provider="folder", url=f"folder://{root}", prefix=str(uuid4())), {},
                     lambda key: (root / key).read_bytes())
    elif request.param == "nfs":
        given = os.environ.get("STOREBUS_TEST_NFS_PATH", "")  # without it a directory, which proves nothing about NFS
        root = Path(given) / f"storebus-{uuid4()}" if given else tmp_path / "mount"
        root.mkdir()
        request.addfinalizer(partial(shutil.rmtree, root))
        made = Store(StoreSpec(id=uuid4(), name="s", provider="nfs", url="nfs://filer/export", prefix=str(uuid4()),
                               details={"mountpoint": str(root)}), {}, lambda key: (root / key).read_bytes())
    elif request.param == "s3":
        server = request.getfixturevalue("s3_server")
        client = boto3.client("s3", endpoint_url=server.endpoint, aws_access_key_id=server.access_key,
                              aws_secret_access_key=server.secret_key, region_name="us-east-1")
        request.addfinalizer(client.close)
        made = Store(s3_spec(server), {"secretkey": server.secret_key},
                     lambda key: client.get_object(Bucket=server.bucket, Key=key)["Body"].read())
    else:
        swift = request.getfixturevalue("swift_server")
        secrets = {"key": swift.key}
        spec = swift_spec(swift)
        opened = await open_store(spec, secrets)
        await opened.test("probe")
        links: dict[str, str] = {}
        made = Store(spec, secrets, lambda key: urlopen(links[key], timeout=30).read())
        made.links = links  # type: ignore[attr-defined] # only of this kind: plain GETs by a link that Swift checks
        made.opened = opened  # type: ignore[attr-defined] # as above
    opened = await open_store(made.spec, made.secrets)
    await opened.test("probe")
    yield made
    await opened.aclose()
    if hasattr(made, "opened"):
        await made.opened.aclose()


async def do(of: type[Order], store: Store, files: HttpFiles, **fields: Any) -> Any:
    order = of(job_id=uuid4(), work_id=uuid4(), attempt=1, agent="a", reply_key="k", store=store.spec, **fields)
    return await OPERATIONS[of](order, Toolbox(download_allow=files.allow), store.secrets, lambda *_: None)


@pytest.mark.parametrize("name", IMAGES)
async def test_it_comes_back(name: str, store: Store, files: HttpFiles, tmp_path: Path, qemu: None, seed: int) -> None:
    form, make = IMAGES[name]
    raw, image = _raw(tmp_path, seed), tmp_path / "image"
    make(raw, image)
    body = image.read_bytes()
    files.bodies["image"] = body
    thing = uuid4()
    key = f"{store.spec.prefix}/template/{thing}/image"
    fetched: ImageResult = await do(
        FetchImage, store, files, url=files.url("file/image"), format=form, key=key, kind="template", thing_id=thing, max_bytes=1 << 30,
        max_virtual_size=2 << 40, checksum=hashlib.sha512(body).hexdigest())
    if hasattr(store, "links"):
        store.links[key] = await store.opened.presign(key, 60)  # type: ignore[attr-defined] # of the Swift fixture
    assert store.fetch(key) == body, "the object is the file"
    primary = PrimarySpec(id=uuid4(), name="p", kind="folder", path=str(tmp_path / "primary"), zone_id=uuid4(), agent="a")
    (tmp_path / "primary").mkdir()
    made: DiskCreated = await do(CreateDisk, store, files, primary=primary, volume_id=UUID(int=7), virtual_size=0, image=fetched.image)
    disk = tmp_path / "primary" / made.disk.path
    img("check", "-f", "qcow2", str(disk))
    img("compare", "-f", str(form), "-F", "qcow2", str(image), str(disk))
    assert disk.stat().st_blocks * 512 < 7 * MIB, "holes are not filled"
