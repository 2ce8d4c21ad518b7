"""Verify the log: density, versions, the hash chain, stream heads, and claims and counters against the fold of what was done.

Reads in pages, constant memory but for the streams' heads. Each finding names the place. Refuses to repair: what is
wrong here was done by a hand or by a disk.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import asyncpg

from bus.event_store_connection import ANSWER_S, AWAY, CONNECT_S, failed
from bus.sql import query

PAGE = 5000
MOST = 100
"""Findings after which the walk ends: more of them say nothing new."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it must be."""

    where: str
    what: str


class _Walk:
    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.heads: dict[str, int] = {}
        self.claims: dict[tuple[str, str], str] = {}
        self.counters: dict[str, tuple[int, int | None]] = {}
        self.at = 0

    def say(self, where: str, what: str) -> None:
        self.findings.append(Finding(where, what))

    def row(self, row: asyncpg.Record) -> None:
        """One row, in order of position."""
        position, stream, version = row["position"], row["stream"], row["version"]
        place = f"position {position} ({stream} v{version}, {row['type']})"
        if position != self.at + 1:
            missing = f"position {self.at + 1}" if position == self.at + 2 else f"positions {self.at + 1} to {position - 1}"
            self.say(missing, "missing from the log")
        self.at = position
        if not row["linked"]:
            self.say(place, "its content or its place is not what was written (hash chain)")
        head = self.heads.get(stream, -1)
        if version != head + 1:
            self.say(place, f"version {version} follows version {head}")
        self.heads[stream] = max(version, head)
        if row["effects"]:
            try:
                self.effects(json.loads(row["effects"]))
            except (ValueError, KeyError, TypeError):
                self.say(place, "its claims and counters cannot be read")

    def effects(self, done: dict[str, Any]) -> None:
        """Claims and counters that the row's request changed."""
        for name, holder in done["release"]:
            self.claims.pop((name, holder), None)
        for name, value, holder in done["take"]:
            self.claims[name, holder] = value
        for name, delta, ceiling, lift in done["counters"]:
            value, most = self.counters.get(name, (0, None))
            self.counters[name] = (value + delta, ceiling if ceiling is not None else None if lift else most)


async def verify(dsn: str) -> list[Finding]:
    """Everything wrong with the log and what is kept with it; empty when all is well. Raises StoreAway, Denied, LogBroken."""
    try:
        connection = await asyncpg.connect(dsn, timeout=CONNECT_S, command_timeout=ANSWER_S)
    except (*AWAY, asyncpg.PostgresError, ValueError) as error:
        raise failed(error) from None
    try:
        # One snapshot for everything: a log that grows meanwhile is compared with itself.
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await _verify(connection)
    except (*AWAY, asyncpg.PostgresError) as error:
        raise failed(error) from None
    finally:
        await connection.close(timeout=5)


async def _verify(connection: asyncpg.Connection[asyncpg.Record]) -> list[Finding]:
    walk = _Walk()
    last = b""
    while len(walk.findings) < MOST:
        rows = await connection.fetch(query("verify_page"), walk.at, last, PAGE)
        if not rows:
            break
        for row in rows:
            walk.row(row)
        last = rows[-1]["hash"]
    if len(walk.findings) < MOST:
        await _kept(connection, walk)
    return walk.findings[:MOST]


async def _kept(connection: asyncpg.Connection[asyncpg.Record], walk: _Walk) -> None:
    """Stream heads, claims and counters against the fold."""
    for row in await connection.fetch(query("stream_heads")):
        head = walk.heads.pop(row["name"], -1)
        if row["version"] != head:
            walk.say(f"stream {row['name']}", f"its head says version {row['version']}, the log has {head}")
    for name, head in walk.heads.items():
        walk.say(f"stream {name}", f"its head is missing, the log has version {head}")
    held = {(row["name"], row["holder"]): row["value"] for row in await connection.fetch(query("claims"))}
    for name, holder in sorted(held.keys() | walk.claims.keys()):
        if held.get((name, holder)) != walk.claims.get((name, holder)):
            found, wanted = held.get((name, holder)), walk.claims.get((name, holder))
            walk.say(f"claim {name}", f"{holder} holds {found!r}, the log says {wanted!r}")
    counters = {row["name"]: (row["value"], row["ceiling"]) for row in await connection.fetch(query("counters"))}
    for name in sorted(counters.keys() | walk.counters.keys()):
        value, fold = counters.get(name, (0, None)), walk.counters.get(name, (0, None))
        if value != fold:
            walk.say(f"counter {name}", f"it is {value[0]} of {value[1]}, the log says {fold[0]} of {fold[1]}")
