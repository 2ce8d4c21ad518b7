"""Durable append: many writers, each with a stream of its own, fsync and synchronous_commit on for both sides."""

from __future__ import annotations

import asyncio
import threading
import time
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID, uuid4

import asyncpg

from bench.measure import Result, interleaved
from bus.event_store import AppendRequest, NewRow
from bus.event_store_postgres import PostgresEventStore
from tests.services.postgres import TestServer, fresh_database

PAYLOAD = b'{"name":"' + b"x" * 200 + b'"}'
TABLE = """
CREATE TABLE bare (position bigint PRIMARY KEY, stream text NOT NULL, version int NOT NULL, kind text NOT NULL, type text NOT NULL,
    type_version int NOT NULL, id uuid NOT NULL, key text NOT NULL, address text NOT NULL, tenant text NOT NULL,
    correlation uuid NOT NULL, causation uuid, recorded_at timestamptz NOT NULL DEFAULT now(), payload bytea NOT NULL,
    meta bytea NOT NULL, effects bytea NOT NULL, hash bytea NOT NULL);
CREATE INDEX ON bare (stream, version); CREATE INDEX ON bare (type, position); CREATE INDEX ON bare (correlation, position);
CREATE INDEX ON bare USING brin (recorded_at);
"""
INSERT = """
INSERT INTO bare (position, stream, version, kind, type, type_version, id, key, address, tenant, correlation, payload, meta, effects, hash)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::int[], $4::text[], $5::text[], $6::int[], $7::uuid[], $8::text[], $9::text[],
    $10::text[], $11::uuid[], $12::bytea[], $13::bytea[], $14::bytea[], $15::bytea[])
"""


async def ours(dsn: str, writers: int, each: int) -> float:
    """Appends a second of one event each, expected versions checked, chained, dense."""
    store = await PostgresEventStore.connect(dsn)

    async def writer() -> None:
        stream = f"volume-{uuid4()}"
        for version in range(each):
            await store.append(AppendRequest(expected={stream: version - 1}, rows=[NewRow(
                stream=stream, kind="event", type="volume.renamed", id=uuid4(), payload=PAYLOAD, key=stream, correlation=uuid4())]))

    began = time.perf_counter()
    await asyncio.gather(*(writer() for _ in range(writers)))
    took = time.perf_counter() - began
    await store.aclose()
    return writers * each / took


def _eventsourcing(dsn: str, writers: int, each: int) -> float:
    from eventsourcing.persistence import StoredEvent
    from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

    parts = urlsplit(dsn)
    store = PostgresDatastore(dbname=parts.path[1:], host=unquote(parse_qs(parts.query)["host"][0]), port="5432",
                              user=parts.username or "", password=unquote(parts.password or ""), pool_size=16, max_overflow=16,
                              max_waiting=200)
    recorder = PostgresApplicationRecorder(store, events_table_name=f"stored_{uuid4().hex[:8]}")
    recorder.create_table()

    def writer() -> None:
        stream: UUID = uuid4()
        for version in range(each):
            recorder.insert_events([StoredEvent(stream, version, "volume:Renamed", PAYLOAD)])

    threads = [threading.Thread(target=writer) for _ in range(writers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    store.close()
    return writers * each / took


async def bare(dsn: str, rows: int) -> float:
    """Rows a second of plain unnest inserts, 256 a statement, into a table with the same columns and indexes."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("DROP TABLE IF EXISTS bare")
    await connection.execute(TABLE)
    statement = await connection.prepare(INSERT)
    size = 256
    batches = []
    for first in range(1, rows + 1, size):
        n = size
        batches.append([list(range(first, first + n)), [f"volume-{uuid4()}" for _ in range(n)], [0] * n, ["event"] * n,
                        ["volume.renamed"] * n, [1] * n, [uuid4() for _ in range(n)], ["k"] * n, [""] * n, ["root"] * n,
                        [uuid4() for _ in range(n)], [PAYLOAD] * n, [b"{}"] * n, [b""] * n, [b"x" * 32] * n])
    began = time.perf_counter()
    for batch in batches:
        await statement.fetch(*batch)
    took = time.perf_counter() - began
    await connection.close()
    return len(batches) * size / took


async def run_64(server: TestServer) -> Result:
    """64 writers against pyeventsourcing."""
    dsn = await fresh_database(server)
    mine, theirs = await interleaved(lambda: ours(dsn, 64, 150), lambda: asyncio.to_thread(_eventsourcing, dsn, 64, 15))
    return Result("durable append, 64 writers", "appends/s", mine, theirs, "pyeventsourcing's Postgres recorder, 64 threads", 10, 15, notes=[
        "ours: one process, group commit on one connection, expected version, dense position, hash chain in each commit",
        "peer: 64 threads, a pool of 32 connections, its own table, one transaction for each event"])


async def run_256(server: TestServer) -> Result:
    """256 writers against bare inserts."""
    dsn = await fresh_database(server)
    mine, theirs = await interleaved(lambda: ours(dsn, 256, 60), lambda: bare(dsn, 15_360))
    return Result("durable append, 256 writers", "rows/s", mine, theirs, "bare unnest inserts, 256 rows a statement, one connection", 1 / 3, 1 / 3, notes=[
        "what the guarantees cost: stream guard, advisory lock, chain (two SHA-256 a row) and a Python future for each caller"])
