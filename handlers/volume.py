"""Volumes: their states, and the flows that make and change them. Their end is in `volume_destroy`.

Rules kept here: a second job on a busy volume is refused at once; an image that is read for a volume cannot be deleted
meanwhile; a volume from a snapshot names its zone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from handlers import chain, offering, placement, planner, primary_store, snapshot_places, template, template_seed
from handlers.decider import Context, Flow, IllegalTransition, Step
from handlers.job import result_of
from schema.agent import CreateDisk, DeleteDisk, DiskCreated
from schema.failure import BadParameter, Failure
from schema.identity import ROOT_OWNER, Owner
from schema.ids import derive
from schema.ids import stream as thing_stream
from schema.image import GIB, UNPLACED, DiskRef, ImageRef, PrimarySpec
from schema.message import Command, Event, Order
from schema.motion import SEED, MotionPlan
from schema.template_seed import UnprepareTemplate
from schema.volume import (
    CreateVolume,
    UpdateVolume,
    VolumeDeleted,
    VolumeDeleteRequested,
    VolumeDestroyed,
    VolumeFailed,
    VolumeReady,
    VolumeRecovered,
    VolumeReleased,
    VolumeRenamed,
    VolumeRequested,
    VolumeResized,
    VolumeResizeEnded,
    VolumeResizeStarted,
    VolumeReverted,
    VolumeRevertFailed,
    VolumeRevertStarted,
    VolumeSnapshotStarted,
    VolumeUpdated,
)
from schema.volume_attach import (
    VolumeAttached,
    VolumeAttachFailed,
    VolumeAttachStarted,
    VolumeDetached,
    VolumeDetachFailed,
    VolumeDetachStarted,
)
from schema.volume_upload import (
    VolumeImageDropped,
    VolumeNotPlaced,
    VolumePlacing,
    VolumeUploaded,
    VolumeUploadFailed,
    VolumeUploadRequested,
)

TRANSITIONS: dict[tuple[str, str], str] = {
    ("", VolumeRequested.TYPE): "Creating",
    ("Creating", VolumeReady.TYPE): "Ready",
    ("Creating", VolumeFailed.TYPE): "Failed",
    ("", VolumeUploadRequested.TYPE): "UploadOp",
    ("UploadOp", VolumeUploaded.TYPE): "Uploaded",
    ("UploadOp", VolumeUploadFailed.TYPE): "Failed",
    ("Uploaded", VolumeUploadFailed.TYPE): "Failed",  # it was there before the cancel was seen, and was taken back
    ("Uploaded", VolumeRenamed.TYPE): "Uploaded",
    ("Uploaded", VolumeUpdated.TYPE): "Uploaded",
    ("Uploaded", VolumePlacing.TYPE): "Copying",
    ("Copying", VolumeReady.TYPE): "Ready",
    ("Copying", VolumeNotPlaced.TYPE): "Uploaded",
    ("Uploaded", VolumeDeleteRequested.TYPE): "Expunging",
    ("Ready", VolumeRenamed.TYPE): "Ready",
    ("Snapshotting", VolumeRenamed.TYPE): "Snapshotting",
    ("Ready", VolumeSnapshotStarted.TYPE): "Snapshotting",
    ("Snapshotting", VolumeReleased.TYPE): "Ready",
    ("Ready", VolumeReleased.TYPE): "Ready",
    ("Ready", VolumeUpdated.TYPE): "Ready",
    ("Snapshotting", VolumeUpdated.TYPE): "Snapshotting",
    ("Ready", VolumeResizeStarted.TYPE): "Resizing",
    ("Resizing", VolumeResized.TYPE): "Resizing",
    ("Resizing", VolumeRenamed.TYPE): "Resizing",
    ("Resizing", VolumeUpdated.TYPE): "Resizing",
    ("Resizing", VolumeResizeEnded.TYPE): "Ready",
    ("Ready", VolumeRevertStarted.TYPE): "RevertSnapshotting",
    ("RevertSnapshotting", VolumeReverted.TYPE): "Ready",
    ("RevertSnapshotting", VolumeRevertFailed.TYPE): "Ready",
    ("RevertSnapshotting", VolumeRenamed.TYPE): "RevertSnapshotting",
    ("RevertSnapshotting", VolumeUpdated.TYPE): "RevertSnapshotting",
    ("Ready", VolumeDestroyed.TYPE): "Destroy",
    ("Destroy", VolumeRecovered.TYPE): "Ready",
    ("Destroy", VolumeDeleteRequested.TYPE): "Expunging",
    ("Ready", VolumeDeleteRequested.TYPE): "Expunging",
    ("Failed", VolumeDeleteRequested.TYPE): "Expunging",
    ("Expunging", VolumeDeleted.TYPE): "Expunged",
    # at a machine
    ("Ready", VolumeAttachStarted.TYPE): "Attaching",
    ("Attaching", VolumeAttached.TYPE): "Ready",
    ("Attaching", VolumeAttachFailed.TYPE): "Ready",
    ("Ready", VolumeDetachStarted.TYPE): "Detaching",
    ("Detaching", VolumeDetached.TYPE): "Ready",
    ("Detaching", VolumeDetachFailed.TYPE): "Ready",
}
"""(state, event) -> state. Everything else is illegal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeState:
    """The fold of a volume's events."""

    status: str
    id: UUID
    name: str
    zone_id: UUID
    primary: PrimarySpec
    job_id: UUID
    owner: Owner = ROOT_OWNER
    offering: UUID | None = None
    size: int = 0
    """Bytes of the disk as a machine sees it; 0 until its source has said it."""
    disk: DiskRef | None = None
    busy: UUID | None = None
    """The snapshot that is being taken or backed up."""
    protected: bool = False
    """It is neither destroyed nor deleted."""
    destroyed_by: UUID | None = None
    """The job that destroyed it last."""
    resizing: tuple[int, int] | None = None
    """While it is resized: the bytes that it had, and those that it shall have."""
    image: ImageRef | None = None
    """What it has in an image store: an uploaded one, until its disk is there."""
    image_store: UUID | None = None
    adopted: str = ""
    """The key of its object, where that was taken where it lay: the bytes are others'."""
    counted: int = 0
    """Bytes by which it is counted on its image store: reserved until it is Uploaded."""
    head: UUID | None = None
    """The snapshot backed up last: the disk records what changes since."""
    reverted: UUID | None = None
    """The snapshot whose content it was given, since when nothing was backed up."""
    machine: UUID | None = None
    """The machine that it is attached to, or on its way to."""
    device_id: int | None = None
    """Of that machine."""
    reason: str = ""
    """As VolumeReady says it."""


def evolve(state: VolumeState | None, event: Event) -> VolumeState:
    """The volume after `event`."""
    if isinstance(event, VolumeImageDropped) and state is not None:  # whatever is done with the volume meanwhile
        return replace(state, image=None, counted=0)
    status = TRANSITIONS.get((state.status if state else "", event.TYPE))
    if status is None:
        raise IllegalTransition(state.status if state else "absent", event)
    if isinstance(event, VolumeUploadRequested):
        return VolumeState(status=status, id=event.volume_id, name=event.name, zone_id=event.zone_id, primary=UNPLACED,
                           job_id=event.job_id, owner=event.owner, offering=event.disk_offering_id, image_store=event.store_id,
                           adopted=event.adopted, counted=event.reserved)
    if isinstance(event, VolumeRequested):
        return VolumeState(status=status, id=event.volume_id, name=event.name, zone_id=event.zone_id,
                           primary=event.primary, job_id=event.job_id, owner=event.owner,
                           size=event.virtual_size, offering=event.disk_offering_id)
    assert state is not None
    match event:
        case VolumeReady():
            return replace(state, status=status, disk=event.disk, size=event.disk.virtual_size, reason=event.reason)
        case VolumeRenamed():
            return replace(state, status=status, name=event.name)
        case VolumeUploaded():
            return replace(state, status=status, image=event.image, counted=event.counted, size=event.image.virtual_size)
        case VolumeUploadFailed():
            return replace(state, status=status, image=None, counted=0)
        case VolumePlacing():
            return replace(state, status=status, primary=event.primary)
        case VolumeNotPlaced():
            return replace(state, status=status, primary=UNPLACED)
        case VolumeUpdated():
            return replace(state, status=status, protected=state.protected if event.delete_protection is None
                           else event.delete_protection)
        case VolumeDestroyed():
            return replace(state, status=status, destroyed_by=event.job_id)
        case VolumeResizeStarted():
            return replace(state, status=status, resizing=(state.size, event.virtual_size))
        case VolumeResized():
            return replace(state, status=status, disk=event.disk, size=event.disk.virtual_size)
        case VolumeResizeEnded():
            return _resized(replace(state, status=status), event)
        case VolumeAttachStarted():
            return replace(state, status=status, machine=event.machine_id, device_id=event.device_id)
        case VolumeAttachFailed() | VolumeDetached():
            return replace(state, status=status, machine=None, device_id=None)
        case VolumeSnapshotStarted():
            return replace(state, status=status, busy=event.snapshot_id)
        case VolumeReleased():
            return replace(state, status=status, busy=event.snapshot_id if event.backing_up else None,
                           head=event.head or state.head, reverted=None if event.head else state.reverted)
        case VolumeReverted():
            return replace(state, status=status, disk=event.disk, size=event.disk.virtual_size, head=None,
                           reverted=event.snapshot_id)
        case _:
            return replace(state, status=status)


def _resized(state: VolumeState, event: VolumeResizeEnded) -> VolumeState:
    disk = state.disk.model_copy(update={"virtual_size": event.virtual_size}) if state.disk is not None else None
    return replace(state, disk=disk, size=event.virtual_size, resizing=None, offering=event.disk_offering_id or state.offering)


def stream(volume_id: UUID) -> str:
    """The stream of a volume."""
    return f"volume-{volume_id}"


def known(context: Context, volume_id: UUID, field: str = "id") -> VolumeState:
    """The volume, unless it is gone. Raises BadParameter."""
    state = context.state(stream(volume_id))
    if state is None or state.status == "Expunged":
        raise BadParameter(f"no volume has the id {volume_id}", field=field, remedy="listVolumes shows them")
    assert isinstance(state, VolumeState)
    return state


def idle(state: VolumeState, field: str = "id") -> None:
    """Raises BadParameter unless the volume is Ready, nothing works on it, and no machine has it."""
    if state.status != "Ready":
        raise BadParameter(f"the volume is {state.status}, not Ready", field=field, remedy=(
            "placeVolume brings it to a primary store" if state.status == "Uploaded" else "wait for its job to end"))
    if state.busy is not None:
        raise BadParameter(f"there is other active snapshot task on the volume: {state.busy}", field=field,
                           remedy="try again when it has ended")
    if state.machine is not None:
        raise BadParameter(f"the volume is attached to the machine {state.machine}", field=field,
                           remedy="detachVolume first: volumes that are attached come later")


def made_by(job_id: UUID, command: CreateVolume) -> UUID:
    """The id of the volume that a job makes."""
    return command.custom_id or derive(job_id, "volume")


class CreateFlow:
    """Make a disk: empty, from a template, or from a snapshot."""

    subject, placed, cancellable = "volume", True, True

    def __init__(self) -> None:
        self.steps = (Step(name="create", order=self._create, done=self._created, plan=self._plan, undo=self._uncreate),)

    def streams(self, job_id: UUID, command: CreateVolume) -> list[str]:
        """The new volume, and what it is made from."""
        names = [stream(made_by(job_id, command))]
        if (offering_id := offering.named(command.disk_offering_id)) is not None:
            names.append(offering.stream(offering_id))
        if command.template_id is not None:
            names.append(template.stream(command.template_id))
        if command.snapshot_id is not None:
            names.append(thing_stream("snapshot", command.snapshot_id))
        return names

    def follow(self, command: CreateVolume, states: Mapping[str, Any]) -> list[str]:
        """The snapshots that the source is a delta of."""
        return chain.parents(states)

    def start(self, context: Context) -> None:
        """Exactly one source, its zone, a size that fits."""
        command = context.command
        assert isinstance(command, CreateVolume)
        if not command.name or len(command.name) > 255:
            raise BadParameter("must have 1 to 255 characters", field="name")
        if command.snapshot_id is not None and command.template_id is not None:
            raise BadParameter("a volume is made from a snapshot or from a template, not from both", field="templateid")
        if command.snapshot_id is not None and command.zone_id is None:
            raise BadParameter("missing", field="zoneid", remedy="a volume from a snapshot names its zone")
        zone_id = placement.zone(context.directory, command.zone_id)
        source = self._source(context)
        self._sound(context, source)
        chosen = offering.chosen(context, offering.named(command.disk_offering_id), context.owner)
        size = self._size(context, command, source, chosen)
        least, most = offering.iops(chosen, command.min_iops, command.max_iops)
        primary, hypervisor = placement.primary(context.directory, zone_id, command.storage_id)
        self._planned(context, primary)
        volume_id = made_by(context.job_id, command)
        if context.state(stream(volume_id)) is not None:
            raise BadParameter(f"the id {volume_id} is a volume's already", field="customid", remedy="leave it out")
        if source is not None:
            thing, thing_id, _ = source
            context.count(template.readers(thing, thing_id), +1, otherwise=BadParameter(
                f"the {thing} is being deleted", field=f"{thing}id"))
        context.count(primary_store.volumes(primary.id), +1, otherwise=primary_store.full_refused())
        context.emit(stream(volume_id), VolumeRequested(
            volume_id=volume_id, name=command.name, zone_id=zone_id, primary=primary, virtual_size=size,
            template_id=command.template_id, snapshot_id=command.snapshot_id, hypervisor=hypervisor,
            job_id=context.job_id, owner=context.owner, disk_offering_id=chosen.id if chosen else None, min_iops=least,
            max_iops=most, display=command.display_volume))

    def _zone(self, context: Context) -> UUID:
        """Where the volume is, or will be."""
        command = context.command
        assert isinstance(command, CreateVolume)
        state = self._state(context)
        return state.zone_id if state is not None else placement.zone(context.directory, command.zone_id)

    def _source(self, context: Context) -> tuple[str, UUID, ImageRef] | None:
        command = context.command
        assert isinstance(command, CreateVolume)
        if command.template_id is not None:
            return "template", command.template_id, template.image_in(context, command.template_id, self._zone(context))
        if command.snapshot_id is not None:
            state = context.state(thing_stream("snapshot", command.snapshot_id))
            if state is None or state.status == "Destroyed":
                raise BadParameter(f"no snapshot has the id {command.snapshot_id}", field="snapshotid",
                                   remedy="listSnapshots shows them")
            if state.status != "BackedUp":
                raise BadParameter(f"the snapshot is {state.status}, not BackedUp", field="snapshotid")
            near = snapshot_places.resting(context, state, command.zone_id) if command.zone_id is not None else None
            return "snapshot", command.snapshot_id, near.image if near is not None else state.image
        return None

    def _sound(self, context: Context, source: tuple[str, UUID, ImageRef] | None) -> None:
        """Nothing that would be read is quarantined. Asked once, at the start: an agent finds for itself what happens later."""
        if source is None:
            return
        thing, thing_id, image = source
        if thing == "template":
            template.readable(context, template.known(context, thing_id, "templateid"), self._zone(context))
            return
        bad: Any = context.state(thing_stream("snapshot", thing_id)).copies.get(image.store_id)
        bad = bad or chain.quarantined(context, thing_id)
        if bad is not None and bad.damage is not None:
            raise template.quarantine_refused(context, thing, image.store_id, bad.damage)

    def _size(self, context: Context, command: CreateVolume, source: tuple[str, UUID, ImageRef] | None,
              chosen: offering.OfferingState | None) -> int:
        size = offering.size_of(chosen, command.size, context.limits.max_volume_gib)
        if size is None:
            if source is None:
                raise BadParameter("missing", field="size", remedy="give size (GiB), diskofferingid, templateid or snapshotid")
            return 0
        if source is not None and size * GIB < source[2].virtual_size:
            raise BadParameter(f"{size} GiB is less than the {source[0]}'s {source[2].virtual_size} bytes",
                               field="diskofferingid" if command.size is None else "size", remedy="leave it out, or give more")
        return size * GIB

    def _state(self, context: Context) -> VolumeState:
        assert isinstance(context.command, CreateVolume)
        state: VolumeState = context.state(stream(made_by(context.job_id, context.command)))
        return state

    def _plan(self, context: Context) -> MotionPlan | None:
        return self._planned(context, self._state(context).primary)

    def _planned(self, context: Context, primary: PrimarySpec) -> MotionPlan | None:
        """How the source's bytes come to the primary store, if they are not there; None without a source."""
        command, source = context.command, self._source(context)
        assert isinstance(command, CreateVolume)
        if source is None:
            return None
        thing, thing_id, image = source
        if self._seed(context, primary) is not None:
            with contextlib.suppress(planner.NoMotion):  # its host was replaced by one that cannot: the store has the bytes too
                return planner.plan(context.directory, planner.seeded(primary, size=image.physical_size))
        links = [*(chain.images(context, thing_id) if image.parent else []), image]
        basis = "the object's size" if len(links) == 1 else f"the sizes of the {len(links)} objects of its chain"
        return planner.plan(context.directory, planner.restore(
            template.known_store(context, image.store_id), primary, size=sum(link.physical_size for link in links),
            basis=basis, field=f"{thing}id"))

    def _seed(self, context: Context, primary: PrimarySpec) -> template_seed.Seed | None:
        """The template's bytes on the primary store."""
        command = context.command
        assert isinstance(command, CreateVolume)
        if command.template_id is None:
            return None
        return template_seed.usable(context.state(template.stream(command.template_id)).seeds, primary.id)

    def _create(self, context: Context, work_id: UUID, attempt: int) -> Order:
        command, state = context.command, self._state(context)
        assert isinstance(command, CreateVolume)
        source = self._source(context)
        image = source[2] if source is not None else None
        plan = context.planned("create") if image is not None else None
        seed = self._seed(context, state.primary)
        # Where it was planned for and has gone meanwhile, its name is of nothing: the agent reads the store.
        name = (seed.path if seed is not None else str(command.template_id)) if plan is not None and plan.move == SEED else ""
        return CreateDisk(
            job_id=context.job_id, work_id=work_id, attempt=attempt, agent=state.primary.agent,
            reply_key=command.key(context.job_id), primary=state.primary, volume_id=state.id,
            virtual_size=state.size, image=image,
            store=template.known_store(context, image.store_id).spec if image is not None else None,
            base=chain.images(context, source[1]) if source is not None and image is not None and image.parent else [],
            motion=plan.strategy if plan is not None else "direct", seed=name,
            seed_size=seed.size if seed is not None and name else 0)

    def _created(self, context: Context, result: Mapping[str, Any]) -> None:
        created = DiskCreated.model_validate(result)
        context.emit(stream(created.disk.volume_id), VolumeReady(
            volume_id=created.disk.volume_id, disk=created.disk, physical_size=created.physical_size,
            reason=created.reason))
        seed = self._seed(context, created.disk.primary)
        if created.reason and seed is not None:  # what is there no more is forgotten, so that it can be made again
            context.out.submissions.append((derive(context.job_id, "lost-seed"), UnprepareTemplate(
                template_id=seed.template_id, zone_id=seed.primary.zone_id, storage_id=seed.primary.id)))

    def _uncreate(self, context: Context, work_id: UUID, attempt: int) -> Order:
        state = self._state(context)
        return DeleteDisk(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=state.primary.agent,
                          reply_key=context.command.key(context.job_id), primary=state.primary, volume_id=state.id,
                          path=state.disk.path if state.disk else "")

    def _unread(self, context: Context) -> None:
        command = context.command
        assert isinstance(command, CreateVolume)
        if command.template_id is not None:
            context.count(template.readers("template", command.template_id), -1)
        if command.snapshot_id is not None:
            chain.read(context, command.snapshot_id)

    def finish(self, context: Context) -> dict[str, Any]:
        """The volume; its source may be deleted again."""
        self._unread(context)
        state = self._state(context)
        return result_of("volume", state.id, **({"reason": state.reason} if state.reason else {}))

    def fail(self, context: Context, failure: Failure) -> None:
        """Nothing of it remains."""
        state = self._state(context)
        self._unread(context)
        context.count(primary_store.volumes(state.primary.id), -1)
        if state.status == "Ready":  # it was made before the cancel was seen, and taken back
            context.emit(stream(state.id), VolumeDeleteRequested(volume_id=state.id, job_id=context.job_id))
            context.emit(stream(state.id), VolumeDeleted(volume_id=state.id))
        else:
            context.emit(stream(state.id), VolumeFailed(volume_id=state.id, failure=failure))


class UpdateFlow:
    """Rename, protect, show or hide."""

    subject, placed, cancellable = "volume", False, False
    steps: tuple[Step, ...] = ()

    def streams(self, job_id: UUID, command: UpdateVolume) -> list[str]:
        """The volume."""
        return [stream(command.id)]

    def start(self, context: Context) -> None:
        """A volume that is there, and something new."""
        command = context.command
        assert isinstance(command, UpdateVolume)
        state = known(context, command.id)
        if command.custom_id not in (None, command.id):
            raise BadParameter("an id is for ever: the log knows the volume by it", field="customid",
                               remedy="give customid to createVolume")
        shown = (command.display_volume, command.delete_protection)
        if command.name is None and shown == (None, None):
            raise BadParameter("nothing to change", field="name", remedy="give name, deleteprotection or displayvolume")
        if command.name is not None and not 1 <= len(command.name) <= 255:
            raise BadParameter("must have 1 to 255 characters", field="name")
        if (state.status, VolumeUpdated.TYPE) not in TRANSITIONS:
            raise BadParameter(f"the volume is {state.status}", field="id", remedy="wait for its job to end")
        if command.name is not None:
            context.emit(stream(command.id), VolumeRenamed(volume_id=command.id, name=command.name))
        if shown != (None, None):
            context.emit(stream(command.id), VolumeUpdated(volume_id=command.id, display=shown[0], delete_protection=shown[1]))

    def finish(self, context: Context) -> dict[str, Any]:
        """The volume."""
        command = context.command
        assert isinstance(command, UpdateVolume)
        return result_of("volume", command.id)

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: there is nothing to wait for."""


FLOWS: dict[type[Command], Flow] = {
    CreateVolume: CreateFlow(),
    UpdateVolume: UpdateFlow(),
}
"""Every command about this noun, and what it leads to."""
