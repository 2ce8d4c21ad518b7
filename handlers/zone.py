"""Zones: made by configuration, or by a command.

Rule kept here: a zone's id follows from its name, so that agents elsewhere, who are told the name alone, mean the same zone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from handlers.decider import Context, Flow, IllegalTransition, Step
from handlers.job import result_of
from schema.failure import BadParameter, Failure
from schema.ids import stream as thing_stream
from schema.ids import zone_named
from schema.message import Command, Event
from schema.zone import CreateZone, ZoneCreated

NETWORKS = {"basic": "Basic", "advanced": "Advanced"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneState:
    """The fold of a zone's events."""

    id: UUID
    name: str


def evolve(state: ZoneState | None, event: Event) -> ZoneState:
    """The zone after `event`."""
    if isinstance(event, ZoneCreated):
        return ZoneState(id=event.zone_id, name=event.name)
    raise IllegalTransition("there" if state else "absent", event)


def stream(zone_id: UUID) -> str:
    """The stream of a zone."""
    return thing_stream("zone", zone_id)


class CreateFlow:
    """Make it."""

    subject, placed, cancellable = "zone", False, False
    steps: tuple[Step, ...] = ()

    def streams(self, job_id: UUID, command: CreateZone) -> list[str]:
        """The zone of this name."""
        return [stream(zone_named(command.name))]

    def start(self, context: Context) -> None:
        """A name that no zone has."""
        command = context.command
        assert isinstance(command, CreateZone)
        zone_id = zone_named(command.name)
        if not command.name.strip() or len(command.name) > 255:
            raise BadParameter("must have 1 to 255 characters", field="name")
        if command.id not in (None, zone_id):
            raise BadParameter(f"a zone of this name has the id {zone_id}", field="id", remedy="leave it out")
        network = NETWORKS.get(command.network_type.lower())
        if network is None:
            raise BadParameter(f"{command.network_type[:64]!r} is not Basic or Advanced", field="networktype")
        if context.state(stream(zone_id)) is not None:
            raise BadParameter(f"a zone is already named {command.name!r}", field="name", remedy="choose another name")
        context.emit(stream(zone_id), ZoneCreated(
            zone_id=zone_id, name=command.name, network_type=network, dns1=command.dns1, dns2=command.dns2,
            internal_dns1=command.internal_dns1, internal_dns2=command.internal_dns2, domain=command.domain))

    def finish(self, context: Context) -> dict[str, Any]:
        """The zone."""
        command = context.command
        assert isinstance(command, CreateZone)
        return result_of("zone", zone_named(command.name))

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: there is nothing to wait for."""


FLOWS: dict[type[Command], Flow] = {CreateZone: CreateFlow()}
"""Every command about this noun, and what it leads to."""
