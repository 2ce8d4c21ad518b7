"""Tags: the fold of a thing's tags, the flows that give and take them, and how other flows tag what they make.

Owns the streams `resource_tag-<thing>`. Rules kept here: a name stands once on a thing, only what is there is tagged, and a
thing has a bounded number of tags. They end with their thing: nobody can ask for them then, and no list shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from handlers.decider import Context, Flow, IllegalTransition, Step
from schema import ids
from schema.failure import BadParameter, Failure
from schema.identity import ROOT_OWNER, Owner
from schema.message import Command, Event
from schema.resource_tag import KINDS, CreateTags, DeleteTags, ResourceTagged, ResourceUntagged

LENGTH = 255
"""Characters of a name, and of a value."""
MOST_TAGS = 50
"""Tags of one thing."""
MOST_THINGS = 100
"""Things of one command."""
GONE = frozenset({"Failed", "Error", "Destroying", "Destroyed", "Hidden", "Deleting", "Deleted", "Expunging", "Expunged"})
"""States in which a thing of whatever noun is not there for whoever would tag it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagsState:
    """The fold of what a thing was tagged with."""

    tags: Mapping[str, str] = field(default_factory=dict)
    owner: Owner = ROOT_OWNER


def evolve(state: TagsState | None, event: Event) -> TagsState:
    """The tags after `event`."""
    if isinstance(event, ResourceTagged):
        return TagsState(tags=event.tags, owner=event.owner)
    if state is not None and isinstance(event, ResourceUntagged):
        return replace(state, tags=event.tags)
    raise IllegalTransition("tagged" if state else "never tagged", event)


def stream(thing_id: UUID) -> str:
    """The stream of a thing's tags."""
    return ids.stream("resource_tag", thing_id)


def check(tags: Mapping[str, str], where: str = "tags") -> None:
    """Raises BadParameter for names and values that cannot be."""
    for name, value in tags.items():
        if not 0 < len(name) <= LENGTH or len(value) > LENGTH:
            raise BadParameter(f"a name has 1 to {LENGTH} characters, a value at most {LENGTH}", field=where)


def put(context: Context, resource_type: str, thing_id: UUID, owner: Owner, tags: Mapping[str, str]) -> None:
    """Tag a thing. A flow that makes one with tags names `stream(thing_id)` among its streams and calls this after the thing's
    first event; no tags change nothing. Raises BadParameter."""
    if not tags:
        return
    check(tags)
    state: TagsState | None = context.state(stream(thing_id))
    before = dict(state.tags) if state is not None else {}
    taken = sorted(set(tags) & set(before))
    if taken:
        raise BadParameter(f"tag {taken[0]} already on {resource_type} with id {thing_id}", field="tags",
                           remedy="deleteTags takes it away")
    if len(before) + len(tags) > MOST_TAGS:
        raise BadParameter(f"{resource_type} with id {thing_id} would have {len(before) + len(tags)} tags", field="tags",
                           remedy=f"at most {MOST_TAGS} are kept")
    context.emit(stream(thing_id), ResourceTagged(
        resource_type=resource_type, resource_id=thing_id, added=dict(tags), tags=before | dict(tags), owner=owner))


class _Now:
    """A flow without orders: one append and it is over."""

    subject, placed, cancellable = "resource_tag", False, False
    steps: tuple[Step, ...] = ()

    def streams(self, job_id: UUID, command: CreateTags | DeleteTags) -> list[str]:
        """Each thing and its tags."""
        noun = KINDS.get(command.resource_type, "")
        return [name for each in dict.fromkeys(command.resource_ids[:MOST_THINGS]) if noun
                for name in (ids.stream(noun, each), stream(each))]

    def _things(self, context: Context) -> list[tuple[UUID, Owner]]:
        """What the command names and whose it is. Raises BadParameter."""
        command = context.command
        assert isinstance(command, CreateTags | DeleteTags)
        noun = KINDS.get(command.resource_type)
        if noun is None:
            raise BadParameter(f"{command.resource_type[:64]!r} is not one of {', '.join(KINDS)}", field="resourcetype")
        if not 0 < len(command.resource_ids) <= MOST_THINGS:
            raise BadParameter(f"must name 1 to {MOST_THINGS} things", field="resourceids")
        found = []
        for each in dict.fromkeys(command.resource_ids):
            state = context.state(ids.stream(noun, each))
            if state is None or state.status in GONE:
                raise BadParameter(f"no {noun} has the id {each}", field="resourceids",
                                   remedy=f"list{noun.capitalize()}s shows them")
            found.append((each, state.owner))
        return found

    def finish(self, context: Context) -> dict[str, Any]:
        """Success, without an object."""
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: there is nothing to wait for."""


class CreateFlow(_Now):
    """Tag things: all of them or none."""

    def start(self, context: Context) -> None:
        """Every thing is there, and has no tag of these names."""
        command = context.command
        assert isinstance(command, CreateTags)
        if not command.tags:
            raise BadParameter("missing", field="tags", remedy="write tags[0].key=K&tags[0].value=V")
        for thing_id, owner in self._things(context):
            put(context, command.resource_type, thing_id, owner, command.tags)


class DeleteFlow(_Now):
    """Take tags away."""

    def start(self, context: Context) -> None:
        """At least one of the things has one of the tags."""
        command = context.command
        assert isinstance(command, DeleteTags)
        done = False
        for thing_id, _ in self._things(context):
            state: TagsState | None = context.state(stream(thing_id))
            have = dict(state.tags) if state is not None else {}
            removed = [name for name, value in have.items()
                       if not command.tags or (name in command.tags and command.tags[name] in ("", value))]
            if removed:
                done = True
                context.emit(stream(thing_id), ResourceUntagged(
                    resource_type=command.resource_type, resource_id=thing_id, removed=removed,
                    tags={name: value for name, value in have.items() if name not in removed}))
        if not done:
            raise BadParameter("Unable to find any tags which conform to specified delete parameters", field="tags",
                               remedy="listTags shows them")


FLOWS: dict[type[Command], Flow] = {CreateTags: CreateFlow(), DeleteTags: DeleteFlow()}
"""Every command about this noun, and what it leads to."""

__all__ = ["FLOWS", "TagsState", "check", "evolve", "put", "stream"]
