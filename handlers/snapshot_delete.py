"""Deleting snapshots: their bytes, and those of hidden ones that only they needed.

Rules kept here: one that is being read is not deleted; the job that still works on one is stopped first (`snapshot_stop`);
bytes that others need stay, hidden, until they are merged into those or the last of those is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from handlers import capacity, chain, image_store, snapshot, snapshot_copy, snapshot_policy, snapshot_stop, template
from handlers.decider import Context, Flow, Step
from schema.failure import BadParameter, Failure, InUse
from schema.message import Command, Order
from schema.snapshot import DeleteSnapshot, SnapshotDeleted, SnapshotDeleteRequested, SnapshotHidden


class DeleteFlow:
    """Delete a snapshot: its bytes too, and those of hidden ones that only it needed, unless another one needs them."""

    subject, placed, cancellable = "snapshot", True, False

    def __init__(self) -> None:
        self.steps = (Step(name="drop", order=self._drop, done=self._dropped, attempts=100_000),
                      Step(name="delete", order=self._delete, attempts=100_000))

    def streams(self, job_id: UUID, command: DeleteSnapshot) -> list[str]:
        """The snapshot."""
        return [snapshot.stream(command.id)]

    def follow(self, command: DeleteSnapshot, states: Mapping[str, Any]) -> list[str]:
        """What it is built on; the volume that it lies in; the policy that it was taken for."""
        own = {name: state for name, state in states.items() if name == snapshot.stream(command.id)}
        return [*chain.parents(states), *snapshot_stop.volumes(states), *snapshot_policy.followed(command, own)]

    def _state(self, context: Context) -> snapshot.SnapshotState:
        command = context.command
        assert isinstance(command, DeleteSnapshot)
        state = context.state(snapshot.stream(command.id))
        if state is None or state.status == "Destroyed" or (state.status == "Hidden" and (chain.kept(state) or state.absorbed)):
            raise BadParameter(f"no snapshot has the id {command.id}", field="id", remedy="listSnapshots shows them")
        assert isinstance(state, snapshot.SnapshotState)
        return state

    def start(self, context: Context) -> None:
        """At rest, and read by nobody; of one that is being taken or backed up, the job is stopped first."""
        state = self._state(context)
        if snapshot_stop.first(context, state):
            return
        context.count(template.readers("snapshot", state.id), ceiling=0, otherwise=InUse(
            "a volume is being made from the snapshot", field="id", remedy="wait for that job to end"))
        command = context.command
        assert isinstance(command, DeleteSnapshot)
        if snapshot_copy.leave(context, state, command.zone_id):
            context.count(template.readers("snapshot", state.id), lift=True)  # it is read elsewhere from now on
            return
        snapshot_copy.leave_all(context, state)
        snapshot_policy.let_go(context, state.policy_id, state.id)
        doomed = [state] if chain.kept(state) else [state, *chain.hidden_above(context, state.id)]
        for each in doomed:
            context.emit(snapshot.stream(each.id), SnapshotDeleteRequested(
                snapshot_id=each.id, job_id=context.job_id, store_id=each.store_id if each.image else None))

    def _doomed(self, context: Context) -> list[snapshot.SnapshotState]:
        """What this job deletes: deltas before what they are built on."""
        state = self._state(context)
        above = [each for each in chain.ancestors(context, state.id) if each.ending == context.job_id]
        return [state, *(each for each in above if each.status == "Destroying")]

    def _drop(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        return snapshot_stop.drop_order(context, self._state(context), work_id, attempt)

    def _dropped(self, context: Context, result: Mapping[str, Any]) -> None:
        snapshot_stop.dropped(context, self._state(context))

    def _delete(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state = self._state(context)
        if state.ending != context.job_id:  # it stays in other zones
            return None
        keys = [each.image.key for each in self._doomed(context) if each.image is not None]
        if not keys or chain.kept(state):
            return None
        store = template.known_store(context, state.store_id)
        return template.delete_order(context, work_id, attempt, store.spec, store.zone_id, keys)

    def finish(self, context: Context) -> dict[str, Any]:
        """The store confirmed, or others need its bytes."""
        state = self._state(context)
        if state.ending != context.job_id:
            return {"success": True}
        if chain.kept(state):
            context.emit(snapshot.stream(state.id), SnapshotHidden(snapshot_id=state.id, store_id=state.store_id))
            chain.look_again(context, context.state(snapshot.stream(state.id)))
            return {"success": True}
        doomed = self._doomed(context)
        for each in doomed:
            if each.image is not None or each.counted:
                context.count(image_store.residents(each.store_id), -1)
                capacity.release(context, each.store_id, each.counted, arrived=each.image is not None)
            context.emit(snapshot.stream(each.id), SnapshotDeleted(
                snapshot_id=each.id, store_id=each.store_id if each.image else None))
            chain.sweep(context, each)
        last = doomed[-1]
        if last.parent is not None:
            chain.unlink(context, last.parent, last.id)
            chain.look_up(context, last.parent)
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """It stays Destroying; its bytes stay listed as pending."""


FLOWS: dict[type[Command], Flow] = {DeleteSnapshot: DeleteFlow()}
"""Every command of this file, and what it leads to."""
