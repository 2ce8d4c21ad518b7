"""The API's process: first pages of lists over a million things, and commands accepted while the broker is away.

Owns an installation of roles as an operator starts them, with identity on, and a million rows of each list written past the log:
what is measured is reading. Every request is signed. The peer is the limit that an operator's screen sets. BENCH_ROWS makes fewer rows
while one works on it: such a run says its number, and is no measurement of the promise.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from api.first_keys import read_keys
from api.signature import sign
from bench.measure import Result
from bench.memory import resident
from tests.faults.cluster import Cluster, running
from tests.services.postgres import TestServer
from tests.services.rabbitmq import RabbitMQ
from tests.services.seaweedfs import start_seaweedfs

ROWS, PAGES, LIST_MS, MEMORY_MB = int(os.environ.get('BENCH_ROWS', '1000000')), 100, 50.0, 200.0
CALLS, CONNECTIONS, ACCEPT_MS = 1000, 50, 100.0
OWNERS = 1000
"""Accounts that the million things belong to."""
SEED = Path(__file__).parent / "lists.sql"
LISTS = {"listVolumes": {"listall": "true"}, "listSnapshots": {"listall": "true"},
         "listTemplates": {"templatefilter": "all", "listall": "true"}}
"""The first page of each: 500 things."""


class Client:
    """A signing client with connections of its own."""

    def __init__(self, cluster: Cluster, connections: int) -> None:
        keys = read_keys(cluster.base / "data")
        assert keys is not None
        self.key, self.secret = keys
        self.url = f"http://127.0.0.1:{cluster.port}/client/api"
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections))

    async def ask(self, command: str, **parameters: str) -> tuple[float, dict[str, Any]]:
        """(milliseconds to the last byte, the answer below its envelope). Raises AssertionError for a refusal."""
        sent = {"command": command, "response": "json", "apiKey": self.key, **parameters}
        sent["signature"] = sign(sent, self.secret)
        began = time.perf_counter()
        async with self.http.post(self.url, data=sent) as answer:
            body = await answer.read()
        took = (time.perf_counter() - began) * 1000
        found: dict[str, Any] = next(iter(json.loads(body).values()))
        assert "errorcode" not in found, f"{command}: {found}"
        return took, found


def p99(figures: list[float]) -> float:
    """The 99th percentile."""
    return sorted(figures)[max(0, -(-len(figures) * 99 // 100) - 1)]


async def run(rabbit: RabbitMQ, postgres: TestServer) -> list[Result]:
    """Lists, then commands without a broker, of one API process."""
    s3 = await asyncio.to_thread(start_seaweedfs)
    os.environ["STOREBUS_API_LIMIT"] = "0"  # what one user may ask is not what is measured
    try:
        async with running(rabbit, postgres, s3) as cluster:
            await cluster.add_store()
            made = await cluster.call("createVolume", name="bench", size=1)
            assert (await cluster.end(made["jobid"]))["jobstatus"] == 1
            await _seed(cluster.dsn)
            cluster.kill("api")
            os.environ["STOREBUS_IDENTITY"] = "true"
            cluster.start("api")
            client = await _there(cluster)
            try:
                lists = await _lists(client)
                await asyncio.to_thread(rabbit.kill)
                accepted = await _accept(client, made["id"])
                memory = resident(cluster.processes["api"].pid) / (1 << 20)
            finally:
                await client.http.close()
            accepted.notes.append(f"API process {memory:.0f} MB resident after both (at most {MEMORY_MB:.0f})")
            if memory >= MEMORY_MB:
                accepted.failed.append(f"{memory:.0f} MB of memory")
            return [*lists, accepted]
    finally:
        os.environ.pop("STOREBUS_IDENTITY", None)
        os.environ.pop("STOREBUS_API_LIMIT", None)
        s3.kill()


async def _seed(dsn: str) -> None:
    connection = await asyncpg.connect(dsn, command_timeout=600)
    try:
        for statement in SEED.read_text().split(";\n"):
            if statement.strip():
                await connection.execute(statement.replace(":rows", str(ROWS)).replace(":owners", str(OWNERS)))
    finally:
        await connection.close()


async def _there(cluster: Cluster) -> Client:
    """A client, once the API answers it."""
    for _ in range(300):
        await asyncio.sleep(0.1)
        if read_keys(cluster.base / "data") is None:
            continue
        client = Client(cluster, CONNECTIONS)
        try:
            await client.ask("listCapabilities")
            return client
        except (aiohttp.ClientError, AssertionError):
            await client.http.close()
    raise AssertionError(f"the API does not answer: {cluster.logs()}")


async def _lists(client: Client) -> list[Result]:
    found = []
    dice = random.Random(1)
    for command, parameters in LISTS.items():
        _, first = await client.ask(command, **parameters)
        page = len(next(value for value in first.values() if isinstance(value, list)))
        figures = [(await client.ask(command, **parameters))[0] for _ in range(PAGES)]
        words = [(await client.ask(command, **parameters, keyword=f"x{dice.randrange(ROWS):06x}"))[0] for _ in range(PAGES)]
        small = [(await client.ask(command, **parameters, page="1", pagesize="20"))[0] for _ in range(PAGES)]
        found.append(Result(f"{command}, first page of {page} of {first['count']:,}, 99th percentile", "ms", [p99(figures)], [LIST_MS],
                            "the limit", 1.0, 1.0, higher_is_better=False, notes=[
                                f"median {sorted(figures)[PAGES // 2]:.1f} ms; pages of 20: p99 {p99(small):.1f} ms; by a keyword that one has: p99 {p99(words):.1f} ms; {PAGES} signed requests each, one after another"],
                            failed=[f"by keyword {p99(words):.0f} ms"] if p99(words) > LIST_MS else []))
    return found


async def _accept(client: Client, volume: str) -> Result:
    figures: list[float] = []
    turns = asyncio.Semaphore(CONNECTIONS)

    async def one() -> None:
        async with turns:
            figures.append((await client.ask("createSnapshot", volumeid=volume))[0])

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CALLS)))
    took = time.perf_counter() - began
    return Result(f"{CALLS} signed createSnapshot on {CONNECTIONS} connections with the broker away, accepted, 99th percentile", "ms",
                  [p99(figures)], [ACCEPT_MS], "the limit", 1.0, 1.0, higher_is_better=False, notes=[
                      f"median {sorted(figures)[CALLS // 2]:.1f} ms, {CALLS / took:.0f} a second; each is one durable append"])


__all__ = ["run"]
