"""The end of a volume: destroyed and recovered, expunged by its time or at once.

Rules kept here: what is protected is neither destroyed nor deleted; a destroyed volume keeps its bytes, and counts, until it is
expunged; its time is set in the append that destroys it, and asks once more whether it is still that destruction; a volume that
never had bytes is gone at once.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from handlers import later, primary_store, snapshot_policy, volume_upload
from handlers.decider import Context, Flow, Step
from handlers.job import result_of
from handlers.volume import VolumeState, idle, known, stream
from schema.agent import DeleteDisk
from schema.failure import BadParameter, Failure
from schema.ids import derive
from schema.message import Command, Order
from schema.volume import (
    DeleteVolume,
    DestroyVolume,
    ExpungeVolume,
    RecoverVolume,
    VolumeDeleted,
    VolumeDeleteRequested,
    VolumeDestroyed,
    VolumeRecovered,
)


def timer_id(volume_id: UUID) -> str:
    """The timer of a destroyed volume."""
    return f"volume-{volume_id}/expunge"


def unprotected(state: VolumeState) -> None:
    """Raises BadParameter for a volume that is protected from deletion, in CloudStack's words."""
    if state.protected:
        raise BadParameter(f"Volume [id = {state.id}, name = {state.name}] has delete protection enabled and cannot be deleted",
                           field="id", remedy="updateVolume deleteprotection=false")


class _Expunge:
    """What every way to a volume's end shares: its bytes, and the counters."""

    subject, placed, cancellable = "volume", True, False  # an image store may be concerned

    def __init__(self) -> None:
        self.steps = (Step(name="delete", order=self._delete, attempts=100_000),
                      Step(name="delete-image", order=self._delete_image, attempts=100_000))

    def streams(self, job_id: UUID, command: Any) -> list[str]:
        """The volume, and its policies of snapshots."""
        return [stream(command.id), *snapshot_policy.streams_of(command.id)]

    def state(self, context: Context) -> VolumeState:
        """The volume. Raises BadParameter."""
        command: Any = context.command
        return known(context, command.id)

    def begin(self, context: Context) -> None:
        """It is going."""
        state = self.state(context)
        context.out.clear_timers.append(timer_id(state.id))
        context.emit(stream(state.id), VolumeDeleteRequested(volume_id=state.id, job_id=context.job_id))

    def _delete(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state: VolumeState = context.state(stream(self._id(context)))
        if state.status != "Expunging" or state.disk is None:
            return None
        return DeleteDisk(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=state.primary.agent,
                          reply_key=context.command.key(context.job_id), primary=state.primary, volume_id=state.id,
                          path=state.disk.path)

    def _delete_image(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state: VolumeState | None = context.state(stream(self._id(context)))
        return volume_upload.remove(context, state, work_id, attempt) if state and state.status == "Expunging" else None

    def _id(self, context: Context) -> UUID:
        command: Any = context.command
        volume_id: UUID = command.id
        return volume_id

    def gone(self, context: Context) -> None:
        """Its bytes are gone, if this job was to remove them."""
        state: VolumeState = context.state(stream(self._id(context)))
        if state.status != "Expunging":
            return
        if state.disk is not None:
            context.count(primary_store.volumes(state.primary.id), -1)
        volume_upload.dropped(context, state)
        context.emit(stream(state.id), VolumeDeleted(volume_id=state.id))
        snapshot_policy.drop_all(context, state.id)

    def fail(self, context: Context, failure: Failure) -> None:
        """It stays Expunging."""


class DeleteFlow(_Expunge):
    """Delete a volume and its bytes, destroyed or not."""

    def start(self, context: Context) -> None:
        """Idle, destroyed or failed."""
        state = self.state(context)
        unprotected(state)
        if state.status not in ("Failed", "Destroy", "Uploaded"):
            idle(state)
        self.begin(context)

    def finish(self, context: Context) -> dict[str, Any]:
        """Success, without an object."""
        self.gone(context)
        return {"success": True}


class DestroyFlow(_Expunge):
    """Destroy a volume: it can be recovered until its time has come. With expunge: at once, and for ever."""

    def start(self, context: Context) -> None:
        """Idle; or destroyed already, to be expunged."""
        command, state = context.command, self.state(context)
        assert isinstance(command, DestroyVolume)
        unprotected(state)
        if state.status == "Destroy" and not command.expunge:
            raise BadParameter("the volume is destroyed already", field="id",
                               remedy="expunge=true ends it, recoverVolume recovers it")
        if state.status == "Uploaded" and not command.expunge:
            raise BadParameter("an uploaded volume has no disk yet, and cannot be recovered", field="expunge",
                               remedy="expunge=true, or deleteVolume")
        if state.status not in ("Failed", "Destroy", "Uploaded"):
            idle(state)
        if command.expunge or state.status == "Failed":
            self.begin(context)
            return
        after_s = context.limits.volume_expunge_delay_s
        context.emit(stream(state.id), VolumeDestroyed(volume_id=state.id, job_id=context.job_id, expunge_after_s=after_s))
        context.out.timers.append(later.timer(
            timer_id(state.id), stream(state.id), VolumeDestroyed, after_s,
            ExpungeVolume(id=state.id, destroyed_by=context.job_id), derive(context.job_id, "expunge")))

    def finish(self, context: Context) -> dict[str, Any]:
        """The volume, as it is now."""
        self.gone(context)
        return result_of("volume", self._id(context))


class ExpungeFlow(_Expunge):
    """The time of a destroyed volume has come. One that was recovered, or destroyed again since, is let be."""

    def start(self, context: Context) -> None:
        """Still destroyed, by that job."""
        command = context.command
        assert isinstance(command, ExpungeVolume)
        state: VolumeState | None = context.state(stream(command.id))
        if state is not None and state.status == "Destroy" and state.destroyed_by == command.destroyed_by:
            self.begin(context)

    def finish(self, context: Context) -> dict[str, Any]:
        """Success, without an object."""
        if context.state(stream(self._id(context))) is not None:
            self.gone(context)
        return {"success": True}

    def _delete(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state: VolumeState | None = context.state(stream(self._id(context)))
        if state is None or state.destroyed_by is None:
            return None
        return super()._delete(context, work_id, attempt)


class RecoverFlow:
    """Make a destroyed volume Ready again."""

    subject, placed, cancellable = "volume", False, False
    steps: tuple[Step, ...] = ()

    def streams(self, job_id: UUID, command: RecoverVolume) -> list[str]:
        """The volume."""
        return [stream(command.id)]

    def start(self, context: Context) -> None:
        """It is destroyed, and not yet being expunged."""
        command = context.command
        assert isinstance(command, RecoverVolume)
        state = known(context, command.id)
        if state.status != "Destroy":
            raise BadParameter(f"the volume is {state.status}, not Destroy", field="id",
                               remedy="only a destroyed volume is recovered, before it is expunged")
        context.out.clear_timers.append(timer_id(state.id))
        context.emit(stream(state.id), VolumeRecovered(volume_id=state.id))

    def finish(self, context: Context) -> dict[str, Any]:
        """The volume."""
        command = context.command
        assert isinstance(command, RecoverVolume)
        return result_of("volume", command.id)

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: there is nothing to wait for."""


FLOWS: dict[type[Command], Flow] = {
    DeleteVolume: DeleteFlow(),
    DestroyVolume: DestroyFlow(),
    ExpungeVolume: ExpungeFlow(),
    RecoverVolume: RecoverFlow(),
}
"""Every command of this file, and what it leads to."""
