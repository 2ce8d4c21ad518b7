"""The roles: which running pieces each is made of. Called by `bootstrap`, which opens what they share.

Owns the wiring of one role. Refuses to know where settings come from and how a process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from uuid import UUID

from api import configuration
from api.amqp_admission import Admission, users
from api.authentication import Authentication
from api.bootstrap import Parts
from api.edge import Edge
from api.first_keys import first_keys
from api.flood import Rate
from api.listener import HttpListener
from api.ownership import Ownership
from api.process import Roles
from api.scrub_schedule import checked_share, interval, keep_schedules
from api.system import System
from bus.consumer import PartitionConsumer
from bus.dead_letters import DeadLetters
from bus.errors import StoreAway
from bus.event_store import AppendRequest, EventStore
from bus.forwarder import Forwarder, Identify, Principal, everyone, only
from bus.read_model import PostgresReadModel
from bus.relay import Relay
from bus.rpc import serve
from bus.scheduler import Scheduler
from bus.transport import Delivery, Transport
from bus.transport import progress as progress_address
from handlers.agent import create_zone
from handlers.cloudstack_events import CloudStackRelay
from handlers.founding import found
from handlers.grants import SERVICE, Grants
from handlers.projector import Projector

log = logging.getLogger(__name__)

PARTITIONS_EVERY_S = 60.0


async def handlers(parts: Parts, running: Roles) -> UUID:
    """Partitions' consumer, the door for foreign commands, the vault's grants. Returns the zone's id."""
    runtime = parts.runtime()
    await runtime.catch_up()
    zone_id = await create_zone(runtime, parts.settings.zone)
    await found(runtime)
    consumer = PartitionConsumer(parts.store, parts.transport, runtime.handle, member=parts.member)
    forwarder = Forwarder(parts.store, parts.transport, _identify(parts), await _admission(parts, running))
    dead_letters = DeadLetters(parts.store, parts.transport)
    server = await serve(parts.transport, SERVICE, Grants(parts.store, parts.vault))
    running.at_stop(server.aclose)
    await consumer.start()
    running.at_stop(consumer.stop)
    await forwarder.start()
    running.at_stop(forwarder.stop)
    await dead_letters.start()
    running.at_stop(dead_letters.stop)
    every_s, share = interval(parts.settings.scrub_every), checked_share(parts.settings.scrub_share)
    running.run("scrub-schedule", keep_schedules(runtime, every_s=every_s, share=share))
    running.health["handlers"] = lambda: "" if consumer.ready else "not every partition has its consumer yet"
    return zone_id


async def _admission(parts: Parts, running: Roles) -> Admission | None:
    """With identity and a broker: who asks about each command whether its account may."""
    if not (parts.settings.identity and parts.transport.durable):
        return None
    known = users(parts.settings.amqp_users)
    views = await PostgresReadModel.connect(parts.dsn, role="storebus_app")
    running.at_stop(views.aclose)
    system = System(parts.store, parts.runtime(), views, parts.vault)
    return Admission(system, Authentication(system), Ownership(system), known)


def _identify(parts: Parts) -> Identify:
    """Who the broker's users are. Without a broker every command comes from this process. With identity nobody is let in who is
    not named; what the others may do is asked about command by command (`_admission`)."""
    if not parts.transport.durable:
        return lambda user: Principal(user or "system", "root")
    if parts.settings.identity:
        names = users(parts.settings.amqp_users)
        return lambda user: Principal(names[user].rpartition("/")[2], "root") if user in names else None
    pairs = [entry.partition("=") for entry in parts.settings.amqp_users.split(",") if entry]
    if not pairs:
        return everyone
    return only({user.strip(): tenant.strip() or "root" for user, _, tenant in pairs})


async def log_role(parts: Parts, running: Roles) -> None:
    """Relay, timers, projector, progress, room for the log."""
    store, transport, member = parts.store, parts.transport, parts.member
    running.run("relay-work", Relay(store, transport, "work", holder=member).run())
    running.run("relay-events", Relay(store, transport, "events", holder=member).run())
    if parts.settings.cloudstack_events and transport.durable:
        running.run("relay-cloudstack", CloudStackRelay(store, transport, holder=member).run())
    running.run("scheduler", Scheduler(store, transport, holder=member).run())
    model = await PostgresReadModel.connect(parts.dsn, role="storebus_projector")
    running.at_stop(model.aclose)
    running.run("projector", Projector(store, model, holder=member).run())
    running.run("partitions", _make_room(parts))
    await _keep_progress(store, transport, running)


async def _make_room(parts: Parts) -> None:
    """Partitions of the log's table ahead of its head."""
    while True:
        try:
            await parts.store.make_partitions()
        except StoreAway as away:
            log.warning("no room was made: %s", away, extra={"action": "make_room_waits"})
        await asyncio.sleep(PARTITIONS_EVERY_S)


async def _keep_progress(store: EventStore, transport: Transport, running: Roles) -> None:
    """The last progress of each order, where every API process can read it."""
    latest: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1000)

    async def take(delivery: Delivery) -> None:
        with contextlib.suppress(asyncio.QueueFull):  # the next message says it all
            latest.put_nowait(delivery.message.body)
        await delivery.ack()

    async def keep() -> None:
        while True:
            for told in json.loads(await latest.get()):
                try:
                    await store.set_progress(f"{told['work_id']}.{told['attempt']}", json.dumps(told).encode())
                except StoreAway:
                    await asyncio.sleep(1.0)

    consumer = await transport.consume(progress_address(), take)
    running.at_stop(consumer.stop)
    running.run("progress", keep())


WARM = 3
"""Connections that commands which come together read the log on."""


async def api(parts: Parts, running: Roles) -> str:
    """The HTTP edge; its address. Raises Refused when the port is taken."""
    settings = parts.settings
    views = await PostgresReadModel.connect(parts.dsn, role="storebus_app")
    running.at_stop(views.aclose)
    runtime = parts.runtime()
    system = System(parts.store, runtime, views, parts.vault)
    # Else the first commands would wait for the log to be read, for connections and for what a connection has to learn once.
    await runtime.catch_up()
    await asyncio.gather(parts.store.append(AppendRequest(expected={}, rows=())),
                         *(parts.store.read_streams([f"warm-{number}"]) for number in range(WARM)))

    authentication = None
    if settings.identity:
        authentication = Authentication(system)
        await first_keys(parts.runtime(), parts.vault, settings.data_dir)
    rate = Rate(settings.api_limit, settings.api_limit_interval)
    limited = {"apilimitmax": rate.most, "apilimitinterval": rate.interval_s} if rate.most else {}
    edge = Edge(system, facts=configuration.facts(settings) | limited, configuration=configuration.rows(settings))
    listener = HttpListener(edge, host=settings.api_host, port=settings.api_port, checks=running.health,
                            authentication=authentication, rate=rate)
    url = await listener.start()
    running.at_stop(listener.aclose)
    if settings.identity and settings.open_port is not None:
        beside = HttpListener(edge, port=settings.open_port, checks=running.health, rate=rate)
        log.warning("a listener without authentication answers at %s", await beside.start(), extra={"action": "open_listener"})
        running.at_stop(beside.aclose)
    return url
