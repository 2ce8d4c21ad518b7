"""The part of the image store contract about bytes that change in the store: every way of reading finds one flipped byte, and
says in which object, part and place.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from agents.hypervisors.memory import MemoryHypervisor
from agents.image_stores.base import ImageStore
from agents.manifest import manifest_key, root_of, verify_object, write_manifest
from agents.motion.base import no_progress
from agents.motion.direct import read_image
from agents.scrubbing import scrub
from schema.agent import ScrubObjects
from schema.failure import Damaged
from schema.image import ImageFormat, ImageRef, Manifest
from schema.scrub import ScrubTarget, mark
from tests.contract.image_store_resume import Place, data


class ScrubContract:
    """What is damaged in a store is found by whoever reads it."""

    async def _image(self, store: ImageStore, key: str) -> tuple[ImageRef, bytes, Manifest]:
        """An object in three parts with its manifest."""
        size = store.limits.min_part
        body = data(2 * size + 77)
        pieces = [body[at:at + size] for at in range(0, len(body), size)]
        upload = await store.begin(key, part_size=size)
        for number, piece in enumerate(pieces, 1):
            await upload.part(number, piece)
        await upload.complete(len(body))
        digests = [hashlib.sha256(piece).hexdigest() for piece in pieces]
        manifest = Manifest(installation="i", kind="snapshot", thing_id=uuid4(), job_id=uuid4(), work="w.1", key=key,
                            format=ImageFormat.QCOW2, virtual_size=1 << 30, physical_size=len(body), part_size=size,
                            parts=digests, root=root_of(digests), created=datetime.now(UTC).isoformat())
        await write_manifest(store, manifest)
        return ImageRef(store_id=uuid4(), key=key, format=ImageFormat.QCOW2, virtual_size=1 << 30, physical_size=len(body),
                        root=manifest.root), body, manifest

    async def test_one_flipped_byte_is_found_by_every_reader(self, store: ImageStore, place: Place, key: str,
                                                             tmp_path: Path) -> None:
        image, body, manifest = await self._image(store, key)
        prefix = key.rsplit("/", 1)[0]

        def order(*known: str) -> ScrubObjects:
            return ScrubObjects(job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k",
                                store=place.spec.model_copy(update={"prefix": prefix}),
                                objects=[ScrubTarget(key=key, size=len(body), root=image.root)],
                                known=base64.b64encode(b"".join(map(mark, known))).decode())

        sound = await scrub(order(key), store, no_progress)
        assert (sound.objects, sound.bytes, sound.damaged, sound.unread, sound.unknown_count) == (1, len(body), [], [], 0)
        at = manifest.part_size + 5
        await store.put(key, body[:at] + bytes([body[at] ^ 1]) + body[at + 1:])
        found = []
        with pytest.raises(Damaged) as verified:
            await verify_object(store, key)
        found.append(verified.value.damage)
        with pytest.raises(Damaged) as restored:
            await read_image(store, image, str(tmp_path / "draft"), hypervisor=MemoryHypervisor(), progress=no_progress)
        found.append(restored.value.damage)
        scrubbed = await scrub(order(), store, no_progress)
        found += scrubbed.damaged
        assert [(each.object, each.part, each.parts, each.offset, each.expected) for each in found] == [
            (key, 2, 3, manifest.part_size, manifest.parts[1])] * 3
        assert [stray.key for stray in scrubbed.unknown] == [key] and scrubbed.unknown_count == 1, "its manifest is no other"
        await store.put(key, body)
        assert not (await scrub(order(key), store, no_progress)).damaged

    async def test_a_damaged_manifest_and_a_lost_object_are_found(self, store: ImageStore, place: Place, key: str) -> None:
        image, body, manifest = await self._image(store, key)
        target = ScrubTarget(key=key, size=len(body), root=image.root)
        order = ScrubObjects(job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", store=place.spec, objects=[target],
                             known=base64.b64encode(mark(key)).decode())
        good = manifest.model_dump_json().encode()
        for changed in (good.replace(manifest.root.encode(), manifest.root[::-1].encode()), good[:-9],
                        good.replace(manifest.parts[0].encode(), manifest.parts[1].encode())):
            await store.put(manifest_key(key), changed)
            assert [each.what for each in (await scrub(order, store, no_progress)).damaged] == ["manifest"]
        await store.put(manifest_key(key), good)
        other = order.model_copy(update={"objects": [target.model_copy(update={"root": "0" * 64})]})
        assert [each.what for each in (await scrub(other, store, no_progress)).damaged] == ["manifest"], "another than the log's"
        await store.put(key, body[:-1])
        assert [each.what for each in (await scrub(order, store, no_progress)).damaged] == ["size"]
        await store.delete(key)
        assert [each.what for each in (await scrub(order, store, no_progress)).damaged] == ["missing"]
        await store.delete(manifest_key(key))
        assert [each.what for each in (await scrub(order, store, no_progress)).damaged] == ["missing"]
