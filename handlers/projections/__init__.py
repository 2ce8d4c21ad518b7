"""Projections: the read tables as a pure fold of the log. A file for each noun, no I/O.

Owns which column an event changes. Refuses to know SQL: a change is (table, id, columns). The projector writes them, a
rebuild starts from nothing, and `verify` folds them in memory and compares. A new noun is one file here: TABLES and its fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bus.event_store import LogRow
from handlers.projections import (
    backup_provider,
    identity,
    image_store,
    job,
    machine,
    offering,
    place,
    primary_store,
    resource_tag,
    snapshot,
    snapshot_policy,
    template,
    volume,
    volume_copy,
)
from handlers.projections.columns import Change, owned
from schema.codec import UnknownType, decode

TABLES = (
    *place.TABLES,
    *primary_store.TABLES,
    *image_store.TABLES,
    *template.TABLES,
    *volume.TABLES,
    *volume_copy.TABLES,
    *snapshot.TABLES,
    *job.TABLES,
    *identity.TABLES,
    *offering.TABLES,
    *machine.TABLES,
    *backup_provider.TABLES,
    *snapshot_policy.TABLES,
)
FOLDS: Mapping[str, Callable[[Any, str], Iterator[Change]]] = {
    "job": job.fold,
    "volume": volume.fold,
    "volume_copy": volume_copy.fold,
    "snapshot": snapshot.fold,
    "template": template.fold,
    "image_store": image_store.fold,
    "resource_tag": resource_tag.fold,
    "disk_offering": offering.fold,
    "primary_store": primary_store.fold,
    "machine": machine.fold,
    "backup_provider": backup_provider.fold,
    "snapshot_policy": snapshot_policy.fold,
} | identity.FOLDS
"""Noun -> what (event, time) changes."""


def changes(row: LogRow) -> Iterator[Change]:
    """What a log row changes in the read tables. A type from the future changes nothing: a reader skips it."""
    if row.kind == "order":
        return
    try:
        event = decode(row.type, row.type_version, row.payload)
    except UnknownType:
        return
    at = row.recorded_at.isoformat()
    noun = row.type.split(".", 1)[0]
    yield from FOLDS.get(noun, place.fold)(event, at)


__all__ = ["FOLDS", "TABLES", "Change", "changes", "owned"]
