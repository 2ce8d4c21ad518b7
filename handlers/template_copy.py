"""Copying a template to other zones: each zone has its outcome.

Rules kept here: a store that reaches a zone already is not written to, so nothing is copied; each copy is its own, with its own
capacity and its own end; the copy that is read stays until the job has ended; a job that made some of what was asked for has
failed, says what it made, and that stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from handlers import capacity, image_store, placement, planner
from handlers.decider import Context, Flow, Step
from handlers.job import result_of
from handlers.template import Copy, TemplateState, known, known_store, object_key, readable, readers, stream, zones_of
from schema.agent import ImageResult, MergeImages
from schema.failure import BadParameter, Failure, InUse, Unavailable
from schema.ids import derive
from schema.message import Command, Order
from schema.motion import MotionPlan
from schema.template import (
    CopyIso,
    CopyTemplate,
    TemplateCopyFailed,
    TemplateCopyReady,
    TemplateCopyRequested,
    TemplateZonesChanged,
)

MOST = 50
"""Zones of one command."""


@dataclass(frozen=True, slots=True)
class _Place:
    """One copy of one job."""

    store_id: UUID
    step: str

    def copy(self, state: TemplateState) -> Copy:
        """The copy as it is now."""
        return state.copies[self.store_id]


class CopyFlow:
    """List it in zones, and copy its bytes where no copy reaches."""

    subject, placed, cancellable = "template", True, True
    steps: tuple[Step, ...] = ()

    def streams(self, job_id: UUID, command: CopyTemplate) -> list[str]:
        """The template."""
        return [stream(command.id)]

    def _command(self, context: Context) -> CopyTemplate:
        assert isinstance(context.command, CopyTemplate)
        return context.command

    def _state(self, context: Context) -> TemplateState:
        state: TemplateState = context.state(stream(self._command(context).id))
        return state

    def _source(self, context: Context) -> Copy:
        """The copy that is read: the same for as long as it is sound."""
        sources = self._state(context).whole(self._command(context).source_zone_id)
        return sources[0]

    def _places(self, context: Context) -> list[_Place]:
        """The copies that this job makes, or made."""
        return [_Place(copy.store_id, f"copy-{copy.zone_id or copy.store_id}") for copy in self._state(context).copies.values()
                if copy.job_id == context.job_id and copy.status in ("Creating", "Ready")]

    def steps_of(self, context: Context) -> tuple[Step, ...]:
        """One for each copy."""
        return tuple(self._step(place) for place in self._places(context))

    def start(self, context: Context) -> None:
        """A template that is ready, zones that are known, a store with room for each that no copy reaches."""
        command = self._command(context)
        kind = "iso" if isinstance(command, CopyIso) else "template"
        state = known(context, command.id, kind=kind)
        zones = list(dict.fromkeys(command.zone_ids))
        if not 1 <= len(zones) <= MOST:
            raise BadParameter(f"must name 1 to {MOST} zones", field="destzoneids")
        if command.source_zone_id is not None:
            placement.zone(context.directory, command.source_zone_id)
            if command.source_zone_id in zones:
                raise BadParameter("the source and a destination are the same zone", field="destzoneids", remedy="leave it out")
        for zone_id in zones:
            placement.zone(context.directory, zone_id)
        source = readable(context, state, command.source_zone_id, zone_field="sourcezoneid")
        assert source.image is not None
        self._list(context, state, zones)
        wanted = [zone_id for zone_id in zones if not state.whole(zone_id)]
        for zone_id in wanted:
            self._want(context, state, zone_id, source)
        if wanted:
            context.count(readers("template", state.id), +1, otherwise=BadParameter(f"the {kind} is being deleted", field="id"))

    def _list(self, context: Context, state: TemplateState, zones: list[UUID]) -> None:
        new = [zone_id for zone_id in zones if zone_id not in zones_of(context, state)]
        if new and state.zones is not None:
            context.emit(stream(state.id), TemplateZonesChanged(template_id=state.id, zones=[*state.zones, *new], added=new))

    def _want(self, context: Context, state: TemplateState, zone_id: UUID, source: Copy) -> None:
        busy = next((copy for copy in state.copies.values() if copy.serves(zone_id) and copy.status != "Ready"), None)
        if busy is not None:
            raise InUse(f"the {state.kind}'s copy in the zone {zone_id} is {busy.status}", field="destzoneids",
                        remedy=f"wait for its job to end: queryAsyncJobResult jobid={busy.job_id}")
        assert source.image is not None
        size = source.image.physical_size
        store = placement.image_store(context.directory, zone_id, need=size)
        planner.plan(context.directory, planner.copy(
            known_store(context, source.store_id), store, size=size, field="destzoneids"))
        capacity.reserve(context, store, size)
        context.count(image_store.residents(store.spec.id), +1, otherwise=Unavailable(
            "the image store is being deleted", field="destzoneids", remedy="try again"))
        context.emit(stream(state.id), TemplateCopyRequested(
            template_id=state.id, store_id=store.spec.id, zone_id=store.zone_id, job_id=context.job_id, reserved=size))

    def _step(self, place: _Place) -> Step:
        def key(context: Context, attempt: int) -> str:
            state = self._state(context)
            return object_key(context, "template", state.id, derive(context.job_id, place.step), attempt, state.format)

        def plan(context: Context) -> MotionPlan:
            source = self._source(context)
            assert source.image is not None
            return planner.plan(context.directory, planner.copy(
                known_store(context, source.store_id), known_store(context, place.store_id),
                size=source.image.physical_size, field="destzoneids"))

        def order(context: Context, work_id: UUID, attempt: int) -> Order:
            source, planned = self._source(context), context.planned(place.step)
            assert source.image is not None
            return MergeImages(
                job_id=context.job_id, work_id=work_id, attempt=attempt, agent=planned.agent, motion=planned.strategy,
                reply_key=context.command.key(context.job_id), store=known_store(context, place.store_id).spec,
                source=known_store(context, source.store_id).spec, links=[source.image], key=key(context, attempt),
                kind="template", thing_id=self._state(context).id)

        def done(context: Context, result: Mapping[str, Any]) -> None:
            state, image = self._state(context), ImageResult.model_validate(result).image
            capacity.settle(context, image.store_id, place.copy(state).counted, image.physical_size)
            context.emit(stream(state.id), TemplateCopyReady(template_id=state.id, image=image, counted=image.physical_size))

        return Step(name=place.step, order=order, done=done, plan=plan,
                    leaves=lambda context, attempt: (place.store_id, key(context, attempt)))

    def finish(self, context: Context) -> dict[str, Any]:
        """It is in every zone that was asked for."""
        state = self._state(context)
        copied = self._places(context)
        if copied:
            context.count(readers("template", state.id), -1)
        return result_of(state.kind, state.id, copied=len(copied))

    def told(self, context: Context, failure: Failure) -> Failure:
        """Which zones it is in, and which it is not."""
        state, said = self._state(context), []
        for zone_id in self._command(context).zone_ids:
            name = context.directory.zones.get(zone_id, str(zone_id))
            said.append(f"{name}: {'it is there' if state.whole(zone_id) else 'it is not'}")
        return failure.model_copy(update={"cause": f"{failure.cause.rstrip('.')} ({'; '.join(said)})"})

    def fail(self, context: Context, failure: Failure) -> None:
        """What was copied stays; of the rest nothing remains."""
        state = self._state(context)
        context.count(readers("template", state.id), -1)
        for place in self._places(context):
            copy = place.copy(state)
            if copy.status == "Ready":
                continue
            context.count(image_store.residents(copy.store_id), -1)
            capacity.release(context, copy.store_id, copy.counted, arrived=False)
            context.emit(stream(state.id), TemplateCopyFailed(
                template_id=state.id, store_id=copy.store_id, zone_id=copy.zone_id, failure=failure))


FLOWS: dict[type[Command], Flow] = {CopyTemplate: CopyFlow(), CopyIso: CopyFlow()}
"""Every command of this file, and what it leads to."""
