"""Making a template of a volume at rest, or of a snapshot that is backed up.

Rules kept here: the volume's content is frozen under a tag while it is written, and forgets the tag whatever becomes of the job;
what it records of changes for its own snapshots is not touched; the template is a full image, whatever it was made from; it is
Ready only when nothing of the job is left to be done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from handlers import capacity, chain, image_store, placement, planner, volume
from handlers.decider import Context, Flow, Step
from handlers.directory import Store
from handlers.job import result_of
from handlers.template import (
    TemplateState,
    known_store,
    never,
    object_key,
    quarantine_refused,
    readers,
    refuse_public,
    refuse_unknown_os,
    stream,
    unmake,
)
from schema.agent import DropSnapshot, ImageResult, SnapshotFrozen, TakeSnapshot, WriteSnapshot
from schema.failure import BadParameter, Failure, Unavailable
from schema.ids import derive
from schema.ids import stream as thing_stream
from schema.image import DiskRef, ImageFormat, ImageRef
from schema.message import Command, Order
from schema.motion import MotionPlan
from schema.template import CreateTemplate, TemplateReady, TemplateRegistered, TemplateReserved, TemplateWritten
from schema.volume import VolumeReleased, VolumeSnapshotStarted


class CreateFlow:
    """Of a volume: freeze, write, forget. Of a snapshot: its chain becomes one object."""

    subject, placed, cancellable = "template", True, True
    steps: tuple[Step, ...] = ()

    def __init__(self) -> None:
        self._of_volume = (
            Step(name="take", order=self._take, done=self._taken, undo=self._drop),
            Step(name="write", order=self._write, done=self._written, plan=self._plan, undo=self._unwrite, leaves=self._leaves),
            Step(name="drop", order=self._drop, attempts=100_000),
        )
        self._of_snapshot = (Step(name="merge", order=self._merge, done=self._written, plan=self._plan, undo=self._unwrite,
                                  leaves=self._leaves),)

    def steps_of(self, context: Context) -> tuple[Step, ...]:
        """By what it is made of."""
        return self._of_volume if self._command(context).volume_id is not None else self._of_snapshot

    def streams(self, job_id: UUID, command: CreateTemplate) -> list[str]:
        """The new template, and what it is made of."""
        return [stream(derive(job_id, "template")),
                *([volume.stream(command.volume_id)] if command.volume_id is not None else []),
                *([thing_stream("snapshot", command.snapshot_id)] if command.snapshot_id is not None else [])]

    def follow(self, command: CreateTemplate, states: Mapping[str, Any]) -> list[str]:
        """What the snapshot is built on."""
        return chain.parents(states)

    def _command(self, context: Context) -> CreateTemplate:
        assert isinstance(context.command, CreateTemplate)
        return context.command

    def _state(self, context: Context) -> TemplateState:
        state: TemplateState = context.state(stream(context.new_id("template")))
        return state

    def start(self, context: Context) -> None:
        """Exactly one source, which may be read, and a store that will take it."""
        command = self._command(context)
        if not command.name or len(command.name) > 255:
            raise BadParameter("must have 1 to 255 characters", field="name")
        if (command.volume_id is None) == (command.snapshot_id is None):
            raise BadParameter("give exactly one of volumeid and snapshotid", field="volumeid")
        refuse_public(context, command.is_public, context.owner)
        refuse_unknown_os(command.os_type_id)
        if command.volume_id is not None:
            self._start_of_volume(context, command.volume_id)
        elif command.snapshot_id is not None:
            self._start_of_snapshot(context, command.snapshot_id)

    def _start_of_volume(self, context: Context, volume_id: UUID) -> None:
        of = volume.known(context, volume_id, "volumeid")
        volume.idle(of, "volumeid")
        assert of.disk is not None
        if self._command(context).zone_id not in (None, of.zone_id):
            raise BadParameter("a template of a volume is in the volume's zone", field="zoneid", remedy="copyTemplate after that")
        store = placement.image_store(context.directory, of.zone_id)
        self._backup(context, of.disk, store)
        self._register(context, store, of.zone_id, 0)
        context.emit(volume.stream(of.id), VolumeSnapshotStarted(
            volume_id=of.id, snapshot_id=context.new_id("template"), job_id=context.job_id))

    def _start_of_snapshot(self, context: Context, snapshot_id: UUID) -> None:
        of = context.state(thing_stream("snapshot", snapshot_id))
        if of is None or of.status in ("Destroyed", "Destroying", "Hidden"):
            raise BadParameter(f"no snapshot has the id {snapshot_id}", field="snapshotid", remedy="listSnapshots shows them")
        if of.status != "BackedUp":
            raise BadParameter(f"the snapshot is {of.status}, not BackedUp", field="snapshotid")
        bad = chain.quarantined(context, snapshot_id)
        if bad is not None and bad.damage is not None:
            raise quarantine_refused(context, "snapshot", of.image.store_id, bad.damage)
        links = self._links(context)
        size = sum(link.physical_size for link in links)
        zone_id = self._command(context).zone_id
        if zone_id is not None:
            placement.zone(context.directory, zone_id)
        store = placement.image_store(context.directory, zone_id or of.zone_id, prefer=of.image.store_id, need=size)
        self._copy(context, store, size)
        self._register(context, store, zone_id or of.zone_id, size)
        context.count(readers("snapshot", snapshot_id), +1, otherwise=BadParameter(
            "the snapshot is being deleted", field="snapshotid"))

    def _links(self, context: Context) -> list[ImageRef]:
        snapshot_id = self._command(context).snapshot_id
        assert snapshot_id is not None
        return chain.whole(context, snapshot_id)

    def _register(self, context: Context, store: Store, zone_id: UUID, reserved: int) -> None:
        command, template_id = self._command(context), context.new_id("template")
        if reserved:
            capacity.reserve(context, store, reserved)
        context.count(image_store.residents(store.spec.id), +1, otherwise=Unavailable(
            "the image store is being deleted", field="zoneid", remedy="try again"))
        zones = [zone_id] if store.zone_id is not None else []  # a region's store serves every zone
        context.emit(stream(template_id), TemplateRegistered(
            template_id=template_id, name=command.name, display_text=command.display_text or command.name, url="", checksum="",
            format=ImageFormat.QCOW2, hypervisor="KVM", zone_id=zones[0] if zones else None, zones=zones,
            is_public=command.is_public, is_featured=command.is_featured, is_extractable=command.is_extractable,
            os_type_id=command.os_type_id, store_id=store.spec.id, key=self._key(context, 1), job_id=context.job_id,
            reserved=reserved, owner=context.owner, traits=command.traits, volume_id=command.volume_id,
            snapshot_id=command.snapshot_id, store_zone_id=store.zone_id))

    # --- the bytes ---

    def _store(self, context: Context) -> Store:
        first = self._state(context).first
        assert first is not None
        return known_store(context, first.store_id)

    def _key(self, context: Context, attempt: int) -> str:
        step = "write" if self._command(context).volume_id is not None else "merge"
        return object_key(context, "template", context.new_id("template"), derive(context.job_id, step), attempt, "qcow2")

    def _leaves(self, context: Context, attempt: int) -> tuple[UUID, str]:
        return self._store(context).spec.id, self._key(context, attempt)

    def _plan(self, context: Context) -> MotionPlan:
        command = self._command(context)
        if command.volume_id is not None:
            return self._backup(context, self._disk(context), self._store(context))
        return self._copy(context, self._store(context), sum(link.physical_size for link in self._links(context)))

    def _backup(self, context: Context, disk: DiskRef, store: Store) -> MotionPlan:
        return planner.plan(context.directory, planner.backup(
            disk.primary, store, size=disk.virtual_size, basis="at most the disk's size", field="volumeid"))

    def _copy(self, context: Context, store: Store, size: int) -> MotionPlan:
        source = known_store(context, self._links(context)[-1].store_id)
        return planner.plan(context.directory, planner.merge(source, store, size=size, field="snapshotid"))

    def _disk(self, context: Context) -> DiskRef:
        volume_id = self._command(context).volume_id
        assert volume_id is not None
        disk: DiskRef | None = context.state(volume.stream(volume_id)).disk
        assert disk is not None
        return disk

    def _tag(self, context: Context) -> str:
        return f"sb-{derive(context.job_id, 'take').hex}"

    def _take(self, context: Context, work_id: UUID, attempt: int) -> Order:
        disk, store = self._disk(context), self._store(context)
        provider = context.directory.providers().get(store.spec.provider)
        measured = provider is not None and "free_room" in provider.capabilities
        return TakeSnapshot(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=disk.primary.agent, disk=disk,
                            reply_key=context.command.key(context.job_id), tag=self._tag(context),
                            store=store.spec if measured else None)

    def _taken(self, context: Context, result: Mapping[str, Any]) -> None:
        state, frozen = self._state(context), SnapshotFrozen.model_validate(result)
        need = capacity.backup(frozen.virtual_size, frozen.physical_size)
        capacity.reserve(context, self._store(context), need, free=frozen.free_bytes)
        context.emit(stream(state.id), TemplateReserved(template_id=state.id, reserved=need))
        self._release(context, backing_up=True)

    def _release(self, context: Context, *, backing_up: bool) -> None:
        """The volume may be worked on again (`backing_up`: except by a snapshot or a deletion)."""
        volume_id = self._command(context).volume_id
        if volume_id is not None:
            context.emit(volume.stream(volume_id), VolumeReleased(
                volume_id=volume_id, snapshot_id=context.new_id("template"), backing_up=backing_up))

    def _write(self, context: Context, work_id: UUID, attempt: int) -> Order:
        disk = self._disk(context)
        return WriteSnapshot(
            job_id=context.job_id, work_id=work_id, attempt=attempt, agent=disk.primary.agent, disk=disk, tag=self._tag(context),
            reply_key=context.command.key(context.job_id), store=self._store(context).spec, key=self._key(context, attempt),
            thing_id=context.new_id("template"), compression=context.limits.compression,
            motion=context.planned("write").strategy)

    def _merge(self, context: Context, work_id: UUID, attempt: int) -> Order:
        links = self._links(context)
        return chain.merge_order(
            context, context.planned("merge"), work_id, attempt, links=links, store=self._store(context),
            source=known_store(context, links[-1].store_id), key=self._key(context, attempt),
            thing=("template", context.new_id("template")))

    def _written(self, context: Context, result: Mapping[str, Any]) -> None:
        state, image = self._state(context), ImageResult.model_validate(result).image
        capacity.settle(context, image.store_id, state.counted, image.physical_size)
        context.emit(stream(state.id), TemplateWritten(template_id=state.id, image=image, counted=image.physical_size))

    def _unwrite(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        return unmake(context, self._state(context), work_id, attempt)

    def _drop(self, context: Context, work_id: UUID, attempt: int) -> Order:
        """Forget the tag; what the disk records for its own snapshots stays."""
        disk = self._disk(context)
        return DropSnapshot(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=disk.primary.agent, disk=disk,
                            reply_key=context.command.key(context.job_id), tag=self._tag(context), keep=None)

    # --- both ends ---

    def finish(self, context: Context) -> dict[str, Any]:
        """The template; what it was made of may be changed again."""
        state = self._state(context)
        assert state.image is not None
        context.emit(stream(state.id), TemplateReady(
            template_id=state.id, image=state.image, counted=state.counted, zone_id=self._store(context).zone_id))
        self._unread(context)
        return result_of("template", state.id)

    def _unread(self, context: Context) -> None:
        snapshot_id = self._command(context).snapshot_id
        self._release(context, backing_up=False)
        if snapshot_id is not None:
            chain.read(context, snapshot_id)

    def fail(self, context: Context, failure: Failure) -> None:
        """Nothing of it remains, on the disk or in the store."""
        self._unread(context)
        never(context, self._state(context), failure)


FLOWS: dict[type[Command], Flow] = {CreateTemplate: CreateFlow()}
"""Every command of this file, and what it leads to."""
