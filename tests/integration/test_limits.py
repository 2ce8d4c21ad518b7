"""Limits on Postgres: two handlers' processes, five hundred commands at once, one place left."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

from bus.envelope import Envelope
from bus.event_store_postgres import PostgresEventStore
from bus.submission import submission, submit
from handlers.quota import counter
from schema.identity import Owner, UpdateResourceLimit
from schema.volume import CreateVolume
from tests.support.cloud import Cloud

OWNER = Owner(account_id=UUID(int=7), account="ann", domain_id=UUID(int=8), path="/a/")
AT_ONCE, LIMIT = 500, 3


async def test_of_five_hundred_at_once_the_last_place_goes_to_one(database: str) -> None:
    log = await PostgresEventStore.connect(database)
    try:
        cloud = await Cloud.start(log)
        other = await cloud.another()
        name = counter(OWNER.account_id, "volume")
        await cloud.send(UpdateResourceLimit(owner=OWNER, resource="volume", max=LIMIT))

        async def create(number: int) -> None:
            job_id = uuid4()
            request = submission(CreateVolume(name=f"v{number}", size=1), job_id=job_id, owner=OWNER)
            await submit(log, request)
            handler = (cloud, other)[number % 2].runtime
            await handler.handle(Envelope(id=job_id, type=request.rows[0].type, kind="command", body=request.rows[0].payload))

        for number in range(LIMIT - 1):
            await create(number)
        await asyncio.gather(*(create(number) for number in range(AT_ONCE)))
        assert (await log.counter_values([name]))[name] == LIMIT
        assert len(await cloud.rows("volume.requested")) == LIMIT
        failed = await cloud.rows("job.failed")
        assert len(failed) == AT_ONCE - 1 and all(b'"code":535' in row.payload for row in failed)
    finally:
        await log.aclose()
