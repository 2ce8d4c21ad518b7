"""A machine on this host: qemu with disks that come and go, and that lives on when its agent does not.

Owns its folder (what is attached, durably; its QMP socket; its lock), its command line, and how a disk is plugged into it and
out of it. What is attached is written down before it is plugged, and plugging looks at what is there: so a process that dies
anywhere in between leaves a machine that the next one completes. Refuses to know orders, and to decide which machines run.
Rule kept here: formats are said, never guessed, and qemu's locks are on, so nobody else opens a disk that is in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from agents.primary_stores.opened import written
from agents.primary_stores.registry import primary
from agents.qemu import failed, protocol
from agents.qmp import NotRunning, Qmp, Refusal, conversation
from agents.uninterrupted import in_thread, to_the_end
from schema.failure import Unavailable, WorkFailed, WorkRetryable
from schema.image import DiskRef

PROGRAM = "qemu-system-x86_64"
INSTALL = "apt-get install --no-install-recommends qemu-system-x86"
MACHINES = "machines"
"""In the agent's folder: a folder for each."""
SOCKET, ATTACHED, LOG = "qmp", "attached.json", "log"
START_S, LOCK_S, UNPLUG_S, END_S = 30.0, 60.0, 20.0, 20.0
LOOK_S = 0.05
"""Between looks whether something that was asked for is so."""

_STARTED: list[subprocess.Popen[bytes]] = []
"""Machines that this process started: when they end, it is this process that the kernel tells."""


class Definition(BaseModel):
    """What the operator says of a machine: a file of its own, JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: UUID
    name: str = Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    memory: int = Field(128, ge=16, le=1 << 20)
    """MiB."""
    run: bool = True
    """False: it is stopped, and not started."""
    account: UUID | None = None
    """The account that it belongs to; None: ROOT's admin."""
    accelerator: Literal["tcg", "kvm"] = "tcg"


class Attached(BaseModel):
    """A disk of a machine."""

    model_config = ConfigDict(frozen=True)

    disk: DiskRef
    device_id: int

    @property
    def device(self) -> str:
        """qemu's name of the device."""
        return f"sb-{self.disk.volume_id.hex}"

    @property
    def node(self) -> str:
        """qemu's name of the disk's content: at most 31 characters."""
        return f"d{self.disk.volume_id.hex[:30]}"

    def blockdev(self) -> dict[str, Any]:
        """The disk as a block node. Blocking: looks whether it is a device. Raises WorkFailed."""
        path = primary(self.disk.primary).locate(self.disk.path)
        if not Path(path).exists():
            raise WorkFailed(f"the disk {self.disk.path} is not on its primary store", field="id",
                             remedy="see whether the primary store is mounted")
        file = {"driver": protocol(path), "node-name": f"f{self.disk.volume_id.hex[:30]}", "filename": path, "locking": "on",
                "discard": "unmap"}
        return {"driver": "qcow2", "node-name": self.node, "file": file, "backing": None, "discard": "unmap"}

    def scsi(self) -> dict[str, Any]:
        """The device that shows it. Its serial number is how a guest knows the volume."""
        return {"driver": "scsi-hd", "id": self.device, "bus": "scsi.0", "channel": 0, "scsi-id": self.device_id, "lun": 0,
                "drive": self.node, "serial": self.disk.volume_id.hex[:20]}


class Busy(WorkRetryable):
    """Another process of the agent is changing the machine."""


class Machine:
    """One machine. Several processes of its agent may use it at once."""

    def __init__(self, root: Path, machine_id: UUID) -> None:
        """`root`: the folder of all machines of this agent."""
        self.id, self.folder = machine_id, root / str(machine_id)

    # --- what is attached ---

    def attached(self) -> list[Attached]:
        """As written down. Blocking."""
        try:
            return [Attached.model_validate(each) for each in json.loads((self.folder / ATTACHED).read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []

    def _write(self, disks: list[Attached]) -> None:
        written(self.folder / ATTACHED, json.dumps([each.model_dump(mode="json") for each in disks]))

    async def attach(self, one: Attached) -> bool:
        """Attach a disk: now if it runs, else when it starts. True when it was plugged into a running one. Twice is once.

        Raises WorkFailed, WorkRetryable: then it is not attached."""
        async with self.locked():
            others = [each for each in await in_thread(self.attached) if each.disk.volume_id != one.disk.volume_id]
            if any(each.device_id == one.device_id for each in others):
                raise WorkFailed(f"the device {one.device_id} of the machine has another disk", field="deviceid")
            await in_thread(one.blockdev)
            await in_thread(self._write, [*others, one])
            try:
                return await self._plug(one)
            except BaseException:
                await to_the_end(self._forget(one))
                raise

    async def detach(self, volume_id: UUID) -> None:
        """Detach a disk; one that is not attached is fine. Raises WorkFailed, WorkRetryable: then it may still be attached."""
        if not await asyncio.to_thread(self.folder.exists):
            return
        async with self.locked():
            known = next((each for each in await in_thread(self.attached) if each.disk.volume_id == volume_id), None)
            if known is not None:
                await self._unplug(known)
                await in_thread(self._write, [each for each in await in_thread(self.attached) if each != known])

    async def _forget(self, one: Attached) -> None:
        """What was written down and could not be plugged. When even that fails, the order is undone by another."""
        with contextlib.suppress(WorkFailed):
            await self._unplug(one)
            await in_thread(self._write, [each for each in self.attached() if each != one])

    async def _plug(self, one: Attached) -> bool:
        try:
            async with conversation(self.folder, SOCKET) as qmp:
                if one.node not in await _nodes(qmp):
                    await qmp.ask("blockdev-add", **await in_thread(one.blockdev))
                if one.device not in await _devices(qmp):
                    await qmp.ask("device_add", **one.scsi())
        except NotRunning:
            return False
        return True

    async def _unplug(self, one: Attached) -> None:
        with contextlib.suppress(NotRunning):
            async with conversation(self.folder, SOCKET) as qmp:
                if one.device in await _devices(qmp):
                    await qmp.ask("device_del", id=one.device)
                    await _until_gone(qmp, one.device)
                end = time.monotonic() + UNPLUG_S
                while one.node in await _nodes(qmp):
                    try:
                        await qmp.ask("blockdev-del", **{"node-name": one.node})
                    except Refusal as refusal:  # what used it is gone from the list, and still letting go
                        if time.monotonic() > end:
                            raise WorkRetryable(refusal.failure.cause, remedy="it is tried again") from None
                        await asyncio.sleep(LOOK_S)

    # --- its life ---

    async def prepare(self) -> None:
        """Make its folder: from then on disks can be attached."""
        await in_thread(lambda: self.folder.mkdir(mode=0o700, parents=True, exist_ok=True))

    async def running(self, *, patience_s: float = 3.0) -> bool:
        """Whether its qemu answers. Raises WorkRetryable when somebody is there and says nothing."""
        try:
            async with conversation(self.folder, SOCKET, patience_s=patience_s):
                return True
        except NotRunning:
            return False

    async def start(self, definition: Definition) -> None:
        """Start it with everything that is attached; one that runs is left alone. Raises WorkFailed, Unavailable."""
        if shutil.which(PROGRAM) is None:
            raise Unavailable(f"{PROGRAM} is not installed", field="machine", remedy=INSTALL)
        async with self.locked():
            if await self.running():
                return
            disks = await in_thread(lambda: [(each.blockdev(), each.scsi()) for each in self.attached()])
            words = command_line(definition, self.folder, disks)
            process = await in_thread(self._spawn, words)
            try:
                await self._up(process)
            except BaseException:
                process.kill()
                await in_thread(process.wait)
                raise

    def _spawn(self, words: list[str]) -> subprocess.Popen[bytes]:
        """qemu, in a session of its own: nothing that ends this process ends it. Blocking."""
        _STARTED[:] = [each for each in _STARTED if each.poll() is None]
        with (self.folder / LOG).open("wb") as log:
            process = subprocess.Popen(words, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       start_new_session=True)
        _STARTED.append(process)
        return process

    async def _up(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it answers. Raises WorkFailed with its own words when it ends instead."""
        end = time.monotonic() + START_S
        while not await self.running():
            if process.poll() is not None:
                said = await in_thread(lambda: (self.folder / LOG).read_bytes()[-4096:].decode(errors="replace"))
                raise failed(PROGRAM, said, process.returncode)
            if time.monotonic() > end:
                raise WorkRetryable(f"{PROGRAM} does not start", remedy="see whether the host is overloaded")
            await asyncio.sleep(LOOK_S)

    async def stop(self) -> None:
        """End it in order: its disks are flushed and closed. Raises WorkRetryable when it does not end."""
        async with self.locked():
            with contextlib.suppress(NotRunning, WorkRetryable):
                async with conversation(self.folder, SOCKET) as qmp:
                    await qmp.ask("quit")
            end = time.monotonic() + END_S
            while await self.running():
                if time.monotonic() > end:
                    raise WorkRetryable("the machine does not end", remedy="see the host's processes")
                await asyncio.sleep(LOOK_S)

    @contextlib.asynccontextmanager
    async def locked(self, *, wait_s: float = LOCK_S) -> AsyncIterator[None]:
        """One at a time changes it, in whatever process. Raises Busy when another one does for too long, WorkFailed when this
        host has no such machine."""
        try:
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise WorkFailed(f"this host has no machine {self.id}", field="virtualmachineid",
                             remedy="listVirtualMachines shows where it is") from None
        try:
            end = time.monotonic() + wait_s
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise Busy("the machine is being changed", remedy="it is tried again") from None
                    await asyncio.sleep(LOOK_S)
            yield
        finally:
            os.close(descriptor)


def command_line(definition: Definition, folder: Path, disks: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """qemu's words: no network, no display, nothing that was not asked for."""
    words = ["prlimit", "--core=0", "setpriv", "--no-new-privs", PROGRAM, "-name", definition.name, "-uuid", str(definition.id),
             "-machine", f"q35,accel={definition.accelerator}", "-m", f"{definition.memory}M", "-nodefaults", "-no-user-config",
             "-display", "none", "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
             "-device", "virtio-scsi-pci,id=scsi", "-qmp", f"unix:{SOCKET},server=on,wait=off", "-pidfile",
             str(folder / "pid").replace(",", ",,")]
    for blockdev, device in disks:
        words += ["-blockdev", json.dumps(blockdev), "-device", json.dumps(device)]
    return words


async def _devices(qmp: Qmp) -> set[str]:
    """The devices that have names."""
    return {str(each["name"]) for each in await qmp.ask("qom-list", path="/machine/peripheral")}


async def _nodes(qmp: Qmp) -> set[str]:
    return {str(each["node-name"]) for each in await qmp.ask("query-named-block-nodes", flat=True)}


async def _until_gone(qmp: Qmp, device: str) -> None:
    """A guest may take its time to let go. Raises WorkRetryable."""
    end = time.monotonic() + UNPLUG_S
    while device in await _devices(qmp):
        if time.monotonic() > end:
            raise WorkRetryable("the machine does not let go of the disk", remedy="unmount it in the guest; it is tried again")
        await asyncio.sleep(LOOK_S)


__all__ = ["INSTALL", "MACHINES", "PROGRAM", "Attached", "Busy", "Definition", "Machine", "command_line"]
