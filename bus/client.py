"""Bus: the one small Python surface. Publish commands, subscribe to events, replay history, call services.

    async with Bus.connect() as bus:
        job = await bus.publish(CreateSnapshot(volume_id=volume))
        async for event in bus.subscribe("snapshot.#"):
            ...

Owns how the pieces are put together for a caller: with AMQP commands go onto the command exchange, without it they are
submitted to the log, which `subscribe` and `replay` always read. Refuses to know any command or event by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import AsyncGenerator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from pydantic import BaseModel, SecretStr

from bus.detect import Recheck, detect
from bus.envelope import Envelope
from bus.errors import BrokerAway, PublishUnknown
from bus.event_store import EventStore
from bus.handles import Dispatcher
from bus.installation import Connectable, Installation, from_environment, read_installation
from bus.job import JobHandle
from bus.replay import Replay, selection
from bus.rpc import Caller, ServeHandler, Server, serve
from bus.sealing import sealed
from bus.submission import submission, submit
from bus.subscription import FACTS, Start, SubscribedEvent, Subscription, reading
from bus.transport import Transport, WireMessage, commands
from bus.vault import Vault, parse_key
from schema.codec import encode
from schema.failure import Failed, Unavailable
from schema.message import Command

log = logging.getLogger(__name__)

PUBLISH_PATIENCE_S = 30.0
CLOSE_S = 5.0


class Bus:
    """Made by `Bus.connect(...)` and used as an async context manager, or from parts that are already there.

    `store` None: only a broker is known (publish and calls work). `transport` None: there is no broker (commands are
    submitted to the log; calls and replay to a queue are refused). Parts given by the caller are not closed here.
    """

    def __init__(self, *, store: EventStore | None = None, transport: Transport | None = None,
                 vault: Vault | None = None) -> None:
        self._store, self._transport, self._vault = store, transport, vault
        self._target: Connectable | None = None
        self._owned: list[EventStore | Transport] = []
        self._caller: Caller | None = None
        self._servers: list[Server] = []
        self._readers: weakref.WeakSet[AsyncGenerator[Any, None]] = weakref.WeakSet()
        self._reading = 0
        self._idle = asyncio.Event()
        self._idle.set()

    # --- connecting ---

    @classmethod
    def connect(cls, target: Connectable | None = None, *, data_dir: Path | str | None = None,
                database_url: str | SecretStr | None = None, amqp_url: str | SecretStr | None = None) -> Bus:
        """A Bus that connects when entered (`async with`) or by `open`.

        With no argument it means what the environment says (STOREBUS_DATABASE_URL, STOREBUS_AMQP_URL), else the
        installation that `storebus up` runs in the default data directory.
        """
        bus = cls()
        if target is not None:
            bus._target = target
        elif data_dir is None and database_url is None and amqp_url is None:
            bus._target = from_environment()
        else:
            bus._target = _Given(amqp_url=amqp_url, database_url=database_url,
                                 data_dir=Path(data_dir) if data_dir is not None else from_environment().data_dir,
                                 look=data_dir is not None)
        return bus

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        """Disconnect."""
        await self.aclose()

    async def open(self) -> None:
        """Connect. Raises Unavailable, StoreAway or BrokerAway naming what does not answer."""
        if self._target is None:
            return
        target, self._target = self._target, None
        try:
            await self._open(target)
        except BaseException:
            await self.aclose()
            raise

    async def _open(self, target: Connectable) -> None:
        dsn, amqp = _clear(target.database_url), _clear(target.amqp_url)
        record: Installation | None = None
        if dsn is None and (amqp is None or getattr(target, "look", True)):
            try:
                record = await asyncio.to_thread(read_installation, target.data_dir)
            except Unavailable:
                if amqp is None:
                    raise
                # A broker alone is enough to publish and to call.
        if record is not None:
            try:
                dsn = await asyncio.to_thread(record.dsn)
            except OSError as error:
                raise Unavailable(f"the database password cannot be read: {error.strerror}", field="data_dir",
                                  remedy="run as the user who started `storebus up`") from None
            amqp = amqp or _clear(record.amqp_url)
        if dsn is not None:
            self._store = await _open_store(dsn)
            self._owned.append(self._store)
        if amqp is not None:
            self._transport = await _open_transport(amqp)
            self._owned.append(self._transport)
        await self._open_vault(target, record)

    async def _open_vault(self, target: Connectable, record: Installation | None) -> None:
        key = _clear(getattr(target, "vault_key", None))
        if self._store is None:
            return
        if key is not None:
            self._vault = Vault(self._store, parse_key(key))
        elif record is not None and record.vault_key_file is not None:
            try:
                # Only read: a key made here would seal what no agent can open.
                text = await asyncio.to_thread(record.vault_key_file.read_text)
                self._vault = Vault(self._store, parse_key(text))
            except OSError:
                log.debug("the vault's key is not readable here: commands with clear secrets will be refused")

    async def aclose(self) -> None:
        """End the subscriptions (their checkpoints are saved), the servers and the connections."""
        for reader in list(self._readers):
            try:
                await reader.aclose()
            except RuntimeError:
                log.debug("a subscription is still being read by its task")
        # A loop that was left lets its iterator go, which the event loop then closes in a task of its own.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), CLOSE_S)
        for server in self._servers:
            await server.aclose()
        self._servers.clear()
        if self._caller is not None:
            await self._caller.aclose()
            self._caller = None
        while self._owned:
            await self._owned.pop().aclose()

    @property
    def store(self) -> EventStore:
        """The log. Raises Unavailable when only a broker is connected."""
        if self._store is None:
            raise Unavailable("the log is read from the database, and none is connected", field="database_url",
                              remedy="set STOREBUS_DATABASE_URL, or name the data directory of a running `storebus up`")
        return self._store

    @property
    def transport(self) -> Transport:
        """The broker. Raises Unavailable when none is configured."""
        if self._transport is None:
            raise Unavailable("this installation has no broker", field="amqp_url", remedy="set STOREBUS_AMQP_URL")
        return self._transport

    # --- commands ---

    async def publish(self, command: Command, *, id: UUID | None = None, principal: str = "system",  # noqa: A002
                      tenant: str = "root", traceparent: str = "") -> JobHandle:
        """Send a command; the handle of its job. Returned means safe: confirmed by the broker or committed to the log.

        `id` is the job's id and makes sending again harmless: the same id and body is the same job, another body is
        refused. Clear secrets are sealed first. With a broker, the broker's user decides principal and tenant. Raises
        BrokerAway, PublishUnknown, StoreAway, AppendUnknown (send again with the same id), or Refused.
        """
        job_id = id or uuid4()
        command = await sealed(command, self._vault.seal if self._vault else None, job_id=job_id)
        if self._transport is not None and self._transport.durable:
            await self._publish(command, job_id, principal, tenant, traceparent)
        else:
            request = submission(command, job_id=job_id, principal=principal, tenant=tenant, traceparent=traceparent)
            await submit(self.store, request)
        return self.job(job_id)

    async def _publish(self, command: Command, job_id: UUID, principal: str, tenant: str, traceparent: str) -> None:
        """With confirm; what is unknown is sent again under the same logical id, which makes it harmless."""
        envelope = Envelope(id=job_id, type=command.TYPE, version=command.VERSION, kind="command", body=encode(command),
                            key=command.key(job_id), correlation=job_id, tenant=tenant, principal=principal,
                            traceparent=traceparent)
        message = WireMessage(headers=envelope.headers(), body=envelope.body)
        deadline, pause = time.monotonic() + PUBLISH_PATIENCE_S, 0.1
        while True:
            try:
                await self.transport.publish(commands(command.TYPE), message)
                return
            except (BrokerAway, PublishUnknown):
                if time.monotonic() + pause > deadline:
                    raise
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)

    def job(self, job_id: UUID | str) -> JobHandle:
        """The handle of any job, by its id."""
        return JobHandle(job_id if isinstance(job_id, UUID) else UUID(job_id), self._store, self.publish)

    # --- events ---

    def subscribe(self, pattern: str | Iterable[str] = "#", *, from_: Start = "beginning", group: str | None = None,
                  limit: int | None = None, tenants: Iterable[str] = (), kinds: Iterable[str] = FACTS,
                  ) -> BusSubscription:
        """Events whose type one of the patterns means, in order, without a gap, until the loop is left.

        `from_`: `beginning`, `now`, the first position wanted, or a time. `group` makes it durable: it goes on where
        the group stopped, repeats only what came after its last checkpoint (100 events or 1 s), and one reader of a
        group runs at a time. Use `async with` to fix `now` before you do what causes the events.
        """
        wanted = reading(pattern, start=from_, group=group, limit=limit, tenants=tenants, kinds=kinds)
        return BusSubscription(self, Subscription(self.store, wanted))

    def replay(self, types: str | Iterable[str] = (), *, from_: Start = "beginning", to: Start | None = None,
               stream: str | Iterable[str] = (), correlation: UUID | None = None, tenants: Iterable[str] = (),
               kinds: Iterable[str] = FACTS, rate: float | None = None) -> Replay:
        """A part of the log again: iterate it, or send it with `.to(callable)`, `.to_pages`, `.to_queue(name)`;
        `.count()` is the dry run. `to`: the last position wanted, a time, or (None, `now`) the head of this moment."""
        chosen = selection(types, start=from_, end=to, streams=stream, correlation=correlation, tenants=tenants,
                           kinds=kinds)
        return Replay(self.store, chosen, transport=self._transport, rate=rate)

    async def detect(self, subjects: str | Iterable[str], correlation: UUID | None = None, timeout_s: float = 30.0, *,
                     recheck: Recheck | None = None) -> SubscribedEvent | None:
        """Wait for the first event of the subjects (of one job, also one that has happened). Raises CallTimedOut.

        `recheck` looks at durable state after arming; when it says True, the answer is None at once.
        """
        return await detect(self.store, subjects, correlation=correlation, recheck=recheck, timeout_s=timeout_s)

    async def run(self, *handlers: object, group: str | None = None, from_: Start = "now") -> None:
        """Hand events to functions marked with `@handles`, one after another, until cancelled.

        With a group an event counts as handled when all its handlers returned; what they raise ends the run.
        """
        dispatcher = Dispatcher(*handlers)
        patterns: list[str] = []
        for subject in dispatcher.table:
            patterns += [subject] if {"*", "#"} & set(subject.split(".")) else [subject, f"{subject}.#"]
        async with contextlib.aclosing(aiter(self.subscribe(patterns, from_=from_, group=group))) as events:
            async for event in events:
                await dispatcher.dispatch(event.type, event)

    # --- calls ---

    async def call(self, address: str, request: BaseModel | Mapping[str, Any] | None = None, *, command: str = "",
                   timeout_s: float = 10.0) -> dict[str, Any]:
        """Ask a service. Raises NoHandler, CallFailed, CallTimedOut, CallCancelled; see `bus.rpc`."""
        return await self._calls.call(address, request, command=command, timeout_s=timeout_s)

    async def cast(self, address: str, request: BaseModel | Mapping[str, Any] | None = None, *,
                   command: str = "") -> None:
        """Tell a service, one way."""
        await self._calls.cast(address, request, command=command)

    async def serve(self, service: str, handler: ServeHandler) -> Server:
        """Answer the calls to `service` until the Bus (or what is returned) is closed."""
        server = await serve(self.transport, service, handler)
        self._servers.append(server)
        return server

    @property
    def _calls(self) -> Caller:
        if self._caller is None:
            self._caller = Caller(self.transport)
        return self._caller

    async def _read(self, subscription: Subscription) -> AsyncGenerator[SubscribedEvent, None]:
        """The subscription's events, known to this Bus so that closing it closes them."""
        events = subscription.events()
        self._reading += 1
        self._idle.clear()
        try:
            async for event in events:
                yield event
        finally:
            try:
                await events.aclose()
            finally:
                self._reading -= 1
                if not self._reading:
                    self._idle.set()


class BusSubscription:
    """What `Bus.subscribe` returns: iterate it, or enter it first to fix its place."""

    def __init__(self, bus: Bus, subscription: Subscription) -> None:
        self._bus, self.subscription = bus, subscription

    @property
    def position(self) -> int:
        """Everything up to here was taken; -1 before it began."""
        return self.subscription.position

    async def __aenter__(self) -> Self:
        """Find the place to begin now."""
        await self.subscription.begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        """Save and let go."""
        await self.subscription.aclose()

    def __aiter__(self) -> AsyncGenerator[SubscribedEvent, None]:
        """The events."""
        events = self._bus._read(self.subscription)
        self._bus._readers.add(events)
        return events


class _Given(BaseModel):
    """A Connectable from keyword arguments. `look`: also look into the data directory for what is not given."""

    model_config = {"frozen": True}

    amqp_url: SecretStr | None
    database_url: SecretStr | None
    data_dir: Path
    look: bool


def _clear(url: SecretStr | str | None) -> str | None:
    return url.get_secret_value() if isinstance(url, SecretStr) else url


async def _open_store(dsn: str) -> EventStore:
    from bus.event_store_postgres import PostgresEventStore  # asyncpg is loaded by those who connect

    return await PostgresEventStore.connect(dsn)


async def _open_transport(url: str) -> Transport:
    from bus.transport_rabbit import RabbitTransport  # aio-pika is loaded by those who connect

    transport = RabbitTransport(url)
    try:
        await transport.start()
    except Failed:
        await transport.aclose()
        raise
    return transport


__all__ = ["Bus", "BusSubscription"]
