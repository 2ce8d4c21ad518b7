"""The event store's contract in a dict: for unit tests and simulations. Nothing survives the process.

Owns nothing that Postgres does not: the same refusals, the same order, the same dense positions. Its clock is the
process's. Rule: one append runs to its end without an await, so it is atomic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from bus.errors import ClaimTaken, Conflict, CounterFull, LogBroken
from bus.event_store import (
    Appended,
    AppendRequest,
    Checkpoint,
    Claim,
    CounterChange,
    DueTimer,
    HeldMessage,
    Lease,
    LogFilter,
    LogRow,
    Page,
)
from bus.patterns import Matcher

EPOCH = 1


@dataclass
class _Counter:
    value: int = 0
    ceiling: int | None = None


@dataclass
class MemoryEventStore:
    """See bus.event_store.EventStore."""

    rows: list[LogRow] = field(default_factory=list)
    streams: dict[str, list[LogRow]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._claims: dict[str, list[Claim]] = {}
        self._counters: dict[str, _Counter] = {}
        self._timers: dict[str, DueTimer] = {}
        self.ahead = timedelta(0)
        """How far its clock is from this machine's: for tests of what a clock may do."""
        self._checkpoints: dict[str, Checkpoint] = {}
        self._leases: dict[str, tuple[Lease, datetime]] = {}
        self._fences: dict[str, int] = {}
        self._members: dict[tuple[str, str], tuple[dict[str, str], datetime]] = {}
        self._progress: dict[str, bytes] = {}
        self._held: dict[int, HeldMessage] = {}
        self._next_held = 1
        self._secrets: dict[UUID, bytes] = {}
        self._grown = asyncio.Event()

    # --- append ---

    async def append(self, request: AppendRequest) -> Appended:
        """See EventStore."""
        request.check()
        for stream, version in request.expected.items():
            actual = len(self.streams.get(stream, ())) - 1
            if actual != version:
                raise Conflict(f"{stream} is at version {actual}, not {version}", stream=stream, actual=actual)
        claims = self._claims_after(request)
        counters = self._counters_after(request.counters)
        now = await self.now()
        versions = dict(request.expected)
        for row in request.rows:
            versions[row.stream] = version = versions[row.stream] + 1
            made = LogRow(len(self.rows) + 1, row.stream, version, row.kind, row.type, row.type_version, row.id, row.key,
                          row.address, row.tenant, row.correlation, row.causation, now, row.payload, row.meta)
            self.rows.append(made)
            self.streams.setdefault(row.stream, []).append(made)
        self._claims = claims
        self._counters |= counters
        for name in request.clear_timers:
            self._timers.pop(name, None)
        for timer in request.set_timers:
            self._timers[timer.id] = DueTimer(id=timer.id, key=timer.key, type=timer.type, payload=timer.payload,
                                              due_at=now + timedelta(seconds=timer.after_s))
        if request.rows:
            grown, self._grown = self._grown, asyncio.Event()
            grown.set()
        return Appended(len(self.rows))

    def _claims_after(self, request: AppendRequest) -> dict[str, list[Claim]]:
        claims = {name: list(held) for name, held in self._claims.items()}
        for claim in request.release:
            kept = [held for held in claims.get(claim.name, []) if held.holder != claim.holder]
            claims[claim.name] = kept
        for claim in request.take:
            held = claims.setdefault(claim.name, [])
            other = next((h for h in held if h.value != claim.value), None)
            if other is not None:
                raise ClaimTaken(f"{claim.name} is held with {other.value}", stream=claim.name, holder=other.holder)
            if claim not in held:
                held.append(claim)
        return {name: held for name, held in claims.items() if held}

    def _counters_after(self, changes: Sequence[CounterChange]) -> dict[str, _Counter]:
        after: dict[str, _Counter] = {}
        for change in changes:
            counter = after.setdefault(change.name, replace(self._counters.get(change.name, _Counter())))
            if change.lift_ceiling:
                counter.ceiling = None
            if change.ceiling is not None:
                counter.ceiling = change.ceiling
            value = counter.value + change.delta
            if value < 0 or (counter.ceiling is not None and value > counter.ceiling):
                raise CounterFull(f"{change.name} is {counter.value} of {counter.ceiling}, and {change.delta:+d} does not fit",
                                  stream=change.name, actual=counter.value)
            counter.value = value
        return after

    # --- read ---

    async def read_stream(self, stream: str, *, after_version: int = -1, limit: int = 1000) -> list[LogRow]:
        """See EventStore."""
        return self.streams.get(stream, [])[after_version + 1:after_version + 1 + limit]

    async def read_streams(self, streams: Sequence[str]) -> dict[str, list[LogRow]]:
        """See EventStore."""
        return {stream: list(self.streams.get(stream, ())) for stream in streams}

    async def read_log(self, after: int, *, filter: LogFilter | None = None, limit: int = 1000) -> Page:  # noqa: A002
        """See EventStore."""
        wanted = filter or LogFilter()
        found: list[LogRow] = []
        for row in self.rows[after:]:
            if wanted.until_position is not None and row.position > wanted.until_position:
                break
            if row.position != after + 1:
                raise LogBroken(f"position {after + 1} is missing")
            after = row.position
            if _wanted(row, wanted):
                found.append(row)
            if len(found) >= limit:
                break
        return Page(found, after, at_head=after == len(self.rows))

    async def head(self) -> int:
        """See EventStore."""
        return len(self.rows)

    async def epoch(self) -> int:
        """See EventStore."""
        return EPOCH

    async def position_at(self, time: datetime) -> int:
        """See EventStore."""
        return sum(1 for row in self.rows if row.recorded_at < time)

    async def wait(self, after: int, *, timeout_s: float) -> bool:
        """See EventStore."""
        if len(self.rows) > after:
            return True
        try:
            await asyncio.wait_for(self._grown.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def load_checkpoint(self, name: str) -> Checkpoint | None:
        """See EventStore."""
        return self._checkpoints.get(name)

    async def save_checkpoint(self, name: str, checkpoint: Checkpoint, *, fence: int | None = None) -> None:
        """See EventStore."""
        if checkpoint.epoch != EPOCH:
            raise LogBroken(f"checkpoint {name} is of epoch {checkpoint.epoch}, the log is of {EPOCH}")
        if fence is not None and fence != self._fences.get(name, 0):
            raise Conflict(f"the lease {name} has another holder now", stream=name)
        self._checkpoints[name] = checkpoint

    async def list_checkpoints(self) -> dict[str, Checkpoint]:
        """See EventStore."""
        return dict(self._checkpoints)

    async def claims(self) -> dict[str, list[Claim]]:
        """See EventStore."""
        return {name: list(held) for name, held in self._claims.items()}

    async def counters(self) -> dict[str, tuple[int, int | None]]:
        """See EventStore."""
        return {name: (counter.value, counter.ceiling) for name, counter in self._counters.items()}

    async def counter_values(self, names: Sequence[str]) -> dict[str, int]:
        """See EventStore."""
        return {name: self._counters[name].value for name in names if name in self._counters}

    # --- timers, leases, members ---

    async def now(self) -> datetime:
        """See EventStore."""
        return datetime.now(UTC) + self.ahead

    async def due_timers(self, *, limit: int = 100, again_s: float = 10.0, all_now: bool = False) -> list[DueTimer]:
        """See EventStore."""
        now = await self.now()
        due = sorted((t for t in self._timers.values() if all_now or t.due_at <= now), key=lambda t: t.due_at)[:limit]
        for timer in due:
            self._timers[timer.id] = replace(timer, due_at=now + timedelta(seconds=again_s))
        return due

    async def timers(self) -> dict[str, DueTimer]:
        """See EventStore."""
        return dict(self._timers)

    async def acquire_lease(self, name: str, holder: str, *, ttl_s: float, steal: bool = False) -> Lease | None:
        """See EventStore."""
        now = datetime.now(UTC)
        known = self._leases.get(name)
        if known is not None and known[0].holder != holder and known[1] > now and not steal:
            return None
        if known is None or known[0].holder != holder:
            self._fences[name] = self._fences.get(name, 0) + 1
        lease = Lease(name=name, holder=holder, fence=self._fences[name])
        self._leases[name] = (lease, now + timedelta(seconds=ttl_s))
        return lease

    async def release_lease(self, lease: Lease) -> None:
        """See EventStore."""
        known = self._leases.get(lease.name)
        if known is not None and known[0] == lease:
            del self._leases[lease.name]

    async def beat(self, role: str, member: str, *, info: Mapping[str, str], ttl_s: float) -> None:
        """See EventStore."""
        self._members[role, member] = (dict(info), datetime.now(UTC) + timedelta(seconds=ttl_s))

    async def members(self, role: str) -> dict[str, dict[str, str]]:
        """See EventStore."""
        now = datetime.now(UTC)
        return {member: info for (of, member), (info, until) in self._members.items() if of == role and until > now}

    async def set_progress(self, work: str, progress: bytes) -> None:
        """See EventStore."""
        self._progress[work] = progress

    async def get_progress(self, works: Sequence[str]) -> dict[str, bytes]:
        """See EventStore."""
        return {work: self._progress[work] for work in works if work in self._progress}

    # --- held messages, secrets ---

    async def hold(self, *, key: str, partition: int, headers: Mapping[str, str], body: bytes, reason: str,
                   source: str = "work") -> int:
        """See EventStore."""
        now, number = datetime.now(UTC), self._next_held
        self._next_held += 1
        self._held[number] = HeldMessage(id=number, key=key, partition=partition, headers=dict(headers),
                                         body=body[:256 * 1024], reason=reason, attempts=1, first_failed=now,
                                         last_failed=now, source=source)
        return number

    async def held(self, *, key: str | None = None, limit: int = 1000) -> list[HeldMessage]:
        """See EventStore."""
        return [held for held in self._held.values() if key is None or held.key == key][:limit]

    async def held_keys(self) -> set[str]:
        """See EventStore."""
        return {held.key for held in self._held.values() if held.key}

    async def held_failed(self, id: int, reason: str) -> None:  # noqa: A002
        """See EventStore."""
        known = self._held[id]
        self._held[id] = replace(known, attempts=known.attempts + 1, reason=reason, last_failed=datetime.now(UTC))

    async def drop_held(self, id: int) -> None:  # noqa: A002
        """See EventStore."""
        self._held.pop(id, None)

    async def put_secret(self, id: UUID, sealed: bytes) -> None:  # noqa: A002
        """See EventStore."""
        self._secrets[id] = sealed

    async def get_secret(self, id: UUID) -> bytes | None:  # noqa: A002
        """See EventStore."""
        return self._secrets.get(id)

    async def drop_secret(self, id: UUID) -> None:  # noqa: A002
        """See EventStore."""
        self._secrets.pop(id, None)

    async def aclose(self) -> None:
        """See EventStore."""


def _wanted(row: LogRow, wanted: LogFilter) -> bool:
    return (
        (not wanted.kinds or row.kind in wanted.kinds)
        and (not wanted.types or Matcher(wanted.types)(row.type))
        and (not wanted.streams or row.stream in wanted.streams)
        and (wanted.correlation is None or row.correlation == wanted.correlation)
        and (wanted.until_time is None or row.recorded_at < wanted.until_time)
    )
