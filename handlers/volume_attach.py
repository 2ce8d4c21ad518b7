"""Volumes at machines: the flows that attach and detach one.

Rules kept here: a volume is at one machine, a device has one volume: both streams are written in one append, so of two that want
the same one is refused; a machine gets its owner's volumes only, and those of its own host. Whether the machine runs is its
agent's to know: a running one is plugged, a stopped one has the disk when it starts. What else works on volumes asks
`volume.idle`, which refuses those that are attached: running guests come later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from handlers import machine, placement, volume, volume_upload
from handlers.decider import Context, Flow, Step
from handlers.job import result_of
from schema.agent import AttachDisk, DetachDisk
from schema.failure import BadParameter, Failure
from schema.image import DiskRef
from schema.machine import MachineDiskAdded, MachineDiskRemoved
from schema.message import Command, Order
from schema.volume_attach import (
    AttachVolume,
    DetachVolume,
    VolumeAttached,
    VolumeAttachFailed,
    VolumeAttachStarted,
    VolumeDetached,
    VolumeDetachFailed,
    VolumeDetachStarted,
)


class _AtMachine:
    """What attaching and detaching share: the two orders, each the other's undo."""

    subject, placed, cancellable = "volume", False, True

    def which(self, context: Context) -> volume.VolumeState:
        """The volume, with its machine and device while the job goes on."""
        raise NotImplementedError

    def place(self, context: Context) -> tuple[volume.VolumeState, UUID, int, DiskRef]:
        """(volume, machine, device, disk)"""
        state = self.which(context)
        assert state.machine is not None and state.device_id is not None and state.disk is not None
        return state, state.machine, state.device_id, state.disk

    def attach(self, context: Context, work_id: UUID, attempt: int) -> Order:
        """To the machine, if it is not there."""
        _, machine_id, device_id, disk = self.place(context)
        return AttachDisk(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=disk.primary.agent, disk=disk,
                          reply_key=context.command.key(context.job_id), machine_id=machine_id, device_id=device_id)

    def detach(self, context: Context, work_id: UUID, attempt: int) -> Order:
        """From the machine, if it is there."""
        _, machine_id, _, disk = self.place(context)
        return DetachDisk(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=disk.primary.agent, disk=disk,
                          reply_key=context.command.key(context.job_id), machine_id=machine_id)

    def free(self, context: Context) -> None:
        """The device is another's to take."""
        state, machine_id, device_id, _ = self.place(context)
        context.emit(machine.stream(machine_id), MachineDiskRemoved(
            machine_id=machine_id, volume_id=state.id, device_id=device_id))


class AttachFlow(_AtMachine):
    """Take a device of the machine, then have the disk put there. An uploaded volume gets its disk first, on that host."""

    placed = True

    def __init__(self) -> None:
        place = volume_upload.place_step()
        self._disk_made = place.done
        self.steps = (replace(place, done=self._placed),
                      Step(name="attach", order=self.attach, undo=self._taken_back, undo_always=True))

    def streams(self, job_id: UUID, command: AttachVolume) -> list[str]:
        """The volume and the machine."""
        return [volume.stream(command.id), machine.stream(command.virtual_machine_id)]

    def which(self, context: Context) -> volume.VolumeState:
        """The one that the command names."""
        assert isinstance(context.command, AttachVolume)
        return volume.known(context, context.command.id)

    def start(self, context: Context) -> None:
        """An idle volume; a machine of the same owner, zone and host, with a device to spare."""
        command = context.command
        assert isinstance(command, AttachVolume)
        at = machine.known(context, command.virtual_machine_id)
        state = self.which(context)
        if state.status != "Uploaded":
            volume.idle(state)
        if at.owner.account_id != state.owner.account_id:
            raise BadParameter(f"the machine belongs to the account {at.owner.account}, the volume to {state.owner.account}",
                               field="virtualmachineid", remedy="name a machine of the volume's account")
        if at.zone_id != state.zone_id:
            raise BadParameter("the machine is not in the zone of the volume", field="virtualmachineid",
                               remedy="name a machine that is in the same zone as the volume")
        if state.disk is not None and at.agent != state.disk.primary.agent:
            raise BadParameter(
                f"the volume lies on the host {state.disk.primary.agent}, and the machine is on {at.agent}",
                field="virtualmachineid", remedy="name a machine of that host; volumes do not move between hosts yet")
        device_id = machine.device(at, command.device_id)
        if state.status == "Uploaded":
            volume_upload.begin(context, state, placement.primary_of(context.directory, at.zone_id, at.agent))
        context.emit(machine.stream(at.id), MachineDiskAdded(machine_id=at.id, volume_id=state.id, device_id=device_id))
        if state.status == "Ready":
            self._started(context)

    def _started(self, context: Context) -> None:
        """The volume has its disk, and is on its way to the device that was taken for it."""
        assert isinstance(context.command, AttachVolume)
        volume_id, machine_id = context.command.id, context.command.virtual_machine_id
        devices = context.state(machine.stream(machine_id)).devices
        context.emit(volume.stream(volume_id), VolumeAttachStarted(
            volume_id=volume_id, machine_id=machine_id, job_id=context.job_id,
            device_id=next(device for device, at in devices.items() if at == volume_id)))

    def _placed(self, context: Context, result: Mapping[str, Any]) -> None:
        self._disk_made(context, result)
        self._started(context)

    def _taken_back(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        return self.detach(context, work_id, attempt) if self.which(context).status == "Attaching" else None

    def finish(self, context: Context) -> dict[str, Any]:
        """The volume, at its machine."""
        state, machine_id, device_id, _ = self.place(context)
        context.emit(volume.stream(state.id), VolumeAttached(volume_id=state.id, machine_id=machine_id, device_id=device_id))
        return result_of("volume", state.id)

    def fail(self, context: Context, failure: Failure) -> None:
        """The machine does not have it, and its device is free."""
        assert isinstance(context.command, AttachVolume)
        state, machine_id = self.which(context), context.command.virtual_machine_id
        taken = next(device for device, at in context.state(machine.stream(machine_id)).devices.items() if at == state.id)
        context.emit(machine.stream(machine_id), MachineDiskRemoved(machine_id=machine_id, volume_id=state.id, device_id=taken))
        if state.status == "Attaching":
            context.emit(volume.stream(state.id), VolumeAttachFailed(volume_id=state.id, failure=failure))
        else:
            volume_upload.not_placed(context, failure)


class DetachFlow(_AtMachine):
    """Have the disk taken away, then give the device back."""

    def __init__(self) -> None:
        self.steps = (Step(name="detach", order=self.detach, undo=self.attach, undo_always=True),)

    def streams(self, job_id: UUID, command: DetachVolume) -> list[str]:
        """What the command names."""
        names = [volume.stream(command.id)] if command.id is not None else []
        return names + ([machine.stream(command.virtual_machine_id)] if command.virtual_machine_id is not None else [])

    def follow(self, command: DetachVolume, states: Mapping[str, Any]) -> list[str]:
        """The machine that the volume is at, or the volume that the machine's device has."""
        at = states.get(machine.stream(command.virtual_machine_id)) if command.virtual_machine_id is not None else None
        volume_id = command.id or (at.devices.get(command.device_id) if at is not None else None)
        if volume_id is None:
            return []
        state = states.get(volume.stream(volume_id))
        there = [machine.stream(state.machine)] if state is not None and state.machine is not None else []
        return [volume.stream(volume_id), *there]

    def which(self, context: Context) -> volume.VolumeState:
        """The one that the command names, or that is where it says. Raises BadParameter."""
        command = context.command
        assert isinstance(command, DetachVolume)
        if command.id is not None:
            return volume.known(context, command.id)
        if command.virtual_machine_id is None or command.device_id is None:
            raise BadParameter("missing", field="id", remedy="give it, or virtualmachineid and deviceid")
        at = context.state(machine.stream(command.virtual_machine_id))
        if at is None:
            machine.known(context, command.virtual_machine_id)
        volume_id = at.devices.get(command.device_id)
        if volume_id is None:
            raise BadParameter(f"no volume is at the device {command.device_id} of the machine {at.name}", field="deviceid",
                               remedy=f"listVolumes virtualmachineid={at.id} shows which are")
        return volume.known(context, volume_id, "deviceid")

    def start(self, context: Context) -> None:
        """A volume that is attached, where the command says it is, and at which nothing else works."""
        command, state = context.command, self.which(context)
        assert isinstance(command, DetachVolume)
        if state.status != "Ready":
            raise BadParameter(f"the volume is {state.status}, not Ready", field="id", remedy="wait for its job to end")
        if state.machine is None or state.device_id is None:
            raise BadParameter("the volume is not attached to a machine", field="id")
        if command.virtual_machine_id not in (None, state.machine) or command.device_id not in (None, state.device_id):
            raise BadParameter(f"the volume is at the device {state.device_id} of the machine {state.machine}",
                               field="virtualmachineid", remedy="give the id alone")
        context.emit(volume.stream(state.id), VolumeDetachStarted(
            volume_id=state.id, machine_id=state.machine, device_id=state.device_id, job_id=context.job_id))

    def finish(self, context: Context) -> dict[str, Any]:
        """The volume, at no machine."""
        state, machine_id, device_id, _ = self.place(context)
        self.free(context)
        context.emit(volume.stream(state.id), VolumeDetached(volume_id=state.id, machine_id=machine_id, device_id=device_id))
        return result_of("volume", state.id)

    def fail(self, context: Context, failure: Failure) -> None:
        """The machine has it, as before."""
        state = self.which(context)
        context.emit(volume.stream(state.id), VolumeDetachFailed(volume_id=state.id, failure=failure))


FLOWS: dict[type[Command], Flow] = {AttachVolume: AttachFlow(), DetachVolume: DetachFlow()}
"""Every command about this noun, and what it leads to."""
