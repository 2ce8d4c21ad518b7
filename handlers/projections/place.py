"""Zones and agents in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change
from schema import agent, zone

TABLES = ("zone", "agent")


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    match event:
        case zone.ZoneCreated():
            yield "zone", str(event.zone_id), {
                "name": event.name, "created": at, "network_type": event.network_type, "dns1": event.dns1, "dns2": event.dns2,
                "internal_dns1": event.internal_dns1, "internal_dns2": event.internal_dns2, "domain": event.domain}
        case agent.AgentAnnounced():
            yield "agent", event.agent, {
                "zone_id": str(event.zone_id), "roles": event.roles, "hypervisor": event.hypervisor,
                "providers": [spec.model_dump(mode="json") for spec in event.providers], "created": at}
        case _:
            pass
