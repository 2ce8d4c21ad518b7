"""Real disks and images for tests of motion: made through the hypervisor, judged by qemu-img."""

from __future__ import annotations

import hashlib
import random
import struct
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from agents.hypervisors.kvm import KvmHypervisor
from agents.image_stores.base import ImageStore
from agents.manifest import root_of, write_manifest
from schema.image import ImageFormat, ImageRef, Manifest

MIB = 1 << 20


def img(*arguments: str) -> str:
    """qemu-img, an independent judge."""
    done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


async def make_disk(path: Path, size: int, places: list[tuple[int, int]], seed: int = 1) -> None:
    """A qcow2 disk with random bytes at `places` (offset, length)."""
    dice = random.Random(seed)
    hypervisor = KvmHypervisor()
    await hypervisor.create(str(path), size)
    async with hypervisor.open(str(path), writable=True) as device:
        for offset, length in places:
            for at in range(offset, offset + length, 4 * MIB):
                await device.write(at, dice.randbytes(min(4 * MIB, offset + length - at)))
        await device.flush()


async def put_image(store: ImageStore, body: bytes, image_format: ImageFormat, virtual_size: int, *, part: int = MIB) -> ImageRef:
    """An image made elsewhere, in the store as a download leaves it: plain bytes and a manifest."""
    key = f"{uuid4()}/template"
    upload = await store.begin(key, part_size=part)
    parts = [body[at:at + part] for at in range(0, len(body), part)]
    for number, one in enumerate(parts, 1):
        await upload.part(number, one)
    await upload.complete(len(body))
    digests = [hashlib.sha256(one).hexdigest() for one in parts]
    root = root_of(digests)
    await write_manifest(store, Manifest(
        installation="i", kind="template", thing_id=uuid4(), job_id=uuid4(), work="w.1", key=key, format=image_format,
        virtual_size=virtual_size, physical_size=len(body), part_size=part, parts=digests, root=root,
        created=datetime.now(UTC).isoformat()))
    return ImageRef(store_id=uuid4(), key=key, format=image_format, virtual_size=virtual_size, physical_size=len(body), root=root)


def iso(sectors: int = 64, *, head: bytes = b"") -> bytes:
    """An ISO 9660 image with its primary volume descriptor and no more; `head` is in the system area, which is the image's own."""
    descriptor = bytearray(2048)
    descriptor[:7] = b"\x01CD001\x01"
    struct.pack_into("<I", descriptor, 80, sectors)
    struct.pack_into(">I", descriptor, 84, sectors)
    struct.pack_into("<H", descriptor, 128, 2048)
    struct.pack_into(">H", descriptor, 130, 2048)
    body = bytearray(sectors * 2048)
    body[16 * 2048:17 * 2048] = descriptor
    body[:len(head)] = head
    return bytes(body)
