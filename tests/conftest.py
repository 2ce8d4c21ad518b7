"""Services for all tests: the real thing when it is here, a skip with the line that installs it on a laptop, a failure in CI.

A service is started when the first test asks for it and ends with the session. `STOREBUS_TEST_AMQP_URL` names a broker that
runs already; where Docker answers, the images of compose.yaml are used; else the machine's own programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from agents import libnbd, qemu
from tests.services import rabbitmq as local_rabbitmq
from tests.services.postgres import TestServer, fresh_database, start_postgres
from tests.services.s3_fixture import s3_server

__all__ = ["s3_server"]

REQUIRED = bool(os.environ.get("CI") or os.environ.get("STOREBUS_REQUIRE_SERVICES"))


def missing(what: str, install: str) -> None:
    """Fail where services are required, skip elsewhere: never silently."""
    text = f"{what} is not here; {install}"
    if REQUIRED:
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def _docker() -> bool:
    """Whether a Docker engine answers (the command alone proves nothing)."""
    with contextlib.suppress(Exception):
        import docker

        client = docker.from_env(timeout=2)
        try:
            return bool(client.ping())
        finally:
            client.close()
    return False


def pytest_report_header() -> list[str]:
    """Which services this run will use."""
    tools = "missing " + ", ".join(qemu.installed()) if qemu.installed() else "here"
    return [
        f"services: {'required' if REQUIRED else 'skipped where missing'}",
        f"RabbitMQ: {_broker_choice()}; qemu's tools: {tools}; libnbd: {'here' if libnbd.available() else 'missing'}",
        f"seed {os.environ.get('STOREBUS_SEED', '1')}; soak {os.environ.get('STOREBUS_SOAK_N', 'no')}",
    ]


def _broker_choice() -> str:
    if os.environ.get("STOREBUS_TEST_AMQP_URL"):
        return "the one in STOREBUS_TEST_AMQP_URL"
    return "the distribution's" if local_rabbitmq.installed() else "Docker's or none"


@dataclass
class ForeignBroker:
    """A broker that this session did not start as a process of its own: it cannot be killed or wiped."""

    url: str


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Any]:
    """A broker: `.url`; a private node also has kill, restart, wipe."""
    given = os.environ.get("STOREBUS_TEST_AMQP_URL")
    if given:
        yield ForeignBroker(given)
        return
    if local_rabbitmq.installed():
        node = local_rabbitmq.start_rabbitmq()
        yield node
        node.stop()
        return
    if _docker():
        from testcontainers.rabbitmq import RabbitMqContainer

        with RabbitMqContainer("rabbitmq:4-management") as container:
            host, port = container.get_container_host_ip(), container.get_exposed_port(5672)
            yield ForeignBroker(f"amqp://guest:guest@{host}:{port}/")
        return
    missing("RabbitMQ", local_rabbitmq.INSTALL)


@pytest.fixture(scope="session")
async def postgres_server() -> AsyncIterator[TestServer]:
    """The wheel's Postgres, migrated; durable, as shipped."""
    server = await start_postgres(durable=True)
    yield server
    await server.stop()
    await asyncio.to_thread(server.remove)


@pytest.fixture
async def database(postgres_server: TestServer) -> str:
    """The DSN of a fresh, migrated database."""
    return await fresh_database(postgres_server)


@pytest.fixture(scope="session")
def qemu_tools() -> None:
    """qemu's programs and libnbd."""
    if qemu.installed() or not libnbd.available():
        missing("qemu's tools and libnbd", f"{qemu.INSTALL} libnbd0")


@pytest.fixture(name="qemu")
def qemu_fixture(qemu_tools: None) -> None:
    """The name that tests use."""


@pytest.fixture(scope="session")
def seed() -> int:
    """Of everything random: the same each run unless STOREBUS_SEED says otherwise."""
    return int(os.environ.get("STOREBUS_SEED", "1"))
