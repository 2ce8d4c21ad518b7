"""A primary store in memory, for the memory hypervisor: named disks of this process.

Owns the names of disks below its path, as a folder does, and their move from draft to volume. Refuses content: that is the
hypervisor's. A draft's path lies in a private folder, since an image that is read from a store arrives as a file, which the
hypervisor takes in; nothing else is ever there, and the folder goes with the process.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from uuid import UUID

from agents.hypervisors.memory import DISKS
from agents.primary_stores.base import Usage
from agents.primary_stores.folder import draft_name, plain
from schema.failure import WorkFailed

TOTAL = 1 << 40
"""Bytes that the store says it has."""


@functools.cache
def _folder() -> Path:
    made = Path(tempfile.mkdtemp(prefix="sb-memory-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


class MemoryPrimaryStore:
    """See PrimaryStore."""

    def __init__(self, path: str | Path) -> None:
        self._name = str(path).strip("/").replace("/", "%") or "root"

    async def _root(self) -> Path:
        root = await asyncio.to_thread(_folder) / self._name
        await asyncio.to_thread(lambda: root.mkdir(mode=0o700, exist_ok=True))
        return root

    async def _remove(self, path: str) -> None:
        DISKS.pop(path, None)
        await asyncio.to_thread(lambda: Path(path).unlink(missing_ok=True))

    async def draft(self, volume_id: UUID, work_name: str, suffix: str, *, size: int = 0) -> str:
        """See PrimaryStore."""
        path = str(await self._root() / draft_name(volume_id, work_name, suffix))
        await self._remove(path)
        return path

    async def commit(self, volume_id: UUID, work_name: str, suffix: str) -> str:
        """See PrimaryStore."""
        root = await self._root()
        draft, target = str(root / draft_name(volume_id, work_name, suffix)), str(root / f"{volume_id}.{plain(suffix)}")
        if draft in DISKS:
            DISKS[target] = DISKS.pop(draft)
        elif target not in DISKS:
            raise WorkFailed("the primary store: there is no such draft", field="primary", remedy="make the disk again")
        return Path(target).name

    async def discard(self, volume_id: UUID, work_name: str, suffix: str) -> None:
        """See PrimaryStore."""
        await self._remove(str(await self._root() / draft_name(volume_id, work_name, suffix)))

    def locate(self, name: str) -> str:
        """See PrimaryStore."""
        return str(_folder() / self._name / plain(name))

    async def exists(self, name: str) -> bool:
        """See PrimaryStore."""
        return self.locate(name) in DISKS

    async def delete(self, volume_id: UUID) -> None:
        """See PrimaryStore."""
        for name in await self.names():
            if name.removeprefix(".").startswith(f"{volume_id}."):
                await self._remove(self.locate(name))

    async def names(self) -> list[str]:
        """See PrimaryStore."""
        root = await self._root()
        files = await asyncio.to_thread(lambda: [str(path) for path in root.iterdir()])
        return sorted({Path(path).name for path in [*files, *DISKS] if Path(path).parent == root})

    async def usage(self) -> Usage:
        """See PrimaryStore."""
        root = await self._root()
        used = sum(len(page) for path, disk in DISKS.items() if Path(path).parent == root for page in disk.pages.values())
        return Usage(total=TOTAL, free=max(0, TOTAL - used))
