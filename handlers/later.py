"""Later: a command at a time that a decision sets, by a timer beside the log.

Owns such a timer and what happens when it fires. Rules kept here: never before its time, which is counted from the event that it
follows (a transport that does not outlive the process delivers every timer at the start); however long overdue, it is one job;
the timer goes once that job's first append is in the log. The command itself looks whether what it is about is still so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from bus.event_store import AppendRequest, EventStore, Timer
from schema.codec import canonical, decode
from schema.failure import Failed
from schema.message import Command, Event

TIMER = "timer.later"
EARLY_S = 2.0
"""By so much it may come before its time."""
log = logging.getLogger(__name__)


class Beginner(Protocol):
    """What can begin a job; the runtime is one."""

    store: EventStore

    async def begin(self, command: Command, job_id: UUID) -> None:
        """Begin the job as the installation itself, unless it has begun."""


def timer(name: str, stream: str, since: type[Event], after_s: float, command: Command, job_id: UUID) -> Timer:
    """The timer called `name` by which `command` becomes the job `job_id`, `after_s` seconds after the last event of the type
    `since` in the stream."""
    return _made(name, after_s, stream, {
        "name": name, "stream": stream, "since": since.TYPE, "after_s": after_s, "job_id": str(job_id), "command": command.TYPE,
        "version": command.VERSION, "body": command.model_dump(mode="json")})


def _made(name: str, after_s: float, key: str, payload: Mapping[str, Any]) -> Timer:
    return Timer(id=name, after_s=after_s, key=key, type=TIMER, payload=canonical(dict(payload)))


async def fire(runtime: Beginner, payload: Mapping[str, Any]) -> None:
    """The timer fired."""
    name, stream = payload["name"], payload["stream"]
    rows = await runtime.store.read_stream(stream, limit=100_000)
    since = next((row.recorded_at for row in reversed(rows) if row.type == payload["since"]), None)
    left = payload["after_s"] - (datetime.now(UTC) - since).total_seconds() if since is not None else 0.0
    if left > EARLY_S:
        await runtime.store.append(AppendRequest(expected={}, rows=(), set_timers=(_made(name, left, stream, payload),)))
        return
    command = decode(payload["command"], payload["version"], canonical(payload["body"]))
    assert isinstance(command, Command)
    try:
        await runtime.begin(command, UUID(payload["job_id"]))
    except Failed as failed:
        if failed.failure.retryable:
            raise
        log.warning("a command whose time had come was refused: %s", failed, extra={"action": "later_refused", "timer": name})
    await runtime.store.append(AppendRequest(expected={}, rows=(), clear_timers=(name,)))


__all__ = ["TIMER", "Beginner", "fire", "timer"]
