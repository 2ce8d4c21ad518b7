"""Zones, agents and primary stores in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change
from schema import agent, zone

TABLES = ("zone", "agent", "primary_store")


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    match event:
        case zone.ZoneCreated():
            yield "zone", str(event.zone_id), {"name": event.name, "created": at}
        case zone.PrimaryStoreAnnounced():
            primary = event.primary
            yield "primary_store", str(primary.id), {
                "name": primary.name, "kind": primary.kind, "path": primary.path, "zone_id": str(primary.zone_id),
                "agent": primary.agent, "hypervisor": event.hypervisor, "total_bytes": event.total_bytes, "created": at}
        case agent.AgentAnnounced():
            yield "agent", event.agent, {
                "zone_id": str(event.zone_id), "roles": event.roles, "hypervisor": event.hypervisor,
                "providers": [spec.model_dump(mode="json") for spec in event.providers], "created": at}
        case _:
            pass
