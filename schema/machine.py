"""Machines: what a hypervisor's agent runs and reports. Nobody makes them here; disks come to them and go."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from schema.identity import Owner
from schema.image import Frozen
from schema.message import Event


class MachineSpec(Frozen):
    """A machine as its agent tells of it."""

    id: UUID
    name: str
    state: str
    """Running or Stopped."""
    memory_mib: int = 0
    account: UUID | None = None
    """The account that it belongs to, by its id; None: ROOT's admin."""
    trouble: str = ""
    """Why it does not run, though it should."""


class MachineAnnounced(Event, type="machine.announced"):
    """An agent has this machine, in this state."""

    machine: MachineSpec
    agent: str
    zone_id: UUID
    hypervisor: str
    owner: Owner
    first_at: datetime | None = None
    """When it was first announced (UTC)."""


class MachineWithdrawn(Event, type="machine.withdrawn"):
    """Its agent has it no more. What was attached to it still names it, until it is detached."""

    machine_id: UUID
    agent: str


class MachineDiskAdded(Event, type="machine.disk_added"):
    """A device of it is taken by a volume: from when the volume is on its way to it."""

    machine_id: UUID
    volume_id: UUID
    device_id: int


class MachineDiskRemoved(Event, type="machine.disk_removed"):
    """The device is free."""

    machine_id: UUID
    volume_id: UUID
    device_id: int
