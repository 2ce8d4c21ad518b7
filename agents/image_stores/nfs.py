"""NfsImageStore: images below an NFS export that the operator mounted on the agents' hosts.

It owns what the word NFS adds to a directory: the address nfs://server/export, where that is mounted here, and handles that
went stale. How objects lie there and how they become durable is the folder store's. It refuses to mount anything, and to wait
by itself for a server that is away: a call into a hard mount cannot be given up, only its process can, and that is the mover's.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from agents.image_stores.details import read_details
from agents.image_stores.folder import FolderImageStore
from agents.image_stores.folder_disk import Disk
from schema.failure import Refused, Unknown, WorkFailed, WorkRetryable
from schema.image import StoreSpec

T = TypeVar("T")
MOUNTS = Path("/proc/self/mountinfo")
STALE_TRIES = 3
"""Calls of one operation whose handles the server no longer knows: each begins at the root again."""
AGAIN = ("look at ", "read ", "delete ")
"""Operations that mean the same however often they are begun."""
SQUASHED = "export it with no_root_squash, or let the agent run as a user that may write there; mount it read-write"


class NfsSettings(BaseModel):
    """Details of an NFS store: none are needed where the export is mounted already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mountpoint: str = Field("", description="Absolute path on the agents' hosts at which the url's path is found; unset: "
                                            "looked up among what is mounted.")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    point: Path
    kind: str
    """nfs, nfs4, ext4 ..."""
    source: str
    """server:/export"""


def mounts(text: str) -> Iterator[Mount]:
    """What is mounted, in the order of mounting; lines of another form are left out."""
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields, about = before.split(" "), after.split(" ")
        if dash and len(fields) >= 5 and len(about) >= 2:
            yield Mount(Path(_plain(fields[4])), about[0], _plain(about[1]))


def _plain(word: str) -> str:
    """The kernel writes blanks and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)


def find(found: Sequence[Mount], server: str, path: str) -> Path | None:
    """Where server:path is seen on this host: at the mount of the longest export above it, the latest of equals."""
    best: tuple[int, Path] | None = None
    for mount in found:
        host, colon, export = mount.source.partition(":/")  # an IPv6 address has colons of its own
        if not (mount.kind.startswith("nfs") and colon and host.strip("[]") == server):
            continue
        export = "/" + export.strip("/")
        inside = Path(path).parts[len(Path(export).parts):]
        if Path(path).parts[:len(Path(export).parts)] == Path(export).parts and (best is None or len(export) >= best[0]):
            best = len(export), mount.point.joinpath(*inside)
    return best[1] if best else None


class NfsImageStore(FolderImageStore):
    """A mounted export, or a directory below one."""

    PROVIDER: ClassVar[str] = "nfs"
    SCOPE: ClassVar[str] = "ZONE"
    Settings: ClassVar[type[BaseModel]] = NfsSettings

    @classmethod
    async def open(cls, spec: StoreSpec, secrets: Mapping[str, str]) -> Self:
        """Find the mount. Whether the server answers is looked at by every operation, not here.

        Raises Refused for an address or a path of another form, WorkRetryable where the export is not mounted."""
        settings = read_details(NfsSettings, spec, secrets)
        url = urlsplit(spec.url)
        export = unquote(url.path)
        if url.scheme != "nfs" or not url.hostname or not export.strip("/") or ".." in Path(export).parts or "@" in url.netloc:
            raise Refused("not the address of an NFS export", field="url", remedy="use nfs://server/exported/path")
        if settings.mountpoint:
            path = Path(settings.mountpoint)
            if not path.is_absolute() or ".." in path.parts or path == Path("/"):
                raise Refused("not the absolute path of a directory", field="details.mountpoint", remedy="use /mnt/images")
            return cls(path, Disk(), spec.name)
        place = find(await _mounted(), url.hostname, export)
        if place is None:
            raise WorkRetryable(f"{url.hostname}:{export} is not mounted on this agent's host", field="url",
                                remedy=f"mount -t nfs {url.hostname}:{export} /mnt/images, or say by mountpoint where it is")
        return cls(place, Disk(), spec.name)

    async def test(self, prefix: str) -> Sequence[str]:
        """What is mounted there, then a directory's steps."""
        point = await asyncio.to_thread(_point_of, self.root)
        above = [mount for mount in await _mounted() if mount.point == point]
        kind = above[-1].kind if above else "unknown"
        what = f"{above[-1].source} at {point} ({kind})" if kind.startswith("nfs") else f"{self.root} is on {kind}, not on NFS"
        return [f"mount: {what}", *await super().test(prefix)]

    async def run(self, action: str, call: Callable[[], T], *, changes: bool = False, absent: bool = False) -> T:
        """As a directory's; begun again where the server has forgotten a handle; squashed root is named."""
        for left in reversed(range(STALE_TRIES)):
            try:
                return await super().run(action, call, changes=changes, absent=absent)
            except (WorkFailed, WorkRetryable, Unknown) as error:
                number = getattr(error.__cause__, "errno", None)
                if number == errno.ESTALE and left and action.startswith(AGAIN):
                    continue
                if number in (errno.EACCES, errno.EPERM):
                    raise WorkFailed(error.failure.cause, field="url", remedy=SQUASHED) from error.__cause__
                raise
        raise AssertionError("unreachable")


def _point_of(path: Path) -> Path:
    """The mount point that a path is below. Blocking."""
    while not path.is_mount():
        path = path.parent
    return path


async def _mounted() -> list[Mount]:
    return list(mounts(await asyncio.to_thread(MOUNTS.read_text, errors="replace")))
