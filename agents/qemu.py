"""qemu's programs: argument lists, explicit formats, resource limits, and an end that comes with ours.

Owns how they are started, waited for and stopped; nobody else starts one. Refuses to guess a format and to use a shell. Every
program runs in `sandbox`: it dies when this process does (PR_SET_PDEATHSIG), and an image is never held by something nobody
remembers.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from agents import sandbox
from agents.primary_stores.base import FULL
from agents.uninterrupted import to_the_end
from schema.failure import Unavailable, WorkFailed, WorkRetryable

INSTALL = "apt-get install --no-install-recommends qemu-utils qemu-system-common"
LOOK_S, CHECK_S = 30, 300
"""Processor seconds to look at an image, to check all of its tables."""
RUN_S = 900.0
"""Wall-clock seconds of any program that is not an export."""
START_S = 15.0
STOP_S = 10.0
STALE_S = 60.0
"""Age at which a socket folder that nobody holds is taken for one of a dead process."""
SAID_BYTES = 4096
"""How much of an exporting program's words is kept."""
_PREFIX = "sb-nbd-"
Arguments = Callable[[Path], list[str]]
"""Makes an exporting program's command line from its private folder."""


def installed() -> list[str]:
    """The programs that are missing."""
    return [name for name in ("qemu-img", "qemu-nbd", "qemu-storage-daemon") if shutil.which(name) is None]


async def _start(arguments: Sequence[str], *, memory: int, seconds: int = 0, output: bool = False) -> asyncio.subprocess.Process:
    for program in ("setpriv", "prlimit", arguments[0]):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not installed", field="qemu", remedy=f"{INSTALL} util-linux")
    words = await asyncio.to_thread(sandbox.wrapped, arguments, memory=memory, seconds=seconds)
    pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    return await to_the_end(asyncio.create_subprocess_exec(
        *words, stdin=none, stdout=pipe if output else none, stderr=pipe), undo=_kill)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End it now; wait for it, and for its pipes."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await to_the_end(process.communicate())


async def run(*arguments: str, look_s: int = 0, accept: Collection[int] = (0,)) -> str:
    """Run a program to its end; its output. With `look_s` it has that many processor seconds and little memory.

    Raises WorkFailed with its own words when it ends otherwise than `accept` says, WorkRetryable when the disk is locked or
    the program does not end. Cancelled, it is killed and waited for.
    """
    process = await _start(arguments, memory=sandbox.LOOK_BYTES if look_s else sandbox.RUN_BYTES,
                           seconds=look_s or int(RUN_S), output=True)
    try:
        async with asyncio.timeout(RUN_S):
            out, err = await process.communicate()
    except BaseException as error:
        await _kill(process)
        if isinstance(error, TimeoutError):
            raise WorkRetryable(f"{arguments[0]} does not end", remedy="see whether the primary store answers") from None
        raise
    if process.returncode not in accept:
        raise failed(arguments[0], err.decode(errors="replace"), process.returncode or 0)
    return out.decode(errors="replace")


def failed(program: str, said: str, status: int = 1) -> WorkFailed:
    """What a program said, as a failure."""
    text = said.strip().replace("\n", "; ")[-400:]
    if "lock" in text and ("Failed to get" in text or "Is another process using" in text):
        return WorkRetryable(f"the disk is in use by another process ({program}: {text})", remedy="stop what uses it")
    if "No space left" in text:
        return WorkFailed(f"the primary store is full ({program}: {text})", field="primary", remedy=FULL)
    if status in (-signal.SIGXCPU, -signal.SIGKILL) or "annot allocate memory" in text:
        return WorkFailed(f"{program} needs more memory or time than looking at an image may take ({text or status})",
                          remedy="convert the image with qemu-img convert before it is registered")
    return WorkFailed(f"{program}: {text or f'ended with {status}'}")


async def version() -> str:
    """What qemu-img says of itself."""
    process = await asyncio.create_subprocess_exec("qemu-img", "--version", stdout=asyncio.subprocess.PIPE)
    return (await process.communicate())[0].decode(errors="replace")


async def info(path: str, form: str) -> dict[str, Any]:
    """`qemu-img info` of a disk nobody needs to trust, as an object."""
    found: dict[str, Any] = json.loads(
        await run("qemu-img", "info", "-U", "-f", form, "--output=json", path, look_s=LOOK_S))
    return found


class Export:
    """A program that serves a disk on a unix socket in a private folder."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process, self.folder = process, folder
        self._said = bytearray()
        self._listener = asyncio.create_task(self._listen())

    @property
    def socket(self) -> str:
        """Path of the socket."""
        return str(self.folder / "s")

    async def _listen(self) -> None:
        """Keep the end of what it says: a full pipe would stop it."""
        assert self.process.stderr is not None
        while chunk := await self.process.stderr.read(SAID_BYTES):
            self._said += chunk
            del self._said[:-SAID_BYTES]

    async def ready(self) -> None:
        """Wait for its pid file, which both programs write when the export is there, not only the socket.

        Raises with the program's own words when it ends instead."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if (self.folder / "pid").exists():
                return
            if self.process.returncode is not None:
                await self._listener
                raise failed("block export", self._said.decode(errors="replace"), self.process.returncode)
            await asyncio.sleep(0.005)
        raise WorkRetryable("the block export does not come up", remedy="see whether the host is overloaded")

    async def stop(self) -> None:
        """An orderly end: qemu writes its metadata; SIGKILL after STOP_S."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), STOP_S)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        await self._listener


@contextlib.asynccontextmanager
async def _private_folder() -> AsyncIterator[Path]:
    """A folder for this user only, locked as long as it is used, gone afterwards."""
    folder, lock = await to_the_end(asyncio.to_thread(_make_folder), undo=_remove_folder)
    try:
        yield folder
    finally:
        await to_the_end(_remove_folder((folder, lock)))


async def _remove_folder(made: tuple[Path, int]) -> None:
    folder, lock = made
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    os.close(lock)


def _make_folder() -> tuple[Path, int]:
    base = tempfile.gettempdir()
    if len(base) > 70:
        base = "/tmp"  # noqa: S108 - a socket's path has at most 107 bytes; mkdtemp makes a private folder
    _remove_stale(Path(base))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _remove_stale(base: Path) -> None:
    """Folders of processes that were killed: nobody holds their lock."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            if time.time() - folder.stat().st_mtime < STALE_S:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


@contextlib.asynccontextmanager
async def export(arguments: Arguments) -> AsyncIterator[Export]:
    """Run an exporting program while this is open. Raises Unavailable, WorkRetryable and WorkFailed."""
    async with _private_folder() as folder:
        one = Export(await _start(arguments(folder), memory=sandbox.SERVE_BYTES), folder)
        try:
            await one.ready()
            yield one
        finally:
            await to_the_end(one.stop())


def daemon(path: str, form: str, *, writable: bool, connections: int, bitmap: str = "") -> Arguments:
    """qemu-storage-daemon serving a disk's live content; with `bitmap`, also what that dirty bitmap has marked."""
    def arguments(folder: Path) -> list[str]:
        file = {"driver": protocol(path), "node-name": "file", "filename": path, "read-only": not writable}
        disk = {"driver": form, "node-name": "disk", "file": "file", "read-only": not writable}
        if form == "qcow2":
            disk["backing"] = None  # never follow a chain that somebody wrote into the file
        if writable:
            file["discard"] = disk["discard"] = "unmap"
        serve = {"type": "nbd", "id": "export", "node-name": "disk", "name": "", "writable": writable,
                 "bitmaps": [bitmap] if bitmap else []}
        return ["qemu-storage-daemon", "--blockdev", json.dumps(file), "--blockdev", json.dumps(disk),
                "--nbd-server", f"addr.type=unix,addr.path={_option(folder / 's')},max-connections={connections}",
                "--export", json.dumps(serve), "--pidfile", str(folder / "pid")]

    return arguments


def snapshot(path: str, tag: str, *, connections: int) -> Arguments:
    """qemu-nbd serving an internal snapshot, read-only: qemu-storage-daemon cannot open one."""
    return lambda folder: ["qemu-nbd", "-r", "-t", "-f", "qcow2", "-l", f"snapshot.name={_option(tag)}",
                           "-k", str(folder / "s"), "-e", str(connections), f"--pid-file={folder / 'pid'}", path]


def image_options(path: str) -> str:
    """A qcow2 disk as qemu-img's --image-opts: the format is said, never guessed."""
    return f"driver=qcow2,file.driver={protocol(path)},file.filename={_option(path)}"


def protocol(path: str) -> str:
    """qemu's driver of what lies at a path: a block device has one of its own."""
    return "host_device" if Path(path).is_block_device() else "file"


def _option(value: str | Path) -> str:
    """A value inside a comma-separated option: commas are doubled."""
    return str(value).replace(",", ",,")

