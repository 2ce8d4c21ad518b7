"""A folder as a primary store: `<volume id>.qcow2` in a directory of this host, and `<template id>.seed.qcow2` beside them.

Owns the names: a disk under construction is `.<volume id>.<work>.<suffix>` and becomes the volume's by rename, durably.
Refuses names that leave the folder.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from agents.primary_stores.base import SEED, Usage, explain
from agents.uninterrupted import in_thread
from schema.failure import WorkFailed

OURS = re.compile(r"\.?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.")
"""How the name of a disk or a draft begins; other files in the folder are somebody else's."""


class FolderPrimaryStore:
    """See PrimaryStore."""

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path).absolute()  # qemu takes a colon in a relative path for a protocol

    async def _run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await in_thread(call, *arguments)
        except OSError as error:
            raise explain(error, self.root) from None

    async def prepare(self) -> None:
        """Make the folder, for this user only, when it is absent."""
        await self._run(lambda: self.root.mkdir(mode=0o700, parents=True, exist_ok=True))

    def _draft(self, volume_id: UUID, work_name: str, suffix: str) -> Path:
        return self.root / draft_name(volume_id, work_name, suffix)

    async def draft(self, volume_id: UUID, work_name: str, suffix: str, *, size: int = 0) -> str:
        """See PrimaryStore."""
        path = self._draft(volume_id, work_name, suffix)
        await self._run(lambda: path.unlink(missing_ok=True))
        return str(path)

    async def kept(self, volume_id: UUID, work_name: str, suffix: str, *, size: int = 0) -> str:
        """See KeepsDrafts."""
        return str(self._draft(volume_id, work_name, suffix))

    async def commit(self, volume_id: UUID, work_name: str, suffix: str) -> str:
        """See PrimaryStore."""
        target = self.root / f"{volume_id}.{plain(suffix)}"

        def move() -> None:
            draft = self._draft(volume_id, work_name, suffix)
            if not draft.exists() and target.exists():
                return  # an earlier run came this far
            _fsync(draft)
            draft.replace(target)
            _fsync(self.root)

        await self._run(move)
        return target.name

    async def discard(self, volume_id: UUID, work_name: str, suffix: str) -> None:
        """See PrimaryStore."""
        await self._run(lambda: self._draft(volume_id, work_name, suffix).unlink(missing_ok=True))

    def locate(self, name: str) -> str:
        """See PrimaryStore."""
        return str(self.root / plain(name))

    async def exists(self, name: str) -> bool:
        """See PrimaryStore."""
        return bool(await self._run(Path(self.locate(name)).exists))

    async def delete(self, volume_id: UUID) -> None:
        """See PrimaryStore."""
        await self._run(self._remove, volume_id, False)

    def _remove(self, thing_id: UUID, seeds: bool) -> None:
        for path in [*self.root.glob(f"{thing_id}.*"), *self.root.glob(f".{thing_id}.*")]:
            if path.name.endswith(f".{SEED}") is seeds:
                path.unlink(missing_ok=True)
        if self.root.exists():
            _fsync(self.root)

    async def seed(self, name: str) -> tuple[str, int] | None:
        """See KeepsSeeds."""
        path = Path(self.locate(name))

        def look() -> tuple[str, int] | None:
            try:
                found = path.lstat()
            except FileNotFoundError:
                return None
            return (str(path), found.st_size) if stat.S_ISREG(found.st_mode) else None

        return await self._run(look)  # type: ignore[no-any-return] # what look returns

    async def drop_seed(self, template_id: UUID) -> None:
        """See KeepsSeeds."""
        await self._run(self._remove, template_id, True)

    async def names(self) -> list[str]:
        """See PrimaryStore."""
        return await self._run(  # type: ignore[no-any-return] # a list of names
            lambda: sorted(path.name for path in self.root.iterdir() if OURS.match(path.name)))

    async def usage(self) -> Usage:
        """See PrimaryStore."""
        found = await self._run(os.statvfs, self.root)
        return Usage(total=found.f_frsize * found.f_blocks, free=found.f_frsize * found.f_bavail)


def draft_name(volume_id: UUID, work_name: str, suffix: str) -> str:
    """The name of a disk under construction."""
    return f".{volume_id}.{plain(work_name)}.{plain(suffix)}"


def plain(name: str) -> str:
    """The name, if it stays in its folder. Raises WorkFailed."""
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise WorkFailed("a disk's name leaves its primary store", field="path")
    return name


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
