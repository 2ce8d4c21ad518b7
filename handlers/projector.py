"""The projector: keeps the read tables at the head of the log. One at a time, leased.

Owns the checkpoint `projector` and the order apply-then-checkpoint: after a crash a page is applied again, and changes
overlay, so twice is once. Refuses to know columns (`projections`) and SQL (`bus.read_model`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import uuid4

from bus.errors import Conflict, LogBroken, StoreAway
from bus.event_store import Checkpoint, EventStore, LogRow, pages
from bus.read_model import Change, ReadModel
from handlers.projections import changes

log = logging.getLogger(__name__)

NAME = "projector"
TTL_S = 5.0
PAGE = 2000


class Projector:
    """Runs until it is cancelled."""

    def __init__(self, store: EventStore, model: ReadModel, *, holder: str) -> None:
        self.store, self.model, self.holder = store, model, holder
        self.position = 0

    async def run(self) -> None:
        """Follow the log while the lease is ours; wait for it otherwise. Postgres away is waited out."""
        while True:
            try:
                lease = await self.store.acquire_lease(NAME, self.holder, ttl_s=TTL_S)
                if lease is None:
                    await asyncio.sleep(1.0)
                    continue
                await self._follow(lease.fence)
            except Conflict:
                log.info("another process projects now", extra={"action": "projector_yields"})
                await asyncio.sleep(1.0)
            except StoreAway as away:
                log.warning("the projector waits for Postgres: %s", away, extra={"action": "projector_waits"})
                await asyncio.sleep(1.0)

    async def _follow(self, fence: int) -> None:
        known = await self.store.load_checkpoint(NAME)
        epoch = await self.store.epoch()
        if known is not None and known.epoch != epoch:
            raise LogBroken(f"the read tables are of epoch {known.epoch}, the log is of {epoch}",
                            remedy="storebus replay --rebuild all")
        self.position = known.position if known else 0
        renewed = asyncio.get_running_loop().time()
        while True:
            page = await self.store.read_log(self.position, limit=PAGE)
            if page.scanned_to > self.position:
                await self.model.apply(fold(page.rows))
                self.position = page.scanned_to
                last = page.rows[-1].id if page.rows else None
                await self.store.save_checkpoint(
                    NAME, Checkpoint(position=self.position, epoch=epoch, event_id=last), fence=fence)
            else:
                await self.store.wait(self.position, timeout_s=2.0)
            if asyncio.get_running_loop().time() - renewed > TTL_S / 3:
                lease = await self.store.acquire_lease(NAME, self.holder, ttl_s=TTL_S)
                if lease is None or lease.fence != fence:
                    return
                renewed = asyncio.get_running_loop().time()


def fold(rows: list[LogRow]) -> list[Change]:
    """The changes of a page, several of one row merged into one (fewer writes, the same result).

    Removals first: a row that is removed and made again starts anew.
    """
    gone: dict[tuple[str, str], None] = {}
    given: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        for table, key, columns in changes(row):
            if columns is None:
                given.pop((table, key), None)
                gone[table, key] = None
            else:
                given.setdefault((table, key), {}).update(columns)
    return [(*name, None) for name in gone] + [(*name, columns) for name, columns in given.items()]


async def rebuild(store: EventStore, model: ReadModel) -> int:
    """Empty the read tables and fold the whole log into them again. Returns the position reached.

    A running projector loses its lease to this and goes on from the new checkpoint afterwards. What it was just writing
    is newer than anything written here, and is written here again."""
    lease = await store.acquire_lease(NAME, f"rebuild-{uuid4()}", ttl_s=3600, steal=True)
    assert lease is not None
    try:
        await model.clear()
        at = 0
        async for page in pages(store, 0, limit=PAGE):
            await model.apply(fold(page.rows))
            at = page.scanned_to
        await store.save_checkpoint(NAME, Checkpoint(position=at, epoch=await store.epoch()), fence=lease.fence)
        return at
    finally:
        await store.release_lease(lease)


async def expected(store: EventStore, until: int) -> dict[str, dict[str, dict[str, Any]]]:
    """What the read tables must hold at position `until`: table -> id -> columns. For `verify`."""
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    async for page in pages(store, 0, limit=PAGE):
        for row in page.rows:
            if row.position > until:
                return tables
            for table, key, columns in changes(row):
                known = tables.setdefault(table, {})
                if columns is None:
                    known.pop(key, None)
                else:
                    known[key] = {**known.get(key, {}), **columns}
    return tables
