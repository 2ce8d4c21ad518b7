"""The contract of an image store as a suite: inherit, say how to open your store, run pytest.

    class TestMyStore(ImageStoreContract):
        @pytest.fixture
        def place(self) -> Place:
            return Place(MyImageStore, spec, secrets)

Everything is written below a prefix of its own and removed. Tests that hold for some stores only ask `limits` and
CAPABILITIES, never the name.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from agents.image_stores.base import ImageStore, Linkable, Measured, ReadsInto, Remote, Resumable, Upload
from agents.manifest import (
    delete_object,
    find_manifest,
    manifest_key,
    object_key,
    read_manifest,
    root_of,
    verify_object,
    write_manifest,
)
from agents.throttle import Throttle, limited
from schema.failure import Failed, Refused, WorkFailed
from schema.image import ImageFormat, Manifest
from tests.contract.image_store_links import LinksContract
from tests.contract.image_store_resume import Place, ResumeContract, data, keys
from tests.contract.image_store_scrub import ScrubContract

__all__ = ["ImageStoreContract", "Place", "data", "keys"]


class Told:
    """A `Seen` that keeps what it is told, and insists on the order."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.times: list[int] = []
        """Bytes that had been told, each time."""

    def __call__(self, at: int, piece: memoryview) -> None:
        if not at:
            self.bytes.clear()
        assert at == len(self.bytes)
        self.bytes += piece
        self.times.append(at)


class ImageStoreContract(ResumeContract, ScrubContract, LinksContract):
    """What every image store must do."""

    PAGE = 7
    """Objects in one page while paging is tested; `small_pages` brings it to the store."""

    @pytest.fixture
    def place(self) -> Place:
        """Override."""
        raise NotImplementedError

    def small_pages(self, store: ImageStore) -> None:
        """Make listings come in pages of PAGE, where the store has pages."""
        if hasattr(store, "page_size"):
            store.page_size = self.PAGE

    @pytest.fixture
    async def store(self, place: Place) -> AsyncIterator[ImageStore]:
        """The store, added (tested once) and open; what a test leaves below its prefix is removed."""
        store = await place.open()
        await store.test(place.spec.prefix)
        yield store
        for key in {*await keys(store, place.spec.prefix), *await store.unfinished(place.spec.prefix)}:
            await store.delete(key)
        await store.aclose()

    @pytest.fixture
    def key(self, place: Place) -> str:
        """A key that nobody used."""
        return f"{place.spec.prefix}/snapshots/{uuid4()}"

    # --- what it says about itself ------------------------------------------------------------------------------

    def test_says_what_it_is(self, place: Place) -> None:
        store = place.store
        assert store.PROVIDER == store.PROVIDER.lower() != ""
        assert store.SCOPE in ("ZONE", "REGION")
        assert {"ranged_read", "parallel_parts", "presigned_get", "integrity_md5", "resume_upload",
                "free_room"} >= store.CAPABILITIES
        schema = store.Settings.model_json_schema()
        for name in place.secrets:
            assert "password" in str(schema["properties"][name]), "a secret's field is a SecretStr"

    async def test_unknown_detail_is_refused_by_name(self, place: Place) -> None:
        spec = place.spec.model_copy(update={"details": {**place.spec.details, "colour": "blue"}})
        with pytest.raises(Refused) as refused:
            await place.store.open(spec, place.secrets)
        assert refused.value.failure.field == "details.colour"
        assert all(secret not in str(refused.value) for secret in place.secrets.values())

    def test_limits_are_usable(self, place: Place, store: ImageStore) -> None:
        limits = store.limits
        assert 1 <= limits.min_part <= 8 << 20 <= limits.max_part
        assert limits.max_parts >= 1000
        assert limits.max_parts * limits.max_part >= 2 << 40, "a 2 TiB image must fit"

    async def test_testing_again_passes_and_leaves_nothing(self, place: Place, store: ImageStore) -> None:
        await store.test(place.spec.prefix)
        assert await keys(store, place.spec.prefix) == []
        assert list(await store.unfinished(place.spec.prefix)) == []

    async def test_tells_its_free_room_where_it_says_so(self, place: Place, store: ImageStore) -> None:
        await store.test(place.spec.prefix)
        if "free_room" in place.store.CAPABILITIES:
            assert isinstance(store, Measured)
            room = await store.free_bytes()
            assert room is None or room > 0
        else:
            assert not isinstance(store, Measured)

    async def test_under_a_limit_it_has_what_it_has_without_one(self, store: ImageStore) -> None:
        under = limited(store, [Throttle(1 << 30)])
        for protocol in (Linkable, Measured, ReadsInto, Remote, Resumable):
            for name in (each for each in vars(protocol) if not each.startswith("_")):
                # As isinstance looks from Python 3.12 on: not by __getattr__.
                assert hasattr(type(under), name) == hasattr(type(store), name), name

    # --- small objects ------------------------------------------------------------------------------------------

    async def test_put_read_replace(self, store: ImageStore, key: str) -> None:
        assert await store.stat(key) is None
        body = data(10_000)
        await store.put(key, body)
        info = await store.stat(key)
        assert info is not None
        assert (info.key, info.size) == (key, 10_000)
        assert await store.read(key, 0, 10_000) == body
        await store.put(key, b"other")
        assert await store.read(key, 0, 10_000) == b"other"
        assert await keys(store, key.rsplit("/", 1)[0]) == [key]

    async def test_an_empty_object(self, store: ImageStore, key: str) -> None:
        await store.put(key, b"")
        info = await store.stat(key)
        assert info is not None
        assert info.size == 0
        assert await store.read(key, 0, 100) == b""

    async def test_ranges(self, store: ImageStore, key: str) -> None:
        body = data(100_000)
        await store.put(key, body)
        for offset, length in ((0, 1), (99_999, 1), (1, 65_536), (50_000, 50_000), (99_990, 100), (0, 0), (7, 0)):
            assert await store.read(key, offset, length) == body[offset : offset + length], (offset, length)
            if isinstance(store, ReadsInto):
                buffer, told = bytearray(b"-" * length), Told()
                found = await store.read_into(key, offset, memoryview(buffer), told)
                assert told.bytes == buffer[:found]
                assert buffer == body[offset:offset + length][:found] + b"-" * (length - found), (offset, length)
                assert found == max(0, min(length, len(body) - offset))
        assert await store.read(key, 100_000, 10) == b""
        assert await store.read(key, 1 << 40, 10) == b""

    async def test_reading_what_is_absent_says_so(self, store: ImageStore, key: str) -> None:
        with pytest.raises(WorkFailed) as failed:
            await store.read(key, 0, 10)
        if isinstance(store, ReadsInto):
            with pytest.raises(WorkFailed):
                await store.read_into(key, 0, memoryview(bytearray(10)))
        assert not failed.value.retryable
        assert "absent" in failed.value.failure.cause

    async def test_many_reads_at_once(self, store: ImageStore, key: str) -> None:
        body = data(400_000)
        await store.put(key, body)
        pieces = await asyncio.gather(*(store.read(key, at, 10_000) for at in range(0, 400_000, 10_000)))
        assert b"".join(pieces) == body

    async def test_delete_means_gone_and_absent_is_fine(self, store: ImageStore, key: str) -> None:
        await store.delete(key)
        await store.put(key, b"x")
        await store.delete(key)
        await store.delete(key)
        assert await store.stat(key) is None
        assert await keys(store, key.rsplit("/", 1)[0]) == []

    # --- uploads ------------------------------------------------------------------------------------------------

    async def test_parts_in_any_order_and_at_once(self, store: ImageStore, key: str) -> None:
        size = store.limits.min_part
        body = data(4 * size + 1_234)
        upload = await store.begin(key, part_size=size)
        numbers = [5, 2, 4, 1, 3]
        await asyncio.gather(*(upload.part(n, memoryview(body)[(n - 1) * size : n * size]) for n in numbers))
        assert await store.stat(key) is None, "invisible until completed"
        assert await keys(store, key.rsplit("/", 1)[0]) == []
        assert list(await store.unfinished(key.rsplit("/", 1)[0])) == [key]
        info = await upload.complete(len(body))
        assert (info.key, info.size) == (key, len(body))
        assert await upload.complete(len(body)) == info, "twice means once"
        assert list(await store.unfinished(key.rsplit("/", 1)[0])) == []
        assert await keys(store, key.rsplit("/", 1)[0]) == [key]
        pieces = [await store.read(key, at, 1 << 20) for at in range(0, len(body), 1 << 20)]
        assert hashlib.sha256(b"".join(pieces)).digest() == hashlib.sha256(body).digest()
        assert await store.read(key, size - 10, 20) == body[size - 10 : size + 10]

    async def test_one_short_part_of_each_kind_of_bytes(self, store: ImageStore, key: str) -> None:
        for body in (b"bytes", bytearray(b"bytearray"), memoryview(b"--view--")[2:6]):
            upload = await store.begin(key, part_size=store.limits.min_part)
            await upload.part(1, body)
            await upload.complete(len(body))
            assert await store.read(key, 0, 100) == bytes(body)

    async def test_an_upload_without_parts(self, store: ImageStore, key: str) -> None:
        upload = await store.begin(key, part_size=store.limits.min_part)
        info = await upload.complete(0)
        assert info.size == 0
        assert list(await store.unfinished(key.rsplit("/", 1)[0])) == []
        assert await store.read(key, 0, 10) == b""

    async def test_a_part_sent_twice_counts_once_the_last_one(self, store: ImageStore, key: str) -> None:
        size = store.limits.min_part
        first, again, last = data(size, 1), data(size, 2), data(500, 3)
        upload = await store.begin(key, part_size=size)
        await upload.part(1, first)
        await upload.part(2, last)
        await upload.part(1, again)
        await upload.part(1, again)
        await upload.complete(size + 500)
        assert await store.read(key, 0, 1000) == again[:1000]
        assert await store.read(key, size - 500, 2000) == again[-500:] + last

    async def test_missing_parts_and_wrong_sizes_are_not_completed(self, store: ImageStore, key: str) -> None:
        size = store.limits.min_part
        upload = await store.begin(key, part_size=size)
        await upload.part(2, data(100))
        if store.limits.parts_may_skip:
            with pytest.raises(WorkFailed):
                await upload.complete(size + 99)
        else:
            with pytest.raises(WorkFailed):
                await upload.complete(size + 100)
            await upload.part(1, data(size))
            with pytest.raises(WorkFailed):
                await upload.complete(size + 101)
        await upload.abort()
        await self._nothing_left(store, key)

    async def test_parts_that_do_not_fit_are_refused(self, store: ImageStore, key: str) -> None:
        size = store.limits.min_part
        upload = await store.begin(key, part_size=size)
        for number, body in ((0, b"x"), (-1, b"x"), (1, b""), (1, bytes(size + 1))):
            with pytest.raises(WorkFailed):
                await upload.part(number, body)
        await upload.abort()

    async def test_skipped_parts_are_zeros(self, store: ImageStore, key: str) -> None:
        if not store.limits.parts_may_skip:
            return  # the limit says that nobody may skip here; missing parts are tested above
        size = store.limits.min_part
        upload = await store.begin(key, part_size=size)
        await upload.part(3, b"end")
        await upload.complete(4 * size)
        assert await store.read(key, 0, 4 * size) == bytes(2 * size) + b"end" + bytes(2 * size - 3)

    async def test_abort_leaves_nothing(self, store: ImageStore, key: str) -> None:
        size = store.limits.min_part
        upload = await store.begin(key, part_size=size)
        await asyncio.gather(upload.part(1, data(size)), upload.part(2, data(size)))
        await upload.abort()
        await upload.abort()
        await self._nothing_left(store, key)
        for refused in (upload.part(1, b"late"), upload.complete(2 * size)):
            with pytest.raises(WorkFailed):
                await refused
        await self._nothing_left(store, key)

    async def test_abort_while_parts_are_under_way_leaves_nothing(self, store: ImageStore, key: str) -> None:
        size = store.limits.min_part
        upload = await store.begin(key, part_size=size)
        parts = [asyncio.create_task(upload.part(number, data(size))) for number in (1, 2, 3)]
        await asyncio.sleep(0.01)
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        await upload.abort()
        await self._nothing_left(store, key)

    async def test_what_a_killed_writer_left_is_ended_by_begin(self, store: ImageStore, place: Place, key: str) -> None:
        size = store.limits.min_part
        other, longer = f"{key}-other", f"{key}.more"
        zombie, lost = await self._leave(place, key, size)
        mine = await store.begin(other, part_size=size)
        also = await store.begin(longer, part_size=size)
        upload = await store.begin(key, part_size=size)
        assert list(await store.unfinished(key.rsplit("/", 1)[0])) == sorted([key, other, longer])
        with pytest.raises(WorkFailed):  # the one that was thought dead is late
            await lost.part(2, b"late")
            await lost.complete(size + 4)
        await upload.part(1, b"new")
        await upload.complete(3)
        assert await store.read(key, 0, 10) == b"new"
        await mine.part(1, b"mine")
        assert (await mine.complete(4)).size == 4, "uploads of other keys are left alone"
        await also.abort()
        await lost.abort()
        assert await keys(store, key.rsplit("/", 1)[0]) == sorted([key, other]), "a late abort removes nothing else"
        await zombie.aclose()

    async def test_what_a_killed_writer_left_is_listed_and_deleted(self, store: ImageStore, place: Place,
                                                                    key: str) -> None:
        zombie, lost = await self._leave(place, key, store.limits.min_part)
        below, name = key.rsplit("/", 1)
        assert list(await store.unfinished(below)) == [key]
        assert list(await store.unfinished(f"{below}/{name[:8]}")) == [], "a prefix is a path"
        await store.delete(key)
        await self._nothing_left(store, key)
        await lost.abort()
        await zombie.aclose()

    async def _leave(self, place: Place, key: str, size: int) -> tuple[ImageStore, Upload]:
        """A writer that was thought dead, and its upload with one part."""
        zombie = await place.open()
        upload = await zombie.begin(key, part_size=size)
        await upload.part(1, data(size))
        return zombie, upload

    async def _nothing_left(self, store: ImageStore, key: str) -> None:
        below = key.rsplit("/", 1)[0]
        assert await store.stat(key) is None
        assert await keys(store, below) == []
        assert list(await store.unfinished(below)) == []

    # --- listings -----------------------------------------------------------------------------------------------

    async def test_listings_come_whole_in_pages_and_by_path(self, store: ImageStore, place: Place) -> None:
        self.small_pages(store)
        base = f"{place.spec.prefix}/list"
        made = [f"{base}/a/{number:03}" for number in range(3 * self.PAGE + 2)]
        near = [f"{base}/ab/x", f"{base}/a.b", f"{base}/b/deep/er/y"]
        await asyncio.gather(*(store.put(key, key.encode()) for key in made + near))
        assert await keys(store, f"{base}/a") == made
        assert await keys(store, f"{base}/a/") == made
        assert await keys(store, base) == sorted(made + near)
        assert await keys(store, f"{base}/nowhere") == []
        sizes = {info.key: info.size async for info in store.list(base)}
        assert sizes == {key: len(key) for key in made + near}
        async for _ in store.list(base):  # a listing may be left early
            break

    async def test_unfinished_uploads_come_whole_in_pages(self, store: ImageStore, place: Place) -> None:
        self.small_pages(store)
        base = f"{place.spec.prefix}/many"
        made = [f"{base}/{number:03}" for number in range(2 * self.PAGE + 1)]
        uploads = await asyncio.gather(*(store.begin(key, part_size=store.limits.min_part) for key in made))
        assert list(await store.unfinished(base)) == made
        await asyncio.gather(*(upload.abort() for upload in uploads))
        assert list(await store.unfinished(base)) == []

    # --- manifests ----------------------------------------------------------------------------------------------

    async def _object(self, store: ImageStore, key: str) -> tuple[Manifest, bytes]:
        size = store.limits.min_part
        body = data(2 * size + 777)
        upload = await store.begin(key, part_size=size)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        await asyncio.gather(*(upload.part(number, piece) for number, piece in enumerate(pieces, 1)))
        await upload.complete(len(body))
        parts = [hashlib.sha256(piece).hexdigest() for piece in pieces]
        return Manifest(installation="i", kind="snapshot", thing_id=uuid4(), job_id=uuid4(), work="w.1", key=key,
                        format=ImageFormat.RAW, virtual_size=len(body), physical_size=len(body), part_size=size,
                        parts=parts, root=root_of(parts), created="2026-01-01T00:00:00Z"), body

    async def test_a_manifest_lies_beside_its_object_and_verifies_it(self, store: ImageStore, key: str) -> None:
        manifest, body = await self._object(store, key)
        digests = b"".join(hashlib.sha256(body[at : at + manifest.part_size]).digest()
                           for at in range(0, len(body), manifest.part_size))
        assert manifest.root == hashlib.sha256(digests).hexdigest()
        assert await find_manifest(store, key) is None
        with pytest.raises(WorkFailed, match="no manifest"):
            await read_manifest(store, key)
        await write_manifest(store, manifest)
        assert await read_manifest(store, key) == manifest
        assert await verify_object(store, key) == manifest
        assert object_key(manifest_key(key)) == key
        assert await keys(store, key.rsplit("/", 1)[0]) == [key, manifest_key(key)]
        await delete_object(store, key)
        await delete_object(store, key)
        await self._nothing_left(store, key)

    async def test_a_damaged_byte_is_named(self, store: ImageStore, key: str) -> None:
        manifest, body = await self._object(store, key)
        await write_manifest(store, manifest)
        size, at = manifest.part_size, manifest.part_size + 321
        await store.put(key, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
        with pytest.raises(WorkFailed, match=rf"part 2 of 3 .*bytes {size} to {2 * size - 1}"):
            await verify_object(store, key)
        await store.put(key, body[:-1])
        with pytest.raises(WorkFailed, match=f"has {len(body) - 1} bytes"):
            await verify_object(store, key)

    async def test_a_manifest_that_lies_is_not_believed(self, store: ImageStore, key: str) -> None:
        manifest, _ = await self._object(store, key)
        other, short = f"{key}-other", manifest.parts[:2]
        lies: list[tuple[Manifest, str]] = [
            (manifest.model_copy(update={"root": "00" * 32}), "root"),
            (manifest.model_copy(update={"parts": short, "root": root_of(short)}), "do not make"),
            (manifest.model_copy(update={"parts": ["zz", *manifest.parts[1:]]}), "hexadecimal"),
            (manifest.model_copy(update={"key": other}), "describes"),
        ]
        for lie, why in lies:
            await store.put(manifest_key(key), lie.model_dump_json().encode())
            with pytest.raises(WorkFailed, match=why):
                await read_manifest(store, key)
        await store.put(manifest_key(key), b"{}")
        with pytest.raises(WorkFailed, match="missing or wrong"):
            await read_manifest(store, key)
        with pytest.raises(Failed):  # no manifest for an object that is not there
            await write_manifest(store, manifest.model_copy(update={"key": other}))
        assert await store.stat(manifest_key(other)) is None
