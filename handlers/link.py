"""Links: made by an agent, ended by a command or by their time.

Rules kept here: only the copy that a thing owns and that is not quarantined is linked to; the store cannot be forgotten while
something of a link is in it; a link's end comes by a timer beside the log, so nothing of it stays whoever dies meanwhile; the URL
is sealed by the agent and never opened here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from bus.event_store import Timer
from handlers import image_store, placement, template
from handlers.copies import copy_of
from handlers.decider import Context, Flow, IllegalTransition, Step
from schema.agent import LinkMade, MakeLink, RevokeLink
from schema.codec import canonical
from schema.failure import BadParameter, Failure, Unavailable
from schema.ids import derive
from schema.image import StoreSpec
from schema.link import EndLink, LinkAsked, LinkEnded, LinkGiven, LinkNotGiven, OpenLink
from schema.message import Command, Event, Order
from schema.scrub import KINDS, owner_of
from schema.volume_copy import DropVolumeCopy

TIMER = "timer.link"
LONGEST_S = 7 * 86400
HELD = ("Ready", "BackedUp")
"""States of a template and of a snapshot in which their copy is whole and theirs."""
MARGIN_S = 3600
"""Seconds after its end at which what is left of a link is removed: a download that began in time comes to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """The fold of a link's events."""

    status: str
    """Asked, Given, NotGiven, Ended"""
    store_id: UUID
    object_key: str
    lifetime_s: int
    revocable: bool = True
    name: str = ""


def evolve(state: LinkState | None, event: Event) -> LinkState:
    """The link after `event`."""
    match event:
        case LinkAsked() if state is None:
            return LinkState(status="Asked", store_id=event.store_id, object_key=event.object_key,
                             lifetime_s=event.lifetime_s, revocable=event.revocable)
        case LinkGiven() if state is not None and state.status == "Asked":
            return replace(state, status="Given", name=event.name)
        case LinkNotGiven() if state is not None and state.status in ("Asked", "Given"):
            return replace(state, status="NotGiven")
        case LinkEnded() if state is not None and state.status == "Given":
            return replace(state, status="Ended")
    raise IllegalTransition(state.status if state else "absent", event)


def stream(link_id: UUID) -> str:
    """The stream of a link."""
    return f"link-{link_id}"


def timer_id(link_id: UUID) -> str:
    """The timer of a link's end."""
    return f"link-{link_id}/due"


def due_timer(link_id: UUID, after_s: float) -> Timer:
    """The timer that removes what is left of a link."""
    return Timer(id=timer_id(link_id), after_s=after_s, key=f"link-{link_id}", type=TIMER,
                 payload=canonical({"link_id": str(link_id)}))


def _revoke(context: Context, state: LinkState, work_id: UUID, attempt: int) -> Order | None:
    if not state.name:
        return None
    store = template.known_store(context, state.store_id)
    return RevokeLink(
        job_id=context.job_id, work_id=work_id, attempt=attempt, reply_key=context.command.key(context.job_id),
        agent=placement.storage_agent(context.directory, store.spec.provider, store.zone_id), store=store.spec,
        link_id=state.name)


def able(context: Context, store: StoreSpec, zone_id: UUID | None, *, lifetime_s: int,
         fields: tuple[str, str] = ("id", "lifetime")) -> None:
    """A lifetime within bounds, a provider that can, a vault that will read the answer. `fields`: what the caller calls the store
    and the lifetime. Raises BadParameter and Unavailable."""
    if not 1 <= lifetime_s <= LONGEST_S:
        raise BadParameter(f"{lifetime_s} s is no lifetime of a link", field=fields[1], remedy=f"give 1 to {LONGEST_S} s")
    agent = placement.storage_agent(context.directory, store.provider, zone_id)
    if not any(spec.name == store.provider and "presigned_get" in spec.capabilities
               for spec in context.directory.agents[agent].providers):
        raise BadParameter(f"the image store {store.name} gives no links: its provider {store.provider} lacks "
                           "presigned_get", field=fields[0], remedy="copy the image to a store that has it, as s3 or swift")
    if not context.vault_key:
        raise Unavailable("no vault is here that could read the link's URL", field="vault_key",
                          remedy="start the handlers with the vault's key")


def want(context: Context, link_id: UUID, store: StoreSpec, object_key: str, *, lifetime_s: int, revocable: bool,
         field: str = "id") -> None:
    """Decide that a link is wanted to an object of a store that is `able`."""
    context.count(image_store.residents(store.id), +1, otherwise=Unavailable(
        "the image store is being deleted", field=field, remedy="try again"))
    context.emit(stream(link_id), LinkAsked(link_id=link_id, store_id=store.id, object_key=object_key, lifetime_s=lifetime_s,
                                            revocable=revocable, job_id=context.job_id))


def ask(context: Context, link_id: UUID, store: StoreSpec, zone_id: UUID | None, object_key: str, *, lifetime_s: int,
        revocable: bool = True, fields: tuple[str, str] = ("id", "lifetime")) -> None:
    """Both: `able`, and then `want`."""
    able(context, store, zone_id, lifetime_s=lifetime_s, fields=fields)
    want(context, link_id, store, object_key, lifetime_s=lifetime_s, revocable=revocable, field=fields[0])


def make(context: Context, link_id: UUID, work_id: UUID, attempt: int) -> Order:
    """The order that makes a link that was asked for."""
    state: LinkState = context.state(stream(link_id))
    store = template.known_store(context, state.store_id)
    return MakeLink(
        job_id=context.job_id, work_id=work_id, attempt=attempt, reply_key=context.command.key(context.job_id),
        agent=placement.storage_agent(context.directory, store.spec.provider, store.zone_id), store=store.spec,
        key=state.object_key, lifetime_s=state.lifetime_s, revocable=state.revocable, seal_to=context.vault_key)


def made(context: Context, link_id: UUID, result: Mapping[str, Any]) -> None:
    """It is there, and its end is set."""
    answer = LinkMade.model_validate(result)
    state: LinkState = context.state(stream(link_id))
    context.emit(stream(link_id), LinkGiven(
        link_id=link_id, name=answer.link_id, expires_at=answer.expires_at, sealed_url=answer.sealed_url, work_id=answer.work_id))
    context.out.timers.append(due_timer(link_id, state.lifetime_s + MARGIN_S))


def unmake(context: Context, link_id: UUID, work_id: UUID, attempt: int) -> Order | None:
    """The order that takes a link back."""
    return _revoke(context, context.state(stream(link_id)), work_id, attempt)


def not_given(context: Context, link_id: UUID, failure: Failure) -> None:
    """Nothing of it remains but, where the agent died, what the store's next sweep removes."""
    context.count(image_store.residents(context.state(stream(link_id)).store_id), -1)
    context.out.clear_timers.append(timer_id(link_id))
    context.emit(stream(link_id), LinkNotGiven(link_id=link_id, failure=failure))


class OpenLinkFlow:
    """Have it made."""

    subject, placed, cancellable = "link", True, True

    def __init__(self) -> None:
        self.steps = (Step(name="link", order=self._make, done=self._made, undo=self._unmake),)

    def streams(self, job_id: UUID, command: OpenLink) -> list[str]:
        """The link, its store and the thing."""
        owner = owner_of(command.object_key)
        return [stream(self._id(job_id)), image_store.stream(command.store_id),
                *([f"{owner[0]}-{owner[1]}"] if owner is not None else [])]

    @staticmethod
    def _id(job_id: UUID) -> UUID:
        return job_id  # a job makes one link, and whoever asked for it knows this id already

    def start(self, context: Context) -> None:
        """A thing's own copy, a lifetime within bounds, a store whose provider can, a vault that will read the answer."""
        command = context.command
        assert isinstance(command, OpenLink)
        store = image_store.known(context, command.store_id)
        owner = owner_of(command.object_key)
        state = context.state(f"{owner[0]}-{owner[1]}") if owner is not None and owner[0] in KINDS else None
        copy = copy_of(state, command.object_key)
        if owner is None or copy is None or state is None or state.status not in HELD or copy.image.store_id != command.store_id:
            raise BadParameter(f"{command.object_key[:200]!r} is nobody's copy in this store", field="object_key",
                               remedy="name the copy of a template that is ready, or of a snapshot that is backed up")
        if copy.image.parent:
            raise BadParameter("this copy is a delta, and no image by itself", field="object_key",
                               remedy="make a volume of the snapshot, and link to a full backup of that")
        if copy.damage is not None:
            raise template.quarantine_refused(context, owner[0], command.store_id, copy.damage)
        ask(context, self._id(context.job_id), store.spec, store.zone_id, command.object_key, lifetime_s=command.lifetime_s,
            revocable=command.revocable, fields=("store_id", "lifetime_s"))

    def _make(self, context: Context, work_id: UUID, attempt: int) -> Order:
        return make(context, self._id(context.job_id), work_id, attempt)

    def _made(self, context: Context, result: Mapping[str, Any]) -> None:
        made(context, self._id(context.job_id), result)

    def _unmake(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        return unmake(context, self._id(context.job_id), work_id, attempt)

    def finish(self, context: Context) -> dict[str, Any]:
        """The id by which it is ended; the URL is read from its event by whoever has the vault."""
        return {"success": True, "link_id": str(self._id(context.job_id))}

    def fail(self, context: Context, failure: Failure) -> None:
        """Nothing of it remains but, where the agent died, what the store's next sweep removes."""
        not_given(context, self._id(context.job_id), failure)


class EndLinkFlow:
    """Have its name in the store removed."""

    subject, placed, cancellable = "link", True, False

    def __init__(self) -> None:
        self.steps = (Step(name="revoke", order=self._order, attempts=100_000),)

    def streams(self, job_id: UUID, command: EndLink) -> list[str]:
        """The link."""
        return [stream(command.id)]

    def _state(self, context: Context) -> LinkState | None:
        assert isinstance(context.command, EndLink)
        state: LinkState | None = context.state(stream(context.command.id))
        return state

    def start(self, context: Context) -> None:
        """A link that was given. One that has ended is fine."""
        state = self._state(context)
        if state is None or state.status == "Asked":
            raise BadParameter("no link has this id" if state is None else "the link is not made yet", field="id",
                               remedy="give the id of the job that made it" if state is None else "cancel the job that makes it")

    def _order(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state = self._state(context)
        return _revoke(context, state, work_id, attempt) if state is not None and state.status == "Given" else None

    def finish(self, context: Context) -> dict[str, Any]:
        """The store confirmed; of two that ended it, one says so."""
        state, command = self._state(context), context.command
        assert isinstance(command, EndLink)
        if state is not None and state.status == "Given":
            context.count(image_store.residents(state.store_id), -1)
            context.out.clear_timers.append(timer_id(command.id))
            context.emit(stream(command.id), LinkEnded(link_id=command.id))
            owner = owner_of(state.object_key)
            if owner is not None and owner[0] == "volume_copy":  # it was there for this link alone
                context.out.submissions.append((derive(command.id, "drop-copy"), DropVolumeCopy(id=owner[1])))
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """It is listed as failed; its name in the store says until when it may be there, and a sweep goes by that."""


FLOWS: dict[type[Command], Flow] = {OpenLink: OpenLinkFlow(), EndLink: EndLinkFlow()}
"""Every command about this noun, and what it leads to."""
