"""Machines for tests: an operator's folder with one, its disks, and questions to its qemu. What was started is ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from agents.machine import SOCKET, Machine
from agents.machine_keeper import MachineKeeper
from agents.qmp import conversation
from schema.failure import Failed
from schema.image import DiskRef, PrimarySpec
from tests.support.images import img


def define(folder: Path, machine_id: UUID, **more: Any) -> Path:
    """Write a machine's file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{machine_id}.json"
    path.write_text(json.dumps({"id": str(machine_id), "name": f"m-{str(machine_id)[:8]}", "memory": 64} | more))
    return path


def disk(primary: PrimarySpec, size: int = 8 << 20) -> DiskRef:
    """A new empty disk on a folder."""
    volume_id = uuid4()
    img("create", "-q", "-f", "qcow2", f"{primary.path}/{volume_id}.qcow2", str(size))
    return DiskRef(primary=primary, volume_id=volume_id, path=f"{volume_id}.qcow2", virtual_size=size)


async def ask(machine: Machine, command: str, **arguments: Any) -> Any:
    """A question of the test's own."""
    async with conversation(machine.folder, SOCKET) as qmp:
        return await qmp.ask(command, **arguments)


async def disks(machine: Machine) -> dict[str, str]:
    """Path within the machine's devices -> the file behind it, as qemu itself says."""
    found = {each["qdev"].rpartition("/")[2]: each["inserted"]["file"] for each in await ask(machine, "query-block") if "inserted" in each}
    return {name: json.loads(file[5:])["file"]["filename"] if file.startswith("json:") else file for name, file in found.items()}


async def write(machine: Machine, volume_id: UUID, pattern: int, offset: int, length: int) -> None:
    """Write to an attached disk as a guest would: through qemu's block layer."""
    said = await ask(machine, "human-monitor-command", **{
        "command-line": f'qemu-io -d sb-{volume_id.hex} "write -P {pattern} {offset} {length}"'})
    assert "wrote" in said or said == "", said
    await ask(machine, "human-monitor-command", **{"command-line": f'qemu-io -d sb-{volume_id.hex} flush'})


def pid(machine: Machine) -> int:
    """Of its qemu."""
    return int((machine.folder / "pid").read_text())


async def killed(machine: Machine) -> None:
    """SIGKILL its qemu, and wait until nobody answers."""
    os.kill(pid(machine), signal.SIGKILL)
    async with asyncio.timeout(60):
        while await machine.running():
            await asyncio.sleep(0.02)


def end_all(root: Path) -> None:
    """SIGKILL every machine below a folder: of a test that is over."""
    for path in root.rglob("pid"):
        if (path.parent / SOCKET).exists():
            with contextlib.suppress(OSError, ValueError):
                number = int(path.read_text())
                if str(path).encode() in Path(f"/proc/{number}/cmdline").read_bytes():
                    os.kill(number, signal.SIGKILL)


@contextlib.asynccontextmanager
async def keeper(base: Path) -> AsyncIterator[MachineKeeper]:
    """A keeper over `base`; all its machines end with it."""
    (base / "defs").mkdir(exist_ok=True)
    kept = MachineKeeper(base / "defs", base / "machines")
    try:
        yield kept
    finally:
        for spec in await kept.told() or ():
            with contextlib.suppress(Failed):
                await Machine(kept.root, spec.id).stop()
        end_all(base)
