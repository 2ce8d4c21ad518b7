"""Letting go of a lease at a clean stop, so that the next holder need not wait for it to run out."""

from __future__ import annotations

import asyncio
import logging

from bus.event_store import EventStore, Lease

log = logging.getLogger(__name__)

LET_GO_S = 1.0


async def let_go(store: EventStore, lease: Lease | None) -> None:
    """Give it back, bounded; when that fails it runs out by itself."""
    if lease is None:
        return
    try:
        async with asyncio.timeout(LET_GO_S):
            await store.release_lease(lease)
    except Exception as error:
        log.debug("the lease runs out by itself: %s", error, extra={"action": "lease_kept"})
