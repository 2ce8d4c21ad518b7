"""Collapsing: hidden snapshots are merged into the one that needs them, and what that leaves behind is deleted.

Rules kept here: only hidden ones that nobody else needs are merged, into one that is backed up; one merge of it at a time; the
snapshot's reference moves to the new object in one append, and everything that is decided from then on reads the new one; the old
objects stay until no reader is left that may have begun before, and nobody writes a delta of them. Whoever ends last has them
deleted: a sweep that comes too early is refused, and asked for again by whoever it was refused for. Refuses to change what others
are built on: a delta of the old object is one of the new (`ImageRef.replaces`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from handlers import capacity, chain, image_store, placement, planner, template
from handlers.decider import Context, Flow, Step
from handlers.job import result_of
from handlers.snapshot_state import SnapshotState, stream
from schema.agent import ImageResult
from schema.failure import Failure, InUse, Unavailable
from schema.ids import derive
from schema.image import ImageRef
from schema.message import Command, Order
from schema.motion import MotionPlan
from schema.snapshot import (
    CollapseSnapshot,
    DeleteSnapshot,
    SnapshotAbsorbed,
    SnapshotCollapsed,
    SnapshotCollapseFailed,
    SnapshotCollapseStarted,
    SnapshotDeleted,
    SnapshotDeleteRequested,
    SnapshotLinked,
    SnapshotShifted,
    SnapshotSweepStarted,
    SnapshotSwept,
    SnapshotUnlinked,
    SweepReplaced,
)


def run(context: Context, snapshot_id: UUID) -> tuple[list[SnapshotState], SnapshotState | None]:
    """The hidden snapshots around this one that only the next needs, the first of the chain first; and the one behind them
    that is no more hidden. None: there is nothing to merge."""
    state: SnapshotState | None = context.state(stream(snapshot_id))
    hidden: list[SnapshotState] = []
    while state is not None and state.status == "Hidden":
        if state.absorbed or len(state.children) != 1:
            return [], None
        hidden.append(state)
        state = context.state(stream(next(iter(state.children))))
    if not hidden or state is None:
        return [], None
    above = chain.hidden_above(context, hidden[0].id)
    return [*reversed(above), *hidden], state


def worth(context: Context, images: list[ImageRef]) -> bool:
    """Whether a merge may give back enough: at best all of its links but the largest are written over."""
    sizes = [image.physical_size for image in images]
    return 100 * (sum(sizes) - max(sizes)) >= context.limits.collapse_percent * sum(sizes)


def _size(links: list[SnapshotState]) -> int:
    return sum(state.image.physical_size for state in links if state.image is not None)


class CollapseFlow:
    """Merge, and move the reference. It can be stopped until then."""

    subject, placed, cancellable = "snapshot", True, True

    def __init__(self) -> None:
        self.steps = (Step(name="merge", order=self._merge, done=self._merged, plan=self._plan, attempts=100_000,
                           leaves=self._leaves, final=True),)

    def streams(self, job_id: UUID, command: CollapseSnapshot) -> list[str]:
        """The hidden snapshot."""
        return [stream(command.id)]

    def follow(self, command: CollapseSnapshot, states: Mapping[str, Any]) -> list[str]:
        """All of its chain: the depth of what is behind changes too."""
        return chain.family(states)

    def start(self, context: Context) -> None:
        """Hidden ones, and one that needs them. Where nothing can or need be done nothing is, and that is no failure."""
        found = self._choose(context)
        if isinstance(found, str):
            return
        hidden, target = found[:-1], found[-1]
        need = _size(found)
        capacity.reserve(context, template.known_store(context, target.store_id), need)
        context.count(image_store.residents(target.store_id), +1, otherwise=Unavailable(
            "the image store is being deleted", field="id", remedy="nothing is to be done"))
        context.emit(stream(target.id), SnapshotCollapseStarted(
            snapshot_id=target.id, job_id=context.job_id, store_id=target.store_id, key=self._key(context, target, 1),
            links=[state.id for state in hidden], reserved=need))

    def _choose(self, context: Context) -> list[SnapshotState] | str:
        """What is merged, the one that it is merged into last; or why nothing is."""
        assert isinstance(context.command, CollapseSnapshot)
        hidden, target = run(context, context.command.id)
        if target is None or target.status != "BackedUp":
            return "it is not hidden, or nothing that is backed up needs it alone"
        links = [*hidden, target]
        if any(state.merging or state.replaced is not None for state in links):
            return "a merge is on its way, or what one left behind is still there: what ends it looks again"
        if any(state.damage is not None or state.image is None for state in links):
            return "the object of a link is quarantined"
        if not worth(context, [state.image for state in links if state.image is not None]):
            return f"too little of {_size(links)} bytes could be given back (STOREBUS_SNAPSHOT_COLLAPSE)"
        store = template.known_store(context, target.store_id)
        room = placement.free(context.directory, store)
        if store.read_only or (room is not None and room < _size(links)):
            return f"the image store {store.spec.name} is read-only, or has no room for {_size(links)} bytes"
        try:
            planner.plan(context.directory, planner.merge(store, store, size=_size(links), field="id"))
        except planner.NoMotion as impossible:
            return impossible.failure.cause
        return links

    def _target(self, context: Context) -> SnapshotState | None:
        """What this job merges into, or merged into; None: nothing."""
        states = (state for name, state in context.states.items() if name.startswith("snapshot-") and state is not None)
        return next((state for state in states if state.collapse == context.job_id), None)

    def _key(self, context: Context, target: SnapshotState, attempt: int) -> str:
        return template.object_key(context, "snapshot", target.id, derive(context.job_id, "merge"), attempt, "qcow2")

    def _links(self, context: Context, target: SnapshotState) -> list[SnapshotState]:
        hidden: list[SnapshotState] = [context.state(stream(each)) for each in target.merging]
        return [*hidden, target]

    def _plan(self, context: Context) -> MotionPlan | None:
        target = self._target(context)
        if target is None:
            return None
        store = template.known_store(context, target.store_id)
        return planner.plan(context.directory, planner.merge(store, store, size=target.coming, field="id"))

    def _merge(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        target = self._target(context)
        if target is None or not target.merging:
            return None
        assert target.image is not None
        links = self._links(context, target)
        below: SnapshotState | None = context.state(stream(links[0].parent)) if links[0].parent is not None else None
        plan = context.planned("merge")
        return chain.merge_order(
            context, plan, work_id, attempt, links=[state.image for state in links if state.image is not None],
            parent=below.image if below is not None else None, key=self._key(context, target, attempt),
            thing=("snapshot", target.id), store=template.known_store(context, target.store_id),
            replaces=[*target.image.replaces, target.image.key])

    def _leaves(self, context: Context, attempt: int) -> tuple[UUID, str] | None:
        target = self._target(context)
        return (target.store_id, self._key(context, target, attempt)) if target is not None else None

    def _merged(self, context: Context, result: Mapping[str, Any]) -> None:
        """From here on the new object is the snapshot's. Nothing of this can be refused: it gives back, and takes nothing."""
        target = self._target(context)
        assert target is not None
        image = ImageResult.model_validate(result).image
        links = self._links(context, target)
        first, *_ = links
        counted = min(image.physical_size, sum(state.counted for state in links))
        capacity.settle(context, target.store_id, target.coming, counted)
        for state, child in zip(reversed(links[:-1]), reversed(links[1:]), strict=True):
            context.emit(stream(state.id), SnapshotUnlinked(snapshot_id=state.id, child_id=child.id))
            context.emit(stream(state.id), SnapshotAbsorbed(snapshot_id=state.id, by=target.id))
        if first.parent is not None:
            context.emit(stream(first.parent), SnapshotLinked(snapshot_id=first.parent, child_id=target.id))
            context.emit(stream(first.parent), SnapshotUnlinked(snapshot_id=first.parent, child_id=first.id))
        context.emit(stream(target.id), SnapshotCollapsed(
            snapshot_id=target.id, job_id=context.job_id, image=image, parent=first.parent, depth=first.depth,
            reason=first.reason, counted=counted, links=[state.id for state in links[:-1]], hidden=target.status == "Hidden",
            chain_size=image.physical_size + sum(below.physical_size for below in chain.images(context, first.id))))
        for state in chain.descendants(context, target.id):
            size = sum(each.physical_size for each in chain.whole(context, state.id)) if state.image is not None else 0
            context.emit(stream(state.id), SnapshotShifted(
                snapshot_id=state.id, depth=state.depth - len(links) + 1, chain_size=size))

    def finish(self, context: Context) -> dict[str, Any]:
        """What is left behind is another job's; and what waited for this one."""
        target = self._target(context)
        if target is None:
            return {"success": True, "merged": 0, "reason": self._choose(context)}
        chain.sweep(context, target)
        self._after(context, target)
        return result_of("snapshot", target.id, merged=len(target.absorbs))

    def _after(self, context: Context, target: SnapshotState) -> None:
        """It may have been deleted meanwhile."""
        if target.status == "Hidden" and not chain.kept(target):
            context.out.submissions.append((derive(context.job_id, f"sweep-{target.id}"), DeleteSnapshot(id=target.id)))

    def fail(self, context: Context, failure: Failure) -> None:
        """Everything is as it was."""
        target = self._target(context)
        if target is None:
            return
        context.count(image_store.residents(target.store_id), -1)
        capacity.release(context, target.store_id, target.coming, arrived=False)
        context.emit(stream(target.id), SnapshotCollapseFailed(snapshot_id=target.id, job_id=context.job_id, failure=failure))
        target = context.state(stream(target.id))
        assert target is not None
        self._after(context, target)
        chain.look_again(context, target)


class SweepFlow:
    """Delete what merges left behind."""

    subject, placed, cancellable = "snapshot", True, False

    def __init__(self) -> None:
        self.steps = (Step(name="delete", order=self._delete, attempts=100_000),)

    def streams(self, job_id: UUID, command: SweepReplaced) -> list[str]:
        """The snapshot."""
        return [stream(command.id)]

    def follow(self, command: SweepReplaced, states: Mapping[str, Any]) -> list[str]:
        """All of its chain, and those that it absorbed."""
        return chain.family(states)

    def _state(self, context: Context) -> SnapshotState | None:
        assert isinstance(context.command, SweepReplaced)
        state: SnapshotState | None = context.state(stream(context.command.id))
        return state

    def start(self, context: Context) -> None:
        """Nobody who may have begun before the merge reads the snapshot, or what is built on it, or builds upon it."""
        state = self._state(context)
        if state is None or state.replaced is None or state.sweep is not None:
            return
        behind = chain.descendants(context, state.id)
        if any(each.status == "BackingUp" and each.parent == state.id for each in behind):
            raise InUse("a backup is being built on the snapshot", field="id", remedy="it is done when that has ended")
        for each in (state, *behind):
            if each.status == "BackedUp":  # of the others none are read: that was asked when they were deleted
                context.count(template.readers("snapshot", each.id), ceiling=0, otherwise=InUse(
                    "the snapshot is being read", field="id", remedy="it is done when that job has ended"))
                context.count(template.readers("snapshot", each.id), lift=True)
        context.emit(stream(state.id), SnapshotSweepStarted(snapshot_id=state.id, job_id=context.job_id))
        for absorbed in reversed(state.absorbs):
            context.emit(stream(absorbed), SnapshotDeleteRequested(
                snapshot_id=absorbed, job_id=context.job_id, store_id=state.store_id))

    def _now(self, context: Context) -> SnapshotState:
        """As decided so far."""
        state = self._state(context)
        assert state is not None
        return state

    def _mine(self, context: Context) -> SnapshotState | None:
        """The snapshot, if this job sweeps."""
        state = self._state(context)
        return state if state is not None and state.sweep == context.job_id else None

    def _delete(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state = self._mine(context)
        if state is None or state.replaced is None:
            return None
        gone: list[SnapshotState] = [context.state(stream(each)) for each in reversed(state.absorbs)]
        store = template.known_store(context, state.store_id)
        return template.delete_order(context, work_id, attempt, store.spec, store.zone_id, [
            state.replaced.key, *(each.image.key for each in gone if each.image is not None)])

    def finish(self, context: Context) -> dict[str, Any]:
        """The store confirmed."""
        state = self._mine(context)
        if state is None or state.replaced is None:
            return {"success": True}
        for absorbed in reversed(state.absorbs):
            each: SnapshotState = context.state(stream(absorbed))
            context.count(image_store.residents(each.store_id), -1)
            capacity.release(context, each.store_id, each.counted, arrived=True)
            context.emit(stream(absorbed), SnapshotDeleted(snapshot_id=absorbed, store_id=each.store_id))
        context.count(image_store.residents(state.store_id), -1)
        capacity.release(context, state.store_id, state.replaced.counted, arrived=True)
        context.emit(stream(state.id), SnapshotSwept(
            snapshot_id=state.id, job_id=context.job_id, store_id=state.store_id, key=state.replaced.key))
        if state.status == "Hidden":  # what was deleted while this one was merged, or swept
            chain.look_again(context, self._now(context))
        else:
            chain.look_up(context, state.id)
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: it is tried until the store confirms."""


FLOWS: dict[type[Command], Flow] = {
    CollapseSnapshot: CollapseFlow(),
    SweepReplaced: SweepFlow(),
}
"""Every command about merges, and what it leads to."""
