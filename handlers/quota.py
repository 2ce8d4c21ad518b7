"""Quota: how much an account holds, as counters that change in the append that makes or ends a thing.

Owns the counters `limit/<account>/<resource>` and what each thing weighs. A weight is a function of the thing's state alone,
and an event counts what it changes of it: so whatever flow makes or ends a thing, the counter is the sum of what lives. Refuses
to know the limits: they are the counters' ceilings, and the append refuses what passes them. ROOT's own admin is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from schema.failure import Refused
from schema.identity import ROOT_OWNER, Owner
from schema.image import UNPLACED

RESOURCES = ("volume", "snapshot", "template", "primary_storage", "secondary_storage")
"""What is limited; the last two in bytes."""


class LimitReached(Refused):
    """The account holds as much as it may."""

    code = 535
    cscode = 4370


def counter(account_id: UUID, resource: str) -> str:
    """The counter of what an account holds."""
    return f"limit/{account_id}/{resource}"


def reached(owner: Owner, resource: str) -> LimitReached:
    """The refusal when the ceiling is passed."""
    return LimitReached(f"the account {owner.account} has reached its limit of {resource.replace('_', ' ')}",
                        remedy="delete something, or ask an admin for a higher limit")


def weights(noun: str, state: Any) -> dict[str, int]:
    """What a thing weighs in this state: resource -> number. A state that is not named here weighs."""
    if state is None:
        return {}
    match noun:
        case "volume":
            kept = {"secondary_storage": state.counted}
            if state.status in ("Failed", "Expunged") or (
                    state.status == "Expunging" and state.disk is None and state.image is None):
                return kept
            size = max(state.size, *state.resizing) if state.resizing else state.size
            return kept | {"volume": 1, "primary_storage": 0 if state.primary == UNPLACED else size}
        case "snapshot":
            there = state.status not in ("Error", "Destroying", "Destroyed", "Hidden")
            gone = state.status == "Destroyed" or state.absorbed
            copies = sum(copy.counted for copy in state.places.copies.values())
            return {"snapshot": int(there), "secondary_storage": copies + (0 if gone else state.counted)}
        case "template":
            there = state.status not in ("Failed", "Deleting", "Deleted")
            gone = state.status in ("Failed", "Deleted") or (state.status == "Deleting" and state.image is None)
            return {"template": int(there), "secondary_storage": 0 if gone else state.counted}
        case "volume_copy":
            return {"secondary_storage": state.counted}
        case _:
            return {}


def changes(noun: str, before: Any, after: Any) -> Iterator[tuple[str, int, Owner]]:
    """(resource, difference, owner) that an event makes."""
    owner: Owner | None = getattr(after, "owner", None)
    if noun not in ("volume", "snapshot", "template", "volume_copy") or owner is None or owner == ROOT_OWNER:
        return
    then, now = weights(noun, before), weights(noun, after)
    for resource in RESOURCES:
        if delta := now.get(resource, 0) - then.get(resource, 0):
            yield resource, delta, owner


__all__ = ["RESOURCES", "LimitReached", "changes", "counter", "reached", "weights"]
