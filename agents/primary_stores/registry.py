"""Which primary stores there are: by the names in their specifications. Refuses to know what is inside a disk."""

from __future__ import annotations

from collections.abc import Callable

from agents.primary_stores.base import PrimaryStore
from agents.primary_stores.block import BlockPrimaryStore
from agents.primary_stores.folder import FolderPrimaryStore
from schema.failure import Refused
from schema.image import PrimarySpec

PRIMARY_STORES: dict[str, Callable[[str], PrimaryStore]] = {"folder": FolderPrimaryStore, "block": BlockPrimaryStore}


def primary(spec: PrimarySpec) -> PrimaryStore:
    """The primary store of this specification. Raises Refused."""
    kind = PRIMARY_STORES.get(spec.kind)
    if kind is None:
        raise Refused(f"no primary store plug-in is called {spec.kind}", field="primary",
                      remedy=f"here are: {', '.join(sorted(PRIMARY_STORES))}")
    return kind(spec.path)
