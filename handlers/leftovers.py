"""Leftovers: the flow that removes what a failed attempt could not, because its image store was away.

Rules kept here: nothing is removed that a thing owns by now, whatever the command says; the store cannot be forgotten before it
has confirmed; there is no end but that.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from handlers import image_store, template
from handlers.copies import copy_of
from handlers.decider import Context, Flow, Step
from handlers.image_store import ImageStoreState
from schema.failure import BadParameter, Failure, Unavailable
from schema.image_store import RemoveLeftovers
from schema.message import Command, Order
from schema.scrub import owner_of

MOST = 100
"""Objects of one command."""


class RemoveLeftoversFlow:
    """Delete objects and unfinished uploads that are nobody's."""

    subject, placed, cancellable = "image_store", True, False

    def __init__(self) -> None:
        self.steps = (Step(name="delete", order=self._delete, attempts=100_000),)

    def streams(self, job_id: UUID, command: RemoveLeftovers) -> list[str]:
        """The store, and the things for which the objects were written."""
        owners = (owner_of(one) for one in command.objects)
        return [image_store.stream(command.id), *sorted({f"{owner[0]}-{owner[1]}" for owner in owners if owner is not None})]

    def _command(self, context: Context) -> RemoveLeftovers:
        assert isinstance(context.command, RemoveLeftovers)
        return context.command

    def start(self, context: Context) -> None:
        """Objects of things that are known, in a store that is kept until they are gone."""
        command = self._command(context)
        image_store.known(context, command.id)
        if not 1 <= len(command.objects) <= MOST:
            raise BadParameter(f"must name 1 to {MOST}", field="objects")
        for one in command.objects:
            owner = owner_of(one)
            if owner is None or context.state(f"{owner[0]}-{owner[1]}") is None:
                raise BadParameter(f"{one[:200]!r} was not written for a template or a snapshot", field="objects")
        context.count(image_store.residents(command.id), +1, otherwise=Unavailable(
            "the image store is being deleted", field="id", remedy="try again"))

    def _delete(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        command = self._command(context)
        store: ImageStoreState = context.state(image_store.stream(command.id))
        keys = [one for one in command.objects if not _owned(context, one)]
        if not keys:
            return None
        return template.delete_order(context, work_id, attempt, store.spec, store.zone_id, keys)

    def finish(self, context: Context) -> dict[str, Any]:
        """The store confirmed."""
        context.count(image_store.residents(self._command(context).id), -1)
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """It is listed as failed; the store stays, as something may rest on it."""


def _owned(context: Context, key: str) -> bool:
    owner = owner_of(key)
    state = context.state(f"{owner[0]}-{owner[1]}") if owner is not None else None
    replaced = getattr(state, "replaced", None)  # by a merge: its readers may not have ended
    return state is None or copy_of(state, key) is not None or (replaced is not None and replaced.key == key)


FLOWS: dict[type[Command], Flow] = {RemoveLeftovers: RemoveLeftoversFlow()}
"""Every command about this noun, and what it leads to."""
