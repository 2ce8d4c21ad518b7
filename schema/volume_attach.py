"""Volumes at machines: attached and detached. The whole conversation, in the order it happens."""

from __future__ import annotations

from uuid import UUID

from schema.failure import Failure
from schema.message import Command, Event


class AttachVolume(Command, type="volume.attach"):
    """Attach a volume to a machine that an agent reports."""

    id: UUID
    virtual_machine_id: UUID
    device_id: int | None = None
    """None: the first that is free."""

    def key(self, job_id: UUID) -> str:
        """The volume."""
        return f"volume-{self.id}"


class DetachVolume(Command, type="volume.detach"):
    """Detach a volume: named by itself, or by the machine and the device where it is."""

    id: UUID | None = None
    virtual_machine_id: UUID | None = None
    device_id: int | None = None

    def key(self, job_id: UUID) -> str:
        """The volume, or the machine."""
        return f"volume-{self.id}" if self.id else f"machine-{self.virtual_machine_id}"


class VolumeAttachStarted(Event, type="volume.attach_started"):
    """It is on its way to a device of a machine (state Attaching)."""

    volume_id: UUID
    machine_id: UUID
    device_id: int
    job_id: UUID


class VolumeAttached(Event, type="volume.attached"):
    """The machine has it, or gets it when it starts: state Ready again."""

    volume_id: UUID
    machine_id: UUID
    device_id: int


class VolumeAttachFailed(Event, type="volume.attach_failed"):
    """The machine does not have it."""

    volume_id: UUID
    failure: Failure


class VolumeDetachStarted(Event, type="volume.detach_started"):
    """It is being taken from its machine (state Detaching)."""

    volume_id: UUID
    machine_id: UUID
    device_id: int
    job_id: UUID


class VolumeDetached(Event, type="volume.detached"):
    """No machine has it: state Ready."""

    volume_id: UUID
    machine_id: UUID
    device_id: int


class VolumeDetachFailed(Event, type="volume.detach_failed"):
    """The machine has it still."""

    volume_id: UUID
    failure: Failure
