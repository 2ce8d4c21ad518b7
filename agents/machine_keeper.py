"""The keeper of machines: those that the operator's folder names run, or do not, as it says; and their agent tells of them.

Owns the folder's meaning and the pauses between tries. Refuses to know disks and orders. Rules kept here: a machine outlives its
agent, and is found again; nothing is stopped because a file could not be read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from pydantic import ValidationError

from agents.machine import Busy, Definition, Machine
from schema.failure import Failed
from schema.machine import MachineSpec

log = logging.getLogger(__name__)

EVERY_S = 2.0
LONGEST_S = 60.0
"""Between tries to start a machine that does not start."""
MOST = 500
"""Machines of one agent."""
FILE_MAX = 1 << 16


@dataclass
class _Tried:
    """Starts that failed."""

    trouble: str
    times: int
    next: float
    """time.monotonic()"""


@dataclass
class MachineKeeper:
    """Of one agent."""

    definitions: Path
    """The operator's folder: one JSON file for each machine."""
    root: Path
    """The agent's folder of machines."""
    news: Callable[[], None] = lambda: None
    """Called when something that `told` says has changed."""
    _told: list[MachineSpec] | None = None
    _tried: dict[UUID, _Tried] = field(default_factory=dict)
    _complained: dict[str, str] = field(default_factory=dict)

    async def told(self) -> list[MachineSpec] | None:
        """The machines as they were at the last look; None before the first."""
        return self._told

    async def run(self) -> None:
        """Look, and do what follows, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("the machines are looked after again later", extra={"action": "machines_failed"})
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """One pass over all machines."""
        definitions, whole = await asyncio.to_thread(self._read)
        before = {spec.id: spec for spec in self._told or ()}
        found = [await self._one(definition, before.get(definition.id)) for definition in definitions]
        if whole:
            await self._end_others({definition.id for definition in definitions})
        else:  # what a file that cannot be read said is still so
            named = {spec.id for spec in found}
            found += [spec for spec in before.values() if spec.id not in named]
        if not whole and self._told is None:
            return  # nobody is told of half of them: the others would be taken for gone
        if found != self._told:
            self._told = found
            self.news()

    async def _one(self, definition: Definition, before: MachineSpec | None) -> MachineSpec:
        machine, state, trouble = Machine(self.root, definition.id), "Stopped", ""
        try:
            await machine.prepare()
            async with machine.locked(wait_s=0):
                runs = await machine.running()
            if runs:
                state = "Running"
                self._tried.pop(definition.id, None)
                if not definition.run:
                    await machine.stop()
                    state = "Stopped"
            elif definition.run:
                state, trouble = await self._start(machine, definition)
        except Busy:
            state, trouble = (before.state, before.trouble) if before else ("Running", "")
        except Failed as silent:
            state, trouble = before.state if before else "Running", silent.failure.cause
        return MachineSpec(id=definition.id, name=definition.name, state=state, memory_mib=definition.memory,
                           account=definition.account, trouble=trouble)

    async def _start(self, machine: Machine, definition: Definition) -> tuple[str, str]:
        """(state, trouble)"""
        tried = self._tried.get(definition.id)
        if tried is not None and time.monotonic() < tried.next:
            return "Stopped", tried.trouble
        try:
            await machine.start(definition)
        except Failed as failure:
            times = tried.times + 1 if tried else 1
            self._tried[definition.id] = _Tried(
                failure.failure.cause, times, time.monotonic() + min(LONGEST_S, 2.0 ** min(times, 6)))
            log.warning("the machine %s does not start: %s", definition.name, failure.failure.cause,
                        extra={"action": "machine_does_not_start"})
            return "Stopped", failure.failure.cause
        self._tried.pop(definition.id, None)
        log.info("the machine %s runs", definition.name, extra={"action": "machine_started"})
        return "Running", ""

    async def _end_others(self, named: set[UUID]) -> None:
        """Machines that the folder names no more."""
        for path in await asyncio.to_thread(lambda: list(self.root.iterdir()) if self.root.exists() else []):
            try:
                machine = Machine(self.root, UUID(path.name))
                if machine.id not in named and await machine.running():
                    log.info("the machine %s is named no more and is stopped", machine.id, extra={"action": "machine_ended"})
                    await machine.stop()
            except (ValueError, Failed):  # no machine's folder; or it does not answer, and is asked again
                continue

    def _read(self) -> tuple[list[Definition], bool]:
        """(the definitions, whether every file could be read). Blocking."""
        found: dict[UUID, Definition] = {}
        whole, complained = True, {}
        try:
            paths = sorted(self.definitions.glob("*.json"))
            self.definitions.stat()
        except OSError as error:
            paths, whole, complained = [], False, {str(self.definitions): str(error.strerror)}
        for path in paths:
            try:
                if path.stat().st_size > FILE_MAX:
                    raise ValueError(f"it has more than {FILE_MAX} bytes")
                one = Definition.model_validate_json(path.read_bytes())
                if one.id in found or len(found) >= MOST:
                    raise ValueError(f"its id is named twice, or there are more than {MOST} machines")
                found[one.id] = one
            except (OSError, ValidationError, ValueError) as error:
                whole, complained[path.name] = False, str(error).replace("\n", "; ")[:300]
        for name, why in complained.items():
            if self._complained.get(name) != why:
                log.warning("no machine can be read from %s: %s", name, why, extra={"action": "machine_unread"})
        self._complained = complained
        return list(found.values()), whole


__all__ = ["MachineKeeper"]
