"""Bootstrap: the one place that names concrete classes. Settings in, running roles out.

    up        everything in one process: embedded Postgres and the memory transport unless URLs say otherwise
    api       HTTP edge
    handlers  partitions' consumers, the forwarder, the vault's grants
    log       relay, timers, projector
    agent     a storage agent, a KVM agent, or both

Owns how roles are put together and in which order they start and stop. Refuses to decide anything about storage.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.process import OnReady, Roles, agent_token, arm, no_broker, open_transport, private_dir, spare_the_collector, stop_signal
from api.settings import Settings
from api.system import System
from bus.errors import BrokerAway
from bus.event_store_postgres import PostgresEventStore
from bus.installation import Installation, write_installation
from bus.migrate import migrate
from bus.postgres_server import PostgresServer
from bus.read_model import PostgresReadModel
from bus.transport import Transport
from bus.transport_memory import MemoryTransport
from bus.vault import Vault, load_or_create_key, parse_key
from handlers.decider import Limits
from handlers.runtime import Runtime
from schema.failure import Refused

log = logging.getLogger(__name__)



@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What all roles share."""

    settings: Settings
    dsn: str
    store: PostgresEventStore
    transport: Transport
    installation: str
    token: bytes
    vault: Vault
    member: str
    """Name of this process among its role's members."""

    def runtime(self) -> Runtime:
        """A runtime over the shared store."""
        limits = Limits(max_image_bytes=self.settings.max_image_bytes, max_virtual_size=self.settings.max_virtual_size,
                        max_volume_gib=self.settings.max_volume_gib, max_chain=self.settings.snapshot_chain,
                        volume_expunge_delay_s=self.settings.volume_expunge_delay_s,
                        collapse_percent=self.settings.snapshot_collapse,
                        link_lifetime_s=self.settings.extract_lifetime_s,
                        public_templates=self.settings.public_templates,
                        compression=self.settings.snapshot_compression.removeprefix("none"))
        return Runtime(self.store, self.transport, installation=self.installation, token=self.token, limits=limits,
                       vault_key=self.vault.public_key)


def vault_key(settings: Settings) -> bytes:
    """The vault's key."""
    if settings.vault_key is not None:
        return parse_key(settings.vault_key.get_secret_value())
    private_dir(settings.data_dir)
    return load_or_create_key(settings.data_dir / "vault.key")


@contextlib.asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[tuple[str, PostgresServer | None]]:
    """The database's DSN; the embedded server runs while this is open when no URL is set."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value(), None
        return
    server = PostgresServer(settings.data_dir)
    dsn = await server.start()
    try:
        yield dsn, server
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def shared(settings: Settings, dsn: str, role: str) -> AsyncIterator[Parts]:
    """Store, transport and keys of one process."""
    store = await PostgresEventStore.connect(dsn)
    transport = open_transport(settings)
    try:
        try:
            await transport.start()
        except BrokerAway as away:  # HTTP commands are accepted all the same; the transport goes on trying
            log.warning("%s", away, extra={"action": "broker_away_at_start"})
        yield Parts(
            settings=settings, dsn=dsn, store=store, transport=transport, installation=await store.installation_id(),
            token=await asyncio.to_thread(agent_token, settings),
            vault=Vault(store, await asyncio.to_thread(vault_key, settings)),
            member=f"{role}@{socket.gethostname()}/{os.getpid()}")
    finally:
        await transport.aclose()
        await store.aclose()


async def run_up(settings: Settings, on_ready: OnReady) -> None:
    """Everything on one machine until a signal stops it."""
    from api import roles
    from api.agent_role import start_agents

    arm(settings)
    stop = stop_signal()
    with _only_one(settings.data_dir):
        async with contextlib.AsyncExitStack() as stack:
            dsn, server = await stack.enter_async_context(database(settings))
            await migrate(dsn)
            parts = await stack.enter_async_context(shared(settings, dsn, "up"))
            running = Roles()
            stack.push_async_callback(running.close)
            if server is not None:
                running.run("postgres", server.keep())
            zone_id = await roles.handlers(parts, running)
            await roles.log_role(parts, running)
            await start_agents(settings, parts.transport, running, zone_id)
            url = await roles.api(parts, running)
            record = Installation.model_validate({
                "database_url": server.url if server else dsn,
                "password_file": server.password_file if server else None,
                "amqp_url": settings.amqp_url.get_secret_value() if settings.amqp_url else None,
                "vault_key_file": None if settings.vault_key else settings.data_dir / "vault.key",
                "api_url": url, "api_port": int(url.rsplit(":", 1)[1]), "pid": os.getpid()})
            await asyncio.to_thread(write_installation, settings.data_dir, record)
            spare_the_collector()
            on_ready({"api": url, "data_dir": str(settings.data_dir), "pid": str(os.getpid()), "zone": str(zone_id)})
            await running.until(stop)


async def run_role(settings: Settings, role: str, on_ready: OnReady) -> None:
    """One role as a process of its own, on RabbitMQ and Postgres. (An agent's is `agent_role`.)"""
    from api import roles

    if settings.amqp_url is None:
        raise no_broker()
    if settings.database_url is None:
        raise Refused("missing", field="STOREBUS_DATABASE_URL", remedy="name the Postgres of this installation")
    arm(settings)
    stop = stop_signal()
    running = Roles()
    async with contextlib.AsyncExitStack() as stack:
        said = {"role": role, "pid": str(os.getpid())}
        parts = await stack.enter_async_context(shared(settings, settings.database_url.get_secret_value(), role))
        stack.push_async_callback(running.close)
        match role:
            case "api":
                said["api"] = await roles.api(parts, running)
            case "handlers":
                await roles.handlers(parts, running)
            case "log":
                await roles.log_role(parts, running)
            case _:
                raise Refused(f"no role is named {role!r}", field="role", remedy="api, handlers, log or agent")
        spare_the_collector()
        on_ready(said)
        await running.until(stop)


@contextlib.asynccontextmanager
async def open_system(settings: Settings, dsn: str) -> AsyncIterator[System]:
    """A System for a command that works on the database alone (no transport)."""
    store = await PostgresEventStore.connect(dsn)
    views = await PostgresReadModel.connect(dsn, role="storebus_app")
    try:
        runtime = Runtime(store, MemoryTransport(), installation=await store.installation_id(), token=b"")
        yield System(store, runtime, views, Vault(store, await asyncio.to_thread(vault_key, settings)))
    finally:
        await views.aclose()
        await store.aclose()


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Any:
    """One `up` for each data directory. Root's database runs as another user, who must be able to walk through it: what is
    inside is private to whom it belongs."""
    private_dir(data_dir)
    if os.geteuid() == 0:
        data_dir.chmod(0o711)
    with (data_dir / "up.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(f"storebus already runs on {data_dir}", field="data_dir",
                          remedy="stop it, or give another --data-dir") from None
        yield
