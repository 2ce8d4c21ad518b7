"""Zones: from configuration, or made by hand before the first agent of one is started."""

from __future__ import annotations

from uuid import UUID

from schema.ids import zone_named
from schema.message import Command, Event


class CreateZone(Command, type="zone.create"):
    """Make a zone. Its id follows from its name, so agents that are told the name belong to it."""

    name: str
    network_type: str = "Advanced"
    """Basic or Advanced: kept and shown, nothing else."""
    dns1: str = ""
    dns2: str = ""
    internal_dns1: str = ""
    internal_dns2: str = ""
    domain: str = ""
    """Network domain of the zone."""
    id: UUID | None = None
    """Left out, or what follows from the name."""

    def key(self, job_id: UUID) -> str:
        """The zone."""
        return f"zone-{zone_named(self.name)}"


class ZoneCreated(Event, type="zone.created"):
    """A zone exists."""

    zone_id: UUID
    name: str
    network_type: str = "Advanced"
    dns1: str = ""
    dns2: str = ""
    internal_dns1: str = ""
    internal_dns2: str = ""
    domain: str = ""
