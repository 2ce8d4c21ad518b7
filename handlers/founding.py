"""Founding: ROOT, its admin's account, its admin and the first disk offerings, written once in the life of an installation.

Owns those first facts. Refuses to give the admin keys: whoever has the vault does. Rule: each stream is written only while it
does not exist, so any number of processes may start at once.
"""

from __future__ import annotations

from bus.errors import Conflict
from bus.event_store import NO_STREAM, AppendRequest, NewRow
from handlers.identity import ROOT_FACTS, ROOT_USER_FACT
from handlers.offering import FOUNDED
from handlers.runtime import Runtime
from schema.codec import encode
from schema.identity import ROOT_USER
from schema.ids import NAMESPACE, derive, stream


async def found(runtime: Runtime) -> None:
    """Write what is not there yet. Raises StoreAway."""
    for name, fact in (*ROOT_FACTS, (stream("user", ROOT_USER), ROOT_USER_FACT), *FOUNDED):
        if (await runtime.store.read_stream(name, limit=1)):
            continue
        row_id = derive(NAMESPACE, f"{runtime.installation}/{name}/0")
        try:
            await runtime.store.append(AppendRequest(expected={name: NO_STREAM}, rows=[NewRow(
                stream=name, kind="event", type=fact.TYPE, type_version=fact.VERSION, id=row_id, payload=encode(fact), key=name,
                correlation=row_id)]))
        except Conflict:
            continue  # another process was first


__all__ = ["found"]
