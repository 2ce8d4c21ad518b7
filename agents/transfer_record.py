"""The record of one transfer in the agent's state folder: which parts the store acknowledged, and what it calls them.

Owns a file per attempt, JSON lines: what the transfer is about, then each acknowledged part. It is written for a process that is
killed: a torn line ends it, and what is missing is only sent again. Refuses to be believed alone: a part counts when the store's
own list says the same (`motion.resuming`). The runtime removes it when the order's report is journaled.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents.image_stores.base import PartInfo
from agents.uninterrupted import in_thread

log = logging.getLogger(__name__)
SUFFIX = ".parts"
MOST_BYTES = 8 << 20
"""Of a record: 10,000 parts have 2 MB. What is behind is sent again."""
LINE_MAX = 1 << 16
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An acknowledged part."""

    sha256: str
    info: PartInfo
    """What the store answered."""


class TransferRecord:
    """Of one attempt. A disk that cannot keep it fails nothing: what is not recorded is sent again."""

    def __init__(self, folder: Path, work: str) -> None:
        """`work`: the order's work name."""
        self._folder, self._work = folder, work
        self._path = folder / f"{work}{SUFFIX}"

    async def read(self, about: str) -> Mapping[int, Part]:
        """The parts by number, when the record is about the same; otherwise none."""
        try:
            return await in_thread(self._read, about)
        except OSError as error:
            self._lost(error)
            return {}

    async def about(self) -> str:
        """What it is about; empty when there is none."""
        try:
            return await in_thread(self._about)
        except OSError as error:
            self._lost(error)
            return ""

    def _about(self) -> str:
        try:
            with self._path.open("rb") as file:
                return str(json.loads(file.readline(LINE_MAX))["about"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return ""

    def _lost(self, error: OSError) -> None:
        log.warning("the record of the transfer %s cannot be kept: %s", self._work, error.strerror,
                    extra={"action": "transfer_not_recorded"})

    def _read(self, about: str) -> dict[int, Part]:
        try:
            with self._path.open("rb") as file:
                lines = file.read(MOST_BYTES).split(b"\n")[:-1]
        except FileNotFoundError:
            return {}
        found: dict[int, Part] = {}
        try:
            if not lines or json.loads(lines[0])["about"] != about:
                return {}
            for line in lines[1:]:
                said = json.loads(line)
                if not _HEX.fullmatch(said["sha256"]):
                    break
                found[int(said["part"])] = Part(sha256=said["sha256"],
                                                info=PartInfo(size=int(said["size"]), etag=str(said["etag"])))
        except (ValueError, KeyError, TypeError):
            pass  # torn here: what was read before counts
        return found

    async def begin(self, about: str, parts: Mapping[int, Part]) -> None:
        """A new record with these parts, in place of the old one at once. Those of other attempts go."""
        try:
            await in_thread(self._begin, about, dict(parts))
        except OSError as error:
            self._lost(error)

    def _begin(self, about: str, parts: dict[int, Part]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for other in self._folder.glob(f"{self._work.rpartition('.')[0]}.*{SUFFIX}"):
            if other != self._path:
                other.unlink(missing_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text("".join([json.dumps({"about": about}) + "\n", *(_line(number, part) for number, part in parts.items())]))
        new.replace(self._path)

    async def add(self, number: int, sha256: str, info: PartInfo) -> None:
        """The store acknowledged this part."""
        try:
            await in_thread(self._add, _line(number, Part(sha256=sha256, info=info)).encode())
        except OSError as error:
            self._lost(error)

    def _add(self, line: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):  # the order was ended meanwhile
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                os.write(handle, line)  # short lines are written whole or torn; both are read
            finally:
                os.close(handle)


def _line(number: int, part: Part) -> str:
    return json.dumps({"part": number, "sha256": part.sha256, "size": part.info.size, "etag": part.info.etag}) + "\n"


def forget(folder: Path, work: str) -> None:
    """The attempt has ended, one way or another. Synchronous."""
    for name in (f"{work}{SUFFIX}", f"{work}.new"):
        (folder / name).unlink(missing_ok=True)


def sweep(folder: Path, keep: Collection[str]) -> None:
    """Remove the records of all attempts but these. Synchronous; what cannot be removed stays until the next start."""
    for path in [*folder.glob(f"*{SUFFIX}"), *folder.glob("*.new")]:
        if path.stem not in keep:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


__all__ = ["Part", "TransferRecord", "forget", "sweep"]
