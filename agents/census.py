"""The census: what an agent has that changes while it runs, asked at each hello: primary stores, their room, its machines.

Refuses to wait for a disk that hangs: what does not answer is left out until it does, and asked no second time meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from agents.primary_stores.base import Usage
from agents.primary_stores.opened import OpenedStores
from agents.primary_stores.registry import primary
from schema.agent import PrimaryUsage
from schema.failure import Failed
from schema.image import PrimarySpec
from schema.machine import MachineSpec

log = logging.getLogger(__name__)
PATIENCE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is now."""

    primaries: list[PrimarySpec]
    usage: list[PrimaryUsage]
    machines: list[MachineSpec] | None = None


Machines = Callable[[], Awaitable[list[MachineSpec] | None]]


@dataclass
class Census:
    """Of one agent."""

    configured: tuple[PrimarySpec, ...] = ()
    opened: Path | None = None
    """The list of primary stores that orders opened."""
    machines: Machines | None = None
    _asked: dict[UUID, asyncio.Task[Usage]] = field(default_factory=dict)

    async def take(self) -> Found:
        """Look once. Never raises what a disk does."""
        primaries = [*self.configured]
        if self.opened is not None:
            primaries += await asyncio.to_thread(OpenedStores(self.opened).all)
        for spec in primaries:
            if spec.id not in self._asked:
                self._asked[spec.id] = asyncio.create_task(primary(spec).usage())
        asked = [self._asked[spec.id] for spec in primaries]
        if asked:
            await asyncio.wait(asked, timeout=PATIENCE_S)
        usage = [found for spec in primaries if (found := self._usage(spec)) is not None]
        return Found(primaries=primaries, usage=usage, machines=await self.machines() if self.machines is not None else None)

    def _usage(self, spec: PrimarySpec) -> PrimaryUsage | None:
        task = self._asked[spec.id]
        if not task.done():
            log.warning("the primary store %s does not answer", spec.name, extra={"action": "primary_silent"})
            return None
        del self._asked[spec.id]
        try:
            room = task.result()
        except Failed as failed:
            log.warning("the room on %s is not known: %s", spec.name, failed.failure.cause, extra={"action": "primary_silent"})
            return None
        return PrimaryUsage(id=spec.id, total_bytes=room.total, free_bytes=room.free)


__all__ = ["Census", "Found"]
