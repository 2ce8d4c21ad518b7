"""Machines in the read tables. What is attached to one stands in the volumes' rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change, owned
from schema import machine
from schema.ids import host_named

TABLES = ("machine",)


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    match event:
        case machine.MachineAnnounced():
            spec = event.machine
            yield "machine", str(spec.id), {
                "name": spec.name, "state": spec.state, "memory_mib": spec.memory_mib, "trouble": spec.trouble or None,
                "agent": event.agent, "host_id": str(host_named(event.agent)), "zone_id": str(event.zone_id),
                "hypervisor": event.hypervisor, "created": event.first_at.isoformat() if event.first_at else at, "removed": None,
                **owned(event.owner)}
        case machine.MachineWithdrawn():
            yield "machine", str(event.machine_id), {"state": "Withdrawn", "removed": at}
        case _:
            pass
