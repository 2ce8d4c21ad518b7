"""Machines: their states, as agents report them, and which volume has which of their devices.

Rules kept here: a device is one volume's, since every attach and detach writes the machine's own stream; a machine is the agent's
that reports it, and never made or ended here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

from handlers.decider import Context, IllegalTransition
from schema.failure import BadParameter
from schema.identity import Owner
from schema.ids import stream as thing_stream
from schema.machine import MachineAnnounced, MachineDiskAdded, MachineDiskRemoved, MachineWithdrawn
from schema.message import Event

MOST = 64
"""Data disks of one machine: CloudStack's number for KVM."""
RESERVED = frozenset({0, 3})
"""Devices that no data disk gets: the root disk's and the CD-ROM's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """The fold of a machine's events."""

    status: str
    """Running, Stopped or Withdrawn."""
    id: UUID
    name: str
    agent: str
    zone_id: UUID
    owner: Owner
    devices: Mapping[int, UUID] = field(default_factory=dict)
    """Device -> the volume that has it."""


def evolve(state: MachineState | None, event: Event) -> MachineState:
    """The machine after `event`."""
    if isinstance(event, MachineAnnounced):
        spec = event.machine
        return MachineState(status=spec.state, id=spec.id, name=spec.name, agent=event.agent, zone_id=event.zone_id,
                            owner=event.owner, devices=state.devices if state else {})
    if state is None:
        raise IllegalTransition("absent", event)
    match event:
        case MachineWithdrawn():
            return replace(state, status="Withdrawn")
        case MachineDiskAdded() if event.device_id not in state.devices:
            return replace(state, devices={**state.devices, event.device_id: event.volume_id})
        case MachineDiskRemoved() if state.devices.get(event.device_id) == event.volume_id:
            return replace(state, devices={n: disk for n, disk in state.devices.items() if n != event.device_id})
        case _:
            raise IllegalTransition(state.status, event)


def stream(machine_id: UUID) -> str:
    """The stream of a machine."""
    return thing_stream("machine", machine_id)


def known(context: Context, machine_id: UUID) -> MachineState:
    """The machine, while an agent has it. Raises BadParameter."""
    state = context.state(stream(machine_id))
    if state is None or state.status == "Withdrawn":
        raise BadParameter(f"no machine has the id {machine_id}", field="virtualmachineid",
                           remedy="listVirtualMachines shows those that agents report")
    assert isinstance(state, MachineState)
    return state


def device(state: MachineState, wanted: int | None) -> int:
    """The device that a volume gets: the one wanted, else the first that is free. Raises BadParameter."""
    if len(state.devices) >= MOST:
        raise BadParameter(f"the machine {state.name} has the most data disks that it may have ({MOST})",
                           field="virtualmachineid", remedy="detach one, or choose another machine")
    last = MOST + len(RESERVED)
    if wanted is None:
        return next(n for n in range(last) if n not in RESERVED and n not in state.devices)
    if wanted in RESERVED or not 0 <= wanted < last:
        raise BadParameter(f"{wanted} is not 1 to {last - 1}, or it is 3, the CD-ROM's", field="deviceid",
                           remedy="leave it out, and the first that is free is taken")
    if wanted in state.devices:
        raise BadParameter(f"the device {wanted} of the machine {state.name} is taken by the volume {state.devices[wanted]}",
                           field="deviceid", remedy="leave it out, and the first that is free is taken")
    return wanted
