"""The agent's own intent log: an order is written here before it is acked, its final report before it is sent.

Owns one SQLite file with every commit synchronous. What it says after a crash is what the agent does next. Holds orders as
they came, with references in place of secrets. Of released work it keeps the name alone, so that a copy of the order that comes
late is not done again. Refuses to know what an order means.
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

OPEN, DONE, REFUSED, RELEASED = "open", "done", "refused", "released"
REMEMBERED = 20_000
"""Names of released work that are kept: far more than orders that may still be on their way."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS work (
    came INTEGER PRIMARY KEY, work_id TEXT UNIQUE NOT NULL, attempt INTEGER NOT NULL, state TEXT NOT NULL,
    type TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 1, payload BLOB NOT NULL, reply_key TEXT NOT NULL,
    report_type TEXT NOT NULL DEFAULT '', report BLOB NOT NULL DEFAULT x'', cancelled INTEGER NOT NULL DEFAULT 0) STRICT
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One order as journaled."""

    work_id: str
    attempt: int
    state: str
    """open (to be done), done (its report waits to be released), refused (cancelled before it came), released."""
    type: str
    version: int
    payload: bytes
    reply_key: str
    report_type: str
    report: bytes
    cancelled: bool


class Journal:
    """Opened once by one agent. Raises sqlite3.Error, e.g. when the disk is full: then nothing was written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._closed = False

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise sqlite3.ProgrammingError("the journal is closed")
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

    async def take(self, order: Order, payload: bytes) -> Entry | None:
        """Write a new order down. The entry that is there already when it, or a later attempt of it, came before."""
        def write(db: sqlite3.Connection) -> Entry | None:
            known = _entry(db, str(order.work_id))
            if known is not None and known.attempt >= order.attempt:
                return known
            db.execute(
                "INSERT INTO work (work_id, attempt, state, type, version, payload, reply_key) VALUES (?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (work_id) DO UPDATE SET attempt = excluded.attempt, state = excluded.state, type = excluded.type, "
                "version = excluded.version, payload = excluded.payload, reply_key = excluded.reply_key, report_type = '', "
                "report = x'', cancelled = 0",
                (str(order.work_id), order.attempt, OPEN, order.TYPE, order.VERSION, payload, order.reply_key))
            return None

        return await self._run(write)

    async def find(self, work_id: str) -> Entry | None:
        """What is known of a piece of work."""
        return await self._run(lambda db: _entry(db, work_id))

    async def cancel(self, order: Order) -> Entry:
        """`order` says to stop this attempt: also after a crash. What is now known of it.

        Work that is open is marked; an attempt that has not come yet is refused in advance; of anything else nothing changes.
        """
        def write(db: sqlite3.Connection) -> Entry:
            db.execute(
                "INSERT INTO work (work_id, attempt, state, type, payload, reply_key, cancelled) VALUES (?, ?, ?, '', x'', ?, 1) "
                "ON CONFLICT (work_id) DO UPDATE SET attempt = excluded.attempt, state = excluded.state, type = '', "
                "payload = x'', reply_key = excluded.reply_key, report_type = '', report = x'', cancelled = 1 "
                "WHERE work.attempt < excluded.attempt", (str(order.work_id), order.attempt, REFUSED, order.reply_key))
            db.execute("UPDATE work SET cancelled = 1 WHERE work_id = ? AND attempt = ? AND state = ?",
                       (str(order.work_id), order.attempt, OPEN))
            known = _entry(db, str(order.work_id))
            assert known is not None
            return known

        return await self._run(write)

    async def finish(self, order: Order, report_type: str, report: bytes) -> bool:
        """Its final report, kept until released. False when a later attempt came meanwhile: the report is not wanted."""
        def write(db: sqlite3.Connection) -> bool:
            return db.execute(
                "UPDATE work SET state = ?, report_type = ?, report = ? WHERE work_id = ? AND attempt = ? AND state = ?",
                (DONE, report_type, report, str(order.work_id), order.attempt, OPEN)).rowcount == 1

        return await self._run(write)

    async def release(self, work_id: str, attempt: int) -> None:
        """The report is in the log: forget all but the name, unless a later attempt of it came meanwhile."""
        def write(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE work SET state = ?, payload = x'', report = x'' WHERE work_id = ? AND attempt <= ? AND state <> ?",
                (RELEASED, work_id, attempt, OPEN))
            db.execute("DELETE FROM work WHERE state = ? AND came <= (SELECT max(came) FROM work) - ?", (RELEASED, REMEMBERED))

        await self._run(write)

    async def entries(self, state: str) -> list[Entry]:
        """Everything in one state, in the order in which it came."""
        return await self._run(lambda db: [Entry(**_named(row)) for row in db.execute(
            f"{_SELECT} WHERE state = ? ORDER BY came", (state,))])

    def close(self) -> None:
        """Close the file for good."""
        with self._lock:
            self._closed = True
            if self._db is not None:
                self._db.close()
                self._db = None


_COLUMNS = ("work_id", "attempt", "state", "type", "version", "payload", "reply_key", "report_type", "report", "cancelled")
_SELECT = "SELECT " + ", ".join(_COLUMNS) + " FROM work"  # noqa: S608 - a constant


def _named(row: tuple[Any, ...]) -> dict[str, Any]:
    found = dict(zip(_COLUMNS, row, strict=True))
    found["cancelled"] = bool(found["cancelled"])
    return found


def _entry(db: sqlite3.Connection, work_id: str) -> Entry | None:
    row = db.execute(_SELECT + " WHERE work_id = ?", (work_id,)).fetchone()
    return Entry(**_named(row)) if row else None
