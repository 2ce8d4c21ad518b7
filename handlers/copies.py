"""Copies: which object in a store is a thing's, whatever thing it is.

A thing of one copy has `image` and `damage`; one of several has `copies` by store. Refuses to know more of either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schema.failure import Damage
from schema.image import ImageRef


@dataclass(frozen=True, slots=True)
class Resting:
    """An object of a thing."""

    image: ImageRef
    damage: Damage | None
    leaving: bool = False
    """It is being deleted."""


def copy_of(state: Any, key: str) -> Resting | None:
    """The copy of a thing (None: there is none) whose object has this key."""
    each: Any
    for each in (getattr(state, "copies", None) or {}).values():
        if each.image is not None and each.image.key == key:
            return Resting(each.image, each.damage, each.status == "Destroying")
    image = getattr(state, "image", None)
    return Resting(image, getattr(state, "damage", None)) if image is not None and image.key == key else None


__all__ = ["Resting", "copy_of"]
