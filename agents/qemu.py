"""qemu's programs: argument lists, explicit formats, resource limits, and an end that comes with ours.

Owns how they are started, waited for and stopped. Refuses to guess a format and to use a shell. A process started here
dies when this process does (PR_SET_PDEATHSIG), so an image is never held by something nobody remembers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from schema.failure import Unavailable, WorkFailed, WorkRetryable

INSTALL = "apt-get install --no-install-recommends qemu-utils qemu-system-common"
LOOK_BYTES, LOOK_S = 1 << 30, 30
"""Address space and processor seconds of a program that looks at an image somebody else made."""
START_S = 15.0
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def installed() -> list[str]:
    """The programs that are missing."""
    return [name for name in ("qemu-img", "qemu-nbd", "qemu-storage-daemon") if shutil.which(name) is None]


def _child(limited: bool) -> Callable[[], None]:
    def become() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if limited:
            resource.setrlimit(resource.RLIMIT_AS, (LOOK_BYTES, LOOK_BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (LOOK_S, LOOK_S))

    return become


async def run(*arguments: str, limited: bool = False) -> str:
    """Run a program to its end; its output. Raises WorkFailed with its own words, WorkRetryable when the disk is locked."""
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            preexec_fn=_child(limited))
    except FileNotFoundError:
        raise Unavailable(f"{arguments[0]} is not installed", field="qemu", remedy=INSTALL) from None
    try:
        out, err = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise failed(arguments[0], err.decode(errors="replace"))
    return out.decode(errors="replace")


def failed(program: str, said: str) -> WorkFailed:
    """What a program said, as a failure."""
    text = said.strip().replace("\n", "; ")[-400:]
    if "lock" in text:
        return WorkRetryable(f"the disk is in use by another process ({program}: {text})", remedy="stop what uses it")
    if "No space left" in text:
        return WorkFailed(f"the primary store is full ({program}: {text})", remedy="free space, or add a store")
    return WorkFailed(f"{program}: {text}")


async def info(path: str, form: str) -> dict[str, Any]:
    """`qemu-img info` of a disk nobody needs to trust, as an object."""
    found: dict[str, Any] = json.loads(await run("qemu-img", "info", "-U", "-f", form, "--output=json", path, limited=True))
    return found


class Export:
    """A program that serves a disk on a unix socket in a private folder."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process, self.folder = process, folder

    @property
    def socket(self) -> str:
        """Path of the socket."""
        return str(self.folder / "s")

    async def ready(self) -> None:
        """Wait until it listens. Raises with the program's own words when it ends instead."""
        for _ in range(int(START_S / 0.01)):
            if self.process.returncode is not None:
                assert self.process.stderr is not None
                said = (await self.process.stderr.read()).decode(errors="replace")
                raise failed("block export", said or "it ended at once")
            if (self.folder / "s").exists():
                return
            await asyncio.sleep(0.01)
        raise WorkRetryable("the block export does not come up", remedy="see whether the host is overloaded")

    async def stop(self) -> None:
        """An orderly end: qemu writes its metadata; SIGKILL after 10 s."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), 10)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def export(arguments: Callable[[str], list[str]]) -> AsyncIterator[Export]:
    """Run an exporting program while this is open; `arguments` makes its command line from the socket's path."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="sb-nbd-"))
    try:
        command = arguments(str(folder / "s"))
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            preexec_fn=_child(limited=False))
    except FileNotFoundError:
        shutil.rmtree(folder, ignore_errors=True)
        raise Unavailable("qemu's tools are not installed", field="qemu", remedy=INSTALL) from None
    one = Export(process, folder)
    try:
        await one.ready()
        yield one
    finally:
        await asyncio.shield(asyncio.ensure_future(one.stop()))


def daemon(path: str, form: str, *, writable: bool) -> Callable[[str], list[str]]:
    """qemu-storage-daemon serving a disk's live content."""
    def arguments(socket: str) -> list[str]:
        file = {"driver": "file", "node-name": "file", "filename": path, "read-only": not writable}
        disk = {"driver": form, "node-name": "disk", "file": "file", "read-only": not writable}
        if form == "qcow2":
            disk["backing"] = None  # never follow a chain that somebody wrote into the file
        if writable:
            file["discard"] = disk["discard"] = "unmap"
        serve = {"type": "nbd", "id": "export", "node-name": "disk", "name": "", "writable": writable}
        return ["qemu-storage-daemon", "--blockdev", json.dumps(file), "--blockdev", json.dumps(disk),
                "--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=0",
                "--export", json.dumps(serve)]

    return arguments


def snapshot(path: str, tag: str) -> Callable[[str], list[str]]:
    """qemu-nbd serving an internal snapshot, read-only: qemu-storage-daemon cannot open one."""
    return lambda socket: ["qemu-nbd", "-r", "-t", "-f", "qcow2", "-l", f"snapshot.name={tag}", "-k", socket, "-e", "32", path]


def worker_threads() -> int:
    """How many threads a transfer may keep busy."""
    return max(4, os.cpu_count() or 1)
