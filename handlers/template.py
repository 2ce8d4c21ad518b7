"""Templates: their states, and the flows that register and delete them.

Rules kept here: Ready means verified bytes in the store; a template that is being read cannot be deleted; its bytes are
pending until the store confirmed their deletion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from handlers import capacity, image_store, placement, planner
from handlers.decider import Context, Flow, IllegalTransition, Step
from handlers.directory import Store
from handlers.job import result_of
from schema.agent import DeleteImages, FetchImage, ImageResult
from schema.failure import BadParameter, Damage, Failure, InUse, Refused, Unavailable
from schema.identity import ROOT_OWNER, Owner
from schema.ids import derive
from schema.image import ImageFormat, ImageRef, StoreSpec
from schema.message import Command, Event, Order
from schema.motion import MotionPlan
from schema.template import (
    DeleteTemplate,
    RegisterTemplate,
    TemplateDeleted,
    TemplateDeleteRequested,
    TemplateFailed,
    TemplateQuarantined,
    TemplateQuarantineLifted,
    TemplateReady,
    TemplateRegistered,
)

TRANSITIONS: dict[tuple[str, str], str] = {
    ("", TemplateRegistered.TYPE): "Registering",
    ("Registering", TemplateReady.TYPE): "Ready",
    ("Registering", TemplateFailed.TYPE): "Failed",
    ("Ready", TemplateDeleteRequested.TYPE): "Deleting",
    ("Ready", TemplateQuarantined.TYPE): "Ready",
    ("Ready", TemplateQuarantineLifted.TYPE): "Ready",
    ("Failed", TemplateDeleteRequested.TYPE): "Deleting",
    ("Deleting", TemplateDeleted.TYPE): "Deleted",
}
"""(state, event) -> state. Everything else is illegal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateState:
    """The fold of a template's events."""

    status: str
    id: UUID
    name: str
    format: ImageFormat
    zone_id: UUID | None
    store_id: UUID
    job_id: UUID
    owner: Owner = ROOT_OWNER
    extractable: bool = False
    image: ImageRef | None = None
    counted: int = 0
    """Bytes by which it is counted on its store: reserved until it is Ready."""
    damage: Damage | None = None
    """Its copy is Quarantined: where its object is not what was written."""


def evolve(state: TemplateState | None, event: Event) -> TemplateState:
    """The template after `event`."""
    status = TRANSITIONS.get((state.status if state else "", event.TYPE))
    if status is None:
        raise IllegalTransition(state.status if state else "absent", event)
    if isinstance(event, TemplateRegistered):
        return TemplateState(status=status, id=event.template_id, name=event.name, format=event.format,
                             zone_id=event.zone_id, store_id=event.store_id, job_id=event.job_id, counted=event.reserved,
                             owner=event.owner, extractable=event.is_extractable)
    assert state is not None
    if isinstance(event, TemplateReady):
        return replace(state, status=status, image=event.image, counted=event.counted)
    if isinstance(event, TemplateQuarantined):
        return replace(state, status=status, damage=event.damage)
    if isinstance(event, TemplateQuarantineLifted):
        return replace(state, status=status, damage=None)
    return replace(state, status=status)


def stream(template_id: UUID) -> str:
    """The stream of a template."""
    return f"template-{template_id}"


def readers(thing: str, thing_id: UUID) -> str:
    """The counter of jobs that read an image: it cannot be deleted before they end."""
    return f"{thing}/{thing_id}/readers"


def object_key(context: Context, kind: str, thing_id: UUID, work_id: UUID, attempt: int, suffix: str) -> str:
    """Where an attempt writes its object: never reused, and free of anything a user wrote."""
    return f"{context.installation}/{kind}/{thing_id}/{work_id}.{attempt}.{suffix}"


def known_store(context: Context, store_id: UUID) -> Store:
    """A store that something already rests on. Raises Unavailable when this process has not heard of it."""
    store = context.directory.stores.get(store_id)
    if store is None:
        raise Unavailable(f"the image store {store_id} is not known here", field="id", remedy="try again")
    return store


def quarantine_refused(context: Context, thing: str, store_id: UUID, damage: Damage) -> Refused:
    """Why an image may not be read: its copy is Quarantined."""
    store = known_store(context, store_id).spec
    return Refused(f"the {thing}'s copy in the image store {store.name} is quarantined: {damage.text}", field=f"{thing}id",
                   remedy=f"restore the object from elsewhere and scrub the store again (storebus scrub {store.id}), which lifts "
                          f"the quarantine, or use another {thing}")


def delete_order(context: Context, work_id: UUID, attempt: int, spec: StoreSpec, zone_id: UUID | None,
                 keys: list[str]) -> Order:
    """The order that removes objects, given to a storage agent that carries the store's provider."""
    return DeleteImages(job_id=context.job_id, work_id=work_id, attempt=attempt,
                        agent=placement.storage_agent(context.directory, spec.provider, zone_id),
                        reply_key=context.command.key(context.job_id), store=spec, keys=keys)


class RegisterFlow:
    """Fetch a URL into the image store."""

    subject, placed, cancellable = "template", True, True

    def __init__(self) -> None:
        self.steps = (Step(name="fetch", order=self._fetch, done=self._fetched, plan=self._plan, undo=self._unfetch,
                           leaves=self._leaves),)

    def streams(self, job_id: UUID, command: RegisterTemplate) -> list[str]:
        """The new template."""
        return [stream(derive(job_id, "template"))]

    def start(self, context: Context) -> None:
        """A name, an http(s) URL, a store that reaches the zone."""
        command = context.command
        assert isinstance(command, RegisterTemplate)
        if not command.name or len(command.name) > 255:
            raise BadParameter("must have 1 to 255 characters", field="name")
        if not command.url.lower().startswith(("http://", "https://")):
            raise BadParameter("only http and https are fetched", field="url", remedy="put the image on a web server")
        if command.zone_id is not None:
            placement.zone(context.directory, command.zone_id)
        store = placement.image_store(context.directory, command.zone_id)
        planner.plan(context.directory, planner.fetch(command.url, store))
        template_id = context.new_id("template")
        reserved = capacity.download(context, store)
        capacity.reserve(context, store, reserved)
        context.count(image_store.residents(store.spec.id), +1, otherwise=Unavailable(
            "the image store is being deleted", field="zoneid", remedy="try again"))
        context.emit(stream(template_id), TemplateRegistered(
            template_id=template_id, name=command.name, display_text=command.display_text or command.name,
            url=command.url, format=command.format, hypervisor=command.hypervisor, zone_id=command.zone_id,
            checksum=command.checksum, is_public=command.is_public, is_featured=command.is_featured,
            is_extractable=command.is_extractable, os_type_id=command.os_type_id, store_id=store.spec.id,
            key=object_key(context, "template", template_id, derive(context.job_id, "fetch"), 1, command.format),
            job_id=context.job_id, reserved=reserved, owner=context.owner))

    def _state(self, context: Context) -> TemplateState:
        state: TemplateState = context.state(stream(context.new_id("template")))
        return state

    def _plan(self, context: Context) -> MotionPlan:
        command = context.command
        assert isinstance(command, RegisterTemplate)
        return planner.plan(context.directory, planner.fetch(command.url, known_store(context, self._state(context).store_id)))

    def _fetch(self, context: Context, work_id: UUID, attempt: int) -> Order:
        command, state = context.command, self._state(context)
        assert isinstance(command, RegisterTemplate)
        store, plan = known_store(context, state.store_id), context.planned("fetch")
        return FetchImage(
            job_id=context.job_id, work_id=work_id, attempt=attempt, agent=plan.agent, motion=plan.strategy,
            reply_key=command.key(context.job_id), url=command.url, format=command.format, checksum=command.checksum,
            store=store.spec, key=self._key(context, attempt), kind="template", thing_id=state.id,
            max_bytes=context.limits.max_image_bytes, max_virtual_size=context.limits.max_virtual_size)

    def _key(self, context: Context, attempt: int) -> str:
        state = self._state(context)
        return object_key(context, "template", state.id, derive(context.job_id, "fetch"), attempt, state.format)

    def _leaves(self, context: Context, attempt: int) -> tuple[UUID, str]:
        return self._state(context).store_id, self._key(context, attempt)

    def _fetched(self, context: Context, result: Mapping[str, Any]) -> None:
        state, image = self._state(context), ImageResult.model_validate(result).image
        capacity.settle(context, state.store_id, state.counted, image.physical_size)
        context.emit(stream(state.id), TemplateReady(template_id=state.id, image=image, counted=image.physical_size))

    def _unfetch(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state = self._state(context)
        if state.image is None:
            return None
        store = known_store(context, state.store_id)
        return delete_order(context, work_id, attempt, store.spec, store.zone_id, [state.image.key])

    def finish(self, context: Context) -> dict[str, Any]:
        """The template."""
        return result_of("template", self._state(context).id)

    def fail(self, context: Context, failure: Failure) -> None:
        """Nothing of it rests on the store any more."""
        state = self._state(context)
        context.count(image_store.residents(state.store_id), -1)
        capacity.release(context, state.store_id, state.counted, arrived=state.status == "Ready")
        if state.status == "Ready":  # it was fetched before the cancel was seen, and taken back
            context.emit(stream(state.id), TemplateDeleteRequested(
                template_id=state.id, job_id=context.job_id, store_id=state.store_id))
            context.emit(stream(state.id), TemplateDeleted(template_id=state.id, store_id=state.store_id))
        else:
            context.emit(stream(state.id), TemplateFailed(template_id=state.id, failure=failure))


class DeleteFlow:
    """Unregister at once; the bytes follow."""

    subject, placed, cancellable = "template", True, False

    def __init__(self) -> None:
        self.steps = (Step(name="delete", order=self._delete, attempts=100_000),)

    def streams(self, job_id: UUID, command: DeleteTemplate) -> list[str]:
        """The template."""
        return [stream(command.id)]

    def _state(self, context: Context) -> TemplateState:
        command = context.command
        assert isinstance(command, DeleteTemplate)
        state = context.state(stream(command.id))
        if state is None or state.status == "Deleted":
            raise BadParameter(f"no template has the id {command.id}", field="id", remedy="listTemplates shows them")
        assert isinstance(state, TemplateState)
        return state

    def start(self, context: Context) -> None:
        """Ready or failed, and read by nobody."""
        state = self._state(context)
        if state.status == "Registering":
            raise BadParameter("the template is still being fetched", field="id",
                               remedy=f"wait for it, or cancelJob jobid={state.job_id}")
        if state.status == "Deleting":
            raise BadParameter("the template is already being deleted", field="id")
        context.count(readers("template", state.id), ceiling=0, otherwise=InUse(
            "a volume is being made from the template", field="id", remedy="wait for that job to end"))
        context.emit(stream(state.id), TemplateDeleteRequested(
            template_id=state.id, job_id=context.job_id, store_id=state.store_id if state.image else None))

    def _delete(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state = self._state(context)
        if state.image is None:
            return None
        store = known_store(context, state.store_id)
        return delete_order(context, work_id, attempt, store.spec, store.zone_id, [state.image.key])

    def finish(self, context: Context) -> dict[str, Any]:
        """The store confirmed."""
        state = self._state(context)
        if state.image is not None:
            context.count(image_store.residents(state.store_id), -1)
            capacity.release(context, state.store_id, state.counted, arrived=True)
        context.emit(stream(state.id), TemplateDeleted(
            template_id=state.id, store_id=state.store_id if state.image else None))
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """It stays unregistered; its bytes stay listed as pending."""


FLOWS: dict[type[Command], Flow] = {
    RegisterTemplate: RegisterFlow(),
    DeleteTemplate: DeleteFlow(),
}
"""Every command about this noun, and what it leads to."""
