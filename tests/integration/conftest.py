"""The log, twice: what reads it must be right on the memory store and on Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bus.event_store import EventStore
from tests.services.postgres import TestServer, start_postgres
from tests.support.api import api, cloud
from tests.support.stores import memory_store, need_postgres, postgres_store
from tests.support.transports import LazyRabbit


class LogServer:
    """One Postgres for all tests of readers, started when the first one asks."""

    def __init__(self) -> None:
        self.server: TestServer | None = None

    async def get(self) -> TestServer:
        """The running server."""
        if self.server is None:
            need_postgres()
            self.server = await start_postgres()
        return self.server


@pytest.fixture(scope="session")
async def log_server() -> AsyncIterator[LogServer]:
    """See LogServer."""
    holder = LogServer()
    yield holder
    if holder.server is not None:
        await holder.server.stop()
        holder.server.remove()


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.needs_postgres)])
async def store(request: pytest.FixtureRequest, log_server: LogServer) -> AsyncIterator[EventStore]:
    """An empty log."""
    if request.param == "memory":
        async with memory_store() as opened:
            yield opened
    else:
        async with postgres_store(await log_server.get()) as opened:
            yield opened


@pytest.fixture(scope="session")
async def lazy_rabbit() -> AsyncIterator[LazyRabbit]:
    """One RabbitMQ for the tests here."""
    rabbit = LazyRabbit()
    yield rabbit
    await rabbit.stop()


__all__ = ["api", "cloud"]
