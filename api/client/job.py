"""A job as a client of the API sees it: wait for its result, follow its progress, cancel it.

Owns the polling and its bounds. Refuses to end anything by itself: a client that stops waiting leaves the job going on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from api.client.connection import Connection
from api.client.failures import failed
from schema.failure import Unknown

POLL_S = (0.05, 1.0)
"""The wait begins with the first and slows down to the second."""
PATIENCE_S = 60.0
"""How long the API may be away while a job is waited for."""
DAY_S = 86_400.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """What a job has done so far."""

    percent: int
    """Of the bytes that the destination has; 100 only when the job has completed."""
    state: str
    """submitted, running, undoing, completed, failed, cancelled."""
    stage: str
    """What is being done now."""
    bytes: int
    total: int | None
    """Bytes in all; None while nobody knows."""
    rate: float | None
    """Bytes a second."""
    eta: float | None
    """Seconds that are left, as it goes now."""
    trouble: str
    """Why it waits, when it does."""
    ended: bool

    @classmethod
    def of(cls, job: Mapping[str, Any]) -> Progress:
        """From a job as queryAsyncJobResult shows it."""
        told = job.get("progress") or {}
        return cls(percent=int(job.get("jobprocstatus", 0)), state=str(job.get("jobstate", "")),
                   stage=str(told.get("stage") or job.get("step") or ""), bytes=int(told.get("bytes") or 0),
                   total=told.get("total"), rate=told.get("rate"), eta=told.get("eta"),
                   trouble=str(job.get("trouble") or ""), ended=job.get("jobstatus") != 0)


class Job(Generic[T]):
    """One job. `id` asks for it anywhere; `thing_id` is the id of what it makes, empty where it makes nothing."""

    def __init__(self, connection: Connection, job_id: str, *, item: str = "", thing_id: str = "") -> None:
        self._connection, self._item = connection, item
        self.id, self.thing_id = job_id, thing_id

    def __repr__(self) -> str:
        """`<job ...>`."""
        return f"<job {self.id}>"

    async def status(self) -> dict[str, Any]:
        """The job as queryAsyncJobResult shows it now."""
        return await self._connection.ask("queryAsyncJobResult", {"jobid": self.id}, repeat=True, patience_s=PATIENCE_S)

    async def reports(self, *, timeout_s: float = DAY_S) -> AsyncIterator[dict[str, Any]]:
        """The job whenever it has changed, its end at last. Raises Unknown when the time is over; the job goes on."""
        pause, before = POLL_S[0], None
        try:
            async with asyncio.timeout(timeout_s) as bound:
                while True:
                    job = await self.status()
                    if job != before:
                        when = bound.when()
                        bound.reschedule(None)  # what its reader does is the reader's time
                        yield job
                        bound.reschedule(when)
                    if job["jobstatus"] != 0:
                        return
                    before = job
                    await asyncio.sleep(pause)
                    pause = min(POLL_S[1], pause * 1.3)
        except TimeoutError:
            raise Unknown(f"job {self.id} has not ended after {timeout_s:g} s", field="timeout",
                          remedy=f"it goes on: ask queryAsyncJobResult jobid={self.id}, or stop it with cancelJob") from None

    async def progress(self, *, timeout_s: float = DAY_S) -> AsyncIterator[Progress]:
        """What it does, until it has ended in whatever way: `result` tells which."""
        async for job in self.reports(timeout_s=timeout_s):
            yield Progress.of(job)

    async def result(self, *, timeout_s: float = DAY_S) -> T:
        """The thing that it made or changed. Raises the job's own failure, Cancelled when it was cancelled, Unknown when the
        time is over."""
        async for job in self.reports(timeout_s=timeout_s):
            if job["jobstatus"] != 0:
                return self.outcome(job)
        raise AssertionError("a job's reports end with its end")

    def outcome(self, job: Mapping[str, Any]) -> T:
        """What a job that has ended came to. Raises its failure."""
        told = job.get("jobresult") or {}
        if job["jobstatus"] != 1:
            raise failed(told, cancelled=job.get("jobstate") == "cancelled")
        return cast(T, told.get(self._item, told) if self._item else told)

    async def cancel(self) -> None:
        """Ask it to stop and to take back what it did. Its end is still waited for with `result`."""
        await self._connection.ask("cancelJob", {"jobid": self.id}, repeat=True)


__all__ = ["Job", "Progress"]
