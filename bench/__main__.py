"""`python -m bench [NAME ...]`: run, print, exit 1 when a floor is missed. Without names: the spine's; `motion`: the rest.

Owns which rows there are and what each needs running. Refuses to know how one is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import sys
from collections.abc import AsyncIterator, Callable

import uvloop

from bench import append, backup, commands, incremental, lists, memory, planning, replay
from bench.measure import Result
from bench.sides import S3Side, Side, SwiftSide
from tests.services.postgres import start_postgres
from tests.services.rabbitmq import start_rabbitmq
from tests.services.seaweedfs import start_seaweedfs
from tests.services.swift import start_swift

SPINE = ("plan", "append", "commands", "latency", "replay", "backup")
"""The planner, the log, the bus and one backup: `make bench`."""
MOTION = ("halves", "restore", "zstd", "incremental", "memory", "swift")
"""What moves bytes, in more detail: `make bench ROWS=motion`. Both together would take more than ten minutes."""
API = ("lists",)
"""The API's process, over a million things of each kind: `make bench ROWS=lists`."""


async def main(names: set[str]) -> int:
    """One benchmark at a time; the status."""
    sys.stdout.write(f"{platform.platform()}, Python {platform.python_version()}, Postgres 18 with fsync and synchronous_commit on, "
                     "RabbitMQ with quorum queues and confirms\n")
    found: list[Result] = []
    async for result in _results(names):
        found.append(result)
        sys.stdout.write(result.show() + "\n")
        sys.stdout.flush()
    missed = [result.name for result in found if not result.holds]
    sys.stdout.write(f"{len(found) - len(missed)} of {len(found)} floors hold{': missed ' + ', '.join(missed) if missed else ''}\n")
    return 1 if missed else 0


async def _results(names: set[str]) -> AsyncIterator[Result]:
    if "plan" in names:
        yield await planning.run()
    if names & {"append", "commands", "latency", "replay", "lists"}:
        postgres = await start_postgres(durable=True)
        try:
            if "append" in names:
                yield await append.run_64(postgres)
                yield await append.run_256(postgres)
            if names & {"commands", "latency"}:
                rabbit = await asyncio.to_thread(start_rabbitmq)
                try:
                    if "commands" in names:
                        yield await commands.run_load(rabbit, postgres)
                    if "latency" in names:
                        yield await commands.run_latency(rabbit, postgres)
                finally:
                    rabbit.stop()
            if "lists" in names:
                rabbit = await asyncio.to_thread(start_rabbitmq)
                try:
                    for result in await lists.run(rabbit, postgres):
                        yield result
                finally:
                    rabbit.stop()
            if "replay" in names:
                for result in await replay.run(postgres):
                    yield result
        finally:
            await postgres.stop()
            postgres.remove()
    for name, measure in (("backup", backup.run), ("halves", backup.run_halves), ("restore", backup.run_restore),
                          ("zstd", backup.run_compressed), ("incremental", incremental.run), ("memory", memory.run)):
        if name in names:
            async with _side(_s3) as side:
                yield await measure(side)
    if "swift" in names:
        for measure in (backup.run, backup.run_halves):
            async with _side(_swift) as side:
                yield await measure(side)


@contextlib.asynccontextmanager
async def _side(start: Callable[[], Side]) -> AsyncIterator[Side]:
    """A new server for each row: what was deleted in another still takes its room."""
    side = await asyncio.to_thread(start)
    try:
        yield side
    finally:
        await asyncio.to_thread(side.close)


def _s3() -> Side:
    return S3Side(start_seaweedfs())


def _swift() -> Side:
    return SwiftSide(start_swift(segments=1000))


if __name__ == "__main__":
    wanted = set(sys.argv[1:] or SPINE)
    if "motion" in wanted:
        wanted = wanted - {"motion"} | {*MOTION}
    unknown = wanted - {*SPINE, *MOTION, *API}
    if unknown:
        sys.exit(f"no benchmark is named {', '.join(sorted(unknown))}; there are {', '.join(SPINE + MOTION + API)}, and motion for {', '.join(MOTION)}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(main(wanted)))
