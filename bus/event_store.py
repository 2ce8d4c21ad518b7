"""The event store's contract: one way to write, a few ways to read.

Owns the words (request, row, claim, counter, timer, checkpoint, lease) and what is true after each call. Refuses to
know storage nouns and SQL. Implementations: `event_store_postgres` (ships), `event_store_memory` (ships; the
same contract in a dict, for unit tests). One contract suite runs on both: `tests/contract/test_event_store.py`.

Order: positions 1..n without a hole, given under one lock that is held to the commit, so every reader can check that
nothing is missing. Versions 0..n without a hole in each stream. The head of an empty log is position 0; the
version of a stream that does not exist is -1.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from schema.failure import BadParameter

MAX_PAYLOAD = 1 << 20
"""Bytes; a message has at most a quarter of it, but a job keeps the command inside its own row."""
NO_STREAM = -1
"""Expected version of a stream that must not exist yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """One row to append. The store adds position, version, time and hash."""

    stream: str
    kind: str
    """command, event or order: see schema.message.Kind"""
    type: str
    type_version: int = 1
    id: UUID
    payload: bytes
    """Canonical JSON, at most 256 KiB."""
    key: str
    """Partition key of the thing concerned; a report about an order carries it back."""
    address: str = ""
    """For an order: the agent. Else empty."""
    tenant: str = "root"
    correlation: UUID
    """The job at the root of it all."""
    causation: UUID | None = None
    """The message that led to this one."""
    meta: bytes = b"{}"
    """Canonical JSON: principal, traceparent; account and domain (its path) of what is not ROOT's admin's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A name only one may hold. Holders that give the same value share it; another value is refused."""

    name: str
    """E.g. `image_store.name/backups`, `image_store.provider`."""
    value: str
    holder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterChange:
    """Add `delta`; the value must stay within 0..ceiling. `ceiling` (when not None) is set first, 0 closing it."""

    name: str
    delta: int = 0
    ceiling: int | None = None
    lift_ceiling: bool = False
    """Remove the ceiling first (a closing that was undone)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """A wait: when due, (`type`, `payload`) is delivered to the partition of `key`, again and again until cleared."""

    id: str
    """Its name, e.g. `job-<id>/<work id>`; setting it again moves it."""
    after_s: float
    """Seconds from the database's now."""
    key: str
    type: str
    payload: bytes = b"{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendRequest:
    """All-or-nothing: every stream the decision read with its expected version (written or not), and the effects."""

    expected: Mapping[str, int]
    rows: Sequence[NewRow]
    take: Sequence[Claim] = ()
    release: Sequence[Claim] = ()
    counters: Sequence[CounterChange] = ()
    set_timers: Sequence[Timer] = ()
    clear_timers: Sequence[str] = ()

    @property
    def folded(self) -> bool:
        """Whether it changes what is folded from the log besides streams: claims or counters."""
        return bool(self.take or self.release or self.counters)

    def check(self) -> None:
        """Raises BadParameter for a request that no state of the log could take."""
        if self.folded and not self.rows:
            raise BadParameter("claims and counters are folded from rows: a request that changes them needs one", field="rows")
        for row in self.rows:
            if row.stream not in self.expected:
                raise BadParameter(f"a row goes to {row.stream}, whose expected version is not given", field="expected")
            if len(row.payload) > MAX_PAYLOAD:
                raise BadParameter(f"the {row.type} has {len(row.payload)} bytes; at most {MAX_PAYLOAD} are kept",
                                   field="payload")


@dataclass(frozen=True, slots=True)
class Appended:
    """The request is committed and survives kill -9 of everything."""

    last_position: int
    """Position of its last row; the head at that time when it had no rows."""


class LogRow(NamedTuple):
    """One row as read. A tuple because millions of them pass through a replay."""

    position: int
    stream: str
    version: int
    kind: str
    type: str
    type_version: int
    id: UUID
    key: str
    address: str
    tenant: str
    correlation: UUID
    causation: UUID | None
    recorded_at: datetime
    payload: bytes
    meta: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFilter:
    """Which rows a reader wants; an empty field wants all. Density is checked over all rows scanned regardless."""

    kinds: frozenset[str] = frozenset()
    types: tuple[str, ...] = ()
    """Dotted patterns as in AMQP topics: `snapshot.*`, `snapshot.#`, `#`."""
    streams: tuple[str, ...] = ()
    """Exact stream names."""
    correlation: UUID | None = None
    until_position: int | None = None
    until_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Rows that matched, and how far the log was scanned and found dense: continue after `scanned_to`."""

    rows: list[LogRow]
    scanned_to: int
    at_head: bool = False
    """Nothing was left when it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How far a named reader came. Epoch and event id show a restored database for what it is."""

    position: int
    epoch: int
    event_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DueTimer:
    """A timer whose time has come; it was moved on by `again_s`, so that it comes again unless it is cleared."""

    id: str
    key: str
    type: str
    payload: bytes
    due_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to do a job alone until `ttl_s` after the last renewal. `fence` grows with each new holder."""

    name: str
    holder: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMessage:
    """A message that failed and waits, with the later messages of its key behind it; or a dead letter (key empty)."""

    id: int
    key: str
    partition: int
    headers: dict[str, str]
    body: bytes
    reason: str
    attempts: int
    first_failed: datetime
    last_failed: datetime
    source: str = "work"
    """work (a partition queue) or commands (refused by the forwarder)."""


class EventStore(Protocol):
    """Append, read, wait. Every method raises StoreAway when the database does not answer."""

    async def append(self, request: AppendRequest) -> Appended:
        """Commit the request. Raises Conflict, ClaimTaken, CounterFull, BadParameter (nothing written) or AppendUnknown.

        Many callers at once share one commit. A request with an id that is already in the log at the same stream
        conflicts on its expected version like any other.
        """

    async def read_stream(self, stream: str, *, after_version: int = -1, limit: int = 1000) -> list[LogRow]:
        """Rows of one stream in version order; empty when it does not exist."""

    async def read_streams(self, streams: Sequence[str]) -> dict[str, list[LogRow]]:
        """Whole streams in one round trip; those that do not exist map to an empty list. """

    async def read_log(self, after: int, *, filter: LogFilter | None = None, limit: int = 1000) -> Page:  # noqa: A002
        """Scan on from position `after`; up to `limit` matching rows. Raises LogBroken where a position is missing."""

    async def head(self) -> int:
        """Position of the last row; 0 for an empty log."""

    async def epoch(self) -> int:
        """Number of this log's life: a new one after a restore."""

    async def position_at(self, time: datetime) -> int:
        """The last position recorded before `time`; 0 when none was."""

    async def wait(self, after: int, *, timeout_s: float) -> bool:
        """Sleep until the log may have a row after `after`, or the time is over. True when woken; never relied upon."""

    async def load_checkpoint(self, name: str) -> Checkpoint | None:
        """Where the named reader stands; None before its first save."""

    async def save_checkpoint(self, name: str, checkpoint: Checkpoint, *, fence: int | None = None) -> None:
        """Move the named reader. Raises LogBroken on another epoch, Conflict when `fence` is not the lease's."""

    async def list_checkpoints(self) -> dict[str, Checkpoint]:
        """All named readers."""

    async def claims(self) -> dict[str, list[Claim]]:
        """Every claim held, by name."""

    async def counters(self) -> dict[str, tuple[int, int | None]]:
        """Every counter: value and ceiling (None: no ceiling)."""

    async def counter_values(self, names: Sequence[str]) -> dict[str, int]:
        """These counters' values; those that were never counted are left out."""

    # --- timers, leases, members: who does what, by the database's clock ---

    async def now(self) -> datetime:
        """What time it is, by the clock that timers and `recorded_at` are of."""

    async def due_timers(self, *, limit: int = 100, again_s: float = 10.0, all_now: bool = False) -> list[DueTimer]:
        """Timers whose time has come, each moved on by `again_s`. `all_now`: every timer (after a memory bus died)."""

    async def timers(self) -> dict[str, DueTimer]:
        """Every timer that is set."""

    async def acquire_lease(self, name: str, holder: str, *, ttl_s: float, steal: bool = False) -> Lease | None:
        """Take or renew the lease; None while somebody else has it. Same holder keeps its fence. `steal` takes it from
        whoever has it, who then finds its fence refused."""

    async def release_lease(self, lease: Lease) -> None:
        """Give it back at once (a clean stop)."""

    async def beat(self, role: str, member: str, *, info: Mapping[str, str], ttl_s: float) -> None:
        """Say that `member` of `role` lives (transient, unlogged)."""

    async def members(self, role: str) -> dict[str, dict[str, str]]:
        """Living members of `role` with what they said of themselves."""

    async def set_progress(self, work: str, progress: bytes) -> None:
        """The last progress of an order (transient, unlogged); never goes through the log."""

    async def get_progress(self, works: Sequence[str]) -> dict[str, bytes]:
        """Last progress by order; absent ones are left out."""

    # --- held messages and dead letters ---

    async def hold(self, *, key: str, partition: int, headers: Mapping[str, str], body: bytes, reason: str,
                   source: str = "work") -> int:
        """Keep a failed message (and block its key, unless key is empty). Bodies over 256 KiB are cut. Its number."""

    async def held(self, *, key: str | None = None, limit: int = 1000) -> list[HeldMessage]:
        """Held messages in the order they were held; of one key, or of all ("" for dead letters)."""

    async def held_keys(self) -> set[str]:
        """Keys that are blocked."""

    async def held_failed(self, id: int, reason: str) -> None:  # noqa: A002
        """One more attempt at a held message failed."""

    async def drop_held(self, id: int) -> None:  # noqa: A002
        """It was handled or discarded."""

    # --- secrets: sealed before they come here ---

    async def put_secret(self, id: UUID, sealed: bytes) -> None:  # noqa: A002
        """Keep an encrypted secret."""

    async def get_secret(self, id: UUID) -> bytes | None:  # noqa: A002
        """The encrypted secret; None when unknown or erased."""

    async def drop_secret(self, id: UUID) -> None:  # noqa: A002
        """Erase it."""

    async def aclose(self) -> None:
        """Finish waiting appends and let go of every connection."""


def pages(store: EventStore, after: int, filter: LogFilter | None = None, limit: int = 5000) -> AsyncIterator[Page]:  # noqa: A002
    """Every page from `after` to the head at the time of asking, in constant memory."""

    async def walk() -> AsyncIterator[Page]:
        at = after
        head = await store.head()
        while at < head:
            page = await store.read_log(at, filter=filter, limit=limit)
            yield page
            if page.scanned_to == at:
                return
            at = page.scanned_to

    return walk()


__all__ = [
    "NO_STREAM", "AppendRequest", "Appended", "Checkpoint", "Claim", "CounterChange", "DueTimer", "EventStore",
    "HeldMessage", "Lease", "LogFilter", "LogRow", "NewRow", "Page", "Timer", "pages",
]
