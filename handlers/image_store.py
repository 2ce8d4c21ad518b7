"""Image stores: their states, and the flows that add, change and delete them.

Rules kept here: several stores of one provider, never of two; zone-wide providers need a zone, region-wide ones take
none; nothing may reside on a store that is deleted. A staging store is of the same kind, and holds no image: placement does not
see it, and its provider is its own matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from handlers import placement
from handlers.decider import Context, Flow, IllegalTransition, Step
from handlers.job import result_of
from handlers.survey import Resident
from schema.agent import ProviderSpec, StoreTested, TestImageStore
from schema.failure import BadParameter, Failure
from schema.ids import derive
from schema.image import StoreSpec
from schema.image_store import (
    IMAGE,
    STAGING,
    AddImageStore,
    CreateStagingStore,
    DeleteImageStore,
    DeleteStagingStore,
    ImageStoreAdded,
    ImageStoreDeleted,
    ImageStoreRejected,
    ImageStoreRequested,
    ImageStoreTested,
    ImageStoreUpdated,
    UpdateImageStore,
)
from schema.message import Command, Event, Order, Secret

TRANSITIONS: dict[tuple[str, str], str] = {
    ("", ImageStoreRequested.TYPE): "Testing",
    ("Testing", ImageStoreTested.TYPE): "Testing",
    ("Testing", ImageStoreAdded.TYPE): "Ready",
    ("Testing", ImageStoreRejected.TYPE): "Rejected",
    ("Ready", ImageStoreUpdated.TYPE): "Ready",
    ("Ready", ImageStoreDeleted.TYPE): "Deleted",
}
"""(state, event) -> state. Everything else is illegal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStoreState:
    """The fold of an image store's events."""

    status: str
    spec: StoreSpec
    zone_id: UUID | None
    scope: str
    job_id: UUID
    role: str = IMAGE
    read_only: bool = False
    capacity: int | None = None
    """Bytes that may rest on it; None: no limit but its own."""
    steps: tuple[str, ...] = ()
    """What the steps of its test found."""


def evolve(state: ImageStoreState | None, event: Event) -> ImageStoreState:
    """The store after `event`."""
    status = TRANSITIONS.get((state.status if state else "", event.TYPE))
    if status is None:
        raise IllegalTransition(state.status if state else "absent", event)
    if isinstance(event, ImageStoreRequested):
        return ImageStoreState(status=status, spec=event.store, zone_id=event.zone_id, scope=event.scope,
                               job_id=event.job_id, role=event.role)
    assert state is not None
    if isinstance(event, ImageStoreTested):
        return replace(state, status=status, steps=tuple(event.steps))
    if isinstance(event, ImageStoreUpdated):
        spec = state.spec.model_copy(update={"name": event.name or state.spec.name})
        return replace(state, status=status, spec=spec,
                       read_only=state.read_only if event.read_only is None else event.read_only,
                       capacity=state.capacity if event.capacity_bytes is None else event.capacity_bytes or None)
    return replace(state, status=status)


def stream(store_id: UUID) -> str:
    """The stream of a store."""
    return f"image_store-{store_id}"


def residents(store_id: UUID) -> str:
    """The counter of what rests on a store: templates and snapshots, also those on their way."""
    return f"image_store/{store_id}/residents"


def _name_claim(name: str, role: str = IMAGE) -> str:
    return f"{'image_store' if role == IMAGE else 'staging_store'}.name/{name}"


STAGES = ("nfs",)
"""Providers whose stores may be staging stores."""
PROVIDER_CLAIM = "image_store.provider"
"""Held by every store with its provider as value: shared by stores of one provider, refused to another."""


def check_details(provider: ProviderSpec, details: Mapping[str, str]) -> None:
    """Details against the provider's schema: unknown, missing and clear secret ones are refused by name."""
    settings = {name.lower(): schema for name, schema in provider.settings.get("properties", {}).items()}
    for name, value in details.items():
        schema = settings.get(name.lower())
        if schema is None:
            raise BadParameter(f"the provider {provider.name} has no such setting", field=f"details.{name}",
                               remedy=f"it takes {', '.join(sorted(settings)) or 'none'}")
        if is_secret(schema) and not Secret.is_reference(value):
            raise BadParameter("a secret may not travel in a command", field=f"details.{name}",
                               remedy="add the store through the API or the command line, which put it into the vault")
    for name in provider.settings.get("required", []):
        if not details.get(name.lower()) and not details.get(name):
            raise BadParameter("missing", field=f"details.{name}",
                               remedy=f"{provider.name} cannot be reached without it")


def is_secret(schema: Mapping[str, Any]) -> bool:
    """Whether a setting's JSON Schema marks it secret (also inside anyOf)."""
    return schema.get("format") == "password" or any(is_secret(part) for part in schema.get("anyOf", []))


class AddFlow:
    """Test the store, then let images rest on it."""

    subject, placed, cancellable = "image_store", True, True
    role = IMAGE

    def __init__(self) -> None:
        self.steps = (Step(name="test", order=self._test, done=self._tested, attempts=1),)

    def streams(self, job_id: UUID, command: AddImageStore) -> list[str]:
        """The new store."""
        return [stream(derive(job_id, "image_store"))]

    def start(self, context: Context) -> None:
        """Provider known, scope right, details right, name and provider free."""
        command = context.command
        assert isinstance(command, AddImageStore)
        directory = context.directory
        providers = directory.providers()
        provider = providers.get(command.provider.lower())
        if provider is None:
            there = ", ".join(sorted(providers)) or "none yet"
            raise BadParameter(f"no provider is named {command.provider!r}", field="provider",
                               remedy=f"listStorageProviders type=image shows: {there}")
        zone_id = self._scope(context, command, provider)
        check_details(provider, command.details)
        store_id = context.new_id("image_store")
        name = command.name or command.url or command.details.get("bucket", "") or provider.name
        taken = BadParameter(f"an image store is already named {name!r}", field="name", remedy="choose another name")
        if any(store.spec.name == name for store in directory.of_role(self.role)):
            raise taken
        context.claim(_name_claim(name, self.role), str(store_id), taken)
        if self.role == IMAGE:
            _one_provider(context, provider)
        spec = StoreSpec(id=store_id, name=name, provider=provider.name.lower(), url=command.url,
                         details={key.lower(): value for key, value in command.details.items()},
                         prefix=context.installation)
        context.count(residents(store_id), ceiling=0)
        context.emit(stream(store_id), ImageStoreRequested(
            store=spec, zone_id=zone_id, scope=provider.scope, job_id=context.job_id, role=self.role))
        placement.storage_agent(directory, spec.provider, zone_id)

    def _scope(self, context: Context, command: AddImageStore, provider: ProviderSpec) -> UUID | None:
        if provider.scope == "ZONE":
            return placement.zone(context.directory, command.zone_id)
        if command.zone_id is not None:
            raise BadParameter(f"stores of the provider {provider.name} are region-wide", field="zoneid",
                               remedy="leave it out")
        return None

    def _state(self, context: Context) -> ImageStoreState:
        state: ImageStoreState = context.state(stream(context.new_id("image_store")))
        return state

    def _test(self, context: Context, work_id: UUID, attempt: int) -> Order:
        state = self._state(context)
        agent = placement.storage_agent(context.directory, state.spec.provider, state.zone_id)
        return TestImageStore(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=agent,
                              reply_key=context.command.key(context.job_id), store=state.spec)

    def _tested(self, context: Context, result: Mapping[str, Any]) -> None:
        found = StoreTested.model_validate(result)
        store_id = context.new_id("image_store")
        context.emit(stream(store_id), ImageStoreTested(store_id=store_id, steps=found.steps, capabilities=found.capabilities))

    def finish(self, context: Context) -> dict[str, Any]:
        """The store is open for images."""
        state = self._state(context)
        context.count(residents(state.spec.id), lift=True)
        context.emit(stream(state.spec.id), ImageStoreAdded(store_id=state.spec.id))
        return result_of("imagestore", state.spec.id, tested=list(state.steps))

    def fail(self, context: Context, failure: Failure) -> None:
        """Its name is free again."""
        state = self._state(context)
        _release(context, state)
        context.emit(stream(state.spec.id), ImageStoreRejected(store_id=state.spec.id, failure=failure))


def _one_provider(context: Context, provider: ProviderSpec) -> None:
    """Hold the provider of all image stores. Raises BadParameter when theirs is another."""
    other = next((store.spec.provider for store in context.directory.of_role()
                  if store.spec.provider != provider.name.lower()), None)
    mixed = BadParameter(f"image stores here are of the provider {other or 'another'}; providers are not mixed",
                         field="provider", remedy="delete the other provider's stores first")
    if other is not None:
        raise mixed
    context.claim(PROVIDER_CLAIM, provider.name.lower(), mixed)


def _release(context: Context, state: ImageStoreState) -> None:
    context.unclaim(_name_claim(state.spec.name, state.role), str(state.spec.id), state.job_id)
    if state.role == IMAGE:
        context.unclaim(PROVIDER_CLAIM, state.spec.provider, state.job_id)


def known(context: Context, store_id: UUID, role: str = IMAGE) -> ImageStoreState:
    """The store, while images may rest on it (or be staged there). Raises BadParameter."""
    state = context.state(stream(store_id))
    if state is None or state.status != "Ready" or state.role != role:
        kind, lists = ("image", "listImageStores") if role == IMAGE else ("staging", "listSecondaryStagingStores")
        raise BadParameter(f"no {kind} store has the id {store_id}", field="id", remedy=f"{lists} shows them")
    assert isinstance(state, ImageStoreState)
    return state


class _Sync:
    """A flow without orders: one append and it is over."""

    subject, placed, cancellable = "image_store", False, False
    steps: tuple[Step, ...] = ()

    def streams(self, job_id: UUID, command: Any) -> list[str]:
        """The store."""
        return [stream(command.id)]

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: there is nothing to wait for."""


class UpdateFlow(_Sync):
    """Rename, make read-only, limit."""

    def start(self, context: Context) -> None:
        """The new name must be free."""
        command = context.command
        assert isinstance(command, UpdateImageStore)
        state = known(context, command.id)
        if command.name is None and command.read_only is None and command.capacity_bytes is None:
            raise BadParameter("nothing to change", field="name", remedy="give name, readonly or capacitybytes")
        if command.capacity_bytes is not None and not 0 <= command.capacity_bytes < 1 << 63:
            raise BadParameter("must be 0 (no limit) or a number of bytes", field="capacitybytes")
        if command.name is not None and command.name != state.spec.name:
            context.claim(_name_claim(command.name), str(command.id),
                          BadParameter(f"an image store is already named {command.name!r}", field="name"))
            context.unclaim(_name_claim(state.spec.name), str(command.id), state.job_id)
        context.emit(stream(command.id), ImageStoreUpdated(
            store_id=command.id, name=command.name, read_only=command.read_only, capacity_bytes=command.capacity_bytes))

    def finish(self, context: Context) -> dict[str, Any]:
        """The store."""
        command = context.command
        assert isinstance(command, UpdateImageStore)
        return result_of("imagestore", command.id)


SHOWN = 20
"""Residents that a refusal names."""


def _told(there: list[Resident]) -> str:
    """What resides on a store, in one line: of many, the first ones and how many more."""
    named = ", ".join(f"{each.kind.replace('_', ' ')} {each.name or '(no name)'} ({each.id})" for each in there[:SHOWN])
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    return f"{len(there)} {'thing resides' if len(there) == 1 else 'things reside'} on the image store: {named}{more}"


class DeleteFlow(_Sync):
    """Forget a store on which nothing resides."""

    surveys = True

    def start(self, context: Context) -> None:
        """Close the counter of residents: the append refuses it while it is not zero."""
        command = context.command
        assert isinstance(command, DeleteImageStore)
        state = known(context, command.id)
        there = context.survey.residents(command.id)
        if there:
            raise BadParameter(_told(there), field="id", remedy="delete them first, and wait for their jobs to end")
        context.count(residents(command.id), ceiling=0, otherwise=BadParameter(
            "links to images, or what jobs have still to remove, reside on the image store", field="id",
            remedy="wait until the links have ended and listAsyncJobs shows no job of the store"))
        _release(context, state)
        context.emit(stream(command.id), ImageStoreDeleted(store_id=command.id))

    def finish(self, context: Context) -> dict[str, Any]:
        """Success, without an object."""
        return {"success": True}


class StagingFlow(AddFlow):
    """Test a staging store, then let agents of its zone stage there."""

    role = STAGING

    def start(self, context: Context) -> None:
        """As an image store, of one zone and of a provider that can stage."""
        command = context.command
        assert isinstance(command, CreateStagingStore)
        if command.scope.upper() != "ZONE":
            raise BadParameter(f"{command.scope[:64]!r} is not ZONE: a staging store serves one zone", field="scope")
        for value, name in ((command.url, "url"), (command.zone_id, "zoneid")):
            if not value:
                raise BadParameter("missing", field=name, remedy="a staging store has a url and a zone")
        if command.provider.lower() not in STAGES:
            raise BadParameter(f"the provider {command.provider[:64]!r} cannot stage", field="provider",
                               remedy=f"it is one of {', '.join(STAGES)}")
        super().start(context)


class DeleteStagingFlow(_Sync):
    """Forget a staging store that nobody uses."""

    def start(self, context: Context) -> None:
        """Close the counter of what is staged: the append refuses it while it is not zero."""
        command = context.command
        assert isinstance(command, DeleteStagingStore)
        state = known(context, command.id, STAGING)
        context.count(residents(command.id), ceiling=0, otherwise=BadParameter(
            "the staging store is in use", field="id", remedy="wait for the jobs that stage there to end"))
        _release(context, state)
        context.emit(stream(command.id), ImageStoreDeleted(store_id=command.id))

    def finish(self, context: Context) -> dict[str, Any]:
        """Success, without an object."""
        return {"success": True}


FLOWS: dict[type[Command], Flow] = {
    AddImageStore: AddFlow(),
    CreateStagingStore: StagingFlow(),
    DeleteStagingStore: DeleteStagingFlow(),
    UpdateImageStore: UpdateFlow(),
    DeleteImageStore: DeleteFlow(),
}
"""Every command about this noun, and what it leads to."""
