"""The event stores that a test of a reader runs on: the memory one always, Postgres where it is installed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from bus.event_store import EventStore

OpenStore = Callable[[], AbstractAsyncContextManager[EventStore]]


@asynccontextmanager
async def memory() -> AsyncIterator[EventStore]:
    """An empty memory store."""
    from bus.event_store_memory import MemoryEventStore

    store = MemoryEventStore()
    try:
        yield store
    finally:
        await store.aclose()


def open_stores() -> list[Any]:
    """Parameters for a fixture: functions that open an empty store."""
    return [pytest.param(memory, id="memory")]
