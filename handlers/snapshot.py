"""Snapshots: the flows that take them and back them up.

Rules kept here: take and backup are two steps; the volume is busy until both ended; a failed or cancelled one leaves
nothing inside the disk and nothing in the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from bus.submission import job_stream
from handlers import (
    capacity,
    chain,
    image_store,
    placement,
    planner,
    resource_tag,
    snapshot_places,
    snapshot_policy,
    snapshot_stop,
    template,
    volume,
)
from handlers.decider import Context, Flow, Step
from handlers.directory import Store
from handlers.job import result_of
from handlers.snapshot_state import TRANSITIONS, SnapshotState, evolve, stream
from schema.agent import DropSnapshot, ImageResult, SnapshotFrozen, TakeSnapshot, WriteSnapshot
from schema.failure import BadParameter, Failure, Unavailable
from schema.identity import ROOT_DOMAIN
from schema.ids import derive
from schema.ids import stream as thing_stream
from schema.image import DiskRef
from schema.message import Command, Order
from schema.motion import MotionPlan
from schema.snapshot import (
    BackupSnapshot,
    CreateSnapshot,
    SnapshotBackedUp,
    SnapshotBackupStarted,
    SnapshotFailed,
    SnapshotOffPrimary,
    SnapshotRequested,
    SnapshotTaken,
)
from schema.volume import VolumeReleased, VolumeSnapshotStarted


class _Backup:
    """What taking and backing up share: the backup and drop orders, and both ends."""

    subject, placed, cancellable = "snapshot", True, True

    def snapshot_id(self, context: Context) -> UUID:
        """Which snapshot the job is about."""
        raise NotImplementedError

    def state(self, context: Context) -> SnapshotState:
        """The snapshot as decided so far."""
        state: SnapshotState = context.state(stream(self.snapshot_id(context)))
        return state

    def key(self, context: Context, attempt: int) -> str:
        """Where an attempt of the backup writes."""
        work_id = derive(context.job_id, "backup")
        return template.object_key(context, "snapshot", self.snapshot_id(context), work_id, attempt, "qcow2")

    def follow(self, command: Command, states: Mapping[str, Any]) -> list[str]:
        """The volume's last snapshot: the parent of this one, perhaps; and all that it is built on."""
        heads = [state.head for name, state in states.items() if name.startswith("volume-") and state is not None]
        policy = snapshot_policy.followed(command, states)
        return [stream(head) for head in heads if head is not None] + chain.parents(states) + policy

    def head(self, context: Context) -> SnapshotState | None:
        """The snapshot that the disk still records changes since."""
        head = context.state(volume.stream(self.state(context).volume_id)).head
        return context.state(stream(head)) if head is not None else None

    def begin(self, context: Context) -> None:
        """The backup starts, as a delta where it may be one."""
        state = self.state(context)
        head = self.head(context)
        choice = chain.choose(context, head.id if head else None, state.store_id)
        of: volume.VolumeState = context.state(volume.stream(state.volume_id))
        since = f"the volume was reverted to the snapshot {of.reverted} since the previous one" if of.reverted else ""
        context.emit(stream(state.id), SnapshotBackupStarted(
            snapshot_id=state.id, store_id=state.store_id, key=self.key(context, 1), job_id=context.job_id,
            parent=choice.parent.id if choice.parent else None, depth=choice.depth, reason=since or choice.reason))
        if choice.parent is not None:
            chain.link(context, choice.parent.id, state.id)

    def backup(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        """Write the snapshot to the store."""
        state = self.state(context)
        parent: SnapshotState | None = context.state(stream(state.parent)) if state.parent else None
        return WriteSnapshot(
            job_id=context.job_id, work_id=work_id, attempt=attempt, agent=state.disk.primary.agent,
            reply_key=context.command.key(context.job_id), disk=state.disk, tag=state.tag,
            store=template.known_store(context, state.store_id).spec, key=self.key(context, attempt),
            thing_id=state.id, parent=parent.image if parent else None, parent_tag=parent.tag if parent else "",
            compression=context.limits.compression, motion=context.planned("backup").strategy)

    def leaves(self, context: Context, attempt: int) -> tuple[UUID, str]:
        """Where an attempt of the backup may leave something behind."""
        return self.state(context).store_id, self.key(context, attempt)

    def plan(self, context: Context) -> MotionPlan:
        """How the snapshot's bytes come to the store: as `begin` decided, or would decide now."""
        state = self.state(context)
        of = context.state(volume.stream(state.volume_id))
        if state.status == "BackingUp":
            parent: SnapshotState | None = context.state(stream(state.parent)) if state.parent else None
        else:
            parent = chain.choose(context, of.head, state.store_id).parent
        return self.planned(context, state.disk, template.known_store(context, state.store_id), parent)

    def planned(self, context: Context, disk: DiskRef, store: Store, parent: SnapshotState | None) -> MotionPlan:
        """The same of a snapshot that may not be there yet."""
        basis = f"at most the disk's size: what changed since {parent.id}" if parent else "at most the disk's size"
        return planner.plan(context.directory, planner.backup(
            disk.primary, store, size=disk.virtual_size, basis=basis, field="volumeid"))

    def backed_up(self, context: Context, result: Mapping[str, Any]) -> None:
        """Its bytes are in the store."""
        state, written = self.state(context), ImageResult.model_validate(result)
        capacity.settle(context, state.store_id, state.counted, written.image.physical_size)
        under = chain.images(context, state.id) if written.image.parent else []
        context.emit(stream(state.id), SnapshotBackedUp(
            snapshot_id=state.id, image=written.image, counted=written.image.physical_size,
            chain_size=sum(image.physical_size for image in (*under, written.image)),
            reason="" if written.image.parent else written.reason or state.reason))
        if state.parent is None:
            return
        if not written.image.parent:
            chain.unlink(context, state.parent, state.id)
        else:
            chain.look_again(context, context.state(stream(state.parent)))
        chain.sweep(context, context.state(stream(state.parent)))

    def unbackup(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        """Delete what was backed up."""
        state = self.state(context)
        if state.image is None:
            return None
        store = template.known_store(context, state.store_id)
        return template.delete_order(context, work_id, attempt, store.spec, store.zone_id, [state.image.key])

    def drop(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        """Remove it from the disk, which goes on recording what changes since it, and since nothing older."""
        return self._drop_order(context, work_id, attempt, keep=self.state(context).tag)

    def untake(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        """Remove it from the disk, which goes on recording what changes since the one before it."""
        return self._drop_order(context, work_id, attempt, keep=None)

    def _drop_order(self, context: Context, work_id: UUID, attempt: int, *, keep: str | None) -> Order:
        state = self.state(context)
        return DropSnapshot(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=state.disk.primary.agent,
                            reply_key=context.command.key(context.job_id), disk=state.disk, tag=state.tag, keep=keep)

    def dropped(self, context: Context, result: Mapping[str, Any]) -> None:
        """The disk is as if it had never been taken."""
        state = self.state(context)
        context.emit(stream(state.id), SnapshotOffPrimary(snapshot_id=state.id))

    def release(self, context: Context, *, backing_up: bool) -> None:
        """The volume may be worked on again (`backing_up`: except by another snapshot or a deletion)."""
        state = self.state(context)
        context.emit(volume.stream(state.volume_id), VolumeReleased(
            volume_id=state.volume_id, snapshot_id=state.id, backing_up=backing_up,
            head=state.id if state.status == "BackedUp" else None))
        if not backing_up:
            snapshot_stop.wake(context, state)
            if state.status == "BackedUp":
                snapshot_policy.kept(context, state.policy_id, state.id)
                snapshot_places.copy_on(context, state)

    def fail(self, context: Context, failure: Failure) -> None:
        """Nothing of it remains, on the disk or in the store."""
        state = self.state(context)
        context.count(image_store.residents(state.store_id), -1)
        capacity.release(context, state.store_id, state.counted, arrived=state.image is not None)
        context.emit(stream(state.id), SnapshotFailed(
            snapshot_id=state.id, failure=failure, store_id=state.store_id if state.image else None))
        if state.parent is not None:
            chain.unlink(context, state.parent, state.id)
            chain.sweep(context, context.state(stream(state.parent)))
        self.release(context, backing_up=False)


class CreateFlow(_Backup):
    """Take a snapshot, and back it up in this job or in one that follows."""

    def __init__(self) -> None:
        self.steps = (
            Step(name="take", order=self._take, done=self._taken, undo=self.untake),
            Step(name="backup", order=self._backup, done=self.backed_up, plan=self._plan, undo=self.unbackup,
                 leaves=self.leaves),
            Step(name="drop", order=self._drop, done=self.dropped, attempts=100_000),
        )

    def snapshot_id(self, context: Context) -> UUID:
        """The new snapshot."""
        return context.new_id("snapshot")

    def streams(self, job_id: UUID, command: CreateSnapshot) -> list[str]:
        """The new snapshot and its volume."""
        snapshot_id = derive(job_id, "snapshot")
        more = [resource_tag.stream(snapshot_id)] if command.tags else []
        more += [thing_stream("domain", command.domain_id)] if command.domain_id is not None else []
        return [stream(snapshot_id), volume.stream(command.volume_id), *more]

    def start(self, context: Context) -> None:
        """An idle volume and a store that reaches its zone."""
        command = context.command
        assert isinstance(command, CreateSnapshot)
        if command.policy_id is not None:
            snapshot_policy.active(context, command.policy_id, "policyid")
        if command.domain_id not in (None, ROOT_DOMAIN) and context.state(thing_stream("domain", command.domain_id)) is None:
            raise BadParameter(f"no domain has the id {command.domain_id}", field="domainid", remedy="listDomains shows them")
        of = volume.known(context, command.volume_id, "volumeid")
        volume.idle(of, "volumeid")
        assert of.disk is not None
        if len(command.name) > 255:
            raise BadParameter("must have at most 255 characters", field="name")
        if command.account not in ("", of.owner.account) or command.domain_id not in (None, of.owner.domain_id):
            raise BadParameter(f"the volume belongs to the account {of.owner.account}",
                               field="account" if command.account else "domainid",
                               remedy="leave it out: a snapshot belongs to its volume's account")
        snapshot_type = snapshot_policy.type_of(context, command.policy_id, of.id)
        head: SnapshotState | None = context.state(stream(of.head)) if of.head is not None else None
        store = placement.backup_store(context.directory, of.zone_id, prefer=head.store_id if head is not None else None)
        snapshot_places.reachable(context, store, command.zone_ids)
        self.planned(context, of.disk, store, None)  # what cannot be backed up is not taken
        snapshot_id = self.snapshot_id(context)
        context.count(image_store.residents(store.spec.id), +1, otherwise=Unavailable(
            "the image store is being deleted", field="volumeid", remedy="try again"))
        context.emit(stream(snapshot_id), SnapshotRequested(
            snapshot_id=snapshot_id, volume_id=of.id, name=command.name or f"{of.name}-{str(snapshot_id)[:8]}",
            zone_id=of.zone_id, disk=of.disk, tag=f"sb-{derive(context.job_id, 'take').hex}",
            store_id=store.spec.id, job_id=context.job_id, owner=of.owner, snapshot_type=snapshot_type,
            policy_id=command.policy_id, zone_ids=command.zone_ids))
        resource_tag.put(context, "Snapshot", snapshot_id, of.owner, command.tags)
        context.emit(volume.stream(of.id), VolumeSnapshotStarted(
            volume_id=of.id, snapshot_id=snapshot_id, job_id=context.job_id))

    def _take(self, context: Context, work_id: UUID, attempt: int) -> Order:
        state = self.state(context)
        store = context.directory.stores.get(state.store_id)
        provider = context.directory.providers().get(store.spec.provider) if store is not None else None
        measured = store is not None and provider is not None and "free_room" in provider.capabilities
        return TakeSnapshot(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=state.disk.primary.agent,
                            reply_key=context.command.key(context.job_id), disk=state.disk, tag=state.tag,
                            store=store.spec if store is not None and measured else None)

    def _taken(self, context: Context, result: Mapping[str, Any]) -> None:
        state, command = self.state(context), context.command
        assert isinstance(command, CreateSnapshot)
        frozen = SnapshotFrozen.model_validate(result)
        need = capacity.backup(frozen.virtual_size, frozen.physical_size)
        capacity.reserve(context, template.known_store(context, state.store_id), need, free=frozen.free_bytes)
        context.emit(stream(state.id), SnapshotTaken(
            snapshot_id=state.id, virtual_size=frozen.virtual_size, reserved=need))
        self.release(context, backing_up=True)
        if not command.async_backup:
            self.begin(context)

    def _plan(self, context: Context) -> MotionPlan | None:
        command = context.command
        assert isinstance(command, CreateSnapshot)
        asked_only = context.state(job_stream(context.job_id)) is None  # then the job that follows is planned too
        return None if command.async_backup and not asked_only else self.plan(context)

    def _backup(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        command = context.command
        assert isinstance(command, CreateSnapshot)
        return None if command.async_backup else self.backup(context, work_id, attempt)

    def _drop(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        command = context.command
        assert isinstance(command, CreateSnapshot)
        return None if command.async_backup else self.drop(context, work_id, attempt)

    def finish(self, context: Context) -> dict[str, Any]:
        """The snapshot: backed up, or with a job on its way that does it."""
        state, command = self.state(context), context.command
        assert isinstance(command, CreateSnapshot)
        if not command.async_backup:
            self.release(context, backing_up=False)
            return result_of("snapshot", state.id)
        backup_job = derive(context.job_id, "backup-job")
        context.out.submissions.append((backup_job, BackupSnapshot(
            snapshot_id=state.id, volume_id=state.volume_id)))
        return result_of("snapshot", state.id, backup_job=str(backup_job))


class BackupFlow(_Backup):
    """Back up a snapshot that an earlier job took."""

    def __init__(self) -> None:
        self.steps = (
            Step(name="take", order=lambda context, work_id, attempt: None, undo=self.untake, undo_always=True),
            Step(name="backup", order=self.backup, done=self.backed_up, plan=self.plan, undo=self.unbackup,
                 leaves=self.leaves),
            Step(name="drop", order=self.drop, done=self.dropped, attempts=100_000),
        )

    def snapshot_id(self, context: Context) -> UUID:
        """The snapshot named in the command."""
        assert isinstance(context.command, BackupSnapshot)
        return context.command.snapshot_id

    def streams(self, job_id: UUID, command: BackupSnapshot) -> list[str]:
        """The snapshot and its volume."""
        return [stream(command.snapshot_id), volume.stream(command.volume_id)]

    def start(self, context: Context) -> None:
        """A snapshot that is on the primary store."""
        state = context.state(stream(self.snapshot_id(context)))
        if state is None or state.status != "CreatedOnPrimary":
            raise BadParameter("the snapshot is not on the primary store", field="snapshotid")
        self.begin(context)

    def finish(self, context: Context) -> dict[str, Any]:
        """The snapshot is backed up, the volume idle."""
        self.release(context, backing_up=False)
        return result_of("snapshot", self.snapshot_id(context))


FLOWS: dict[type[Command], Flow] = {
    CreateSnapshot: CreateFlow(),
    BackupSnapshot: BackupFlow(),
}
"""The commands that make one, and what they lead to; the others are in the files beside this one."""

__all__ = ["FLOWS", "TRANSITIONS", "SnapshotState", "evolve", "stream"]
