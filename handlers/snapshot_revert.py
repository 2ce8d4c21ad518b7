"""Reverting: a volume at rest is given a snapshot's content again.

Rules kept here: the volume is idle before and busy meanwhile; what it held stays until the whole content is there, and stays for
good when the job fails or is cancelled in time; its size never shrinks, and what lies behind the snapshot's end reads as zeros.
Its record of changes is void then: the next backup is a full one, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handlers import chain, planner, snapshot, template, volume
from handlers.decider import Context, Flow, Step
from handlers.job import result_of
from schema.agent import DiskCreated, RevertDisk
from schema.failure import BadParameter, Failure
from schema.image import ImageRef
from schema.message import Command, Order
from schema.motion import MotionPlan
from schema.snapshot import RevertSnapshot
from schema.volume import VolumeReverted, VolumeRevertFailed, VolumeRevertStarted


class RevertFlow:
    """Put a snapshot's content in the place of what its volume holds."""

    subject, placed, cancellable = "volume", True, True

    def __init__(self) -> None:
        self.steps = (Step(name="revert", order=self._order, done=self._done, plan=self._plan, final=True),)

    def streams(self, job_id: Any, command: RevertSnapshot) -> list[str]:
        """The snapshot."""
        return [snapshot.stream(command.id)]

    def follow(self, command: RevertSnapshot, states: Mapping[str, Any]) -> list[str]:
        """Its volume, and what it is built on."""
        state = states[snapshot.stream(command.id)]
        return [*chain.parents(states), *([volume.stream(state.volume_id)] if state is not None else [])]

    def _state(self, context: Context) -> snapshot.SnapshotState:
        command = context.command
        assert isinstance(command, RevertSnapshot)
        state: snapshot.SnapshotState | None = context.state(snapshot.stream(command.id))
        if state is None or state.status in ("Destroying", "Destroyed", "Hidden"):
            raise BadParameter(f"no snapshot has the id {command.id}", field="id", remedy="listSnapshots shows them")
        return state

    def _volume(self, context: Context) -> volume.VolumeState:
        of: volume.VolumeState = context.state(volume.stream(self._state(context).volume_id))
        return of

    def start(self, context: Context) -> None:
        """One that is backed up, of a volume that is there and idle."""
        state, of = self._state(context), self._volume(context)
        if state.status != "BackedUp":
            raise BadParameter(f"the snapshot is {state.status}, not BackedUp", field="id", remedy="wait for its job to end")
        if of.status in ("Destroy", "Expunging", "Expunged"):
            raise BadParameter("the snapshot's volume is gone", field="id", remedy="make a volume of the snapshot: createVolume")
        volume.idle(of)
        bad = chain.quarantined(context, state.id)
        if bad is not None and bad.damage is not None:
            raise template.quarantine_refused(context, "snapshot", state.store_id, bad.damage)
        self._plan(context)
        context.count(template.readers("snapshot", state.id), +1, otherwise=BadParameter(
            "the snapshot is being deleted", field="id"))
        context.emit(volume.stream(of.id), VolumeRevertStarted(volume_id=of.id, snapshot_id=state.id, job_id=context.job_id))

    def _links(self, context: Context) -> list[ImageRef]:
        state = self._state(context)
        assert state.image is not None
        return chain.whole(context, state.id)

    def _plan(self, context: Context) -> MotionPlan:
        state, of, links = self._state(context), self._volume(context), self._links(context)
        basis = "the object's size" if len(links) == 1 else f"the sizes of the {len(links)} objects of its chain"
        return planner.plan(context.directory, planner.restore(
            template.known_store(context, state.store_id), of.primary, size=sum(link.physical_size for link in links),
            basis=basis, field="id"))

    def _order(self, context: Context, work_id: Any, attempt: int) -> Order:
        state, of, links = self._state(context), self._volume(context), self._links(context)
        assert of.disk is not None
        return RevertDisk(
            job_id=context.job_id, work_id=work_id, attempt=attempt, agent=of.primary.agent,
            reply_key=context.command.key(context.job_id), disk=of.disk, virtual_size=of.size, image=links[-1],
            store=template.known_store(context, state.store_id).spec, base=links[:-1], motion=context.planned("revert").strategy)

    def _done(self, context: Context, result: Mapping[str, Any]) -> None:
        state, made = self._state(context), DiskCreated.model_validate(result)
        context.emit(volume.stream(state.volume_id), VolumeReverted(
            volume_id=state.volume_id, snapshot_id=state.id, disk=made.disk, physical_size=made.physical_size))

    def _unread(self, context: Context) -> None:
        chain.read(context, self._state(context).id)

    def finish(self, context: Context) -> dict[str, Any]:
        """The snapshot, as CloudStack answers."""
        self._unread(context)
        return result_of("snapshot", self._state(context).id)

    def fail(self, context: Context, failure: Failure) -> None:
        """The volume holds what it held."""
        state = self._state(context)
        self._unread(context)
        context.emit(volume.stream(state.volume_id), VolumeRevertFailed(
            volume_id=state.volume_id, snapshot_id=state.id, failure=failure))


FLOWS: dict[type[Command], Flow] = {RevertSnapshot: RevertFlow()}
"""Every command of this file, and what it leads to."""
