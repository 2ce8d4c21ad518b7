"""Extracting a volume: a copy of it in its zone's image store, behind a link that ends.

Rules kept here: only a volume at rest is copied, frozen first, so that it can be used again at once; its record of changes since
the last snapshot stays as it was; the copy is its link's own: it goes when the link ends or is revoked, whatever became of the
volume, and until then it is counted. A link to it need not be revocable in the store: without the copy it gives nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from handlers import capacity, image_store, link, placement, planner, template, volume
from handlers.decider import Context, Flow, IllegalTransition, Step
from handlers.directory import Store
from handlers.extract import Extraction, mode
from schema.agent import DropSnapshot, ImageResult, SnapshotFrozen, TakeSnapshot, WriteSnapshot
from schema.failure import BadParameter, Failure, Unavailable
from schema.identity import ROOT_OWNER, Owner
from schema.ids import derive
from schema.image import DiskRef, ImageRef
from schema.message import Command, Event, Order
from schema.motion import MotionPlan
from schema.volume import VolumeReleased, VolumeSnapshotStarted
from schema.volume_copy import (
    DropVolumeCopy,
    ExtractVolume,
    VolumeCopyDeleted,
    VolumeCopyDeleteRequested,
    VolumeCopyFailed,
    VolumeCopyReady,
    VolumeCopyRequested,
    VolumeCopyStarted,
)

TRANSITIONS: dict[tuple[str, str], str] = {
    ("", VolumeCopyRequested.TYPE): "Requested",
    ("Requested", VolumeCopyStarted.TYPE): "Copying",
    ("Copying", VolumeCopyReady.TYPE): "Ready",
    ("Requested", VolumeCopyFailed.TYPE): "Failed",
    ("Copying", VolumeCopyFailed.TYPE): "Failed",
    ("Ready", VolumeCopyFailed.TYPE): "Failed",  # written before the cancel was seen, or no link could be made: taken back
    ("Ready", VolumeCopyDeleteRequested.TYPE): "Destroying",
    ("Destroying", VolumeCopyDeleted.TYPE): "Destroyed",
}
"""(state, event) -> state. Everything else is illegal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyState:
    """The fold of a copy's events."""

    status: str
    id: UUID
    volume_id: UUID
    store_id: UUID
    tag: str
    owner: Owner = ROOT_OWNER
    image: ImageRef | None = None
    counted: int = 0
    """Bytes by which it is counted on its store: reserved until it is Ready."""


def evolve(state: CopyState | None, event: Event) -> CopyState:
    """The copy after `event`."""
    status = TRANSITIONS.get((state.status if state else "", event.TYPE))
    if status is None:
        raise IllegalTransition(state.status if state else "absent", event)
    if isinstance(event, VolumeCopyRequested):
        return CopyState(status=status, id=event.copy_id, volume_id=event.volume_id, store_id=event.store_id, tag=event.tag,
                         owner=event.owner)
    assert state is not None
    match event:
        case VolumeCopyStarted():
            return replace(state, status=status, counted=event.reserved)
        case VolumeCopyReady():
            return replace(state, status=status, image=event.image, counted=event.counted)
        case VolumeCopyFailed() | VolumeCopyDeleted():
            return replace(state, status=status, counted=0)
        case _:
            return replace(state, status=status)


def stream(copy_id: UUID) -> str:
    """The stream of a copy."""
    return f"volume_copy-{copy_id}"


class ExtractFlow(Extraction):
    """Freeze, copy, let go, link."""

    ITEM = "volume"

    def __init__(self) -> None:
        self.steps = (
            Step(name="take", order=self._take, done=self._taken, undo=self._untake),
            Step(name="write", order=self._write, done=self._written, plan=self._plan, undo=self._unwrite, leaves=self._leaves),
            Step(name="drop", order=self._drop, done=self._dropped, attempts=100_000),
            self.link_step(),
        )

    def of(self, command: ExtractVolume) -> list[str]:
        """The volume."""
        return [volume.stream(command.id)]

    def streams(self, job_id: UUID, command: ExtractVolume) -> list[str]:
        """The link, the volume and its copy."""
        return [*super().streams(job_id, command), stream(job_id)]

    def _state(self, context: Context) -> CopyState:
        state: CopyState = context.state(stream(context.job_id))
        return state

    def _disk(self, context: Context) -> DiskRef:
        assert isinstance(context.command, ExtractVolume)
        disk: DiskRef = context.state(volume.stream(context.command.id)).disk
        return disk

    def start(self, context: Context) -> None:
        """An idle volume in this zone, a store there that gives links."""
        command = context.command
        assert isinstance(command, ExtractVolume)
        mode(command.mode)
        of = volume.known(context, command.id)
        placement.zone(context.directory, command.zone_id)
        if command.zone_id != of.zone_id:
            raise BadParameter(f"the volume is in the zone {of.zone_id}", field="zoneid", remedy="name that")
        volume.idle(of)
        store = placement.image_store(context.directory, of.zone_id)
        link.able(context, store.spec, store.zone_id, lifetime_s=self._lifetime(context))
        self._planned(context, self._disk(context), store)
        context.count(image_store.residents(store.spec.id), +1, otherwise=Unavailable(
            "the image store is being deleted", field="zoneid", remedy="try again"))
        context.emit(stream(context.job_id), VolumeCopyRequested(
            copy_id=context.job_id, volume_id=of.id, zone_id=of.zone_id, store_id=store.spec.id, job_id=context.job_id,
            tag=f"sb-{derive(context.job_id, 'take').hex}", owner=of.owner))
        context.emit(volume.stream(of.id), VolumeSnapshotStarted(
            volume_id=of.id, snapshot_id=context.job_id, job_id=context.job_id))

    def _lifetime(self, context: Context) -> int:
        assert isinstance(context.command, ExtractVolume)
        asked = context.command.lifetime
        return context.limits.link_lifetime_s if asked is None else asked

    def _plan(self, context: Context) -> MotionPlan:
        return self._planned(context, self._disk(context), template.known_store(context, self._state(context).store_id))

    def _planned(self, context: Context, disk: DiskRef, store: Store) -> MotionPlan:
        return planner.plan(context.directory, planner.backup(
            disk.primary, store, size=disk.virtual_size, basis="at most the disk's size", field="id"))

    def _take(self, context: Context, work_id: UUID, attempt: int) -> Order:
        state, disk = self._state(context), self._disk(context)
        store = context.directory.stores.get(state.store_id)
        provider = context.directory.providers().get(store.spec.provider) if store is not None else None
        measured = store is not None and provider is not None and "free_room" in provider.capabilities
        return TakeSnapshot(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=disk.primary.agent,
                            reply_key=context.command.key(context.job_id), disk=disk, tag=state.tag,
                            store=store.spec if store is not None and measured else None)

    def _taken(self, context: Context, result: Mapping[str, Any]) -> None:
        state, frozen = self._state(context), SnapshotFrozen.model_validate(result)
        need = capacity.backup(frozen.virtual_size, frozen.physical_size)
        capacity.reserve(context, template.known_store(context, state.store_id), need, free=frozen.free_bytes)
        context.emit(stream(state.id), VolumeCopyStarted(copy_id=state.id, store_id=state.store_id, reserved=need))
        self._release(context, backing_up=True)

    def _key(self, context: Context, attempt: int) -> str:
        return template.object_key(context, "volume_copy", context.job_id, derive(context.job_id, "write"), attempt, "qcow2")

    def _leaves(self, context: Context, attempt: int) -> tuple[UUID, str]:
        return self._state(context).store_id, self._key(context, attempt)

    def _write(self, context: Context, work_id: UUID, attempt: int) -> Order:
        state, disk = self._state(context), self._disk(context)
        return WriteSnapshot(
            job_id=context.job_id, work_id=work_id, attempt=attempt, agent=disk.primary.agent,
            reply_key=context.command.key(context.job_id), disk=disk, tag=state.tag, kind="volume_copy",
            store=template.known_store(context, state.store_id).spec, key=self._key(context, attempt), thing_id=state.id,
            compression=context.limits.compression, motion=context.planned("write").strategy)

    def _written(self, context: Context, result: Mapping[str, Any]) -> None:
        state, image = self._state(context), ImageResult.model_validate(result).image
        capacity.settle(context, state.store_id, state.counted, image.physical_size)
        context.emit(stream(state.id), VolumeCopyReady(copy_id=state.id, image=image, counted=image.physical_size))

    def _unwrite(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state = self._state(context)
        if state.image is None:
            return None
        store = template.known_store(context, state.store_id)
        return template.delete_order(context, work_id, attempt, store.spec, store.zone_id, [state.image.key])

    def _drop(self, context: Context, work_id: UUID, attempt: int) -> Order:
        """Only this tag, and its own record: the one since the last snapshot goes on."""
        state, disk = self._state(context), self._disk(context)
        return DropSnapshot(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=disk.primary.agent,
                            reply_key=context.command.key(context.job_id), disk=disk, tag=state.tag, keep=None)

    def _untake(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        """Once it was dropped the volume is others' to use."""
        return self._drop(context, work_id, attempt) if context.state(link.stream(context.job_id)) is None else None

    def _dropped(self, context: Context, result: Mapping[str, Any]) -> None:
        state = self._state(context)
        assert state.image is not None
        self._release(context, backing_up=False)
        link.want(context, context.job_id, template.known_store(context, state.store_id).spec, state.image.key,
                  lifetime_s=self._lifetime(context), revocable=False)

    def _release(self, context: Context, *, backing_up: bool) -> None:
        state = self._state(context)
        context.emit(volume.stream(state.volume_id), VolumeReleased(
            volume_id=state.volume_id, snapshot_id=state.id, backing_up=backing_up))

    def fail(self, context: Context, failure: Failure) -> None:
        """Nothing of it remains, on the disk or in the store."""
        state = self._state(context)
        if context.state(link.stream(context.job_id)) is not None:
            link.not_given(context, context.job_id, failure)
        else:
            self._release(context, backing_up=False)
        context.count(image_store.residents(state.store_id), -1)
        capacity.release(context, state.store_id, state.counted, arrived=state.image is not None)
        context.emit(stream(state.id), VolumeCopyFailed(copy_id=state.id, store_id=state.store_id, failure=failure))


class DropFlow:
    """Remove a copy whose link has ended."""

    subject, placed, cancellable = "volume_copy", True, False

    def __init__(self) -> None:
        self.steps = (Step(name="delete", order=self._delete, attempts=100_000),)

    def streams(self, job_id: UUID, command: DropVolumeCopy) -> list[str]:
        """The copy."""
        return [stream(command.id)]

    def _state(self, context: Context) -> CopyState | None:
        assert isinstance(context.command, DropVolumeCopy)
        state: CopyState | None = context.state(stream(context.command.id))
        return state

    def start(self, context: Context) -> None:
        """It is there."""
        state = self._state(context)
        if state is None or state.status != "Ready":
            raise BadParameter("no copy of a volume has this id", field="id")
        context.emit(stream(state.id), VolumeCopyDeleteRequested(
            copy_id=state.id, store_id=state.store_id, job_id=context.job_id))

    def _delete(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state = self._state(context)
        assert state is not None
        assert state.image is not None
        store = template.known_store(context, state.store_id)
        return template.delete_order(context, work_id, attempt, store.spec, store.zone_id, [state.image.key])

    def finish(self, context: Context) -> dict[str, Any]:
        """The store confirmed."""
        state = self._state(context)
        assert state is not None
        context.count(image_store.residents(state.store_id), -1)
        capacity.release(context, state.store_id, state.counted, arrived=True)
        context.emit(stream(state.id), VolumeCopyDeleted(copy_id=state.id, store_id=state.store_id))
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """It stays Destroying; its bytes stay listed as pending."""


FLOWS: dict[type[Command], Flow] = {ExtractVolume: ExtractFlow(), DropVolumeCopy: DropFlow()}
"""Every command of this file, and what it leads to."""
