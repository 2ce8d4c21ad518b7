"""The transports that a test of what rides on them runs on: the memory one always, RabbitMQ where it is installed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from bus.transport import Transport

OpenTransport = Callable[[], AbstractAsyncContextManager[Transport]]


@asynccontextmanager
async def memory() -> AsyncIterator[Transport]:
    """A fresh memory transport."""
    from bus.transport_memory import MemoryTransport

    transport = MemoryTransport()
    await transport.start()
    try:
        yield transport
    finally:
        await transport.aclose()


def open_transports() -> list[Any]:
    """Parameters for a fixture: functions that open a transport."""
    return [pytest.param(memory, id="memory")]
