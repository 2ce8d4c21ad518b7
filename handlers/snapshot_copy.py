"""Copies of snapshots in other zones: how they are made, found and deleted.

Rules kept here: where the snapshot's own store reaches a zone, it is usable there at once and nothing is moved; elsewhere a
whole image of all that it is built on is written into a store of that zone, and needs nothing of the first store from then on.
All zones of a command get it, or none does. A copy is counted on its store like any image, and goes with its snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import UUID

from handlers import capacity, chain, image_store, placement, planner, snapshot, template
from handlers.decider import Context, Flow, Step
from handlers.job import result_of
from handlers.snapshot_places import MOST, SnapshotCopy, in_zone, region, wanted, zones_of
from schema.agent import ImageResult
from schema.failure import BadParameter, Failure, Unavailable
from schema.ids import derive
from schema.message import Command, Order
from schema.motion import MotionPlan
from schema.snapshot import (
    CopySnapshot,
    DeleteSnapshotCopy,
    SnapshotCopied,
    SnapshotCopyDeleted,
    SnapshotCopyDeleteRequested,
    SnapshotCopyFailed,
    SnapshotCopyStarted,
    SnapshotZoneAdded,
    SnapshotZoneRemoved,
)


class CopyFlow:
    """A whole image into a store of each zone, one after the other."""

    subject, placed, cancellable = "snapshot", True, True

    def __init__(self) -> None:
        self.steps = tuple(
            Step(name=f"copy.{number}", order=partial(self._copy, number), done=partial(self._copied, number),
                 plan=partial(self._plan, number), undo=partial(self._uncopy, number), leaves=partial(self._leaves, number))
            for number in range(MOST))

    def streams(self, job_id: UUID, command: CopySnapshot) -> list[str]:
        """The snapshot."""
        return [snapshot.stream(command.id)]

    def follow(self, command: CopySnapshot, states: Mapping[str, Any]) -> list[str]:
        """What it is built on."""
        return chain.parents(states)

    def _state(self, context: Context) -> snapshot.SnapshotState:
        command = context.command
        assert isinstance(command, CopySnapshot)
        state: snapshot.SnapshotState | None = context.state(snapshot.stream(command.id))
        if state is None or state.status in ("Destroying", "Destroyed", "Hidden"):
            raise BadParameter(f"no snapshot has the id {command.id}", field="id", remedy="listSnapshots shows them")
        return state

    def _zones(self, context: Context) -> list[UUID]:
        """The zones of the command, in its order."""
        assert isinstance(context.command, CopySnapshot)
        return list(dict.fromkeys(context.command.zone_ids))

    def start(self, context: Context) -> None:
        """One that is backed up and sound, zones in which it is not yet, a store with room in each."""
        command, state = context.command, self._state(context)
        assert isinstance(command, CopySnapshot)
        if not command.zone_ids:
            raise BadParameter("missing", field="destzoneids", remedy="name the zones that it is to be copied to")
        zones = wanted(context, command.zone_ids, "destzoneids")
        if command.source_zone_id is not None and command.source_zone_id not in zones_of(state):
            raise BadParameter(f"the snapshot is not in the zone {command.source_zone_id}", field="sourcezoneid",
                               remedy="listSnapshots shows where it is")
        if command.source_zone_id in zones or zones == [state.zone_id]:
            raise BadParameter("the snapshot is there already", field="destzoneids", remedy="name another zone")
        if state.status != "BackedUp" or state.image is None:
            raise BadParameter(f"the snapshot is {state.status}, not BackedUp", field="id", remedy="wait for its job to end")
        bad = chain.quarantined(context, state.id)
        if bad is not None and bad.damage is not None:
            raise template.quarantine_refused(context, "snapshot", state.store_id, bad.damage)
        context.count(template.readers("snapshot", state.id), +1, otherwise=BadParameter(
            "the snapshot is being deleted", field="id"))
        if region(context, state):
            return
        for zone_id in zones:
            if zone_id not in zones_of(state):
                self._begin(context, state, zone_id)

    def _begin(self, context: Context, state: snapshot.SnapshotState, zone_id: UUID) -> None:
        store, need = placement.image_store(context.directory, zone_id), self._size(context)
        there = state.places.copies.get(store.spec.id)
        if there is not None:
            raise BadParameter(f"a copy in the zone {zone_id} is {there.status}", field="destzoneids",
                               remedy="try again when it is done")
        planner.plan(context.directory, planner.merge(
            template.known_store(context, state.store_id), store, size=need, field="destzoneids"))
        capacity.reserve(context, store, need)
        context.count(image_store.residents(store.spec.id), +1, otherwise=Unavailable(
            "the image store is being deleted", field="destzoneids", remedy="try again"))
        context.emit(snapshot.stream(state.id), SnapshotCopyStarted(
            snapshot_id=state.id, zone_id=zone_id, store_id=store.spec.id, job_id=context.job_id, reserved=need))

    def _size(self, context: Context) -> int:
        return sum(image.physical_size for image in chain.whole(context, self._state(context).id))

    def _target(self, context: Context, number: int) -> SnapshotCopy | None:
        """The copy that this step makes, of this job; None when there is nothing to do."""
        zones, state = self._zones(context), self._state(context)
        if number >= len(zones):
            return None
        return next((copy for copy in state.places.copies.values()
                     if copy.zone_id == zones[number] and copy.job_id == context.job_id), None)

    def _plan(self, number: int, context: Context) -> MotionPlan | None:
        target, state = self._target(context, number), self._state(context)
        if target is None:
            return None
        return planner.plan(context.directory, planner.merge(
            template.known_store(context, state.store_id), template.known_store(context, target.store_id),
            size=self._size(context), field="destzoneids"))

    def _key(self, context: Context, number: int, attempt: int) -> str:
        work_id = derive(context.job_id, f"copy.{number}")
        return template.object_key(context, "snapshot", self._state(context).id, work_id, attempt, "qcow2")

    def _leaves(self, number: int, context: Context, attempt: int) -> tuple[UUID, str] | None:
        target = self._target(context, number)
        return (target.store_id, self._key(context, number, attempt)) if target is not None else None

    def _copy(self, number: int, context: Context, work_id: UUID, attempt: int) -> Order | None:
        target, state = self._target(context, number), self._state(context)
        if target is None:
            return None
        return chain.merge_order(
            context, context.planned(f"copy.{number}"), work_id, attempt, links=chain.whole(context, state.id),
            store=template.known_store(context, target.store_id), key=self._key(context, number, attempt),
            thing=("snapshot", state.id), source=template.known_store(context, state.store_id))

    def _copied(self, number: int, context: Context, result: Mapping[str, Any]) -> None:
        target, image = self._target(context, number), ImageResult.model_validate(result).image
        assert target is not None
        capacity.settle(context, target.store_id, target.counted, image.physical_size)
        context.emit(snapshot.stream(self._state(context).id), SnapshotCopied(
            snapshot_id=self._state(context).id, store_id=target.store_id, image=image, counted=image.physical_size))

    def _uncopy(self, number: int, context: Context, work_id: UUID, attempt: int) -> Order | None:
        target = self._target(context, number)
        return _delete(context, target, work_id, attempt) if target is not None else None

    def finish(self, context: Context) -> dict[str, Any]:
        """The snapshot, usable in each of the zones."""
        state = self._state(context)
        for zone_id in self._zones(context):
            if zone_id not in zones_of(state):
                context.emit(snapshot.stream(state.id), SnapshotZoneAdded(snapshot_id=state.id, zone_id=zone_id))
        chain.read(context, state.id)
        return result_of("snapshot", state.id)

    def fail(self, context: Context, failure: Failure) -> None:
        """It is where it was."""
        state = self._state(context)
        for number in range(len(self._zones(context))):
            target = self._target(context, number)
            if target is not None:
                _uncount(context, target)
                context.emit(snapshot.stream(state.id), SnapshotCopyFailed(
                    snapshot_id=state.id, store_id=target.store_id, failure=failure))
        chain.read(context, state.id)


def _delete(context: Context, copy: SnapshotCopy, work_id: UUID, attempt: int) -> Order | None:
    if copy.image is None:
        return None
    store = template.known_store(context, copy.store_id)
    return template.delete_order(context, work_id, attempt, store.spec, store.zone_id, [copy.image.key])


def _uncount(context: Context, copy: SnapshotCopy) -> None:
    context.count(image_store.residents(copy.store_id), -1)
    capacity.release(context, copy.store_id, copy.counted, arrived=copy.image is not None)


# --- deletion ---------------------------------------------------------------------------------------------------------


def leave_all(context: Context, state: snapshot.SnapshotState) -> None:
    """A snapshot is being deleted: jobs of their own delete its copies."""
    for copy in [copy for copy in state.places.copies.values() if copy.status == "Ready"]:
        context.emit(snapshot.stream(state.id), SnapshotCopyDeleteRequested(
            snapshot_id=state.id, store_id=copy.store_id, job_id=derive(context.job_id, f"copy/{copy.store_id}")))
        context.out.submissions.append((derive(context.job_id, f"copy/{copy.store_id}"), DeleteSnapshotCopy(
            id=state.id, store_id=copy.store_id)))


def leave(context: Context, state: snapshot.SnapshotState, zone_id: UUID | None) -> bool:
    """A snapshot is to go from one zone: whether it stays in others. Raises BadParameter when it is not in this one, or when
    those others need what it has here."""
    if zone_id is None or (zone_id == state.zone_id and not state.places.zones):
        return False
    if zone_id not in zones_of(state):
        raise BadParameter(f"the snapshot is not in the zone {zone_id}", field="zoneid", remedy="listSnapshots shows where it is")
    if zone_id == state.zone_id:
        others = ", ".join(sorted(str(each) for each in state.places.zones))
        raise BadParameter(f"the snapshot is in further zones too ({others}), and this is its volume's", field="zoneid",
                           remedy="delete it in those first, or leave zoneid out: then it goes from all")
    copy = in_zone(state, zone_id)
    if copy is not None:
        job_id = derive(context.job_id, f"copy/{copy.store_id}")
        context.emit(snapshot.stream(state.id), SnapshotCopyDeleteRequested(
            snapshot_id=state.id, store_id=copy.store_id, job_id=job_id))
        context.out.submissions.append((job_id, DeleteSnapshotCopy(id=state.id, store_id=copy.store_id)))
    context.emit(snapshot.stream(state.id), SnapshotZoneRemoved(snapshot_id=state.id, zone_id=zone_id))
    return True


class DeleteCopyFlow:
    """The bytes of a copy that nobody may use any more."""

    subject, placed, cancellable = "snapshot", True, False

    def __init__(self) -> None:
        self.steps = (Step(name="delete", order=self._order, attempts=100_000),)

    def streams(self, job_id: UUID, command: DeleteSnapshotCopy) -> list[str]:
        """The snapshot."""
        return [snapshot.stream(command.id)]

    def _copy(self, context: Context) -> SnapshotCopy:
        command = context.command
        assert isinstance(command, DeleteSnapshotCopy)
        state: snapshot.SnapshotState | None = context.state(snapshot.stream(command.id))
        copy = state.places.copies.get(command.store_id) if state is not None else None
        if copy is None or copy.status != "Destroying":
            raise BadParameter("no copy of a snapshot there is to be deleted", field="id")
        return copy

    def start(self, context: Context) -> None:
        """It is to go."""
        self._copy(context)

    def _order(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        return _delete(context, self._copy(context), work_id, attempt)

    def finish(self, context: Context) -> dict[str, Any]:
        """The store confirmed."""
        copy, command = self._copy(context), context.command
        assert isinstance(command, DeleteSnapshotCopy)
        _uncount(context, copy)
        context.emit(snapshot.stream(command.id), SnapshotCopyDeleted(snapshot_id=command.id, store_id=copy.store_id))
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """Its bytes stay listed as pending."""


FLOWS: dict[type[Command], Flow] = {CopySnapshot: CopyFlow(), DeleteSnapshotCopy: DeleteCopyFlow()}
"""Every command of this file, and what it leads to."""
