"""A durable subscription that is killed ten times with SIGKILL, while writers append: nothing missed, in order."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from bus.event_store import AppendRequest, NewRow
from bus.subscription import SAVE_EVERY
from schema.codec import encode
from schema.snapshot import SnapshotTaken
from tests.integration.conftest import LogServer
from tests.services.postgres import fresh_database
from tests.support.stores import PostgresEventStore

READER = """
import asyncio, os
from bus.event_store_postgres import PostgresEventStore
from bus.subscription import Reading, Subscription

async def main():
    store = await PostgresEventStore.connect(os.environ["TEST_DSN"], readers=1)
    wanted = Reading(patterns=("snapshot.#",), group="killed", lease_s=0.5)
    async for event in Subscription(store, wanted):
        os.write(1, f"{event.position}\\n".encode())
        await asyncio.sleep(0.0005)

asyncio.run(main())
"""
KILLS, TOTAL = 10, 3000


async def write(store: PostgresEventStore) -> None:
    for _ in range(TOTAL // 20):
        rows = []
        for _ in range(20):
            thing = uuid4()
            rows.append(NewRow(stream=f"snapshot-{thing}", kind="event", type=SnapshotTaken.TYPE, id=uuid4(), key="k",
                               payload=encode(SnapshotTaken(snapshot_id=thing, virtual_size=1)), correlation=uuid4()))
        await store.append(AppendRequest(expected={row.stream: -1 for row in rows}, rows=rows))
        await asyncio.sleep(0.02)


@pytest.mark.needs_postgres
async def test_killed_ten_times(log_server: LogServer) -> None:
    dsn = await fresh_database(await log_server.get())
    store = await PostgresEventStore.connect(dsn)
    chance, seen, kills, saved = random.Random(11), 0, 0, 0
    reader: asyncio.subprocess.Process | None = None
    writer = asyncio.create_task(write(store))
    try:
        while seen < TOTAL:
            reader = await asyncio.create_subprocess_exec(
                sys.executable, "-c", READER, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
                env={**os.environ, "TEST_DSN": dsn})
            assert reader.stdout is not None
            last, budget = 0, chance.randrange(1, 260) if kills < KILLS else TOTAL
            killed = False
            while line := await asyncio.wait_for(reader.stdout.readline(), 60):
                position = int(line)
                if not last:
                    assert position <= seen + 1, f"an event was missed: {seen} then {position}"
                    assert position > saved, "it began before its checkpoint"
                    assert seen + 1 - position <= SAVE_EVERY, "more repeated than the checkpoint allows"
                else:
                    assert position == last + 1
                last, seen, budget = position, max(seen, position), budget - 1
                if not killed and (budget <= 0 or seen >= TOTAL):
                    reader.kill()  # what it wrote before that is still read
                    killed = True
            await reader.wait()
            kills += 1
            checkpoint = await store.load_checkpoint("sub/killed")
            assert checkpoint is not None
            saved = checkpoint.position
            assert saved <= seen
        assert kills > KILLS
    finally:
        if reader is not None and reader.returncode is None:
            reader.kill()
            await reader.wait()
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        await store.aclose()
