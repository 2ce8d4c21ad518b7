"""The part of the image store contract about uploads that outlive their writer, and what all of the contract is made of.

A store without the capability resume_upload skips it: it begins again.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from agents.image_stores.base import ImageStore, Resumable, ResumedUpload
from schema.failure import WorkFailed
from schema.image import StoreSpec

_WRITER = """
import asyncio, importlib, json, sys
from schema.image import StoreSpec

async def main():
    module, name, key, size = sys.argv[1:]
    spec, secrets = json.loads(sys.stdin.readline())
    store = await getattr(importlib.import_module(module), name).open(StoreSpec.model_validate(spec), secrets)
    upload = await store.begin(key, part_size=int(size))
    for number in (1, 2, 3):
        await upload.part(number, bytes([number]) * int(size))
        if number == 2:
            print("part 2", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@dataclass(frozen=True)
class Place:
    """How to open the store under test, as often as wanted."""

    store: type[ImageStore]
    spec: StoreSpec
    secrets: Mapping[str, str] = field(default_factory=dict)
    outlives: bool = True
    """What is stored is still there when the process that stored it has ended."""

    async def open(self) -> ImageStore:
        """A store of its own: what another process would have."""
        return await self.store.open(self.spec, self.secrets)


@functools.lru_cache(8)
def data(size: int, seed: int = 1) -> bytes:
    """Bytes that nothing compresses or confuses with others."""
    return random.Random(seed).randbytes(size)


async def keys(store: ImageStore, prefix: str) -> list[str]:
    """The keys of a listing, sorted; a key listed twice shows twice."""
    return sorted([info.key async for info in store.list(prefix)])


class ResumeContract:
    """What a store that says resume_upload must do."""

    def small_pages(self, store: ImageStore) -> None:
        """Make listings come in small pages."""
        raise NotImplementedError

    async def _nothing_left(self, store: ImageStore, key: str) -> None:
        raise NotImplementedError

    async def _resume(self, store: ImageStore, key: str, size: int) -> ResumedUpload | None:
        assert isinstance(store, Resumable) == ("resume_upload" in store.CAPABILITIES)
        if not isinstance(store, Resumable):
            pytest.skip("this store begins again: it does not say resume_upload")
        return await store.resume(key, part_size=size)

    async def _interrupted(self, place: Place, key: str, pieces: Mapping[int, bytes], size: int) -> Mapping[int, object]:
        """What a writer wrote before it was closed without a word, and what it was answered."""
        writer = await place.open()
        upload = await writer.begin(key, part_size=size)
        said = {number: await upload.part(number, piece) for number, piece in pieces.items()}
        await writer.aclose()
        return said

    async def test_an_upload_is_resumed_by_another_who_opened_the_store(self, store: ImageStore, place: Place, key: str) -> None:
        size = store.limits.min_part
        assert await self._resume(store, key, size) is None, "nothing was begun"
        body = data(4 * size + 55)
        piece = {number: body[(number - 1) * size:number * size] for number in range(1, 6)}
        said = await self._interrupted(place, key, {2: piece[2], 4: piece[4], 1: piece[1]}, size)
        self.small_pages(store)
        upload = await self._resume(store, key, size)
        assert upload is not None
        assert await upload.parts() == said, "each part as it was acknowledged"
        assert await store.stat(key) is None and list(await store.unfinished(key.rsplit("/", 1)[0])) == [key]
        assert await upload.part(3, piece[3]) == (await upload.parts())[3]
        await upload.part(5, piece[5], sha256=hashlib.sha256(piece[5]).hexdigest())
        for number in (1, 2, 4):
            await upload.keep(number, sha256=hashlib.sha256(piece[number]).hexdigest())
        with pytest.raises(WorkFailed):
            await upload.keep(6, sha256="00" * 32)
        await upload.complete(len(body))
        for number in piece:
            assert await store.read(key, (number - 1) * size, size) == piece[number]
        assert await self._resume(store, key, size) is None, "it was completed"
        assert list(await store.unfinished(key.rsplit("/", 1)[0])) == []

    async def test_the_list_of_parts_comes_whole_in_pages(self, store: ImageStore, place: Place, key: str) -> None:
        self.PAGE = 2
        pieces = {number: data(store.limits.min_part, number) for number in range(1, 6)}
        said = await self._interrupted(place, key, pieces, store.limits.min_part)
        self.small_pages(store)
        upload = await self._resume(store, key, store.limits.min_part)
        assert upload is not None
        assert await upload.parts() == said
        await upload.abort()
        await self._nothing_left(store, key)

    async def test_a_part_with_other_bytes_is_told_from_the_right_one(self, store: ImageStore, place: Place, key: str) -> None:
        size = store.limits.min_part
        said = await self._interrupted(place, key, {1: data(size, 1), 2: data(size, 2)}, size)
        upload = await self._resume(store, key, size)
        assert upload is not None
        await upload.part(2, data(size, 3))
        again = await self._resume(store, key, size)  # whoever resumes twice
        assert again is not None
        found = await again.parts()
        assert found[1] == said[1]
        assert found.get(2) != said[2], "it is another one, or left out where the store lists both"
        assert await again.part(2, data(size, 2)) == said[2]
        assert (await again.parts()).get(2) in (said[2], None)
        await again.keep(1, sha256=hashlib.sha256(data(size, 1)).hexdigest())
        await again.complete(2 * size)
        assert await store.read(key, size, size) == data(size, 2)

    async def test_an_upload_in_other_parts_is_not_resumed_and_begin_ends_it(self, store: ImageStore, place: Place,
                                                                              key: str) -> None:
        size = store.limits.min_part
        await self._interrupted(place, key, {1: data(size), 2: data(size)}, size)
        assert await self._resume(store, key, 2 * size) is None
        assert await self._resume(store, f"{key}x", size) is None, "that is another key"
        upload = await store.begin(key, part_size=2 * size)
        await upload.part(1, b"new")
        await upload.complete(3)
        assert await store.read(key, 0, 9) == b"new"
        assert list(await store.unfinished(key.rsplit("/", 1)[0])) == []

    async def test_parts_outlive_a_writer_that_is_killed(self, store: ImageStore, place: Place, key: str) -> None:
        if "resume_upload" not in store.CAPABILITIES or not place.outlives:
            return  # it begins again, or ends with its process: there is nothing to take up
        size = store.limits.min_part
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _WRITER, place.store.__module__, place.store.__name__, key, str(size),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": os.pathsep.join(sys.path)})
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps([place.spec.model_dump(mode="json"), dict(place.secrets)]).encode() + b"\n")
        assert await child.stdout.readline() == b"part 2\n"
        await asyncio.sleep(0.02)  # in the midst of the third
        child.kill()
        assert await child.wait() == -signal.SIGKILL
        child.stdin.close()
        upload = await self._resume(store, key, size)
        assert upload is not None
        found = await upload.parts()
        assert {1, 2} <= found.keys() <= {1, 2, 3}
        for number in found:
            await upload.keep(number, sha256=hashlib.sha256(bytes([number]) * size).hexdigest())
        for number in {1, 2, 3} - found.keys():
            await upload.part(number, bytes([number]) * size)
        await upload.complete(3 * size)
        for number in (1, 2, 3):
            assert await store.read(key, (number - 1) * size, size) == bytes([number]) * size
        assert list(await store.unfinished(key.rsplit("/", 1)[0])) == []
