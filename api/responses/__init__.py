"""Responses: rows of the read tables as CloudStack's response objects, a file for each noun.

Owns the fields of each object (which listApis shows) and the words that clients parse. Refuses to ask for anything: what an
object needs from other tables is in `Names`. A new noun is one file here, with FIELDS and OBJECTS, and with TABLES where a job
may result in one.
"""

from __future__ import annotations

from api.responses import (
    event,
    identity,
    image_store,
    job,
    machine,
    network,
    offering,
    os_type,
    place,
    resource_tag,
    snapshot,
    snapshot_policy,
    system,
    template,
    volume,
)
from api.responses.shown import Names, Show, name_of, percent, provider_name, when

FIELDS: dict[str, dict[str, str]] = (
    image_store.FIELDS | template.FIELDS | volume.FIELDS | snapshot.FIELDS | job.FIELDS | system.FIELDS | identity.FIELDS
    | resource_tag.FIELDS | offering.FIELDS | place.FIELDS | machine.FIELDS | os_type.FIELDS
    | snapshot_policy.FIELDS | event.FIELDS | network.FIELDS)
"""Item key -> the fields of its objects, and their types. The tests hold the objects to it."""
OBJECTS: dict[str, Show] = (
    image_store.OBJECTS | template.OBJECTS | volume.OBJECTS | snapshot.OBJECTS | identity.OBJECTS
    | resource_tag.OBJECTS | offering.OBJECTS | place.OBJECTS | machine.OBJECTS
    | snapshot_policy.OBJECTS | event.OBJECTS)
"""Table -> how its rows are shown."""
TABLES: dict[str, str] = (
    image_store.TABLES | template.TABLES | volume.TABLES | snapshot.TABLES | identity.TABLES | offering.TABLES
    | place.TABLES | machine.TABLES | snapshot_policy.TABLES)
"""Key of an object in a job's result -> its table."""

__all__ = ["FIELDS", "OBJECTS", "TABLES", "Names", "Show", "name_of", "percent", "provider_name", "when"]
