"""The scheduler: timers whose time has come become messages in their key's partition, again until they are cleared.

Leased; the clock is the database's. With a transport that does not outlive the process every timer is delivered once at
the start: that is how everything that was in flight is asked about. Refuses to know what a timer is for.
"""

from __future__ import annotations

import asyncio
import logging
from uuid import uuid5

from bus.envelope import Envelope
from bus.errors import BrokerAway, Conflict, PublishUnknown, StoreAway, Unroutable
from bus.event_store import DueTimer, EventStore, Lease
from bus.failpoints import hit
from bus.lease import let_go
from bus.transport import Transport, WireMessage, work
from schema.ids import NAMESPACE, partition

log = logging.getLogger(__name__)

NAME = "scheduler"
TTL_S = 5.0
TICK_S = 0.25
AGAIN_S = 10.0
BATCH = 200
FIRST_BATCH = 100_000
TOGETHER = 64
"""Timers published at a time."""


class Scheduler:
    """Runs until it is cancelled, then lets go of its lease."""

    def __init__(self, store: EventStore, transport: Transport, *, holder: str) -> None:
        self.store, self.transport, self.holder = store, transport, holder
        self._first = not transport.durable
        self.leads = False
        """Whether this one has the lease."""

    async def run(self) -> None:
        """Deliver due timers while the lease is ours. Broker or database away is waited out."""
        lease: Lease | None = None
        try:
            while True:
                try:
                    lease = await self.store.acquire_lease(NAME, self.holder, ttl_s=TTL_S)
                    self.leads = lease is not None
                    if lease is None:
                        await asyncio.sleep(1.0)
                    elif await self._turn() >= BATCH:
                        continue
                except (BrokerAway, PublishUnknown, StoreAway, Conflict) as away:
                    log.warning("timers wait: %s", away, extra={"action": "scheduler_waits"})
                    await asyncio.sleep(1.0)
                await asyncio.sleep(TICK_S)
        finally:
            self.leads = False
            await let_go(self.store, lease)

    async def _turn(self) -> int:
        """Deliver what is due; how many. One that is not delivered comes again after AGAIN_S."""
        limit = FIRST_BATCH if self._first else BATCH
        due = await self.store.due_timers(limit=limit, again_s=AGAIN_S, all_now=self._first)
        self._first = False
        for start in range(0, len(due), TOGETHER):
            ends = await asyncio.gather(*(self._deliver(timer) for timer in due[start:start + TOGETHER]),
                                        return_exceptions=True)
            for end in ends:
                if isinstance(end, BaseException):
                    raise end
        return len(due)

    async def _deliver(self, timer: DueTimer) -> None:
        envelope = Envelope(id=uuid5(NAMESPACE, f"{timer.id}/{timer.due_at.isoformat()}"), type=timer.type, kind="timer",
                            body=timer.payload, key=timer.key)
        try:
            await self.transport.publish(work(partition(timer.key)), WireMessage(
                headers=envelope.headers(), body=envelope.body))
        except Unroutable as nobody:
            log.error("the timer %s cannot be delivered: %s", timer.id, nobody, extra={"action": "unroutable"})
        hit("scheduler.after_publish")
