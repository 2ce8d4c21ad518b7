"""The demo's checks: what a distrustful person would look at. Each raises Damaged naming what is wrong.

Owns how things are looked at from outside: disk files through qemu, objects through a plain S3 client, the log through
`bus.verify`. Refuses to trust an answer of the API.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.markup import escape
from rich.tree import Tree

from agents import qemu
from agents.hypervisors.kvm import KvmHypervisor
from api.demo_image import tool
from api.demo_s3 import SeaweedFS
from api.verify import verify_all
from bus.event_store import LogFilter, LogRow
from bus.event_store_postgres import PostgresEventStore
from bus.read_model import PostgresReadModel
from handlers.projector import rebuild
from schema.image import Manifest

CHANGED = (1 << 20, b"changed by the demo" * 1000)
"""Where and what is written into the volume between the snapshots."""


class Damaged(Exception):
    """Something is not what it was; the text names it."""


async def change(disk: Path) -> None:
    """Write into the volume through a real block export."""
    offset, data = CHANGED
    data = data[: len(data) // 512 * 512]
    async with KvmHypervisor().open(str(disk), writable=True) as device:
        await device.write(offset, data)
        await device.flush()


async def _compare(one: Path, other: Path) -> bool:
    said = await qemu.run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(one), str(other), accept=(0, 1))
    return "identical" in said


async def same_content(image: Path, disk: Path) -> None:
    """The two disks hold the same bytes."""
    if not await _compare(image, disk):
        raise Damaged(f"{disk} differs from the image it was restored from")


async def differs(image: Path, disk: Path) -> None:
    """The two disks do not hold the same bytes."""
    if await _compare(image, disk):
        raise Damaged(f"{disk} was changed through its export and still equals the image")


async def file_system(disk: Path, folder: Path) -> None:
    """The disk's file system is clean (skipped when the image given is not one ext4 file system)."""
    raw = folder / "check.raw"
    await qemu.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(raw))
    try:
        with raw.open("rb") as file:
            file.seek(1024 + 56)
            if file.read(2) != b"\x53\xef":
                return
        await tool("e2fsck", "-f", "-n", str(raw))
    finally:
        raw.unlink()


def _keys(client: Any, bucket: str) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            yield item["Key"]


async def objects(s3: SeaweedFS, bucket: str) -> int:
    """Every object equals its manifest part by part, and every manifest has its object. Returns how many there are."""
    return await asyncio.to_thread(_objects, s3, bucket)


def _objects(s3: SeaweedFS, bucket: str) -> int:
    with contextlib.closing(s3.client()) as client:
        keys = set(_keys(client, bucket))
        images = {key for key in keys if not key.endswith(".manifest.json")}
        for key in sorted(images):
            if f"{key}.manifest.json" not in keys:
                raise Damaged(f"object {key} has no manifest")
        for name in sorted(keys - images):
            manifest = Manifest.model_validate_json(client.get_object(Bucket=bucket, Key=name)["Body"].read())
            if manifest.key not in images:
                raise Damaged(f"manifest {name} has no object")
            body = client.get_object(Bucket=bucket, Key=manifest.key)["Body"]
            for number, wanted in enumerate(manifest.parts):
                part = body.read(manifest.part_size)
                if hashlib.sha256(part).hexdigest() != wanted:
                    at = number * manifest.part_size
                    raise Damaged(f"object {manifest.key}: bytes {at} to {at + len(part)} are not what was written")
    return len(images)


async def nothing_left(s3: SeaweedFS, bucket: str, primary: Path) -> None:
    """No object, no unfinished upload, no disk file."""

    def look() -> list[str]:
        with contextlib.closing(s3.client()) as client:
            uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
            return [*_keys(client, bucket), *(f"unfinished {u['Key']}" for u in uploads),
                    *(str(path) for path in primary.rglob("*.qcow2*"))]

    left = await asyncio.to_thread(look)
    if left:
        raise Damaged(f"left behind: {', '.join(left[:5])}")


async def log_and_projections(dsn: str) -> int:
    """The log is whole and everything equals its fold; the projections rebuilt are the same. Returns the row count."""
    for turn in ("", "after a rebuild: "):
        findings = await verify_all(dsn)
        if findings:
            raise Damaged(turn + "; ".join(f"{found.where}: {found.what}" for found in findings[:5]))
        if not turn:
            await _rebuild(dsn)
    store = await PostgresEventStore.connect(dsn)
    try:
        return await store.head()
    finally:
        await store.aclose()


async def _rebuild(dsn: str) -> None:
    store = await PostgresEventStore.connect(dsn)
    model = await PostgresReadModel.connect(dsn, role="storebus_projector")
    try:
        await rebuild(store, model)
    finally:
        await model.aclose()
        await store.aclose()


async def timeline(dsn: str, job_id: str) -> Tree:
    """One job as a tree: the command, and below it what its handlers and agents made of it."""
    store = await PostgresEventStore.connect(dsn)
    try:
        rows = (await store.read_log(0, filter=LogFilter(correlation=UUID(job_id)), limit=1000)).rows
    finally:
        await store.aclose()
    tree = Tree(f"[bold]job {job_id}[/bold]")
    started = rows[0].recorded_at if rows else None
    branch: Any = tree
    for row in rows:
        assert started is not None
        ms = int((row.recorded_at - started).total_seconds() * 1000)
        style = {"order": "yellow", "command": "cyan"}.get(row.kind, "green")
        line = f"[dim]{ms:6d} ms[/dim] [{style}]{row.kind:7s}[/{style}] {row.type}  [dim]{escape(_short(row))}[/dim]"
        if row.type in ("job.submitted", "job.step_started") or branch is tree:
            branch = tree.add(line)
        else:
            branch.add(line)
    return tree


def _short(row: LogRow) -> str:
    body = json.loads(row.payload)
    if row.type == "job.submitted":
        return f"{body['command']}"
    if row.kind == "order":
        return f"to {body['agent']}, attempt {body.get('attempt', 1)}"
    return f"{row.stream} v{row.version}"
