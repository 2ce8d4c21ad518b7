"""Deleting a template: it is unregistered at once, and its bytes follow; of one zone only, that zone's copy.

Rules kept here: nothing that is being read is deleted; the bytes stay listed as pending until every store confirmed.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from handlers import capacity, image_store, placement, template, template_seed
from handlers.decider import Context, Flow, Step
from handlers.template import Copy, TemplateState, known_store, readers, stream
from schema.failure import BadParameter, Failure, InUse
from schema.message import Command, Order
from schema.template import (
    DeleteIso,
    DeleteTemplate,
    TemplateCopyDeleted,
    TemplateCopyDeleteRequested,
    TemplateDeleted,
    TemplateDeleteRequested,
    TemplateZonesChanged,
)


class DeleteFlow:
    """Unregister at once; the bytes follow, store by store."""

    subject, placed, cancellable = "template", True, False
    steps: tuple[Step, ...] = ()

    def steps_of(self, context: Context) -> tuple[Step, ...]:
        """One for each store that holds bytes which go, then one for each primary store."""
        return (*(Step(name="delete" if not number else f"delete-{number + 1}", order=self._delete(store_id), attempts=100_000)
                  for number, store_id in enumerate(self._going(context))),
                *template_seed.steps(context, self._state(context).seeds))

    def streams(self, job_id: UUID, command: DeleteTemplate) -> list[str]:
        """The template."""
        return [stream(command.id)]

    def _state(self, context: Context) -> TemplateState:
        command = context.command
        assert isinstance(command, DeleteTemplate)
        state: TemplateState | None = context.state(stream(command.id))
        iso = isinstance(command, DeleteIso)
        if state is None or state.status == "Deleted" or (state.kind == "iso") is not iso:
            noun, listed = ("iso", "listIsos") if iso else ("template", "listTemplates")
            raise BadParameter(f"no {noun} has the id {command.id}", field="id", remedy=f"{listed} shows them")
        return state

    def _going(self, context: Context) -> list[UUID]:
        """The stores whose copy this job deletes."""
        return [store_id for store_id, copy in self._state(context).copies.items()
                if copy.status == "Destroying" and copy.job_id == context.job_id]

    def start(self, context: Context) -> None:
        """Ready or failed, and read by nobody."""
        command, state = context.command, self._state(context)
        assert isinstance(command, DeleteTemplate)
        if state.status == "Registering":
            raise BadParameter(f"the {state.kind} is still being fetched", field="id",
                               remedy=f"wait for it, or cancelJob jobid={state.job_id}")
        if state.status == "Deleting":
            raise BadParameter(f"the {state.kind} is already being deleted", field="id")
        left = self._left(context, state, command.zone_id)
        doomed = self._doomed(state, command.zone_id, left)
        for copy in state.copies.values() if not left else doomed:
            if copy.status != "Ready":
                raise BadParameter(f"a copy of the {state.kind} is {copy.status}", field="id", remedy="wait for its job to end: "
                                   f"queryAsyncJobResult jobid={copy.job_id}")
        seeds = [seed for seed in state.seeds.values() if not left or seed.primary.zone_id == command.zone_id]
        for seed in seeds:
            if seed.status == "Destroying":
                raise BadParameter(f"the template's copy on the primary store {seed.primary.name} is being deleted", field="id",
                                   remedy=f"wait for its job to end: queryAsyncJobResult jobid={seed.job_id}")
        if doomed or seeds or not left:
            context.count(readers("template", state.id), ceiling=0, otherwise=InUse(
                f"the {state.kind} is being read for something else: a volume, or a copy", field="id",
                remedy="wait for that job to end"))
        if left and (doomed or seeds):  # the rest is read on; these are Destroying, which who reads sees in the same append
            context.count(readers("template", state.id), lift=True)
        template_seed.let_go(context, seeds)
        if not left:
            stores = [copy.store_id for copy in state.copies.values()]
            context.emit(stream(state.id), TemplateDeleteRequested(
                template_id=state.id, job_id=context.job_id, store_id=stores[0] if stores else None, stores=stores))
            return
        zones = template.zones_of(context, state)
        context.emit(stream(state.id), TemplateZonesChanged(
            template_id=state.id, zones=left, removed=[zone_id for zone_id in zones if zone_id not in left],
            added=left if state.zones is None else [], everywhere=state.zones is None))
        for copy in doomed:
            context.emit(stream(state.id), TemplateCopyDeleteRequested(
                template_id=state.id, store_id=copy.store_id, job_id=context.job_id))

    def _left(self, context: Context, state: TemplateState, zone_id: UUID | None) -> list[UUID]:
        """The zones in which it stays listed."""
        if zone_id is None or state.status == "Failed":
            return []
        placement.zone(context.directory, zone_id)
        zones = template.zones_of(context, state)
        if zone_id not in zones:
            raise BadParameter(f"the {state.kind} is not in the zone {zone_id}", field="zoneid",
                               remedy="leave it out to delete it everywhere")
        return [each for each in zones if each != zone_id]

    def _doomed(self, state: TemplateState, zone_id: UUID | None, left: list[UUID]) -> list[Copy]:
        """The copies that go with a zone: those that serve only it."""
        return [copy for copy in state.copies.values() if zone_id is not None and copy.zone_id == zone_id] if left else []

    def _delete(self, store_id: UUID) -> Any:
        def order(context: Context, work_id: UUID, attempt: int) -> Order | None:
            copy = self._state(context).copies[store_id]
            if copy.image is None:
                return None
            store = known_store(context, store_id)
            return template.delete_order(context, work_id, attempt, store.spec, store.zone_id, [copy.image.key])

        return order

    def finish(self, context: Context) -> dict[str, Any]:
        """The stores confirmed."""
        state, stores = self._state(context), self._going(context)
        for store_id in stores:
            context.count(image_store.residents(store_id), -1)
            capacity.release(context, store_id, state.copies[store_id].counted, arrived=True)
        template_seed.gone(context, state.seeds)
        if state.status == "Deleting":
            context.emit(stream(state.id), TemplateDeleted(
                template_id=state.id, store_id=stores[0] if stores else None, stores=stores))
        else:
            for store_id in stores:
                context.emit(stream(state.id), TemplateCopyDeleted(template_id=state.id, store_id=store_id))
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """It stays unregistered; its bytes stay listed as pending."""


FLOWS: dict[type[Command], Flow] = {DeleteTemplate: DeleteFlow(), DeleteIso: DeleteFlow()}
"""Every command of this file, and what it leads to."""
