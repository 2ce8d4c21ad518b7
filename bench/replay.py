"""Replay of a million events, each side in a process of its own so that its memory is its own."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

import asyncpg

from bench.measure import Result, interleaved
from bus.event_store import AppendRequest, NewRow
from bus.event_store_postgres import PostgresEventStore
from bus.replay import Replay, replay_raw, selection
from tests.services.postgres import TestServer, fresh_database

EVENTS = 1_000_000
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


async def load_peer(dsn: str) -> None:
    """Bulk load of the peer's table. Untimed."""
    from eventsourcing.persistence import JSONTranscoder, Mapper

    recorder = await asyncio.to_thread(_peer_recorder, dsn)
    await asyncio.to_thread(recorder.create_table)
    mapper: Mapper = Mapper(transcoder=JSONTranscoder())
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


async def side(name: str, dsn: str) -> tuple[int, float]:
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
        async for page in replay_raw(store, selection()):
            count += len(page.rows)
    else:
        async for event in Replay(store, selection()):
            assert event.message is not None
            count += 1
    await store.aclose()
    return count, time.perf_counter() - began


def _peer_replay(dsn: str) -> tuple[int, float]:
    from eventsourcing.persistence import JSONTranscoder, Mapper

    recorder = _peer_recorder(dsn)
    mapper: Mapper = Mapper(transcoder=JSONTranscoder())
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


async def in_a_process(name: str, dsn: str, memory: list[int]) -> float:
    """Events a second of one side in a process of its own; its peak memory goes into `memory`."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.replay", name, stdin=asyncio.subprocess.PIPE,
                                                   stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate(dsn.encode())
    assert process.returncode == 0
    count, seconds, rss = json.loads(said)
    assert count == EVENTS, f"{name} replayed {count}"
    memory.append(rss)
    return count / seconds


async def run(server: TestServer) -> list[Result]:
    """Typed against pyeventsourcing, raw against a bare cursor."""
    dsn = await fresh_database(server)
    await load(dsn)
    await load_peer(dsn)
    memory: list[int] = []
    mine, theirs = await interleaved(lambda: in_a_process("typed", dsn, memory), lambda: in_a_process("peer", dsn, []), rounds=2)
    raw, cursor = await interleaved(lambda: in_a_process("raw", dsn, memory), lambda: in_a_process("cursor", dsn, []), rounds=2)
    peak = max(memory) / 1024
    failed = [f"{peak:.0f} MB of memory"] if peak >= 200 else []
    return [
        Result("replay of 1,000,000 events, typed", "events/s", mine, theirs, "pyeventsourcing", 1.5, 1.5, notes=[
            f"peak memory of a replaying process {peak:.0f} MB (at most 200)"], failed=failed),
        Result("replay of 1,000,000 events, raw", "events/s", raw, cursor, "a bare asyncpg cursor, prefetch 5000", 0.6, 0.6),
    ]


if __name__ == "__main__":
    counted, took = asyncio.run(side(sys.argv[1], sys.stdin.read()))
    sys.stdout.write(json.dumps([counted, took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
