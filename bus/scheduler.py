"""The scheduler: timers whose time has come become messages in their key's partition, again until they are cleared.

Leased; the clock is the database's. With a transport that does not outlive the process every timer is delivered once at
the start: that is how everything that was in flight is asked about.
"""

from __future__ import annotations

import asyncio
import logging
from uuid import uuid5

from bus.envelope import Envelope
from bus.errors import BrokerAway, PublishUnknown, StoreAway
from bus.event_store import DueTimer, EventStore
from bus.failpoints import hit
from bus.transport import Transport, WireMessage, work
from schema.ids import NAMESPACE, partition

log = logging.getLogger(__name__)

NAME = "scheduler"
TTL_S = 10.0
TICK_S = 0.25
AGAIN_S = 10.0
BATCH = 200


class Scheduler:
    """Runs until it is cancelled."""

    def __init__(self, store: EventStore, transport: Transport, *, holder: str) -> None:
        self.store, self.transport, self.holder = store, transport, holder
        self._first = not transport.durable

    async def run(self) -> None:
        """Deliver due timers while the lease is ours."""
        while True:
            try:
                lease = await self.store.acquire_lease(NAME, self.holder, ttl_s=TTL_S)
                if lease is not None:
                    await self._turn()
            except (BrokerAway, PublishUnknown, StoreAway) as away:
                log.warning("timers wait: %s", away, extra={"action": "scheduler_waits"})
                await asyncio.sleep(1.0)
            await asyncio.sleep(TICK_S)

    async def _turn(self) -> None:
        limit = 100_000 if self._first else BATCH
        due = await self.store.due_timers(limit=limit, again_s=AGAIN_S, all_now=self._first)
        self._first = False
        for timer in due:
            await self._deliver(timer)
            hit("scheduler.after_publish")

    async def _deliver(self, timer: DueTimer) -> None:
        envelope = Envelope(id=uuid5(NAMESPACE, f"{timer.id}/{timer.due_at.isoformat()}"), type=timer.type, kind="timer",
                            body=timer.payload, key=timer.key)
        await self.transport.publish(work(partition(timer.key)), WireMessage(
            headers=envelope.headers(), body=envelope.body))
