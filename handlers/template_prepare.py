"""Preparing a template: its bytes on primary stores before volumes are made there, and off them again.

Rules kept here: a primary store's seed is one job's, so a host that is slow or away keeps no other waiting; what is there, or on
its way, is not made again; the copy that is read stays until the job has ended, and a seed from which a volume is made stays too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from handlers import placement, planner, primary_store, template_seed
from handlers.decider import Context, Flow, Step
from handlers.job import result_of
from handlers.template import TemplateState, known, known_store, readable, readers, stream
from handlers.template_seed import Seed
from schema.agent import MakeSeed, SeedMade
from schema.failure import BadParameter, Failure, InUse, NoRoom
from schema.ids import derive
from schema.image import ImageRef, PrimarySpec
from schema.message import Command, Order
from schema.motion import MotionPlan
from schema.template_seed import (
    PrepareTemplate,
    TemplateSeedFailed,
    TemplateSeedReady,
    TemplateSeedRequested,
    UnprepareTemplate,
)

WHOLE = frozenset({"block"})
"""Plug-ins that keep one disk on a device of its own: no seed lies there."""


class PrepareFlow:
    """Copy it to one primary store; where a zone has several, start a job for each."""

    subject, placed, cancellable = "template", True, True

    def __init__(self) -> None:
        self._step = Step(name="seed", order=self._make, done=self._made, plan=self._plan, undo=self._unmake)
        self.steps: tuple[Step, ...] = (self._step,)

    def steps_of(self, context: Context) -> tuple[Step, ...]:
        """One, where this job makes a seed."""
        return self.steps if self._mine(context) is not None else ()

    def streams(self, job_id: UUID, command: PrepareTemplate) -> list[str]:
        """The template."""
        return [stream(command.template_id)]

    def _command(self, context: Context) -> PrepareTemplate:
        assert isinstance(context.command, PrepareTemplate)
        return context.command

    def _state(self, context: Context) -> TemplateState:
        state: TemplateState = context.state(stream(self._command(context).template_id))
        return state

    def _mine(self, context: Context) -> Seed | None:
        """The seed that this job makes, or made."""
        return next((seed for seed in self._state(context).seeds.values()
                     if seed.job_id == context.job_id and seed.status != "Destroying"), None)

    def _wanted(self, context: Context) -> list[PrimarySpec]:
        """The primary stores that are asked for and can keep a seed. Raises BadParameter."""
        command = self._command(context)
        found = stores_of(context, command.zone_id, command.storage_id)
        able = [spec for spec in found if spec.kind not in WHOLE]
        if not able:
            names = ", ".join(spec.name for spec in found)
            raise BadParameter(f"a primary store of block devices keeps whole disks only, no copies of templates: {names}",
                               field="storageid", remedy="volumes there are made from the image store")
        return able

    def start(self, context: Context) -> None:
        """A template with a sound copy for the zone, and primary stores that can keep one."""
        command = self._command(context)
        state = disk_template(context, command.template_id)
        placement.zone(context.directory, command.zone_id)
        wanted = self._wanted(context)
        image = readable(context, state, command.zone_id, field="templateid").image
        assert image is not None
        if len(wanted) == 1:
            self._start_one(context, state, wanted[0], image)

    def _start_one(self, context: Context, state: TemplateState, primary: PrimarySpec, image: ImageRef) -> None:
        seed = state.seeds.get(primary.id)
        if seed is not None and seed.status == "Destroying":
            raise InUse(f"the template's copy on the primary store {primary.name} is being deleted", field="storageid",
                        remedy=f"wait for its job to end: queryAsyncJobResult jobid={seed.job_id}")
        if seed is not None:
            return
        room = context.directory.free.get(primary.id)
        if room is not None and room < image.physical_size:
            raise NoRoom(f"the primary store {primary.name} has {room} bytes free, the template has {image.physical_size}",
                         field="storageid", remedy="free space there, or name another")
        planner.plan(context.directory, self._move(context, primary, image))
        planner.plan(context.directory, planner.seeded(primary, size=image.physical_size))  # somebody must be able to use it
        context.count(readers("template", state.id), +1, otherwise=BadParameter(
            "the template is being deleted", field="templateid"))
        context.count(primary_store.seeds(primary.id), +1, otherwise=primary_store.full_refused())
        context.emit(stream(state.id), TemplateSeedRequested(
            template_id=state.id, primary=primary, store_id=image.store_id, key=image.key, job_id=context.job_id))

    def _move(self, context: Context, primary: PrimarySpec, image: ImageRef) -> planner.Move:
        return planner.restore(known_store(context, image.store_id), primary, size=image.physical_size,
                               basis="the object's size", field="templateid")

    def _work(self, context: Context) -> tuple[Seed, ImageRef]:
        """What is made, and of what."""
        seed = self._mine(context)
        assert seed is not None
        copy = self._state(context).copy_of(seed.key)
        assert copy is not None
        assert copy.image is not None
        return seed, copy.image

    def _plan(self, context: Context) -> MotionPlan:
        seed, image = self._work(context)
        return planner.plan(context.directory, self._move(context, seed.primary, image))

    def _make(self, context: Context, work_id: UUID, attempt: int) -> Order:
        seed, image = self._work(context)
        return MakeSeed(
            job_id=context.job_id, work_id=work_id, attempt=attempt, agent=seed.primary.agent,
            reply_key=context.command.key(context.job_id), primary=seed.primary, template_id=seed.template_id, image=image,
            store=known_store(context, image.store_id).spec, motion=context.planned("seed").strategy)

    def _made(self, context: Context, result: Mapping[str, Any]) -> None:
        made, seed = SeedMade.model_validate(result), self._mine(context)
        assert seed is not None
        context.emit(stream(seed.template_id), TemplateSeedReady(
            template_id=seed.template_id, primary_id=seed.primary.id, path=made.path, size=made.size,
            physical_size=made.physical_size))

    def _unmake(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        seed = self._mine(context)
        return template_seed.drop(context, seed, work_id, attempt) if seed is not None else None

    def finish(self, context: Context) -> dict[str, Any]:
        """It is there; or a job for each primary store was started."""
        state = self._state(context)
        if self._mine(context) is not None:
            context.count(readers("template", state.id), -1)
            return result_of(state.kind, state.id)
        wanted = [spec for spec in self._wanted(context) if spec.id not in state.seeds]
        jobs = [(derive(context.job_id, f"prepare/{spec.id}"), spec) for spec in wanted]
        context.out.submissions += [(job_id, PrepareTemplate(
            template_id=state.id, zone_id=spec.zone_id, storage_id=spec.id)) for job_id, spec in jobs]
        return result_of(state.kind, state.id, jobs=[str(job_id) for job_id, _ in jobs])

    def fail(self, context: Context, failure: Failure) -> None:
        """Nothing of it remains."""
        seed = self._mine(context)
        assert seed is not None
        context.count(readers("template", seed.template_id), -1)
        context.count(primary_store.seeds(seed.primary.id), -1)
        context.emit(stream(seed.template_id), TemplateSeedFailed(
            template_id=seed.template_id, primary_id=seed.primary.id, failure=failure))


class UnprepareFlow:
    """Delete the seeds of a zone, or one of them."""

    subject, placed, cancellable = "template", True, False
    steps: tuple[Step, ...] = ()

    def streams(self, job_id: UUID, command: UnprepareTemplate) -> list[str]:
        """The template."""
        return [stream(command.template_id)]

    def _state(self, context: Context) -> TemplateState:
        assert isinstance(context.command, UnprepareTemplate)
        state: TemplateState = context.state(stream(context.command.template_id))
        return state

    def steps_of(self, context: Context) -> tuple[Step, ...]:
        """One for each seed."""
        return template_seed.steps(context, self._state(context).seeds)

    def start(self, context: Context) -> None:
        """Seeds that nothing reads; none at all is fine."""
        command = context.command
        assert isinstance(command, UnprepareTemplate)
        state = disk_template(context, command.template_id)
        placement.zone(context.directory, command.zone_id)
        doomed = [seed for seed in state.seeds.values() if seed.primary.zone_id == command.zone_id
                  and command.storage_id in (None, seed.primary.id)]
        if not doomed:
            return
        for seed in doomed:
            if seed.status != "Ready":
                raise InUse(f"the template's copy on the primary store {seed.primary.name} is {seed.status}", field="templateid",
                            remedy=f"wait for its job to end: queryAsyncJobResult jobid={seed.job_id}")
        context.count(readers("template", state.id), ceiling=0, otherwise=InUse(
            "the template is being read for something else: a volume, or a copy", field="templateid",
            remedy="wait for that job to end"))
        context.count(readers("template", state.id), lift=True)  # the template stays, and is read on
        template_seed.let_go(context, doomed)

    def finish(self, context: Context) -> dict[str, Any]:
        """The hosts confirmed."""
        template_seed.gone(context, self._state(context).seeds)
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """They stay listed as pending; no volume is made of them any more."""


def disk_template(context: Context, template_id: UUID) -> TemplateState:
    """A template that volumes can be made of. Raises BadParameter."""
    state = known(context, template_id, "templateid")
    if state.kind == "iso":
        raise BadParameter("an ISO is no disk: no volume is made of it", field="templateid", remedy="name a template")
    return state


def stores_of(context: Context, zone_id: UUID, storage_id: UUID | None) -> list[PrimarySpec]:
    """The primary stores of a zone, or the one of these that is named. Raises BadParameter."""
    found = [spec for spec, _ in context.directory.primaries.values()
             if spec.zone_id == zone_id and storage_id in (None, spec.id)]
    if not found:
        raise BadParameter(f"no primary store of the zone has the id {storage_id}" if storage_id else
                           "no primary store is known in this zone", field="storageid" if storage_id else "zoneid",
                           remedy="listStoragePools shows them")
    return sorted(found, key=lambda spec: str(spec.id))


FLOWS: dict[type[Command], Flow] = {PrepareTemplate: PrepareFlow(), UnprepareTemplate: UnprepareFlow()}
"""Every command of this file, and what it leads to."""
