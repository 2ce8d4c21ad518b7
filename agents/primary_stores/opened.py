"""Primary stores that were opened by an order, not by settings: judged, marked, and remembered by their agent.

Owns a mark in each place, by which it is known again as this store's, and one file with the list, replaced as a whole and
durable. Rule kept here: a place with anything in it that is not this store's is somebody else's and is refused; closing one
deletes nothing but the mark.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID

from agents.primary_stores.block import LIST, BlockPrimaryStore
from agents.uninterrupted import in_thread
from schema.failure import Refused
from schema.image import PrimarySpec

OPENED = "primaries.json"
"""The list's file in the agent's folder."""
MARK = ".storebus-primary"
OURS = {"folder": (MARK, "lost+found"), "block": (MARK, "lost+found", LIST, f"{LIST}.new")}
"""Kind -> what an empty place may hold."""
MOST = 200
"""Stores of one agent."""


class OpenedStores:
    """The list of one agent. Two processes of it may use this at once."""

    def __init__(self, path: str | Path) -> None:
        """`path`: the file of the list; it need not be there."""
        self._path = Path(path)

    def all(self) -> list[PrimarySpec]:
        """What is open. Blocking."""
        try:
            return [PrimarySpec.model_validate(each) for each in json.loads(self._path.read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []

    async def open(self, spec: PrimarySpec, devices: Sequence[str]) -> None:
        """Judge the place and open it; twice is once. Raises Refused naming what is wrong with it."""
        await in_thread(self._judge, spec)
        if spec.kind == "block":
            await BlockPrimaryStore(spec.path).prepare(devices)
        await in_thread(self._open, spec)

    async def close(self, spec: PrimarySpec) -> None:
        """Forget it. One that is not open is fine."""
        await in_thread(self._close, spec)

    def _judge(self, spec: PrimarySpec) -> None:
        root, owner = Path(spec.path), _owner(Path(spec.path))
        if not root.is_dir():
            raise _refused(spec, "it is not there, or is no folder", "make it (mkdir), and mount there what is to be used")
        if os.path.realpath(root) != str(root):
            raise _refused(spec, "a symbolic link is on the way to it", f"name {os.path.realpath(root)}")
        if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
            raise _refused(spec, "the agent may not write there", "chown or chmod it")
        if owner not in ("", str(spec.id)):
            raise _refused(spec, f"it is the primary store {owner}", "delete that one first, or name another folder")
        foreign = [each.name for each in root.iterdir() if each.name not in OURS[spec.kind]]
        if foreign and not owner:
            raise _refused(spec, f"it is not empty: {sorted(foreign)[0]!r} is there", "name an empty folder")

    def _open(self, spec: PrimarySpec) -> None:
        with self._locked():
            kept = [each for each in self.all() if each.id != spec.id]
            if len(kept) >= MOST:
                raise _refused(spec, f"this agent has {MOST} primary stores already", "use another host")
            written(Path(spec.path) / MARK, json.dumps({"primary": str(spec.id)}))
            self._save([*kept, spec])

    def _close(self, spec: PrimarySpec) -> None:
        with self._locked():
            self._save([each for each in self.all() if each.id != spec.id])
        root = Path(spec.path)
        with contextlib.suppress(OSError):  # a disk that is gone has no mark
            if _owner(root) == str(spec.id):
                (root / MARK).unlink()

    def _save(self, specs: list[PrimarySpec]) -> None:
        written(self._path, json.dumps([spec.model_dump(mode="json") for spec in specs]))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _owner(root: Path) -> str:
    """The store whose place this is; empty when it is nobody's."""
    try:
        said = json.loads((root / MARK).read_text(encoding="utf-8"))
        return str(UUID(said["primary"]))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return "that its damaged mark names"


def _refused(spec: PrimarySpec, why: str, remedy: str) -> Refused:
    return Refused(f"{spec.path} on {spec.agent} cannot be a primary store: {why}", field="url", remedy=remedy)


def written(path: Path, text: str) -> None:
    """The file's whole content, durably."""
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["MARK", "OPENED", "OpenedStores", "written"]
