"""The agent's own intent log: an order is written here before it is acked, its final report before it is sent.

Owns one SQLite file with every commit synchronous. What it says after a crash is what the agent does next. Holds orders as
they came, with references in place of secrets. Refuses to know what an order means.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from schema.message import Order

T = TypeVar("T")

DONE, OPEN, REFUSED = "done", "open", "refused"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS work (
    came INTEGER PRIMARY KEY, work_id TEXT UNIQUE NOT NULL, attempt INTEGER NOT NULL, state TEXT NOT NULL,
    type TEXT NOT NULL, payload BLOB NOT NULL,
    headers TEXT NOT NULL, report_type TEXT NOT NULL DEFAULT '', report BLOB NOT NULL DEFAULT x'',
    cancelled INTEGER NOT NULL DEFAULT 0) STRICT
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One order as journaled."""

    work_id: str
    attempt: int
    state: str
    """open (to be done), done (its report waits to be released), refused (cancelled before it came)."""
    type: str
    payload: bytes
    headers: str
    report_type: str
    report: bytes
    cancelled: bool


class Journal:
    """Opened once by one agent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(_SCHEMA)
        return self._db

    async def _run(self, call: Callable[[sqlite3.Connection], T]) -> T:
        def locked() -> T:
            with self._lock:
                return call(self._open())

        return await asyncio.to_thread(locked)

    async def take(self, order: Order, payload: bytes, headers: str) -> Entry | None:
        """Write a new order down. The entry that is there already when it (or a later attempt of it) came before."""
        def write(db: sqlite3.Connection) -> Entry | None:
            known = _entry(db, str(order.work_id))
            if known is not None and (known.attempt >= order.attempt or known.state == REFUSED):
                return known
            db.execute(
                "INSERT INTO work (work_id, attempt, state, type, payload, headers) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (work_id) DO UPDATE SET attempt = excluded.attempt, state = excluded.state, "
                "payload = excluded.payload, headers = excluded.headers, report_type = '', report = x'', cancelled = 0",
                (str(order.work_id), order.attempt, OPEN, order.TYPE, payload, headers))
            return None

        return await self._run(write)

    async def find(self, work_id: str) -> Entry | None:
        """What is known of a piece of work."""
        return await self._run(lambda db: _entry(db, work_id))

    async def refuse(self, work_id: str, attempt: int, headers: str) -> None:
        """It was cancelled before it came: should it come, it is not done."""
        await self._run(lambda db: db.execute(
            "INSERT INTO work (work_id, attempt, state, type, payload, headers, cancelled) VALUES (?, ?, ?, '', x'', ?, 1) "
            "ON CONFLICT (work_id) DO NOTHING", (work_id, attempt, REFUSED, headers)))

    async def cancel(self, work_id: str) -> None:
        """It is to be stopped: also after a crash."""
        await self._run(lambda db: db.execute("UPDATE work SET cancelled = 1 WHERE work_id = ?", (work_id,)))

    async def finish(self, work_id: str, report_type: str, report: bytes) -> None:
        """Its final report; kept until released."""
        await self._run(lambda db: db.execute(
            "UPDATE work SET state = ?, report_type = ?, report = ? WHERE work_id = ?", (DONE, report_type, report, work_id)))

    async def release(self, work_id: str, attempt: int) -> None:
        """The report is in the log: forget the work, unless a later attempt of it came meanwhile."""
        await self._run(lambda db: db.execute(
            "DELETE FROM work WHERE work_id = ? AND attempt <= ? AND state <> ?", (work_id, attempt, OPEN)))

    async def entries(self) -> list[Entry]:
        """Everything, in the order in which it came."""
        return await self._run(lambda db: [Entry(**_named(row)) for row in db.execute(_SELECT + " ORDER BY came")])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None


_COLUMNS = ("work_id", "attempt", "state", "type", "payload", "headers", "report_type", "report", "cancelled")
_SELECT = "SELECT " + ", ".join(_COLUMNS) + " FROM work"  # noqa: S608 - a constant


def _named(row: tuple[Any, ...]) -> dict[str, Any]:
    found = dict(zip(_COLUMNS, row, strict=True))
    found["cancelled"] = bool(found["cancelled"])
    return found


def _entry(db: sqlite3.Connection, work_id: str) -> Entry | None:
    row = db.execute(_SELECT + " WHERE work_id = ?", (work_id,)).fetchone()
    return Entry(**_named(row)) if row else None
