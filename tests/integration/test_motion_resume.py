"""A transfer that was killed goes on where it was: a real agent or mover is killed -9, and the bytes through the proxy are counted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.download import IN_FLIGHT
from agents.hypervisors.kvm import KvmHypervisor
from agents.image_stores.base import ImageStore
from agents.image_stores.memory import MemoryImageStore
from agents.image_stores.registry import open_store
from agents.manifest import verify_object
from agents.motion.direct import PART, write_image
from agents.mover import Mover, MoverDied
from agents.transfer_record import TransferRecord, forget, sweep
from schema.agent import CreateDisk, FetchImage, WriteSnapshot
from schema.image import DiskRef, ImageFormat, ImageRef, PrimarySpec, StoreSpec
from schema.message import Order
from tests.integration import test_agent_kill
from tests.services.http_files import http_files
from tests.services.s3_fixture import s3_server, s3_spec
from tests.services.s3_proxy import S3Proxy
from tests.services.seaweedfs import SeaweedFS
from tests.services.swift_fixture import swift_server, swift_spec
from tests.support.agent_process import NAME
from tests.support.images import MIB, img, make_disk

__all__ = ["s3_server", "swift_server"]
pytestmark = [pytest.mark.needs_qemu, pytest.mark.usefixtures("qemu")]
SEED, ROUNDS = int(os.environ.get("STOREBUS_SEED", "1")), int(os.environ.get("STOREBUS_SOAK_N", "0"))
WORKERS = 2
DATA = 12 * PART


@pytest.fixture
async def disk(tmp_path: Path) -> Path:
    """A disk with a snapshot `t` of its content."""
    (tmp_path / "primary").mkdir()
    path = tmp_path / "primary" / "disk.qcow2"
    await make_disk(path, 2 * DATA, [(0, DATA)])
    await KvmHypervisor().take_snapshot(str(path), "t")
    return path


@pytest.fixture
async def proxy(s3_server: SeaweedFS) -> AsyncIterator[S3Proxy]:
    async with S3Proxy(s3_server.endpoint) as proxy:
        yield proxy


@dataclass(frozen=True)
class Place:
    """A store over HTTP behind a proxy that counts."""

    kind: str
    spec: StoreSpec
    secrets: dict[str, str]
    """The one that it needs."""
    proxy: S3Proxy


KINDS = [pytest.param("s3", marks=pytest.mark.needs_s3), pytest.param("swift", marks=pytest.mark.needs_swift)]


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    kind = request.param
    server = request.getfixturevalue(f"{kind}_server")
    async with S3Proxy(server.endpoint) as proxy:
        if kind == "s3":
            yield Place(kind, s3_spec(server, endpoint=proxy.endpoint), {"secretkey": server.secret_key}, proxy)
        else:
            spec = swift_spec(server, url=f"{proxy.endpoint}/auth/v1.0", container=f"resumed-{uuid4()}")
            store = await open_store(spec, {"key": server.key})
            await store.test("inst/probe")  # makes the container, as addImageStore does
            await store.aclose()
            yield Place(kind, spec, {"key": server.key}, proxy)


def order(disk: Path, store: StoreSpec) -> WriteSnapshot:
    """Write its snapshot into the store."""
    primary = PrimarySpec(id=uuid4(), name="p", kind="folder", path=str(disk.parent), zone_id=uuid4(), agent="a")
    return WriteSnapshot(job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", tag="t", store=store,
                         key=f"{store.prefix}/snapshots/{uuid4()}", thing_id=uuid4(),
                         disk=DiskRef(primary=primary, volume_id=uuid4(), path=disk.name, virtual_size=2 * DATA))


async def killed_now_and_then(one: Order, secrets: dict[str, str], folder: str, after: list[int],
                              ended: Callable[[], None] = lambda: None, allow: str = "") -> Any:
    """Do the order; the mover is killed -9 when it said that so many parts are acknowledged, each of `after` once. Its answer.

    `ended` is called after each mover."""
    payload = one.model_dump_json().encode()
    while True:
        mover = Mover({"workers": WORKERS, "records": folder, "download_allow": allow})

        def watch(stage: str, done: int, total: int, mover: Mover = mover) -> None:
            if after and done >= after[0] * PART:
                after.pop(0)
                mover.kill()

        try:
            with contextlib.suppress(MoverDied):
                return await mover.run(one, payload, secrets, watch)
        finally:
            await mover.aclose()
            ended()


async def same(store: ImageStore, image: ImageRef, disk: Path, target: Path) -> None:
    """The object has the bytes of the snapshot, and verifies."""
    await verify_object(store, image.key)
    with target.open("wb") as file:
        for at in range(0, image.physical_size, PART):
            file.write(await store.read(image.key, at, min(PART, image.physical_size - at)))
    img("convert", "-f", "qcow2", "-O", "raw", "-l", "t", str(disk), f"{target}.raw")
    img("compare", "-f", "qcow2", "-F", "raw", str(target), f"{target}.raw")


async def test_kill_9_of_the_mover_sends_again_at_most_a_part_per_worker(disk: Path, tmp_path: Path, place: Place) -> None:
    spec, secrets, proxy = place.spec, place.secrets, place.proxy
    proxy.clear()
    proxy.rate = 24 * MIB
    after = [3, 7]
    answer = await killed_now_and_then(order(disk, spec), secrets, str(tmp_path / "records"), after)
    assert after == [], "it was killed twice"
    image = ImageRef.model_validate(answer["result"]["image"])
    again = proxy.bytes_up - image.physical_size
    assert again < (2 * WORKERS + 1) * PART, f"{again} bytes were sent again for two kills"  # and requests, and a manifest
    assert image.physical_size < proxy.bytes_up
    proxy.heal()
    store = await open_store(spec, secrets)
    await same(store, image, disk, tmp_path / "object")
    assert await store.unfinished(spec.prefix) == []
    await store.delete(image.key)
    await store.aclose()


@pytest.mark.soak(but=("s3",))
async def test_kill_9_of_the_agent_and_the_journaled_order_goes_on(disk: Path, tmp_path: Path, place: Place,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    ((name, secret),), proxy = place.secrets.items(), place.proxy
    monkeypatch.setattr(test_agent_kill, "SECRET", secret)
    spec = place.spec.model_copy(update={"details": place.spec.details | {name: test_agent_kill.REF}})
    proxy.clear()
    one = order(disk, spec).model_copy(update={"agent": NAME})
    proxy.rate = 24 * MIB
    with http_files() as files:
        agent = test_agent_kill.Agent(tmp_path, files)
        record = tmp_path / "state" / "transfers" / f"{one.work_name}.parts"
        await agent.start()
        await agent.give(one)
        await agent.until(lambda: record.exists() and record.read_bytes().count(b"\n") > 5)  # the first line is no part
        await agent.kill()
        await agent.until(lambda: all(test_agent_kill.gone(pid) for pid in agent.movers))
        kept = record.read_bytes().count(b"\n") - 1
        before = proxy.bytes_up
        proxy.rate = None
        await agent.start()
        assert await agent.end(one) == "work.completed", agent.last(one)
        image = ImageRef.model_validate(agent.last(one)["result"]["image"])
        whole = kept - 1  # among them is the last part, a short one
        assert proxy.bytes_up - before < image.physical_size - (whole - 1) * PART, "what was recorded is not sent again"
        assert proxy.bytes_up - image.physical_size < (WORKERS + 1) * PART
        await agent.until(lambda: not record.exists())
        await agent.stop()
    store = await open_store(place.spec, place.secrets)
    await same(store, image, disk, tmp_path / "object")
    assert await store.unfinished(spec.prefix) == []
    await store.delete(image.key)
    await store.aclose()


async def test_random_kills_into_a_folder_leave_the_object_and_nothing_else(disk: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    spec = StoreSpec(id=UUID(int=1), name="f", provider="folder", url=f"folder://{root}", prefix="inst")
    store, dice = await open_store(spec, {}), random.Random(SEED)
    await store.test("inst/probe")
    killed = 0
    for _ in range(max(2, ROUNDS)):
        one = order(disk, spec)
        kills = sorted(dice.sample(range(1, 6), 2))
        answer = await killed_now_and_then(one, {}, str(tmp_path / "records"), kills)
        killed += 2 - len(kills)
        image = ImageRef.model_validate(answer["result"]["image"])
        await same(store, image, disk, tmp_path / "object")
        found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - {".storebus-mount"}
        assert found == {image.key, f"{image.key}.manifest.json"}
        await store.delete(f"{image.key}.manifest.json")
        await store.delete(image.key)
    assert killed, "none was killed"


async def test_a_mover_whose_agent_is_gone_cleans_nothing_up(disk: Path, tmp_path: Path) -> None:
    """When an agent dies its pipes close first, and its children die a moment later: in between nothing may be undone."""
    root = tmp_path / "images"
    root.mkdir()
    spec = StoreSpec(id=UUID(int=1), name="f", provider="folder", url=f"folder://{root}", prefix="inst")
    store, one = await open_store(spec, {}), order(disk, spec)
    await store.test("inst/probe")
    mover = Mover({"workers": WORKERS, "records": str(tmp_path / "records"), "bytes_per_second": 24 * MIB})

    def gone(stage: str, done: int, total: int) -> None:
        if done >= 2 * PART:
            pipes = mover._process._transport  # type: ignore[union-attr] # they close as they would when we were killed
            for number in (0, 1):
                pipes.get_pipe_transport(number).close()

    with pytest.raises(MoverDied):
        await mover.run(one, one.model_dump_json().encode(), {}, gone)
    await mover.aclose()
    upload = await store.resume(one.key, part_size=PART)  # type: ignore[attr-defined] # a folder can
    assert upload is not None, "what had come was removed"
    assert len(await upload.parts()) >= 2
    await upload.abort()
    await store.aclose()


def restoring(one: ImageRef, spec: StoreSpec, folder: Path) -> CreateDisk:
    """Make a disk of the object."""
    primary = PrimarySpec(id=uuid4(), name="p", kind="folder", path=str(folder), zone_id=uuid4(), agent="a")
    return CreateDisk(job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", primary=primary, volume_id=uuid4(),
                      store=spec, image=one, virtual_size=2 * DATA)


def as_raw(disk: Path, to: Path, *options: str) -> Path:
    img("convert", "-f", "qcow2", "-O", "raw", *options, str(disk), str(to))
    return to


@pytest.mark.needs_s3
async def test_kill_9_of_a_restore_reads_again_at_most_a_part_per_worker(disk: Path, tmp_path: Path, s3_server: SeaweedFS,
                                                                       proxy: S3Proxy) -> None:
    spec, secrets = s3_spec(s3_server, endpoint=proxy.endpoint), {"secretkey": s3_server.secret_key}
    answer = await killed_now_and_then(order(disk, spec), secrets, str(tmp_path / "records"), [])
    image = ImageRef.model_validate(answer["result"]["image"])
    truth = as_raw(disk, tmp_path / "truth", "-l", "t")
    dice, folder = random.Random(SEED), tmp_path / "target"
    folder.mkdir()
    store = await open_store(spec, secrets)
    for kills in [[3, 7], *(sorted(dice.sample(range(1, 12), 2)) for _ in range(ROUNDS))]:
        one, after = restoring(image, spec, folder), list(kills)
        disks: list[list[str]] = []
        proxy.rate, before = 48 * MIB, proxy.bytes_down

        def seen(disks: list[list[str]] = disks) -> None:
            disks.append([path.name for path in folder.glob("*.qcow2") if not path.name.startswith(".")])

        await killed_now_and_then(one, secrets, str(tmp_path / "records"), after, seen)
        assert after == [], "it was killed twice"
        again = proxy.bytes_down - before - image.physical_size
        assert again < (2 * WORKERS + 1) * PART, f"{again} bytes were read again for two kills"  # and the manifest, thrice
        assert disks == [[], [], [f"{one.volume_id}.qcow2"]], "a disk that is not whole was seen"
        path = folder / f"{one.volume_id}.qcow2"
        img("check", "-f", "qcow2", str(path))
        img("compare", "-f", "qcow2", "-F", "raw", str(path), str(truth))
        assert list(folder.iterdir()) == [path]
        path.unlink()
    await store.delete(image.key)
    await store.aclose()


@pytest.mark.needs_s3
async def test_kill_9_of_a_download_into_s3_sends_again_at_most_what_was_on_its_way(tmp_path: Path, s3_server: SeaweedFS,
                                                                                  proxy: S3Proxy) -> None:
    spec, secrets = s3_spec(s3_server, endpoint=proxy.endpoint), {"secretkey": s3_server.secret_key}
    body = random.Random(SEED).randbytes(10 * PART + 99)
    with http_files() as files:
        files.bodies["raw"], files.headers, files.pause_every, files.pause_s = body, {"ETag": '"v1"'}, MIB, 0.02
        one = FetchImage(job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", url=files.url("slow/raw"), format="raw",
                         checksum="{SHA-256}" + hashlib.sha256(body).hexdigest(), store=spec, key=f"{spec.prefix}/t/{uuid4()}",
                         kind="template", thing_id=uuid4(), max_bytes=1 << 30, max_virtual_size=1 << 40)
        after = [3, 7]
        answer = await killed_now_and_then(one, secrets, str(tmp_path / "records"), after, allow=files.allow)
        assert after == [], "it was killed twice"
        assert "Range" not in files.asked[0][1]
        assert all(headers.get("If-Range") == '"v1"' for _, headers in files.asked[1:])
        assert len(files.asked) > 1  # by the second kill all of it may have come
        assert files.sent - len(body) < 2 * (IN_FLIGHT + 1) * PART
    assert proxy.bytes_up - len(body) < (2 * IN_FLIGHT + 1) * PART
    image = ImageRef.model_validate(answer["result"]["image"])
    store = await open_store(spec, secrets)
    assert (await verify_object(store, image.key)).sha256 == hashlib.sha256(body).hexdigest()
    assert await store.unfinished(spec.prefix) == []
    await store.delete(image.key)
    await store.aclose()


@pytest.mark.soak(but=("flipped", "adopted"))
@pytest.mark.parametrize("how", ["flipped", "longer", "shorter", "holes of others", "whole", "adopted"])
async def test_what_a_killed_restore_left_is_believed_by_its_content_alone(disk: Path, tmp_path: Path, how: str) -> None:
    (tmp_path / "images").mkdir()
    spec = StoreSpec(id=UUID(int=1), name="f", provider="folder", url=f"folder://{tmp_path / 'images'}", prefix="inst")
    store = await open_store(spec, {})
    await store.test("inst/probe")
    answer = await killed_now_and_then(order(disk, spec), {}, str(tmp_path / "records"), [])
    image = ImageRef.model_validate(answer["result"]["image"])
    body = await store.read(image.key, 0, image.physical_size)
    one = restoring(image, spec, tmp_path / "primary")
    draft = tmp_path / "primary" / f".{one.volume_id}.{one.work_name}.qcow2"
    draft.write_bytes(body)
    match how:
        case "flipped":
            with draft.open("r+b") as file:
                file.seek(3 * PART + 5)
                file.write(bytes([body[3 * PART + 5] ^ 1]))
        case "longer":
            draft.write_bytes(body + b"x" * PART)
        case "shorter":
            draft.write_bytes(body[:5 * PART + 7])
        case "holes of others":
            draft.write_bytes(b"\xff" * len(body))  # zeros of the object must be written over it
        case "adopted":
            await KvmHypervisor().adopt(str(draft), format=ImageFormat.QCOW2, grow_to=4 * DATA)
    await killed_now_and_then(one, {}, str(tmp_path / "records"), [])
    made = tmp_path / "primary" / f"{one.volume_id}.qcow2"
    img("check", "-f", "qcow2", str(made))
    img("compare", "-f", "qcow2", "-F", "raw", str(made), str(as_raw(disk, tmp_path / "truth", "-l", "t")))
    assert not draft.exists()
    await store.aclose()


class Interrupted(Exception):
    """Stands for a kill: nothing cleans up after it."""


class TestWhatIsTrusted:
    """The record and the store's list, each wrong in turn. In memory, where every part is seen."""

    async def _run(self, disk: Path, store: MemoryImageStore, record: TransferRecord, key: str, stop: int = 0) -> list[int]:
        """Numbers of the parts that were sent. With `stop`, as if killed when so many were."""
        sent: list[int] = []

        async def before(operation: str, _: str) -> None:
            if operation == "part":
                if stop and len(sent) == stop:
                    raise Interrupted
                sent.append(1)
            elif stop and operation in ("abort", "delete"):
                raise Interrupted

        store._bucket.before = before
        try:
            async with KvmHypervisor().open(str(disk), tag="t") as device:
                await write_image(device, store, store_id=UUID(int=1), key=key, kind="snapshot", thing_id=uuid4(), job_id=uuid4(),
                                  work="w.1", installation="i", progress=lambda *_: None, workers=1, record=record)
        except Interrupted:
            assert stop
        store._bucket.before = None
        return sent

    @pytest.fixture
    async def store(self) -> MemoryImageStore:
        return await MemoryImageStore.open(
            StoreSpec(id=uuid4(), name="s", provider="memory", url=f"memory://{uuid4()}", prefix="p"), {})

    @pytest.mark.soak(but=("torn", "other", "whole"))
    @pytest.mark.parametrize("how", ["nothing", "torn", "other", "changed", "unlisted", "empty", "whole"])
    async def test_only_what_both_say(self, disk: Path, tmp_path: Path, store: MemoryImageStore, how: str) -> None:
        record, path, key = TransferRecord(tmp_path / "records", "w.1"), tmp_path / "records" / "w.1.parts", f"{uuid4()}/s"
        assert len(await self._run(disk, store, record, key, stop=5)) == 5
        total, (_, parts) = 13, next(iter(store._bucket.uploads.values()))
        assert sorted(parts) == [1, 2, 3, 4, 13]  # the last one is begun first
        expected = total - 5
        match how:
            case "torn":
                path.write_bytes(path.read_bytes()[:-9])
                expected += 1
            case "other":
                path.write_text(path.read_text().replace('"about": "', '"about": "0'))
                expected = total
            case "changed":
                parts[2] = bytes(len(parts[2]))
                expected += 1
            case "unlisted":
                del parts[3]
                expected += 1
            case "empty":
                path.unlink()
                expected = total
            case "whole":
                assert len(await self._run(disk, store, record, key)) == expected
                expected = 0
        assert len(await self._run(disk, store, record, key)) == expected
        await verify_object(store, key)
        assert store._bucket.uploads == {}

    def test_records_are_removed(self, tmp_path: Path) -> None:
        for name in ("a.1.parts", "a.2.parts", "b.1.parts", "b.1.new"):
            (tmp_path / name).write_text(json.dumps({}))
        forget(tmp_path, "a.1")
        assert not (tmp_path / "a.1.parts").exists()
        sweep(tmp_path, {"a.2"})
        assert [path.name for path in tmp_path.iterdir()] == ["a.2.parts"]
