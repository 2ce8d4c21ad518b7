"""The transports that a test of what rides on them runs on: the memory one always, RabbitMQ where it is installed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bus.transport import Transport
from bus.transport_memory import MemoryTransport
from bus.transport_rabbit import RabbitTransport
from tests.services.rabbitmq import INSTALL, RabbitMQ, installed, start_rabbitmq


class LazyRabbit:
    """One node for all tests of a session, started when the first one asks."""

    def __init__(self) -> None:
        self.node: RabbitMQ | None = None

    async def get(self) -> RabbitMQ:
        """The running node; skips on a laptop without it, fails where services are required."""
        if self.node is None:
            if not installed():
                if os.environ.get("CI") or os.environ.get("STOREBUS_REQUIRE_SERVICES"):
                    pytest.fail(f"RabbitMQ is required here: {INSTALL}")
                pytest.skip(f"RabbitMQ is not installed: {INSTALL}")
            self.node = await asyncio.to_thread(start_rabbitmq)
        return self.node

    async def stop(self) -> None:
        """End it."""
        if self.node is not None:
            await asyncio.to_thread(self.node.stop)


@asynccontextmanager
async def memory_transport() -> AsyncIterator[Transport]:
    """A fresh memory transport."""
    transport = MemoryTransport()
    await transport.start()
    try:
        yield transport
    finally:
        await transport.aclose()


@asynccontextmanager
async def rabbit_transport(node: RabbitMQ) -> AsyncIterator[Transport]:
    """A connection to the node."""
    transport = RabbitTransport(node.url)
    await transport.start()
    try:
        yield transport
    finally:
        await transport.aclose()
