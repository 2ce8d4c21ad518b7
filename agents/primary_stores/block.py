"""Block devices as a primary store: one volume on one device, as a qcow2 that begins at the device's first byte.

Owns which device holds which volume: a folder with one symbolic link per volume, and the list of the operator's devices beside
them. The link is the whole truth: a device without one is taken only when it is free and empty, and is made zeros before a
volume lies on it and before its link goes, so nobody sees what another had there. Refuses to cut devices: that is LVM's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from agents.primary_stores import block_device
from agents.primary_stores.base import Usage, explain
from agents.primary_stores.folder import OURS, draft_name, plain
from agents.uninterrupted import in_thread
from schema.failure import Refused, WorkFailed

LIST = "devices.json"
MOST = 1000
"""Devices of one store."""
CLUSTER, SPARE = 1 << 16, 16 << 20
"""A disk's clusters; room for the tables that do not grow with it, snapshots' and dirty bitmaps' among them."""


def needed(virtual_size: int) -> int:
    """Bytes of a device that takes a disk of this size when every cluster of it is written: data, mapping, counts, bitmaps.

    Snapshots keep what is written over after them: a disk that has some may need more, and is told so by ENOSPC."""
    clusters = -(-virtual_size // CLUSTER)
    return clusters * CLUSTER + clusters * (8 + 2) + clusters // 8 * 4 + SPARE


class BlockPrimaryStore:
    """See PrimaryStore. `path` is the folder of the links."""

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path).absolute()

    async def _run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await in_thread(call, *arguments)
        except OSError as error:
            raise explain(error, self.root) from None

    async def prepare(self, devices: Sequence[str]) -> None:
        """Take the operator's devices. Raises Refused naming one that may not be taken, and why."""
        def take() -> None:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                held = set(self._held().values())
                for device in devices:
                    if not device.startswith("/"):
                        raise Refused(f"the device {device!r} is no absolute path", field="primary_devices")
                    why = "" if os.path.realpath(device) in held else block_device.trouble(device)
                    if why:
                        raise Refused(f"the device {device} cannot be used: {why}", field="primary_devices",
                                      remedy="name another, or empty it yourself: wipefs --all, then blkdiscard --zeroout")
                real = [os.path.realpath(device) for device in devices]
                if len(set(real)) != len(real) or len(real) > MOST:
                    raise Refused(f"a device is named twice, or more than {MOST} are", field="primary_devices")
                self._write_list(list(devices))

        await self._run(take)

    def _write_list(self, devices: list[str]) -> None:
        fresh = self.root / f"{LIST}.new"
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(devices, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.root / LIST)
        _fsync(self.root)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time changes who has which device, in whatever process."""
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _devices(self) -> list[str]:
        try:
            return [str(device) for device in json.loads((self.root / LIST).read_text(encoding="utf-8"))]
        except FileNotFoundError:
            if not self.root.exists():
                raise
            return []

    def _held(self) -> dict[str, str]:
        """Link -> the device that it stands for."""
        return {path.name: os.path.realpath(path) for path in self.root.iterdir() if OURS.match(path.name)}

    def _link(self, name: str) -> Path:
        return self.root / name

    async def draft(self, volume_id: UUID, work_name: str, suffix: str, *, size: int = 0) -> str:
        """See PrimaryStore: the smallest free device that is large enough, all zeros."""
        name = draft_name(volume_id, work_name, suffix)

        def reserve() -> str:
            with self._locked():
                held = self._held()
                if name in held:
                    return held[name]
                device = self._choose(set(held.values()), needed(size) if size else 0)
                self._link(name).symlink_to(device)
                _fsync(self.root)
                return os.path.realpath(device)

        device: str = await self._run(reserve)
        await self._run(block_device.zero, device)
        return device

    def _choose(self, held: set[str], least: int) -> str:
        """A device. Raises WorkFailed with what is wrong with each of the others."""
        why: list[str] = []
        found: list[tuple[int, str]] = []
        for device in self._devices():
            if os.path.realpath(device) in held:
                continue
            problem = block_device.trouble(device)
            if not problem:
                size = block_device.size_of(device)
                problem = f"it has {size} bytes, {least} are needed" if size < least else ""
                found += [] if problem else [(size, device)]
            if problem:
                why.append(f"{device}: {problem}")
        if not found:
            raise WorkFailed(f"the primary store {self.root}: no device is free for this disk"
                             + (f" ({'; '.join(why[:5])})" if why else ""), field="primary",
                             remedy="add a device to STOREBUS_PRIMARY_DEVICES")
        return min(found)[1]

    async def commit(self, volume_id: UUID, work_name: str, suffix: str) -> str:
        """See PrimaryStore."""
        target = self._link(f"{volume_id}.{plain(suffix)}")
        draft = self._link(draft_name(volume_id, work_name, suffix))

        def move() -> None:
            if not draft.is_symlink() and target.is_symlink():
                return  # an earlier run came this far
            _fsync(draft)
            before = self._link(draft_name(volume_id, f"before-{plain(work_name)}", suffix))
            with self._locked():
                if target.is_symlink():  # an earlier attempt's disk, whose report was lost: as a draft it is found and wiped
                    target.replace(before)
                draft.replace(target)
                _fsync(self.root)
            self._empty([before])

        await self._run(move)
        return target.name

    async def discard(self, volume_id: UUID, work_name: str, suffix: str) -> None:
        """See PrimaryStore. The device is zeros before it is free."""
        await self._run(self._empty, [self._link(draft_name(volume_id, work_name, suffix))])

    def _empty(self, links: Sequence[Path]) -> None:
        for link in links:
            if link.is_symlink():
                block_device.zero(os.path.realpath(link))
                with self._locked():
                    link.unlink(missing_ok=True)
        if self.root.exists():
            _fsync(self.root)

    def locate(self, name: str) -> str:
        """See PrimaryStore: the device's own path."""
        return os.path.realpath(self._link(plain(name)))

    async def fits(self, name: str, size: int) -> None:
        """See Bounded: a volume stays on its device."""
        device = self.locate(name)
        room, least = await self._run(block_device.size_of, device), needed(size)
        if room < least:
            raise WorkFailed(f"the device of the disk has {room} bytes, and a disk of {size} needs {least}", field="size",
                             remedy="make the device larger, or a new volume on a larger one")

    async def exists(self, name: str) -> bool:
        """See PrimaryStore. A device that is gone from the host is not there."""
        return bool(await self._run(self._link(plain(name)).exists))

    async def delete(self, volume_id: UUID) -> None:
        """See PrimaryStore. Interrupted, the link is still there, and the wiping is done again."""
        await self._run(lambda: self._empty([*self.root.glob(f"{volume_id}.*"), *self.root.glob(f".{volume_id}.*")]))

    async def names(self) -> list[str]:
        """See PrimaryStore."""
        return sorted(await self._run(self._held))

    async def usage(self) -> Usage:
        """See PrimaryStore: whole devices."""
        def look() -> Usage:
            held = set(self._held().values())
            sizes = {os.path.realpath(device): block_device.size_of(device) for device in self._devices()}
            free = sum(size for device, size in sizes.items() if device not in held)
            return Usage(total=sum(sizes.values()), free=free)

        return await self._run(look)  # type: ignore[no-any-return] # a Usage


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["BlockPrimaryStore", "needed"]
