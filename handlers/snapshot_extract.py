"""Extracting a snapshot: a URL of a whole image of it in a zone.

Rules kept here: what is given is always an image by itself. A full copy is linked to as it is; of a delta one is made of all that
it is built on, which is its link's own as an extracted volume's is (`volume_extract`): it goes when the link ends or is revoked,
and until then it is counted. While that is made nothing of the chain is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from handlers import capacity, chain, image_store, link, placement, planner, snapshot, snapshot_places, template, volume_extract
from handlers.decider import Context, Flow, Step
from handlers.extract import Extraction, Source, mode
from schema.agent import ImageResult
from schema.failure import BadParameter, Failure, Unavailable
from schema.ids import derive
from schema.message import Command, Order
from schema.motion import MotionPlan
from schema.snapshot import ExtractSnapshot
from schema.volume_copy import VolumeCopyFailed, VolumeCopyReady, VolumeCopyRequested, VolumeCopyStarted


class ExtractFlow(Extraction):
    """Make it whole where it is a delta, then link."""

    ITEM = "snapshot"

    def __init__(self) -> None:
        self.steps = (
            Step(name="merge", order=self._merge, done=self._merged, plan=self._plan, undo=self._unmerge, leaves=self._leaves),
            self.link_step(),
        )

    def of(self, command: ExtractSnapshot) -> list[str]:
        """The snapshot."""
        return [snapshot.stream(command.id)]

    def streams(self, job_id: UUID, command: ExtractSnapshot) -> list[str]:
        """The link, the snapshot, and the image that is made of it."""
        return [*super().streams(job_id, command), volume_extract.stream(job_id)]

    def follow(self, command: ExtractSnapshot, states: Mapping[str, Any]) -> list[str]:
        """What it is built on."""
        return chain.parents(states)

    def _state(self, context: Context) -> snapshot.SnapshotState:
        command = context.command
        assert isinstance(command, ExtractSnapshot)
        state: snapshot.SnapshotState | None = context.state(snapshot.stream(command.id))
        if state is None or state.status in ("Destroying", "Destroyed", "Hidden"):
            raise BadParameter(f"no snapshot has the id {command.id}", field="id", remedy="listSnapshots shows them")
        return state

    def _made(self, context: Context) -> volume_extract.CopyState | None:
        """The image that this job makes; None where it makes none."""
        state: volume_extract.CopyState | None = context.state(volume_extract.stream(context.job_id))
        return state

    def source(self, context: Context) -> Source:
        """The copy in the zone of a snapshot that is backed up."""
        command, state = context.command, self._state(context)
        assert isinstance(command, ExtractSnapshot)
        placement.zone(context.directory, command.zone_id)
        if state.status != "BackedUp" or state.image is None:
            raise BadParameter(f"the snapshot is {state.status}, not BackedUp", field="id", remedy="wait for its job to end")
        here = snapshot_places.resting(context, state, command.zone_id)
        if here is None:
            raise BadParameter(f"the snapshot has no copy in the zone {command.zone_id}", field="zoneid",
                               remedy="copySnapshot brings it there, or name another zone")
        bad = chain.quarantined(context, state.id) if here.image.parent else None
        return Source(image=here.image, damage=here.damage or (bad.damage if bad is not None else None))

    def start(self, context: Context) -> None:
        """A full copy is linked to; of a delta an image is wanted first."""
        command = context.command
        assert isinstance(command, ExtractSnapshot)
        mode(command.mode)
        source = self.source(context)
        if not source.image.parent:
            self.ask(context, source, command.lifetime)
            return
        state = self._state(context)
        if source.damage is not None:
            raise template.quarantine_refused(context, self.ITEM, state.store_id, source.damage)
        store = template.known_store(context, state.store_id)
        link.able(context, store.spec, store.zone_id, lifetime_s=self._lifetime(context))
        self._planned(context)
        context.count(template.readers("snapshot", state.id), +1, otherwise=BadParameter(
            "the snapshot is being deleted", field="id"))
        context.count(image_store.residents(state.store_id), +1, otherwise=Unavailable(
            "the image store is being deleted", field="zoneid", remedy="try again"))
        name, need = volume_extract.stream(context.job_id), self._size(context)
        capacity.reserve(context, store, need)
        context.emit(name, VolumeCopyRequested(
            copy_id=context.job_id, volume_id=state.volume_id, zone_id=state.zone_id, store_id=state.store_id, tag="",
            job_id=context.job_id, owner=state.owner))
        context.emit(name, VolumeCopyStarted(copy_id=context.job_id, store_id=state.store_id, reserved=need))

    def _lifetime(self, context: Context) -> int:
        assert isinstance(context.command, ExtractSnapshot)
        asked = context.command.lifetime
        return context.limits.link_lifetime_s if asked is None else asked

    def _size(self, context: Context) -> int:
        return sum(image.physical_size for image in chain.whole(context, self._state(context).id))

    def _planned(self, context: Context) -> MotionPlan:
        store = template.known_store(context, self._state(context).store_id)
        return planner.plan(context.directory, planner.merge(store, store, size=self._size(context), field="id"))

    def _plan(self, context: Context) -> MotionPlan | None:
        if self._made(context) is None or context.state(link.stream(context.job_id)) is not None:
            return None  # of a full copy, which may be deleted while its link is made: nothing is asked of the snapshot any more
        return self._planned(context)

    def _key(self, context: Context, attempt: int) -> str:
        return template.object_key(context, "volume_copy", context.job_id, derive(context.job_id, "merge"), attempt, "qcow2")

    def _leaves(self, context: Context, attempt: int) -> tuple[UUID, str]:
        return self._state(context).store_id, self._key(context, attempt)

    def _merge(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        if self._made(context) is None:
            return None
        state = self._state(context)
        return chain.merge_order(
            context, context.planned("merge"), work_id, attempt, links=chain.whole(context, state.id),
            store=template.known_store(context, state.store_id), key=self._key(context, attempt),
            thing=("volume_copy", context.job_id))

    def _merged(self, context: Context, result: Mapping[str, Any]) -> None:
        made, image = self._made(context), ImageResult.model_validate(result).image
        assert made is not None
        capacity.settle(context, made.store_id, made.counted, image.physical_size)
        context.emit(volume_extract.stream(made.id), VolumeCopyReady(
            copy_id=made.id, image=image, counted=image.physical_size))
        link.want(context, context.job_id, template.known_store(context, made.store_id).spec, image.key,
                  lifetime_s=self._lifetime(context), revocable=False)

    def _unmerge(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        made = self._made(context)
        if made is None or made.image is None:
            return None
        store = template.known_store(context, made.store_id)
        return template.delete_order(context, work_id, attempt, store.spec, store.zone_id, [made.image.key])

    def finish(self, context: Context) -> dict[str, Any]:
        """The link's id and the snapshot."""
        if self._made(context) is not None:
            chain.read(context, self._state(context).id)
        return super().finish(context)

    def fail(self, context: Context, failure: Failure) -> None:
        """Nothing of the link remains, nor of an image that was made for it."""
        made = self._made(context)
        if context.state(link.stream(context.job_id)) is not None:
            link.not_given(context, context.job_id, failure)
        if made is None:
            return
        chain.read(context, self._state(context).id)
        context.count(image_store.residents(made.store_id), -1)
        capacity.release(context, made.store_id, made.counted, arrived=made.image is not None)
        context.emit(volume_extract.stream(made.id), VolumeCopyFailed(copy_id=made.id, store_id=made.store_id, failure=failure))


FLOWS: dict[type[Command], Flow] = {ExtractSnapshot: ExtractFlow()}
"""Every command of this file, and what it leads to."""
