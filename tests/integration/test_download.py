"""The download gate against a web server that lies: verified bytes in the store, or a clear refusal and nothing at all."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents import download, stall
from agents.download import fetch, parse_checksum
from agents.image_stores.memory import Bucket, MemoryImageStore, bucket
from agents.manifest import manifest_key, verify_object
from agents.transfer_record import TransferRecord
from agents.url_guard import UrlGuard, parse_allow
from schema.agent import FetchImage
from schema.failure import BadParameter, Failed, WorkFailed, WorkRetryable
from schema.image import ImageFormat, ImageRef, StoreSpec
from tests.services.http_files import Canary, HttpFiles, canary, http_files

SEED = int(os.environ.get("STOREBUS_SEED", "1"))
MIB = 1 << 20
KERNELS = 24 * MIB
"""What a server may have sent though nobody read it: both kernels buffer."""
RAW = random.Random(SEED).randbytes(20 * MIB + 777)
KEY = "inst/template/1/image"


@pytest.fixture(scope="module")
def files() -> Iterator[HttpFiles]:
    """The server; `raw` is an honest raw image."""
    with http_files() as server:
        server.bodies |= {"raw": RAW, "html": b"<!DOCTYPE html><html>sorry</html>", "bomb": gzip.compress(bytes(64 * MIB)),
                          "zeros": bytes(4 * MIB)}
        yield server


@pytest.fixture
def trap() -> Iterator[Canary]:
    """A listener that is not allowed."""
    with canary() as one:
        yield one


class Gate:
    """A store in memory and the guard that lets the test's server through."""

    def __init__(self, files: HttpFiles) -> None:
        self.files, self.where = files, f"memory://{uuid4()}"
        files.asked.clear()
        files.sent, files.hold_at = 0, 0
        files.gate.clear()
        files.ended.clear()
        self.guard = UrlGuard(parse_allow(files.allow))
        self.seen: list[tuple[str, int, int]] = []

    @property
    def bucket(self) -> Bucket:
        """The inside of the store."""
        return bucket(self.where)

    def order(self, path: str, **more: Any) -> FetchImage:
        """An order for a path of the server, or a whole URL."""
        store = StoreSpec(id=UUID(int=1), name="m", provider="memory", url=self.where, prefix="inst")
        fields: dict[str, Any] = {
            "job_id": UUID(int=2), "work_id": UUID(int=3), "agent": "a", "reply_key": "k",
            "url": path if path.startswith("http:") else self.files.url(path), "format": ImageFormat.RAW, "store": store, "key": KEY,
            "kind": "template", "thing_id": UUID(int=4), "max_bytes": 1 << 30, "max_virtual_size": 1 << 40}
        return FetchImage.model_validate(fields | more)

    async def fetch(self, path: str, **more: Any) -> ImageRef:
        """Download it."""
        order = self.order(path, **more)
        return await fetch(order, MemoryImageStore(self.bucket), self.guard, lambda *word: self.seen.append(word))

    async def refused(self, path: str, kind: type[Failed] = BadParameter, **more: Any) -> str:
        """Its refusal's text; nothing may be left."""
        with pytest.raises(kind) as refused:
            await self.fetch(path, **more)
        self.nothing_left()
        return refused.value.failure.text

    def nothing_left(self) -> None:
        """No object, no manifest, no upload."""
        assert (self.bucket.objects, self.bucket.uploads) == ({}, {})


@pytest.fixture
def gate(files: HttpFiles) -> Gate:
    """See Gate."""
    return Gate(files)


@pytest.mark.needs_qemu
async def test_a_qcow2_that_was_cut_short_at_its_source_is_refused(gate: Gate, qemu: None, tmp_path: Path) -> None:
    """Its length is what the server says, its header and first tables are right: what is missing is behind them."""
    raw, image = tmp_path / "raw", tmp_path / "image.qcow2"
    raw.write_bytes(RAW[:20 * MIB])
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)], check=True)
    whole = image.read_bytes()
    for cut in (len(whole) - 512, len(whole) - (1 << 16), len(whole) // 2):
        gate.files.bodies["cut"] = whole[:cut]
        assert "truncated" in await gate.refused("file/cut", format=ImageFormat.QCOW2)
    gate.files.bodies["cut"] = whole
    assert (await gate.fetch("file/cut", format=ImageFormat.QCOW2)).physical_size == len(whole)


@pytest.mark.parametrize("behaviour", ["file", "chunked", "nolength", "hops/3"])
async def test_an_image_comes_whole_with_its_manifest(gate: Gate, behaviour: str) -> None:
    image = await gate.fetch(f"{behaviour}/raw")
    assert gate.bucket.objects[KEY] == RAW
    assert image.sha256 == hashlib.sha256(RAW).hexdigest()
    assert (image.physical_size, image.virtual_size) == (len(RAW), -(-len(RAW) // 512) * 512)
    manifest = await verify_object(MemoryImageStore(gate.bucket), KEY)
    assert (manifest.root, manifest.sha256, manifest.work) == (image.root, image.sha256, f"{UUID(int=3)}.1")
    assert [hashlib.sha256(RAW[at:at + manifest.part_size]).hexdigest() for at in range(0, len(RAW), manifest.part_size)] == manifest.parts
    assert set(gate.bucket.objects) == {KEY, manifest_key(KEY)}


async def test_progress_is_what_the_store_acknowledged(gate: Gate) -> None:
    landed = [0]

    async def before(operation: str, key: str) -> None:
        if operation == "part":
            landed[0] += 1

    gate.bucket.before = before
    seen: list[tuple[int, int]] = []
    store = MemoryImageStore(gate.bucket)
    await fetch(gate.order("file/raw"), store, gate.guard, lambda stage, done, total: seen.append((done, landed[0])))
    amounts = [done for done, _ in seen]
    assert amounts == sorted(amounts)
    assert amounts[-1] == len(RAW)
    assert all(done <= parts * 8 * MIB for done, parts in seen)


@pytest.mark.needs_qemu
async def test_a_qcow2_is_taken_with_its_virtual_size(gate: Gate, qemu: None, tmp_path: Path) -> None:
    raw, image = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(RAW[:9 * MIB])
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    gate.files.bodies["qcow2"] = image.read_bytes()
    found = await gate.fetch("file/qcow2", format="qcow2")
    assert (found.virtual_size, gate.bucket.objects[KEY]) == (9 * MIB, image.read_bytes())
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", image, "9M"], check=True)
    gate.files.bodies["backed"] = image.read_bytes()
    fresh = Gate(gate.files)
    assert "backing" in await fresh.refused("file/backed", format="qcow2")


LIES: dict[str, tuple[type[Failed], str]] = {
    "status/404": (BadParameter, "404"), "status/403": (BadParameter, "403"), "status/201": (BadParameter, "201"),
    "status/503": (WorkRetryable, "503"), "status/429": (WorkRetryable, "429"), "status/206": (BadParameter, "206"),
    "nothing/here": (BadParameter, "404"), "truncated/raw": (WorkRetryable, "truncated"), "unended/raw": (WorkRetryable, "truncated"),
    "file/html": (BadParameter, "HTML"), "file/absent": (BadParameter, "no bytes"), "file/bomb": (BadParameter, "gzip"),
    "encoded/raw?as=gzip": (BadParameter, "compressed"), "encoded/bomb?as=gzip": (BadParameter, "compressed"),
    "encoded/raw?as=br": (BadParameter, "compressed"), "encoded/raw?as=deflate": (BadParameter, "compressed"),
    "huge/raw": (BadParameter, "at most"), "endless/raw": (BadParameter, "more than"), "nonsense/x": (WorkRetryable, "not HTTP"),
    "to/302": (BadParameter, "where"), "to/302?where=file:///etc/passwd": (BadParameter, "http"),
    "to/301?where=http://127.0.0.1:22/": (BadParameter, "public"), "to/307?where=http://169.254.169.254/": (BadParameter, "public"),
    "to/308?where=http://[::1": (BadParameter, "parsed"), "to/303?where=//0x7f.1/": (BadParameter, "form"),
    "to/302?where=http://u:p@example.com/": (BadParameter, "password"), "hops/4/raw": (BadParameter, "3 times"),
}


@pytest.mark.parametrize("path", LIES)
async def test_a_lie_is_named_and_leaves_nothing(gate: Gate, path: str) -> None:
    kind, words = LIES[path]
    text = await gate.refused(path, kind, max_bytes=64 * MIB)
    assert words in text
    assert text.startswith("url: ")


async def test_a_length_that_says_too_little_is_found_by_the_checksum(gate: Gate) -> None:
    digest = hashlib.sha256(RAW).hexdigest()
    assert "sha256" in await gate.refused("shorter/raw?by=1048576", checksum=digest)


async def test_a_bomb_costs_nothing(gate: Gate) -> None:
    gate.files.bodies["long"] = gate.files.bodies["bomb"] + bytes(64 * MIB)
    await gate.refused("file/long")
    await asyncio.sleep(0.1)
    assert gate.files.sent < KERNELS, "it was read on after its first bytes"


async def test_too_much_is_not_read_to_its_end(gate: Gate) -> None:
    await gate.refused("endless/raw", max_bytes=30 * MIB)
    assert gate.files.sent < 60 * MIB
    gate.files.sent = 0
    await gate.refused("huge/raw")
    assert gate.files.sent < KERNELS


@pytest.mark.parametrize("name", ["MD5", "SHA-1", "SHA-224", "SHA-256", "SHA-384", "SHA-512", "sha-256"])
async def test_checksums_of_every_kind(gate: Gate, name: str) -> None:
    digest = hashlib.new(name.replace("-", ""), gate.files.bodies["zeros"]).hexdigest()
    await gate.fetch("file/zeros", checksum=f"{{{name}}}{digest.upper()}")
    await Gate(gate.files).fetch("file/zeros", checksum=digest)
    wrong = ("0" if digest[0] != "0" else "1") + digest[1:]
    assert "checksum" in await Gate(gate.files).refused("file/zeros", checksum=f"{{{name}}}{wrong}")


@pytest.mark.parametrize("text", ["nonsense", "{SHA-256}", "{SHA-256}abc", "{CRC32}" + "0" * 8, "0" * 65, "{MD5}" + "0" * 64, "{}" + "0" * 64])
async def test_a_checksum_that_is_none_is_refused_before_any_request(gate: Gate, text: str) -> None:
    assert "checksum" in await gate.refused("file/raw", checksum=text)
    assert gate.files.asked == []
    with pytest.raises(BadParameter):
        parse_checksum(text)


async def test_nothing_forbidden_is_connected_to(gate: Gate, trap: Canary) -> None:
    inside = f"127.0.0.1:{trap.port}"
    for url in (f"http://{inside}/", f"http://localhost:{trap.port}/", f"http://2130706433:{trap.port}/", f"http://[::ffff:127.0.0.1]:{trap.port}/",
                gate.files.url(f"to/302?where=http://{inside}/"), gate.files.url(f"to/302?where=//{inside}/"),
                f"http://u@{inside}/", f"http://example.com\\@{inside}/"):
        await gate.refused(url)
    assert trap.reached == 0


async def test_a_name_that_changes_its_address_is_asked_once_and_pinned(gate: Gate, trap: Canary) -> None:
    """A rebinding name server: the checked address first, a forbidden one ever after."""
    answers = [["127.0.0.1"]]
    asked: list[str] = []

    async def resolve(host: str) -> list[str]:
        asked.append(host)
        return answers.pop() if answers else ["10.0.0.1"]

    gate.guard = UrlGuard(parse_allow(gate.files.allow), resolve)
    await gate.fetch(f"http://rebind.example:{gate.files.port}/file/raw")
    assert asked == ["rebind.example"]
    assert gate.files.asked[0][1]["Host"] == f"rebind.example:{gate.files.port}"
    fresh = Gate(gate.files)
    answers.append(["127.0.0.1"])
    fresh.guard = UrlGuard(parse_allow(gate.files.allow), resolve)
    text = await fresh.refused(f"http://rebind.example:{gate.files.port}/to/302?where=/file/raw")
    assert "10.0.0.1" in text


async def test_no_proxy_no_cookie_no_credential_travels(gate: Gate, trap: Canary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login CANARY password CANARY\n")
    (tmp_path / ".netrc").chmod(0o600)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{trap.port}")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    await gate.fetch("hops/2/raw")
    assert trap.reached == 0
    for _, headers in gate.files.asked:
        assert headers.get("Accept-Encoding") == "identity"
        assert not {"Authorization", "Cookie", "Proxy-Authorization", "Referer"} & set(headers)


async def test_a_server_that_falls_silent_is_given_up(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "SECONDS", 0.4)
    gate.files.hold_at = 5 * MIB
    began = time.monotonic()
    assert "stalled" in await gate.refused("gated/raw", WorkRetryable)
    assert time.monotonic() - began < 4


async def test_nobody_at_the_address(gate: Gate, trap: Canary) -> None:
    trap.close()
    gate.guard = UrlGuard(parse_allow(f"127.0.0.1:{trap.port}"))
    assert "reached" in await gate.refused(f"http://127.0.0.1:{trap.port}/", WorkRetryable)


async def test_a_slow_store_slows_the_download(gate: Gate) -> None:
    """Memory is bounded: with no part acknowledged, no more is read than the parts that may be on their way."""
    held = asyncio.Event()

    async def before(operation: str, key: str) -> None:
        if operation == "part":
            await held.wait()

    gate.bucket.before = before
    gate.files.bodies["large"] = RAW * 8
    task = asyncio.create_task(gate.fetch("file/large"))
    last = -1
    while gate.files.sent != last:
        last = gate.files.sent
        await asyncio.sleep(0.5)
    assert last < (download.IN_FLIGHT + 2) * 8 * MIB + 16 * MIB, "what was sent may also lie in the two sockets' buffers"
    assert not task.done()
    assert {done for stage, done, _ in gate.seen} == {0}
    held.set()
    await task
    assert gate.bucket.objects[KEY] == RAW * 8


@pytest.mark.parametrize("turn", range((int(os.environ.get("STOREBUS_SOAK_N", "0")) and 20) or 6))
async def test_cancelled_at_any_byte_it_stops_and_leaves_nothing(gate: Gate, turn: int) -> None:
    gate.files.hold_at = random.Random(SEED * 100 + turn).randrange(len(RAW))
    calls: list[str] = []

    async def before(operation: str, key: str) -> None:
        calls.append(operation)
        await asyncio.sleep(0.005)

    gate.bucket.before = before
    task = asyncio.create_task(gate.fetch("gated/raw"))
    while gate.files.sent < gate.files.hold_at:
        await asyncio.sleep(0.005)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(gate.files.ended.wait, 5), "the connection stays open"
    assert time.monotonic() - began < 5
    gate.nothing_left()
    count = len(calls)
    await asyncio.sleep(0.1)
    assert len(calls) == count, "the store is still written to"


class LateStore(MemoryImageStore):
    """Has begun an upload some time before it says so."""

    async def begin(self, key: str, *, part_size: int) -> Any:
        """As S3 does."""
        upload = await super().begin(key, part_size=part_size)
        await asyncio.sleep(0.2)
        return upload


async def test_cancelled_while_the_store_has_begun_and_not_said_so_it_leaves_nothing(gate: Gate) -> None:
    task = asyncio.create_task(fetch(gate.order("file/raw"), LateStore(gate.bucket), gate.guard, lambda *word: None))
    while not gate.bucket.uploads:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.nothing_left()


async def test_cancelled_while_its_record_begins_it_leaves_nothing(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has begun by then, and nobody else knows of that."""
    reached, record = asyncio.Event(), TransferRecord(tmp_path / "records", "w.1")

    async def begin(about: str, parts: Any) -> None:
        reached.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(record, "begin", begin)
    task = asyncio.create_task(fetch(gate.order("file/raw"), MemoryImageStore(gate.bucket), gate.guard, lambda *word: None, record))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.nothing_left()


async def test_cancelled_while_it_begins_or_completes_it_leaves_nothing(gate: Gate) -> None:
    for at in ("begin", "complete", "put"):
        reached = asyncio.Event()

        async def before(operation: str, key: str, at: str = at, reached: asyncio.Event = reached) -> None:
            if operation == at:
                reached.set()
                await asyncio.sleep(0.1)

        gate.bucket.before = before
        task = asyncio.create_task(gate.fetch("file/raw"))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.nothing_left()


@pytest.mark.parametrize(("operation", "nth"), [("begin", 1), ("part", 1), ("part", 2), ("part", 3), ("complete", 1), ("stat", 1), ("put", 1)])
async def test_a_store_that_fails_leaves_nothing(gate: Gate, operation: str, nth: int) -> None:
    count = 0

    async def before(called: str, key: str) -> None:
        nonlocal count
        count += called == operation
        if called == operation and count == nth:
            raise WorkFailed("the store is full", field="store")

    gate.bucket.before = before
    assert "the store is full" in await gate.refused("file/raw", WorkFailed)


async def test_what_an_earlier_run_left_is_replaced(gate: Gate) -> None:
    store = MemoryImageStore(gate.bucket)
    upload = await store.begin(KEY, part_size=MIB)
    await upload.part(1, b"left")
    await gate.fetch("file/raw")
    assert gate.bucket.uploads == {}
    assert gate.bucket.objects[KEY] == RAW
