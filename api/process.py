"""A process of Storebus: its running pieces, its stop signal, its private files, its transport.

Owns what every role's process needs. Refuses to know a database and what a role is made of, so that an agent's process loads
neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from api.settings import Settings
from bus import failpoints
from bus.transport import Transport
from schema.failure import Failed, Refused

log = logging.getLogger(__name__)

OnReady = Callable[[dict[str, str]], None]
"""Called once everything answers, with what a person wants to know: api, data_dir, pid."""
STOP_S = 10.0
"""How long roles may take to stop by themselves."""


def spare_the_collector() -> None:
    """What a process begins with stays to its end: the collector of garbage looks at it no more, and less often at the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def private_dir(path: Path) -> Path:
    """The directory, made for this user only when it is absent."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def private_file(path: Path, make: Callable[[], str]) -> str:
    """The content of a file for this user only, made when it is absent. Two processes at once agree on one."""
    if not path.exists():
        private_dir(path.parent)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(make())
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_text().strip()


def agent_token(settings: Settings) -> bytes:
    """The enrolment token that handlers and agents share."""
    if settings.agent_token is not None:
        return settings.agent_token.get_secret_value().encode()
    return private_file(settings.data_dir / "agent.token", lambda: secrets.token_urlsafe(32)).encode()


def open_transport(settings: Settings) -> Transport:
    """RabbitMQ when its URL is set, else memory."""
    if settings.amqp_url is None:
        from bus.transport_memory import MemoryTransport

        return MemoryTransport()
    from bus.transport_rabbit import RabbitTransport

    return RabbitTransport(settings.amqp_url.get_secret_value())


def no_broker() -> Refused:
    """Why a role cannot run by itself."""
    return Refused("roles as separate processes meet on RabbitMQ", field="STOREBUS_AMQP_URL",
                   remedy="set it, or run everything in one process: storebus up")


class Roles:
    """The running pieces of this process: each a task that must not end by itself."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any]] = []
        self.closers: list[Callable[[], Awaitable[None]]] = []
        self.health: dict[str, Callable[[], str]] = {}
        """Part -> why it is not ready; an empty text when it is."""

    def run(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        """Start a piece that runs until it is cancelled."""
        self.tasks.append(asyncio.create_task(work, name=name))

    def at_stop(self, close: Callable[[], Awaitable[None]]) -> None:
        """Called when the process stops, last first."""
        self.closers.append(close)

    async def until(self, stop: asyncio.Event) -> None:
        """Wait for the stop signal; a piece that fails ends the process with its error."""
        waiting = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([waiting, *self.tasks], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for task in done - {waiting}:
            task.result()
            raise Failed(f"the part {task.get_name()} ended by itself")

    async def close(self) -> None:
        """Stop everything, bounded."""
        for close in reversed(self.closers):
            try:
                await asyncio.wait_for(close(), STOP_S)
            except Exception:
                log.exception("a part did not stop cleanly", extra={"action": "stop_failed"})
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def stop_signal() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def arm(settings: Settings) -> None:
    """Failpoints that tests asked for."""
    if settings.failpoints:
        failpoints.arm(dict(part.split("=", 1) for part in settings.failpoints.split(",")))
