"""The relay: the log is the outbox. What is committed goes onto the transport, in order, at least once.

Two lanes with a lease and a checkpoint each: `work` (commands to partitions, orders to agents) and `events` (to the public
exchange), so that a slow subscriber never delays an order. Owns the rule restart-from-the-lowest-unconfirmed. A relay
that was paused past its lease may publish again what another has published: harmless, ids make repeats harmless.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from typing import Literal

from bus.envelope import Envelope
from bus.errors import BrokerAway, Conflict, LogBroken, PublishUnknown, StoreAway, Unroutable
from bus.event_store import Checkpoint, EventStore, LogFilter, LogRow
from bus.failpoints import hit
from bus.transport import Address, Transport, WireMessage, agent, events, work
from schema.ids import partition

log = logging.getLogger(__name__)

Lane = Literal["work", "events"]
KINDS: dict[Lane, frozenset[str]] = {"work": frozenset({"command", "order"}), "events": frozenset({"event"})}
WINDOW = 512
"""Publishes without a confirm."""
SAVE_S = 0.2
TTL_S = 10.0
PAGE = 1000


def envelope_of(row: LogRow, *, replay: bool = False) -> Envelope:
    """A log row as it travels."""
    meta = json.loads(row.meta)
    return Envelope(
        id=row.id, type=row.type, version=row.type_version, kind=row.kind, body=row.payload, key=row.key,
        stream=row.stream, stream_version=row.version, position=row.position, time=row.recorded_at.isoformat(),
        correlation=row.correlation, causation=row.causation, tenant=row.tenant,
        principal=meta.get("principal", "system"), traceparent=meta.get("traceparent", ""), replay=replay)


def address_of(row: LogRow) -> Address:
    """Where a log row goes."""
    if row.kind == "command":
        return work(partition(row.key))
    if row.kind == "order":
        return agent(row.address)
    return events(f"{row.type}.{row.tenant}")


class Relay:
    """One lane. Runs until it is cancelled."""

    def __init__(self, store: EventStore, transport: Transport, lane: Lane, *, holder: str) -> None:
        self.store, self.transport, self.lane, self.holder = store, transport, lane, holder
        self.name = f"relay-{lane}"
        self.position = 0
        """Highest position below which everything is confirmed."""

    async def run(self) -> None:
        """Follow the log while the lease is ours. Broker or database away is waited out, with a pause that grows."""
        pause = 0.1
        while True:
            try:
                lease = await self.store.acquire_lease(self.name, self.holder, ttl_s=TTL_S)
                if lease is None:
                    await asyncio.sleep(1.0)
                    continue
                before = self.position
                await self._follow(lease.fence)
            except (BrokerAway, PublishUnknown, StoreAway, Conflict) as away:
                log.warning("relay %s starts again: %s", self.lane, away, extra={"action": "relay_restarts"})
                pause = 0.1 if self.position > before else min(pause * 2, 5.0)
                await asyncio.sleep(pause)

    async def _follow(self, fence: int) -> None:
        epoch = await self.store.epoch()
        known = await self.store.load_checkpoint(self.name)
        if known is not None and known.epoch != epoch:
            raise LogBroken(f"the relay's checkpoint is of epoch {known.epoch}, the log is of {epoch}")
        self.position = read = known.position if known else 0
        saved, renewed = self.position, asyncio.get_running_loop().time()
        flying: deque[tuple[int, asyncio.Task[None]]] = deque()
        last_save = renewed
        try:
            while True:
                page = await self.store.read_log(read, filter=LogFilter(kinds=KINDS[self.lane]), limit=PAGE)
                for row in page.rows:
                    hit("relay.before_publish")
                    flying.append((row.position, asyncio.create_task(self._publish(row))))
                    hit("relay.after_publish")
                    while len(flying) >= WINDOW:
                        await self._confirmed(flying)
                moved = page.scanned_to > read
                read = page.scanned_to
                while flying:
                    await self._confirmed(flying)
                self.position = read
                now = asyncio.get_running_loop().time()
                if self.position > saved and (now - last_save > SAVE_S or not moved):
                    hit("relay.before_checkpoint")
                    await self.store.save_checkpoint(
                        self.name, Checkpoint(position=self.position, epoch=epoch), fence=fence)
                    saved, last_save = self.position, now
                if not moved:
                    await self.store.wait(read, timeout_s=SAVE_S if self.position > saved else 2.0)
                if now - renewed > TTL_S / 3:
                    lease = await self.store.acquire_lease(self.name, self.holder, ttl_s=TTL_S)
                    if lease is None or lease.fence != fence:
                        return
                    renewed = now
        finally:
            for _, task in flying:
                task.cancel()
            await asyncio.gather(*(task for _, task in flying), return_exceptions=True)

    async def _confirmed(self, flying: deque[tuple[int, asyncio.Task[None]]]) -> None:
        """The oldest publish is confirmed; everything up to it is then safe."""
        position, task = flying[0]
        await task
        hit("relay.after_confirm")
        flying.popleft()
        self.position = position

    async def _publish(self, row: LogRow) -> None:
        envelope = envelope_of(row)
        try:
            await self.transport.publish(address_of(row), WireMessage(headers=envelope.headers(), body=envelope.body))
        except Unroutable:
            # An agent that has never connected has no queue yet; the job's timer sends the order again.
            log.warning("nobody takes %s for %s", row.type, row.address, extra={"action": "unroutable"})
