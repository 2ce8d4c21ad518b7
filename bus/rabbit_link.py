"""A connection to RabbitMQ, kept up: connect, declare, watch, and again.

Owns recovery: one task for each connection, a pause that grows, what "away" means. Refuses to know what is published or
consumed over it. Refuses aio-pika's own recovery, which does not notice a cancelled consumer; this is the plain connection
of aiormq beneath it. Rule: whatever is lost is lost whole; a new connection starts from the declared topology.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiormq.connection
from aiormq.exceptions import AMQPError
from pamqp.exceptions import PAMQPException
from yarl import URL

from bus import topology

log = logging.getLogger(__name__)
# The library reports every lost connection as an error with a traceback. We say what happened ourselves, once.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)

AWAY = (AMQPError, PAMQPException, OSError, RuntimeError, TimeoutError, ValueError)
"""What aiormq raises when the broker, the connection or the channel is not there (ValueError: a frame cut short)."""
HEARTBEAT_S = 10
CONNECT_S = 10.0
SETUP_S = 60.0
"""Connect and declare; sixteen quorum queues on a broker that is just starting take a while."""
CLOSE_S = 5.0
MAX_PAUSE_S = 3.0
FRAMES = 512
"""Frames that wait in a channel between the socket and its reader."""


def ours() -> bool:
    """Whether this task itself is being cancelled. aiormq also throws CancelledError at whoever waits on what it closes."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Connection(aiormq.connection.Connection):
    # Ten, the library's own, makes every publisher wait for the writer.
    FRAME_BUFFER_SIZE = FRAMES
    # A silent peer is given up after 22 s, not 33.
    HEARTBEAT_GRACE_MULTIPLIER = 2

    @property
    def blocked(self) -> bool:
        """Whether `ready()` would wait."""
        return not self._Connection__connection_unblocked.is_set()  # type: ignore[attr-defined] # the library shows it by waiting only


class Link:
    """One connection, kept up. `ready` is set while it stands and `on_open` has run."""

    def __init__(self, url: str, name: str, on_open: Callable[[Link], Awaitable[None]]) -> None:
        self.name, self.on_open = name, on_open
        self._url = URL(url).update_query(heartbeat=HEARTBEAT_S, name=f"storebus-{name}")
        self.connection: Any = None
        self.ready = asyncio.Event()
        self.why = "not connected yet"
        self.opened = 0
        """How often it was opened."""
        self._lost = asyncio.Event()
        self._task = asyncio.create_task(self._keep(), name=f"amqp-{name}")

    async def _keep(self) -> None:
        pause = 0.1
        while True:
            try:
                self._lost = asyncio.Event()
                async with asyncio.timeout(SETUP_S):
                    await self._open()
                self.opened += 1
                self.ready.set()
                if self.opened > 1:
                    log.info("RabbitMQ (%s) is back", self.name, extra={"action": "broker_back"})
                pause = 0.1
                self.why = "the connection was lost"
                await self._lost.wait()
            except asyncio.CancelledError:
                if ours():
                    raise
                self.why = "the connection was closed while it was opened"
            except Exception as error:
                self.why = f"{type(error).__name__}: {error}"
            if self.ready.is_set():
                log.warning("RabbitMQ (%s) is away: %s", self.name, self.why, extra={"action": "broker_away"})
            self.ready.clear()
            await self._drop()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            pause = min(pause * 2, MAX_PAUSE_S)

    async def _open(self) -> None:
        self.connection = _Connection(self._url)
        async with asyncio.timeout(CONNECT_S):
            await self.connection.connect()
        self.lost_with(self.connection)
        await self.on_open(self)

    def lost_with(self, part: Any) -> None:
        """The link is lost when this channel (or connection) closes."""
        lost = self._lost
        part.closing.add_done_callback(lambda _: lost.set())

    def give_up(self, why: str) -> None:
        """Take the connection for lost, and make a new one."""
        self.why = why
        self._lost.set()

    @property
    def blocked(self) -> bool:
        """The broker said that it takes no messages for now (a memory or disk alarm)."""
        return self.connection is not None and self.connection.blocked

    async def open_channel(self, *, confirms: bool = False) -> Any:
        """A new channel of aiormq; raises what AWAY lists."""
        if self.connection is None or self.connection.is_closed:
            raise ConnectionError("there is no connection")
        return await self.connection.channel(publisher_confirms=confirms, on_return_raises=True, frame_buffer_size=FRAMES)

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[Any]:
        """A channel for a few calls, closed behind them. A library's CancelledError becomes ConnectionError."""
        raw = None
        try:
            raw = await self.open_channel()
            yield raw
        except asyncio.CancelledError:
            if ours():
                raise
            raise ConnectionError("the channel closed") from None
        finally:
            if raw is not None:
                await quietly_close(raw)

    async def _drop(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            await quietly_close(connection)

    async def close(self) -> None:
        """Disconnect and stay so."""
        self.ready.clear()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._drop()


async def quietly_close(part: Any) -> None:
    """Close a channel or connection, bounded; one that is broken is just let go."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await part.close()
    except asyncio.CancelledError:
        if ours():
            raise
    except Exception as error:
        log.debug("closing: %s", type(error).__name__, extra={"action": "amqp_close"})


async def declare_exchanges(raw: Any) -> None:
    """All exchanges."""
    for name, kind in topology.EXCHANGES.items():
        await raw.exchange_declare(name, exchange_type=kind, durable=True)


async def declare_standing(raw: Any) -> None:
    """All standing queues."""
    for queue in topology.standing():
        await declare(raw, queue)


async def declare(raw: Any, queue: topology.Queue) -> None:
    """Declare a queue and bind it."""
    await raw.queue_declare(queue.name, durable=queue.durable, exclusive=queue.exclusive,
                            auto_delete=queue.auto_delete, arguments=dict(queue.arguments))
    if queue.exchange:
        await raw.queue_bind(queue.name, queue.exchange, routing_key=queue.key)
