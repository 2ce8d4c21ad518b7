"""The peer: a FastStream consumer as a good user would write it. One process of it."""

from __future__ import annotations

import asyncio
import json
import os
from uuid import UUID, uuid4

import asyncpg
import uvloop
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitQueue
from faststream.rabbit.schemas import ExchangeType

TABLES = """
CREATE TABLE peer_volume (id uuid PRIMARY KEY, version int NOT NULL, name text NOT NULL);
CREATE TABLE peer_command (id uuid PRIMARY KEY);
CREATE TABLE peer_event (position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, stream text NOT NULL, version int NOT NULL,
    type text NOT NULL, id uuid NOT NULL, correlation uuid NOT NULL, recorded_at timestamptz NOT NULL DEFAULT now(),
    payload bytea NOT NULL, UNIQUE (stream, version));
"""
ROWS = """
INSERT INTO peer_event (stream, version, type, id, correlation, payload)
SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::uuid[], $5::uuid[], $6::bytea[])
"""


async def main() -> None:
    """Consume until terminated."""
    broker = RabbitBroker(os.environ["PEER_AMQP"], default_channel=Channel(prefetch_count=100, publisher_confirms=True),
                          logger=None)  # else it writes two lines for each message
    events = RabbitExchange("bench_peer.events", type=ExchangeType.TOPIC, durable=True)
    queue = RabbitQueue("bench_peer.commands", durable=True, arguments={"x-queue-type": "quorum"})
    pool = await asyncpg.create_pool(os.environ["PEER_DSN"], min_size=16, max_size=16)

    @broker.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)
    async def rename(body: dict[str, str]) -> None:
        job, volume = UUID(body["id"]), UUID(body["volume"])
        payload = json.dumps(body).encode()
        async with pool.acquire() as connection, connection.transaction():
            done = await connection.fetchval("INSERT INTO peer_command VALUES ($1) ON CONFLICT DO NOTHING RETURNING id", job)
            if done is None:
                return
            version = await connection.fetchval("SELECT version FROM peer_volume WHERE id = $1 FOR UPDATE", volume)
            changed = await connection.execute("UPDATE peer_volume SET version = $2, name = $3 WHERE id = $1 AND version = $4", volume,
                                               version + 1, body["name"], version)
            if changed != "UPDATE 1":
                raise RuntimeError("another version than expected")
            streams = [f"job-{job}"] * 3 + [f"volume-{volume}"]
            await connection.execute(ROWS, streams, [0, 1, 2, version + 1],
                                     ["job.submitted", "job.started", "job.completed", "volume.renamed"],
                                     [uuid4() for _ in range(4)], [job] * 4, [payload] * 4)
        for kind in ("submitted", "started", "completed"):
            await broker.publish(payload, exchange=events, routing_key=f"job.{kind}.root", persist=True)
        await broker.publish(payload, exchange=events, routing_key="renamed.root", persist=True)

    application = FastStream(broker, logger=None)

    @application.on_startup
    async def declare() -> None:
        await broker.connect()
        await broker.declare_exchange(events)

    await application.run()
    await pool.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
