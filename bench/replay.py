"""Replay of a million events, each side in a process of its own so that its memory is its own."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

import asyncpg
import uvloop

from bench.measure import Result, interleaved
from bus.event_store import AppendRequest, NewRow
from bus.event_store_postgres import PostgresEventStore
from bus.replay import Replay, replay_raw, selection
from tests.services.postgres import TestServer, fresh_database

EVENTS = 1_000_000
PEAK_MB, GROWTH_MB = 200, 16
COLUMNS = "position, stream, version, kind, type, type_version, id, key, address, tenant, correlation, causation, recorded_at, payload, meta"


async def load(dsn: str) -> None:
    """A million real rows through the real append, and as many stored events for the peer. Untimed."""
    store = await PostgresEventStore.connect(dsn)

    async def writer(count: int) -> None:
        for _ in range(count):
            stream, volume = f"volume-{(thing := uuid4())}", str(thing)
            payload = json.dumps({"name": "a name of a volume", "volume_id": volume}, separators=(",", ":")).encode()
            await store.append(AppendRequest(expected={stream: -1}, rows=[NewRow(
                stream=stream, kind="event", type="volume.renamed", id=uuid4(), payload=payload, key=stream, correlation=thing)
                for _ in range(250)]))

    for _ in range(EVENTS // 250 // 40):
        await asyncio.gather(*(writer(5) for _ in range(8)))
    await store.make_partitions()
    await store.aclose()


def _peer_recorder(dsn: str):  # type: ignore[no-untyped-def] # the peer is optional
    from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

    parts = urlsplit(dsn)
    store = PostgresDatastore(dbname=parts.path[1:], host=unquote(parse_qs(parts.query)["host"][0]), port="5432",
                              user=parts.username or "", password=unquote(parts.password or ""), pool_size=2)
    return PostgresApplicationRecorder(store, events_table_name="stored_events")


def _peer_mapper():  # type: ignore[no-untyped-def] # the peer is optional
    """With the transcodings that the peer's own Application class registers."""
    from eventsourcing.persistence import DatetimeAsISO, DecimalAsStr, JSONTranscoder, Mapper, UUIDAsHex

    transcoder = JSONTranscoder()
    for transcoding in (UUIDAsHex(), DecimalAsStr(), DatetimeAsISO()):
        transcoder.register(transcoding)
    return Mapper(transcoder=transcoder)


async def load_peer(dsn: str) -> None:
    """Bulk load of the peer's table. Untimed."""
    recorder = await asyncio.to_thread(_peer_recorder, dsn)
    await asyncio.to_thread(recorder.create_table)
    mapper = _peer_mapper()
    sample = mapper.to_stored_event(_PeerEvent())
    await asyncio.to_thread(recorder.datastore.close)
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "INSERT INTO stored_events (originator_id, originator_version, topic, state) "
        "SELECT gen_random_uuid(), 1, $1, $2 FROM generate_series(1, $3::int)", sample.topic, sample.state, EVENTS)
    await connection.execute("VACUUM ANALYZE stored_events")
    await connection.close()


def _PeerEvent():  # type: ignore[no-untyped-def]
    from eventsourcing.domain import datetime_now_with_tzinfo

    from bench.peer_event import Renamed

    return Renamed(originator_id=uuid4(), originator_version=1, timestamp=datetime_now_with_tzinfo(), name="a name of a volume",
                   volume_id=str(uuid4()))


class Resident:
    """Resident memory (MB) as the replay goes: after a tenth of it, and the most seen afterwards."""

    def __init__(self) -> None:
        self.early = self.most = 0.0

    def note(self, count: int) -> None:
        """`count` events have been replayed."""
        now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
        if count <= EVENTS // 10:
            self.early = max(self.early, now)
        self.most = max(self.most, now)


async def side(name: str, dsn: str, resident: Resident) -> tuple[int, float]:
    """(events, seconds) of one side, in this process."""
    began = time.perf_counter()
    count = 0
    if name == "peer":
        return await asyncio.to_thread(_peer_replay, dsn)
    if name == "cursor":
        connection = await asyncpg.connect(dsn)
        async with connection.transaction():
            async for _ in connection.cursor(f"SELECT {COLUMNS} FROM es.event ORDER BY position", prefetch=5000):
                count += 1
        await connection.close()
        return count, time.perf_counter() - began
    store = await PostgresEventStore.connect(dsn)
    if name == "raw":
        async for rows in replay_raw(store, selection()):
            count += len(rows)
            resident.note(count)
    else:
        async for event in Replay(store, selection()):
            assert event.message is not None
            count += 1
            if not count % 50_000:
                resident.note(count)
    await store.aclose()
    return count, time.perf_counter() - began


def _peer_replay(dsn: str) -> tuple[int, float]:
    recorder = _peer_recorder(dsn)
    mapper = _peer_mapper()
    began, count, start = time.perf_counter(), 0, 1
    while True:
        found = recorder.select_notifications(start, 5000)
        if not found:
            break
        for notification in found:
            mapper.to_domain_event(notification)
            count += 1
        start = found[-1].id + 1
    recorder.datastore.close()
    return count, time.perf_counter() - began


async def in_a_process(name: str, dsn: str, memory: list[tuple[float, float]]) -> float:
    """Events a second of one side in a process of its own; its memory (peak, growth after a tenth; MB) goes into `memory`."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.replay", name, stdin=asyncio.subprocess.PIPE,
                                                   stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate(dsn.encode())
    assert process.returncode == 0
    count, seconds, rss, growth = json.loads(said)
    assert count == EVENTS, f"{name} replayed {count}"
    memory.append((rss / 1024, growth))
    return count / seconds


async def run(server: TestServer) -> list[Result]:
    """Typed against pyeventsourcing, raw against a bare cursor."""
    dsn = await fresh_database(server)
    await load(dsn)
    await load_peer(dsn)
    memory: list[tuple[float, float]] = []
    nobody: list[tuple[float, float]] = []
    mine, theirs = await interleaved(lambda: in_a_process("typed", dsn, memory), lambda: in_a_process("peer", dsn, nobody))
    raw, cursor = await interleaved(lambda: in_a_process("raw", dsn, memory), lambda: in_a_process("cursor", dsn, nobody))
    peak, growth = max(peak for peak, _ in memory), max(growth for _, growth in memory)
    failed = [f"{peak:.0f} MB of memory (at most {PEAK_MB})"] if peak >= PEAK_MB else []
    failed += [f"memory grew by {growth:.0f} MB after the first tenth (at most {GROWTH_MB})"] if growth >= GROWTH_MB else []
    return [
        Result("replay of 1,000,000 events, typed", "events/s", mine, theirs, "pyeventsourcing", 1.5, 1.5, failed=failed, notes=[
            "ours: `Replay` to typed messages, density checked, pages of 2000 rows, one page read ahead",
            "peer: select_notifications in sections of 5000, mapped to domain events; its table vacuumed and analysed",
            f"a replaying process: peak {peak:.0f} MB (at most {PEAK_MB}), grown by {growth:.0f} MB after the first tenth"]),
        Result("replay of 1,000,000 events, raw", "events/s", raw, cursor, "a bare asyncpg cursor, prefetch 5000", 0.6, 0.6, notes=[
            "ours: `replay_raw`, every column, density checked, pages of 2000 rows; peer: the same columns, one transaction"]),
    ]


if __name__ == "__main__":
    seen = Resident()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        counted, took = runner.run(side(sys.argv[1], sys.stdin.read(), seen))
    sys.stdout.write(json.dumps([counted, took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, seen.most - seen.early]))
