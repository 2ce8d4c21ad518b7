"""Metrics and health: what /metrics, /readyz and `storebus doctor` say about an installation.

Owns the names of the metrics. Health is told by age (how long the oldest thing waits), for a number of waiting things
says little. Refuses to keep state: what it says is asked for when it is scraped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from api.edge import System
from schema.failure import Failed

ASK_S = 2.0
"""How long the database may take to answer a probe."""
READERS = 50
"""Most named readers that are shown."""


class Metrics:
    """One API process's counters, and the installation's gauges."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("storebus_api_requests", "Requests by command and status.", ["command", "code"],
                                registry=self.registry)
        self.seconds = Histogram("storebus_api_seconds", "Time to answer a request.", ["command"],
                                 buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 40), registry=self.registry)
        self.up = Gauge("storebus_database_up", "1 when the database answers.", registry=self.registry)
        self.head = Gauge("storebus_log_head", "Position of the newest row of the log.", registry=self.registry)
        self.behind = Gauge("storebus_reader_behind", "Rows that a named reader has not read.", ["reader"],
                            registry=self.registry)
        self.age = Gauge("storebus_reader_age_seconds", "Age of the oldest row that a named reader has not read.",
                         ["reader"], registry=self.registry)
        self.oldest = Gauge("storebus_oldest_job_seconds", "Age of the oldest job in a state.", ["status"],
                            registry=self.registry)
        self.held = Gauge("storebus_held_keys", "Keys whose messages are held.", registry=self.registry)
        self.overdue = Gauge("storebus_timers_overdue", "Timers that are due.", registry=self.registry)

    def answered(self, command: str, code: int, seconds: float) -> None:
        """A request was answered; `command` is a known name, so the labels are bounded."""
        self.requests.labels(command or "unknown", str(code)).inc()
        self.seconds.labels(command or "unknown").observe(seconds)

    async def text(self, system: System) -> bytes:
        """The metrics now. A database that is away is a metric, not an error."""
        try:
            async with asyncio.timeout(ASK_S):
                await self._ask(system)
            self.up.set(1)
        except (Failed, TimeoutError):
            self.up.set(0)
        return generate_latest(self.registry)

    async def _ask(self, system: System) -> None:
        store, now = system.store, datetime.now(UTC)
        head = await store.head()
        self.head.set(head)
        self.behind.clear()
        self.age.clear()
        checkpoints = await store.list_checkpoints()
        for name, checkpoint in sorted(checkpoints.items())[:READERS]:
            self.behind.labels(name).set(max(0, head - checkpoint.position))
            age = 0.0
            if checkpoint.position < head:
                page = await store.read_log(checkpoint.position, limit=1)
                age = (now - page.rows[0].recorded_at).total_seconds() if page.rows else 0.0
            self.age.labels(name).set(max(0.0, age))
        for status in ("submitted", "running", "undoing"):
            rows, _ = await system.rows("job", {"status": status}, limit=1)
            since = datetime.fromisoformat(rows[0]["created"]) if rows else now
            self.oldest.labels(status).set(max(0.0, (now - since).total_seconds()))
        self.held.set(len(await store.held_keys()))
        timers = await store.timers()
        self.overdue.set(sum(1 for each in timers.values() if each.due_at < now))


async def ready(system: System, checks: Mapping[str, Callable[[], str]]) -> tuple[bool, dict[str, str]]:
    """Whether this process can serve: (yes or no, what was checked -> `ok` or the cause).

    `checks`: this process's own parts, such as its consumers: "" or what is wrong. How much waits for them is a metric,
    not readiness.
    """
    said = {name: check() or "ok" for name, check in checks.items()}
    yes, found = await _database(system)
    return yes and all(each == "ok" for each in said.values()), {**said, **found}


async def _database(system: System) -> tuple[bool, dict[str, str]]:
    began = time.monotonic()
    try:
        async with asyncio.timeout(ASK_S):
            await system.store.head()
            await system.rows("zone", limit=1)
    except TimeoutError:
        return False, {"database": f"no answer within {ASK_S:g} s"}
    except Failed as failed:
        return False, {"database": failed.failure.text}
    return True, {"database": f"ok, {1000 * (time.monotonic() - began):.0f} ms"}


__all__ = ["Metrics", "ready"]
