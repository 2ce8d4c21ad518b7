"""Resizing a volume at rest: larger, or smaller where what is cut off holds nothing; by a size, by another offering, or both.

Rules kept here: the offering says whether a size may be given; what is counted while it is resized is the larger of both sizes;
one that is stopped or fails has the size it had. Whether the cut-off part is empty only the disk's agent can see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from handlers import offering
from handlers.decider import Context, Flow, Step
from handlers.job import result_of
from handlers.volume import VolumeState, idle, known, stream
from schema.agent import DiskResized, ResizeDisk
from schema.failure import BadParameter, Failure
from schema.image import GIB
from schema.message import Command, Order
from schema.volume import ResizeVolume, VolumeResized, VolumeResizeEnded, VolumeResizeStarted


class ResizeFlow:
    """Resize it."""

    subject, placed, cancellable = "volume", False, True

    def __init__(self) -> None:
        self.steps = (Step(name="resize", order=self._resize, done=self._resized, undo=self._back),)

    def streams(self, job_id: UUID, command: ResizeVolume) -> list[str]:
        """The volume, and the offering that it is to have."""
        return [stream(command.id), *([offering.stream(command.disk_offering_id)] if command.disk_offering_id else [])]

    def follow(self, command: ResizeVolume, states: Mapping[str, Any]) -> list[str]:
        """The offering that the volume has."""
        state: VolumeState | None = states.get(stream(command.id))
        return [offering.stream(state.offering)] if state is not None and state.offering is not None else []

    def _state(self, context: Context) -> VolumeState:
        assert isinstance(context.command, ResizeVolume)
        return known(context, context.command.id)

    def start(self, context: Context) -> None:
        """An idle volume, a size that its offering allows, a smaller one only where that was said to be meant."""
        command, state = context.command, self._state(context)
        assert isinstance(command, ResizeVolume)
        idle(state)
        chosen = offering.chosen(context, command.disk_offering_id, state.owner)
        size = self._size(context, command, state, chosen)
        least, _ = offering.iops(chosen, command.min_iops, command.max_iops)
        if size == state.size and chosen is None and least is None:
            raise BadParameter(f"the volume has {state.size} bytes already", field="size", remedy="give another size")
        if size < state.size and not command.shrink_ok:
            raise BadParameter(f"the volume has {state.size} bytes: going from existing size to {size} would shrink it",
                               field="shrinkok", remedy="shrinkok=true, once the file system in it is smaller and trimmed")
        context.emit(stream(state.id), VolumeResizeStarted(volume_id=state.id, job_id=context.job_id, virtual_size=size))

    def _size(self, context: Context, command: ResizeVolume, state: VolumeState, chosen: offering.OfferingState | None) -> int:
        now: offering.OfferingState | None = context.state(offering.stream(state.offering)) if state.offering else None
        if chosen is None and command.size is None:
            if command.min_iops is not None:
                return state.size
            raise BadParameter("missing", field="size", remedy="give size (GiB), diskofferingid, or both")
        if chosen is None and now is not None and now.disk_size is not None:
            raise BadParameter("To change the size of a volume without providing a new disk offering, its current disk offering "
                               "must be customizable", field="size",
                               remedy=f"{now.name} has {now.disk_size} GiB: give diskofferingid too")
        if chosen is not None and chosen.disk_size is None and command.size is None:
            return state.size
        size = offering.size_of(chosen, command.size, context.limits.max_volume_gib)
        assert size is not None
        return size * GIB

    def _order(self, context: Context, work_id: UUID, attempt: int, size: int, *, shrink: bool) -> Order:
        state = self._state(context)
        assert state.disk is not None
        return ResizeDisk(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=state.primary.agent,
                          reply_key=context.command.key(context.job_id), disk=state.disk, virtual_size=size, shrink=shrink)

    def _resize(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state = self._state(context)
        assert state.resizing is not None
        before, size = state.resizing
        return None if size == before else self._order(context, work_id, attempt, size, shrink=size < before)

    def _resized(self, context: Context, result: Mapping[str, Any]) -> None:
        state, done = self._state(context), DiskResized.model_validate(result)
        assert state.disk is not None
        context.emit(stream(state.id), VolumeResized(
            volume_id=state.id, disk=state.disk.model_copy(update={"virtual_size": done.virtual_size}),
            physical_size=done.physical_size))

    def _back(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        """What was added holds nothing, and what was cut off held nothing."""
        state = self._state(context)
        assert state.resizing is not None
        before, size = state.resizing
        return self._order(context, work_id, attempt, before, shrink=True) if size != before else None

    def finish(self, context: Context) -> dict[str, Any]:
        """It is Ready, with its new size and offering."""
        command, state = context.command, self._state(context)
        assert isinstance(command, ResizeVolume)
        chosen = context.state(offering.stream(command.disk_offering_id)) if command.disk_offering_id else None
        least, most = offering.iops(chosen, command.min_iops, command.max_iops)
        context.emit(stream(state.id), VolumeResizeEnded(
            volume_id=state.id, virtual_size=state.size, disk_offering_id=command.disk_offering_id, min_iops=least,
            max_iops=most))
        return result_of("volume", state.id)

    def fail(self, context: Context, failure: Failure) -> None:
        """It is as it was."""
        state = self._state(context)
        assert state.resizing is not None
        context.emit(stream(state.id), VolumeResizeEnded(volume_id=state.id, virtual_size=state.resizing[0], failure=failure))


FLOWS: dict[type[Command], Flow] = {ResizeVolume: ResizeFlow()}
"""Every command of this file, and what it leads to."""
