"""The relay: the log is the outbox. What is committed goes onto the transport, in order, at least once.

Two lanes with a lease and a checkpoint each: `work` (commands to partitions, orders to agents) and `events` (to the public
exchange), so that a slow subscriber never delays an order. Owns the rule restart-from-the-lowest-unconfirmed: the checkpoint
never passes a row without a confirm. A relay that was paused past its lease may publish again what another has published:
harmless, ids make repeats harmless. Refuses to look into a payload.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from bus.collector import collect_seldom
from bus.envelope import Envelope
from bus.errors import AppendUnknown, BrokerAway, Conflict, LogBroken, PublishUnknown, StoreAway, Unroutable
from bus.event_store import Checkpoint, EventStore, Lease, LogFilter, LogRow
from bus.failpoints import hit
from bus.lease import let_go
from bus.transport import Address, Transport, WireMessage, agent, events, work
from schema.ids import partition

log = logging.getLogger(__name__)

Lane = Literal["work", "events", "facts"]
KINDS: dict[Lane, frozenset[str]] = {"work": frozenset({"command", "order"}), "events": frozenset({"event"}),
                                     "facts": frozenset({"event", "command"})}
WINDOW = 512
"""Publishes without a confirm."""
SAVE_S = 0.2
TTL_S = 5.0
PAGE = 1000
POLL_S = 2.0
MAX_PAUSE_S = 5.0
LAST_S = 1.0


def envelope_of(row: LogRow, *, replay: bool = False) -> Envelope:
    """A log row as it travels."""
    meta = _meta(row.meta)
    return Envelope(
        id=row.id, type=row.type, version=row.type_version, kind=row.kind, body=row.payload, key=row.key,
        stream=row.stream, stream_version=row.version, position=row.position, time=row.recorded_at.isoformat(),
        correlation=row.correlation, causation=row.causation, tenant=row.tenant,
        principal=meta.get("principal", "system"), traceparent=meta.get("traceparent", ""), replay=replay)


@lru_cache(maxsize=1024)
def _meta(raw: bytes) -> Mapping[str, str]:
    """The rows of one append share it."""
    known: dict[str, str] = json.loads(raw)
    return known


def address_of(row: LogRow) -> Address:
    """Where a log row goes."""
    if row.kind == "command":
        return work(partition(row.key))
    if row.kind == "order":
        return agent(row.address)
    return events(f"{row.type}.{row.tenant}")


class Relay:
    """One lane. Runs until it is cancelled, then lets go of its lease."""

    def __init__(self, store: EventStore, transport: Transport, lane: Lane, *, holder: str) -> None:
        self.store, self.transport, self.lane, self.holder = store, transport, lane, holder
        self.name = f"relay-{lane}"
        self.position = 0
        """Highest position below which everything is confirmed."""
        self._saved = 0
        self.leads = False
        """Whether this one has the lease."""

    async def run(self) -> None:
        """Follow the log while the lease is ours. Broker or database away is waited out, with a pause that grows.

        Raises LogBroken when the log or the checkpoint is not what it was.
        """
        collect_seldom()
        pause, lease = 0.1, None
        try:
            while True:
                before = self.position
                try:
                    lease = await self.store.acquire_lease(self.name, self.holder, ttl_s=TTL_S)
                    self.leads = lease is not None
                    if lease is None:
                        await asyncio.sleep(1.0)
                        continue
                    await self._follow(lease)
                except (BrokerAway, PublishUnknown, StoreAway, AppendUnknown, Conflict) as away:
                    log.warning("relay %s starts again: %s", self.lane, away, extra={"action": "relay_restarts"})
                    pause = 0.1 if self.position > before else min(pause * 2, MAX_PAUSE_S)
                    await asyncio.sleep(pause)
        finally:
            self.leads = False
            await let_go(self.store, lease)

    async def _follow(self, lease: Lease) -> None:
        epoch = await self.store.epoch()
        known = await self.store.load_checkpoint(self.name)
        if known is not None and known.epoch != epoch:
            raise LogBroken(f"the checkpoint of {self.name} is of epoch {known.epoch}, the log is of {epoch}")
        self.position = self._saved = known.position if known else 0
        flight = _Flight(self)
        keeper = asyncio.create_task(self._keep_lease(lease, epoch), name=f"{self.name}-keeper")
        reader = asyncio.create_task(self._read(flight), name=f"{self.name}-reader")
        lander = asyncio.create_task(flight.land(), name=f"{self.name}-lander")
        parts = (keeper, reader, lander)
        try:
            # Each runs until it fails; the lease that was lost ends the keeper without an error.
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await flight.abandon()
            await self._save_last(lease, epoch)

    async def _read(self, flight: _Flight) -> None:
        """From the checkpoint on: publish each row of this lane, at most WINDOW of them unconfirmed."""
        wanted, read = LogFilter(kinds=KINDS[self.lane]), self.position
        while True:
            page = await self.store.read_log(read, filter=wanted, limit=PAGE)
            for row in page.rows:
                hit("relay.before_publish")
                await flight.publish(row)
            if page.rows:
                await asyncio.sleep(0)
                hit("relay.after_publish")
            flight.scanned(page.scanned_to)
            if page.scanned_to == read:
                await self.store.wait(read, timeout_s=POLL_S)
            read = page.scanned_to

    async def _keep_lease(self, lease: Lease, epoch: int) -> None:
        """Save the checkpoint now and then, and renew the lease. Returns when the lease is somebody else's."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(SAVE_S)
            await self._save(lease, epoch)
            if loop.time() - renewed > TTL_S / 3:
                again = await self.store.acquire_lease(self.name, self.holder, ttl_s=TTL_S)
                if again is None or again.fence != lease.fence:
                    log.warning("relay %s lost its lease", self.lane, extra={"action": "relay_lost_lease"})
                    return
                renewed = loop.time()

    async def _save(self, lease: Lease, epoch: int) -> None:
        position = self.position
        if position > self._saved:
            hit("relay.before_checkpoint")
            await self.store.save_checkpoint(self.name, Checkpoint(position=position, epoch=epoch), fence=lease.fence)
            self._saved = position

    async def _save_last(self, lease: Lease, epoch: int) -> None:
        """What was confirmed before a failure or a stop need not be sent again."""
        try:
            async with asyncio.timeout(LAST_S):
                await self._save(lease, epoch)
        except Exception as error:
            log.debug("the last checkpoint was not saved: %s", error, extra={"action": "checkpoint_kept"})

    async def send(self, row: LogRow) -> asyncio.Future[None] | None:
        """Hand one row over; the future is its confirm, None when it can never be delivered."""
        envelope = envelope_of(row)
        try:
            return await self.transport.send(address_of(row), WireMessage(headers=envelope.headers(), body=envelope.body))
        except Unroutable as nobody:
            _undeliverable(row, nobody)
            return None

    async def again(self, row: LogRow) -> None:
        """No queue took it: declare what is missing and publish it once more."""
        envelope = envelope_of(row)
        try:
            await self.transport.publish(address_of(row), WireMessage(headers=envelope.headers(), body=envelope.body))
        except Unroutable as nobody:
            _undeliverable(row, nobody)


def _undeliverable(row: LogRow, why: Unroutable) -> None:
    # Not worth stopping everybody behind it: the job's timer asks again, or fails the job in the end.
    log.error("%s at %d cannot be delivered: %s", row.type, row.position, why, extra={"action": "unroutable"})


class _Flight:
    """Publishes on their way, in the order of the log."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self._flying: deque[tuple[LogRow, asyncio.Future[None] | None]] = deque()
        self._changed = asyncio.Event()
        self._landed = asyncio.Event()
        self._scanned = relay.position

    async def publish(self, row: LogRow) -> None:
        """Start one; waits while the window is full."""
        while len(self._flying) >= WINDOW:
            self._landed.clear()
            await self._landed.wait()
        self._flying.append((row, await self.relay.send(row)))
        self._changed.set()

    def scanned(self, position: int) -> None:
        """Every row up to here was given to `publish` or is of no concern to this lane."""
        self._scanned = position
        self._changed.set()

    async def land(self) -> None:
        """Wait for the confirms, oldest first: everything up to it is then safe. Raises what a publish raised."""
        while True:
            while self._flying:
                row, confirm = self._flying[0]
                if confirm is not None:
                    try:
                        await confirm
                    except Unroutable:
                        await self.relay.again(row)
                hit("relay.after_confirm")
                self._flying.popleft()
                self.relay.position = row.position
                self._landed.set()
            # Rows of other lanes behind the last of ours are passed too. No await since the queue was seen empty.
            self.relay.position = max(self.relay.position, self._scanned)
            self._changed.clear()
            await self._changed.wait()

    async def abandon(self) -> None:
        """What is not confirmed is published again, after the restart."""
        confirms = [confirm for _, confirm in self._flying if confirm is not None]
        for confirm in confirms:
            confirm.cancel()
        await asyncio.gather(*confirms, return_exceptions=True)
