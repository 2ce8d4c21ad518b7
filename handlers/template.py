"""Templates and ISOs: their states and their copies.

Rules kept here: Ready means verified bytes in a store; what is being read cannot be deleted; bytes are pending until their store
confirmed their deletion. A template may have several copies, each in its own store with its own state; a copy serves its
store's zone, or every zone where the store is a region's. In which zones it is listed is said apart from where its bytes are;
so are its seeds on primary stores (`template_seed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

from handlers import capacity, image_store, placement, template_seed
from handlers.decider import Context, IllegalTransition
from handlers.directory import Store
from handlers.template_seed import Seeds
from schema.agent import DeleteImages
from schema.failure import BadParameter, Damage, Failure, Refused, Unavailable
from schema.identity import ROOT_OWNER, Owner
from schema.image import ImageFormat, ImageRef, StoreSpec
from schema.message import Event, Order
from schema.os_type import NAMES as OS_NAMES
from schema.template import (
    TemplateCopyDeleted,
    TemplateCopyDeleteRequested,
    TemplateCopyFailed,
    TemplateCopyReady,
    TemplateCopyRequested,
    TemplateDeleted,
    TemplateDeleteRequested,
    TemplateFailed,
    TemplatePermitted,
    TemplateQuarantined,
    TemplateQuarantineLifted,
    TemplateReady,
    TemplateRegistered,
    TemplateReserved,
    TemplateUpdated,
    TemplateWritten,
    TemplateZonesChanged,
    Traits,
)
from schema.template_seed import TemplateSeedDeleted

ANY = ("Ready", "Failed", "Registering")
TRANSITIONS: dict[tuple[str, str], str] = {
    ("", TemplateRegistered.TYPE): "Registering",
    ("Registering", TemplateReserved.TYPE): "Registering",
    ("Registering", TemplateWritten.TYPE): "Registering",
    ("Registering", TemplateReady.TYPE): "Ready",
    ("Registering", TemplateFailed.TYPE): "Failed",
    ("Ready", TemplateDeleteRequested.TYPE): "Deleting",
    ("Ready", TemplateQuarantined.TYPE): "Ready",
    ("Ready", TemplateQuarantineLifted.TYPE): "Ready",
    ("Failed", TemplateDeleteRequested.TYPE): "Deleting",
    ("Deleting", TemplateDeleted.TYPE): "Deleted",
    ("Ready", TemplateZonesChanged.TYPE): "Ready",
    **{("Ready", each.TYPE): "Ready" for each in (
        TemplateCopyRequested, TemplateCopyReady, TemplateCopyFailed, TemplateCopyDeleteRequested, TemplateCopyDeleted)},
    **{("Ready", each.TYPE): "Ready" for each in template_seed.EVENTS},
    ("Deleting", TemplateSeedDeleted.TYPE): "Deleting",
    **{(status, each.TYPE): status for status in ANY for each in (TemplateUpdated, TemplatePermitted)},
}
"""(state, event) -> state. Everything else is illegal."""


PLAIN = Traits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A template's bytes in one store."""

    status: str
    """Creating, Ready, Destroying"""
    store_id: UUID
    zone_id: UUID | None
    """The zone that it serves; None: every zone."""
    job_id: UUID
    """The job that made it, or that deletes it."""
    counted: int = 0
    """Bytes by which it is counted on its store: reserved until it is Ready."""
    image: ImageRef | None = None
    damage: Damage | None = None
    """It is Quarantined: where its object is not what was written."""

    def serves(self, zone_id: UUID | None) -> bool:
        """Whether what is in this zone can read it."""
        return zone_id is None or self.zone_id in (None, zone_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateState:
    """The fold of a template's events."""

    status: str
    id: UUID
    kind: str
    name: str
    format: ImageFormat
    job_id: UUID
    owner: Owner = ROOT_OWNER
    extractable: bool = False
    public: bool = False
    featured: bool = False
    granted: tuple[UUID, ...] = ()
    traits: Traits = PLAIN
    zones: tuple[UUID, ...] | None = None
    """Where it is listed; None: in every zone."""
    copies: Mapping[UUID, Copy] = field(default_factory=dict)
    """By store, oldest first."""
    seeds: Seeds = field(default_factory=dict)
    """Its bytes on primary stores."""

    @property
    def first(self) -> Copy | None:
        """The oldest copy."""
        return next(iter(self.copies.values()), None)

    @property
    def image(self) -> ImageRef | None:
        """The oldest copy's object."""
        return self.first.image if self.first is not None else None

    @property
    def damage(self) -> Damage | None:
        """The oldest copy's damage."""
        return self.first.damage if self.first is not None else None

    @property
    def counted(self) -> int:
        """Bytes by which all copies are counted."""
        return sum(copy.counted for copy in self.copies.values())

    def copy_of(self, key: str) -> Copy | None:
        """The copy whose object has this key."""
        return next((copy for copy in self.copies.values() if copy.image is not None and copy.image.key == key), None)

    def whole(self, zone_id: UUID | None) -> list[Copy]:
        """The copies that are Ready and serve the zone (None: any): sound ones first, the zone's own before a region's."""
        found = [copy for copy in self.copies.values() if copy.status == "Ready" and copy.serves(zone_id)]
        return sorted(found, key=lambda copy: (copy.damage is not None, copy.zone_id != zone_id))


def evolve(state: TemplateState | None, event: Event) -> TemplateState:
    """The template after `event`."""
    status = TRANSITIONS.get((state.status if state else "", event.TYPE))
    if status is None:
        raise IllegalTransition(state.status if state else "absent", event)
    if isinstance(event, TemplateRegistered):
        zones = tuple(event.zones) or ((event.zone_id,) if event.zone_id is not None else None)
        first = Copy(status="Creating", store_id=event.store_id, zone_id=event.store_zone_id, job_id=event.job_id,
                     counted=event.reserved)
        return TemplateState(
            status=status, id=event.template_id, kind=event.kind, name=event.name, format=event.format, zones=zones,
            job_id=event.job_id, owner=event.owner, extractable=event.is_extractable, public=event.is_public,
            featured=event.is_featured, traits=event.traits, copies={event.store_id: first})
    assert state is not None
    match event:
        case TemplateUpdated():
            return replace(state, status=status, name=event.name or state.name, traits=event.traits)
        case TemplatePermitted():
            return replace(state, status=status, public=event.is_public, featured=event.is_featured,
                           extractable=event.is_extractable, granted=tuple(event.granted))
        case TemplateZonesChanged():
            return replace(state, status=status, zones=tuple(event.zones))
        case TemplateDeleteRequested():
            going = {store_id: replace(copy, status="Destroying", job_id=event.job_id) for store_id, copy in state.copies.items()}
            return replace(state, status=status, job_id=event.job_id, copies=going)
        case TemplateReserved():
            assert state.first is not None
            return replace(state, copies={state.first.store_id: replace(state.first, counted=event.reserved)})
        case TemplateFailed() | TemplateDeleted():
            return replace(state, status=status, copies={})
        case _:
            return replace(state, status=status, copies=_copies(state.copies, event),
                           seeds=template_seed.fold(state.seeds, event))


def _copies(copies: Mapping[UUID, Copy], event: Event) -> Mapping[UUID, Copy]:
    """The copies after an event about one of them."""
    match event:
        case TemplateCopyRequested():
            return {**copies, event.store_id: Copy(status="Creating", store_id=event.store_id, zone_id=event.zone_id,
                                                   job_id=event.job_id, counted=event.reserved)}
        case TemplateReady() | TemplateCopyReady():
            store_id = event.image.store_id
            return {**copies, store_id: replace(copies[store_id], status="Ready", image=event.image, counted=event.counted)}
        case TemplateWritten():
            store_id = event.image.store_id
            return {**copies, store_id: replace(copies[store_id], image=event.image, counted=event.counted)}
        case TemplateCopyDeleteRequested():
            return {**copies, event.store_id: replace(copies[event.store_id], status="Destroying", job_id=event.job_id)}
        case TemplateCopyFailed() | TemplateCopyDeleted():
            return {store_id: copy for store_id, copy in copies.items() if store_id != event.store_id}
        case TemplateQuarantined():
            return {**copies, event.store_id: replace(copies[event.store_id], damage=event.damage)}
        case TemplateQuarantineLifted():
            return {**copies, event.store_id: replace(copies[event.store_id], damage=None)}
    return copies


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


def known(context: Context, template_id: UUID, field: str = "id", *, kind: str = "") -> TemplateState:
    """The template (or where `kind` says so the ISO), unless it is unregistered. Raises BadParameter."""
    state: TemplateState | None = context.state(stream(template_id))
    noun = kind or "template"
    if state is None or state.status in ("Deleting", "Deleted") or (kind and state.kind != kind):
        listed = "listIsos" if noun == "iso" else "listTemplates"
        raise BadParameter(f"no {noun} has the id {template_id}", field=field, remedy=f"{listed} shows them")
    return state


def readable(context: Context, state: TemplateState, zone_id: UUID | None, *, field: str = "id",
             zone_field: str = "zoneid") -> Copy:
    """The copy that is read in a zone. Raises BadParameter where there is none, Refused where it is quarantined."""
    if state.status != "Ready":
        raise BadParameter(f"the {state.kind} is {state.status}, not Ready", field=field, remedy="wait for its job to end")
    found = state.whole(zone_id)
    if not found:
        verb = "copyIso" if state.kind == "iso" else "copyTemplate"
        raise BadParameter(f"the {state.kind} has no copy in the zone {zone_id}", field=zone_field,
                           remedy=f"{verb} brings it there, or name another zone")
    if (damage := found[0].damage) is not None:
        raise quarantine_refused(context, "template", found[0].store_id, damage)
    return found[0]


def image_in(context: Context, template_id: UUID, zone_id: UUID) -> ImageRef:
    """The image that a volume in a zone is made of. Raises BadParameter."""
    state = known(context, template_id, "templateid")
    if state.kind == "iso":
        raise BadParameter("an ISO is no disk: no volume is made of it", field="templateid", remedy="name a template")
    if state.status != "Ready":
        raise BadParameter(f"the template is {state.status}, not Ready", field="templateid")
    found = state.whole(zone_id)
    if not found:
        raise BadParameter(f"the template has no copy in the zone {zone_id}", field="templateid",
                           remedy="copyTemplate brings it there")
    image = found[0].image
    assert image is not None
    return image


def unmake(context: Context, state: TemplateState, work_id: UUID, attempt: int) -> Order | None:
    """The order that takes back the only copy of a template that was just made."""
    if state.image is None:
        return None
    store = known_store(context, state.image.store_id)
    return delete_order(context, work_id, attempt, store.spec, store.zone_id, [state.image.key])


def never(context: Context, state: TemplateState, failure: Failure) -> None:
    """A template that was being made is not, and nothing of it remains."""
    first = state.first
    assert first is not None
    context.count(image_store.residents(first.store_id), -1)
    capacity.release(context, first.store_id, first.counted, arrived=first.image is not None)
    if state.status == "Ready":  # it was there before the cancel was seen, and was taken back
        context.emit(stream(state.id), TemplateDeleteRequested(
            template_id=state.id, job_id=context.job_id, store_id=first.store_id, stores=[first.store_id]))
        context.emit(stream(state.id), TemplateDeleted(
            template_id=state.id, store_id=first.store_id, stores=[first.store_id]))
    else:
        context.emit(stream(state.id), TemplateFailed(template_id=state.id, failure=failure))


def refuse_public(context: Context, wanted: bool | None, owner: Owner) -> None:
    """Raises BadParameter where accounts outside of ROOT make nothing public."""
    if wanted and not context.limits.public_templates and owner.path != "/":
        raise BadParameter("only templates of ROOT's accounts may be public here", field="ispublic",
                           remedy="share it with accounts, or ask an admin (STOREBUS_PUBLIC_TEMPLATES)")


def refuse_unknown_os(os_type_id: str | None) -> None:
    """Raises BadParameter for an OS type that there is not; none at all is fine."""
    if os_type_id and os_type_id.lower() not in OS_NAMES:
        raise BadParameter(f"no OS type has the id {os_type_id[:64]!r}", field="ostypeid", remedy="listOsTypes shows them")


def reached(context: Context, zone_id: UUID) -> bool:
    """Whether an image store reaches the zone at all."""
    return any(store.state == "Ready" and store.zone_id in (None, zone_id) for store in context.directory.stores.values())


def zones_of(context: Context, state: TemplateState) -> list[UUID]:
    """The zones in which it is listed, now."""
    return list(state.zones) if state.zones is not None else sorted(context.directory.zones, key=str)
