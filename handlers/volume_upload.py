"""Uploads: a volume that comes from a URL into an image store, and from there, once, to a primary store.

Rules kept here: an object of a registered store is taken where it lies, by one volume only, and stays whose it is; any other
http(s) URL is fetched like a template; Uploaded means verified bytes; what is in the image store goes once the disk is there, by
a job of its own. What gives it its disk are `begin`, `place_step` and `not_placed`, for any flow whose command names the volume
by `id`: placeVolume is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from handlers import adoption, capacity, image_store, offering, placement, planner, primary_store, template
from handlers.decider import Context, Flow, Step
from handlers.directory import Store
from handlers.job import result_of
from handlers.volume import VolumeState, known, stream
from schema.agent import AdoptImage, CreateDisk, DiskCreated, DisownImage, FetchImage, ImageResult
from schema.failure import BadParameter, Failure, Unavailable
from schema.ids import derive
from schema.image import PrimarySpec
from schema.message import Command, Order
from schema.motion import MotionPlan
from schema.volume import VolumeReady
from schema.volume_upload import (
    DropVolumeImage,
    PlaceVolume,
    UploadVolume,
    VolumeImageDropped,
    VolumeNotPlaced,
    VolumePlacing,
    VolumeUploaded,
    VolumeUploadFailed,
    VolumeUploadRequested,
)


class UploadFlow:
    """Look at an object where it lies, or fetch it."""

    subject, placed, cancellable = "volume", True, True

    def __init__(self) -> None:
        self.steps = (Step(name="upload", order=self._upload, done=self._uploaded, plan=self._plan, undo=self._unload,
                           leaves=self._leaves),)

    def streams(self, job_id: UUID, command: UploadVolume) -> list[str]:
        """The new volume, and the offering that it is to have."""
        return [stream(derive(job_id, "volume")),
                *([offering.stream(command.disk_offering_id)] if command.disk_offering_id else [])]

    def start(self, context: Context) -> None:
        """A name, an offering that leaves the size open, an address that is an object here or can be fetched."""
        command = context.command
        assert isinstance(command, UploadVolume)
        if not 1 <= len(command.name) <= 255:
            raise BadParameter("must have 1 to 255 characters", field="name")
        zone_id = placement.zone(context.directory, command.zone_id)
        chosen = offering.chosen(context, command.disk_offering_id, context.owner)
        if chosen is not None and chosen.disk_size is not None:
            raise BadParameter(f"the disk offering {chosen.name} has a size of its own: the image says how large it is",
                               field="diskofferingid", remedy="choose a customized offering")
        found = adoption.find(context.directory, command.url, zone_id, command.image_store_id, allowed=command.adopt)
        store, key = found if found is not None else (self._target(context, command, zone_id), "")
        volume_id, reserved = context.new_id("volume"), 0
        if key:
            placement.storage_agent(context.directory, store.spec.provider, store.zone_id)
            context.claim(_claim(store.spec.id, key), str(volume_id), BadParameter(
                "the object is a volume's already", field="url", remedy="delete that volume first, or copy the object"))
        else:
            planner.plan(context.directory, planner.fetch(command.url, store))
            reserved = capacity.download(context, store)
            capacity.reserve(context, store, reserved)
        context.count(image_store.residents(store.spec.id), +1, otherwise=Unavailable(
            "the image store is being deleted", field="zoneid", remedy="try again"))
        context.emit(stream(volume_id), VolumeUploadRequested(
            volume_id=volume_id, name=command.name, zone_id=zone_id, format=command.format, store_id=store.spec.id, adopted=key,
            disk_offering_id=chosen.id if chosen else None, reserved=reserved, job_id=context.job_id, owner=context.owner))

    def _target(self, context: Context, command: UploadVolume, zone_id: UUID) -> Store:
        store = placement.image_store(context.directory, zone_id, prefer=command.image_store_id)
        if command.image_store_id not in (None, store.spec.id):
            raise BadParameter(f"the image store {command.image_store_id} takes nothing new for this zone",
                               field="imagestoreuuid", remedy="listImageStores shows them; leave it out")
        return store

    def _state(self, context: Context) -> VolumeState:
        state: VolumeState = context.state(stream(context.new_id("volume")))
        return state

    def _store(self, context: Context) -> Store:
        store_id = self._state(context).image_store
        assert store_id is not None
        return template.known_store(context, store_id)

    def _plan(self, context: Context) -> MotionPlan | None:
        command, state = context.command, self._state(context)
        assert isinstance(command, UploadVolume)
        return None if state.adopted else planner.plan(context.directory, planner.fetch(command.url, self._store(context)))

    def _upload(self, context: Context, work_id: UUID, attempt: int) -> Order:
        command, state, store = context.command, self._state(context), self._store(context)
        assert isinstance(command, UploadVolume)
        about: dict[str, Any] = {
            "job_id": context.job_id, "work_id": work_id, "attempt": attempt, "reply_key": command.key(context.job_id),
            "store": store.spec, "format": command.format, "checksum": command.checksum, "kind": "volume", "thing_id": state.id,
            "max_bytes": context.limits.max_image_bytes, "max_virtual_size": context.limits.max_virtual_size}
        if state.adopted:
            agent = placement.storage_agent(context.directory, store.spec.provider, store.zone_id)
            return AdoptImage(agent=agent, key=state.adopted, **about)
        plan = context.planned("upload")
        return FetchImage(agent=plan.agent, motion=plan.strategy, url=command.url, key=self._key(context, attempt), **about)

    def _key(self, context: Context, attempt: int) -> str:
        command = context.command
        assert isinstance(command, UploadVolume)
        return template.object_key(context, "volume", context.new_id("volume"), derive(context.job_id, "upload"), attempt,
                                   command.format)

    def _leaves(self, context: Context, attempt: int) -> tuple[UUID, str] | None:
        state = self._state(context)
        return None if state.adopted or state.image_store is None else (state.image_store, self._key(context, attempt))

    def _uploaded(self, context: Context, result: Mapping[str, Any]) -> None:
        state, image = self._state(context), ImageResult.model_validate(result).image
        capacity.settle(context, image.store_id, state.counted, image.physical_size)
        context.emit(stream(state.id), VolumeUploaded(volume_id=state.id, image=image, counted=image.physical_size))

    def _unload(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        return remove(context, self._state(context), work_id, attempt)

    def finish(self, context: Context) -> dict[str, Any]:
        """The volume, in its image store."""
        return result_of("volume", self._state(context).id)

    def fail(self, context: Context, failure: Failure) -> None:
        """Nothing of it remains; an adopted object is as it was."""
        state = self._state(context)
        assert state.image_store is not None
        let_go(context, state)
        context.emit(stream(state.id), VolumeUploadFailed(volume_id=state.id, store_id=state.image_store, failure=failure))


def _claim(store_id: UUID, key: str) -> str:
    return f"image_store/{store_id}/adopted/{key}"


def remove(context: Context, state: VolumeState, work_id: UUID, attempt: int) -> Order | None:
    """The order that removes what a volume has in an image store: of an adopted object, what was written beside it."""
    if state.image is None:
        return None
    store = template.known_store(context, state.image.store_id)
    if not state.adopted:
        return template.delete_order(context, work_id, attempt, store.spec, store.zone_id, [state.image.key])
    return DisownImage(job_id=context.job_id, work_id=work_id, attempt=attempt, reply_key=context.command.key(context.job_id),
                       agent=placement.storage_agent(context.directory, store.spec.provider, store.zone_id), store=store.spec,
                       key=state.adopted, thing_id=state.id)


def let_go(context: Context, state: VolumeState) -> None:
    """It has nothing in its image store any more: what was counted and claimed for it is free."""
    assert state.image_store is not None
    context.count(image_store.residents(state.image_store), -1)
    capacity.release(context, state.image_store, state.counted, arrived=state.image is not None)
    if state.adopted:
        context.unclaim(_claim(state.image_store, state.adopted), str(state.id), state.job_id)


def dropped(context: Context, state: VolumeState) -> None:
    """Its image is gone from its store, if it had one."""
    if state.image is not None and state.image_store is not None:
        let_go(context, state)
        context.emit(stream(state.id), VolumeImageDropped(volume_id=state.id, store_id=state.image_store))


# --- to a primary store -----------------------------------------------------------------------------------------------


def begin(context: Context, state: VolumeState, storage_id: UUID | None = None) -> None:
    """An Uploaded volume is to have a disk in this job. Any other state is let be. Raises what refuses it."""
    if state.status != "Uploaded":
        return
    primary, hypervisor = placement.primary(context.directory, state.zone_id, storage_id)
    _planned(context, state, primary)
    context.count(primary_store.volumes(primary.id), +1, otherwise=primary_store.full_refused())
    context.emit(stream(state.id), VolumePlacing(
        volume_id=state.id, primary=primary, hypervisor=hypervisor, job_id=context.job_id))


def place_step() -> Step:
    """The step that makes the disk, where `begin` wanted one; for a flow whose command's `id` is the volume's. Once made, it
    stays, whatever becomes of the job."""
    return Step(name="place", order=_place, done=_placed, plan=_place_plan)


def not_placed(context: Context, failure: Failure) -> None:
    """The job failed: a volume whose disk was not made is Uploaded again."""
    state = _placing(context)
    if state.status == "Copying":
        context.count(primary_store.volumes(state.primary.id), -1)
        context.emit(stream(state.id), VolumeNotPlaced(volume_id=state.id, failure=failure))


def _placing(context: Context) -> VolumeState:
    command: Any = context.command
    return known(context, command.id)


def _planned(context: Context, state: VolumeState, primary: PrimarySpec) -> MotionPlan:
    assert state.image is not None
    return planner.plan(context.directory, planner.restore(
        template.known_store(context, state.image.store_id), primary, size=state.image.physical_size, basis="the object's size",
        field="id"))


def _place_plan(context: Context) -> MotionPlan | None:
    state = _placing(context)
    return _planned(context, state, state.primary) if state.status == "Copying" else None


def _place(context: Context, work_id: UUID, attempt: int) -> Order | None:
    state = _placing(context)
    if state.status != "Copying" or state.image is None:
        return None
    return CreateDisk(
        job_id=context.job_id, work_id=work_id, attempt=attempt, agent=state.primary.agent,
        reply_key=context.command.key(context.job_id), primary=state.primary, volume_id=state.id, virtual_size=0,
        image=state.image, store=template.known_store(context, state.image.store_id).spec,
        motion=context.planned("place").strategy)


def _placed(context: Context, result: Mapping[str, Any]) -> None:
    made = DiskCreated.model_validate(result)
    context.emit(stream(made.disk.volume_id), VolumeReady(
        volume_id=made.disk.volume_id, disk=made.disk, physical_size=made.physical_size))
    context.out.submissions.append((derive(context.job_id, "drop-image"), DropVolumeImage(id=made.disk.volume_id)))


class PlaceFlow:
    """Give an uploaded volume its disk."""

    subject, placed, cancellable = "volume", True, True

    def __init__(self) -> None:
        self.steps = (place_step(),)

    def streams(self, job_id: UUID, command: PlaceVolume) -> list[str]:
        """The volume."""
        return [stream(command.id)]

    def start(self, context: Context) -> None:
        """It is Uploaded."""
        command = context.command
        assert isinstance(command, PlaceVolume)
        state = known(context, command.id)
        if state.status != "Uploaded":
            raise BadParameter(f"the volume is {state.status}, not Uploaded", field="id",
                               remedy="only an uploaded volume is placed")
        begin(context, state, command.storage_id)

    def finish(self, context: Context) -> dict[str, Any]:
        """The volume, Ready."""
        return result_of("volume", _placing(context).id)

    def fail(self, context: Context, failure: Failure) -> None:
        """It is Uploaded still, unless its disk was made before the cancel was seen."""
        not_placed(context, failure)


class DropImageFlow:
    """Remove the image of a volume whose disk is there."""

    subject, placed, cancellable = "volume", True, False

    def __init__(self) -> None:
        self.steps = (Step(name="delete", order=self._delete, attempts=100_000),)

    def streams(self, job_id: UUID, command: DropVolumeImage) -> list[str]:
        """The volume."""
        return [stream(command.id)]

    def _state(self, context: Context) -> VolumeState | None:
        assert isinstance(context.command, DropVolumeImage)
        state: VolumeState | None = context.state(stream(context.command.id))
        return state

    def start(self, context: Context) -> None:
        """It has a disk. One that has no image any more is fine."""
        state = self._state(context)
        if state is None or (state.image is not None and state.disk is None):
            raise BadParameter("no volume that has its disk has this id", field="id")

    def _delete(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state = self._state(context)
        return remove(context, state, work_id, attempt) if state is not None else None

    def finish(self, context: Context) -> dict[str, Any]:
        """The store confirmed."""
        state = self._state(context)
        if state is not None:
            dropped(context, state)
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """Its image stays counted."""


FLOWS: dict[type[Command], Flow] = {UploadVolume: UploadFlow(), PlaceVolume: PlaceFlow(), DropVolumeImage: DropImageFlow()}
"""Every command of this file, and what it leads to."""
