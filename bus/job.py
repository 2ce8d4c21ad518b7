"""A job as its caller sees it: wait for its end, follow its progress, cancel it. All of it read from the log.

Owns JobHandle. Refuses to know what the job does: its end is the event `job.completed`, `job.failed` or
`job.cancelled` in its stream, and no broker can lose that.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any
from uuid import UUID

from bus.errors import CallTimedOut, StoreAway
from bus.event_store import EventStore, LogRow
from bus.submission import job_stream
from schema.failure import Cancelled, Failed, Failure, Unavailable
from schema.job import CancelJob, JobCancelled, JobCompleted, JobFailed, JobStepStarted
from schema.message import Command

ENDS = frozenset({JobCompleted.TYPE, JobFailed.TYPE, JobCancelled.TYPE})
POLL_S = 1.0
PATIENCE_S = 60.0
"""How long the database may be away while a job is waited for."""


class JobFailure(Failed):
    """The job ended with this failure: its own codes, cause and remedy."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.cause, field=failure.field, remedy=failure.remedy)
        self.failure = failure


class JobStopped(Cancelled):
    """The job was cancelled; nothing of it remains."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.cause, field=failure.field, remedy=failure.remedy)
        self.failure = failure


class JobHandle:
    """One job. Cheap: it holds the id and asks the log."""

    def __init__(self, job_id: UUID, store: EventStore | None,
                 publish: Callable[[Command], Awaitable[JobHandle]]) -> None:
        self.id = job_id
        self._store, self._publish = store, publish

    def __repr__(self) -> str:
        """`<job ...>`."""
        return f"<job {self.id}>"

    @property
    def store(self) -> EventStore:
        """The log. Raises Unavailable when only a broker is connected."""
        if self._store is None:
            raise Unavailable("a job is followed in the log, and no database is connected", field="database_url",
                              remedy="set STOREBUS_DATABASE_URL, or subscribe to job.# on the events exchange")
        return self._store

    async def events(self, *, timeout_s: float | None = None) -> AsyncGenerator[LogRow, None]:
        """The job's rows from its first to its end, as they come. Raises CallTimedOut when the time is over."""
        stream, version = job_stream(self.id), -1
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        away_since = 0.0
        while True:
            try:
                # The head is read first: what comes after it wakes the wait, what came before it is in the stream.
                head = await self.store.head()
                rows = await self.store.read_stream(stream, after_version=version)
                away_since = 0.0
            except StoreAway:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > PATIENCE_S:
                    raise
                await asyncio.sleep(0.5)
                rows, head = [], -1
            for row in rows:
                version = row.version
                yield row
                if row.type in ENDS:
                    return
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise CallTimedOut(f"job {self.id} has not ended after {timeout_s:g} s", field="timeout",
                                   remedy="it goes on: wait again, or cancel it")
            if not rows and head >= 0:
                await self.store.wait(head, timeout_s=POLL_S if left is None else min(POLL_S, left))
                await asyncio.sleep(0.01)  # on a busy log somebody else's rows wake this wait all the time

    async def result(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The job's result once it completed. Raises JobFailure (a Failed), JobStopped (a Cancelled), CallTimedOut."""
        async for row in self.events(timeout_s=timeout_s):
            if row.type == JobCompleted.TYPE:
                return JobCompleted.model_validate_json(row.payload).result
            if row.type == JobFailed.TYPE:
                raise JobFailure(JobFailed.model_validate_json(row.payload).failure)
            if row.type == JobCancelled.TYPE:
                raise JobStopped(JobCancelled.model_validate_json(row.payload).failure)
        raise AssertionError("a job's events end with its end")

    async def status(self) -> str:
        """unknown (nobody took it in yet), or the last word of its newest event: submitted, started, completed, ..."""
        rows = await self.store.read_stream(job_stream(self.id), limit=10_000)
        return rows[-1].type.partition(".")[2] if rows else "unknown"

    async def progress(self, *, every_s: float = 0.5) -> AsyncGenerator[dict[str, Any], None]:
        """What the job is doing, whenever that changed: `{"event": type, ...its data}` for each event of the job and
        `{"stage", "bytes", "total", "rate", "eta", "step", ...}` in between. Ends with the job."""
        stream, version, last = job_stream(self.id), -1, b""
        work: dict[str, str] = {}
        while True:
            for row in await self.store.read_stream(stream, after_version=version):
                version = row.version
                data = json.loads(row.payload)
                if row.type == JobStepStarted.TYPE:
                    work = {"step": data["step"], "work_id": data["work_id"], "attempt": str(data["attempt"])}
                if row.kind != "order":
                    yield {"event": row.type, "time": row.recorded_at.isoformat(), **data}
                if row.type in ENDS:
                    return
            if work:
                names = [f"{work['work_id']}.{work['attempt']}", work["work_id"]]
                known = await self.store.get_progress(names)
                newest = next((known[name] for name in names if name in known), b"")
                if newest and newest != last:
                    last = newest
                    yield {"step": work["step"], **json.loads(newest)}
            await asyncio.sleep(every_s)

    async def cancel(self) -> JobHandle:
        """Ask for it to stop; the handle of the cancelling job. A job that has ended is refused there."""
        return await self._publish(CancelJob(job_id=self.id))


__all__ = ["ENDS", "JobFailure", "JobHandle", "JobStopped"]
