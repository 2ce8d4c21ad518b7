"""Names of things. Owns how ids are derived; refuses to make random ones, so that a retry makes the same."""

from __future__ import annotations

import zlib
from uuid import NAMESPACE_URL, UUID, uuid5

PARTITIONS = 16
"""How many partition queues there are; stored in the database when it is initialised and fixed from then on."""

NAMESPACE = uuid5(NAMESPACE_URL, "storebus")


def derive(parent: UUID, role: str) -> UUID:
    """The id of the thing that plays `role` in `parent` (a job, a zone): the same each time it is asked for."""
    return uuid5(parent, role)


def zone_named(name: str) -> UUID:
    """The id of a zone that comes from configuration: agents elsewhere derive the same from its name."""
    return uuid5(NAMESPACE, f"zone/{name}")


def host_named(agent: str) -> UUID:
    """The id that lists show for the host of an agent."""
    return uuid5(NAMESPACE, f"host/{agent}")


def stream(noun: str, thing: UUID | str) -> str:
    """The stream of one thing, `<noun>-<id>`, which is also its partition key."""
    return f"{noun}-{thing}"


def partition(key: str, partitions: int = PARTITIONS) -> int:
    """crc32(key) mod P: which partition queue takes the messages of `key`."""
    return zlib.crc32(key.encode()) % partitions
