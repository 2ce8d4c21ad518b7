"""`python -m bench [commands|append|replay|latency|backup|incremental|swift ...]`: run, print, exit 1 when a floor is missed."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import sys

import uvloop

from bench import append, backup, commands, incremental, replay
from bench.measure import Result
from bench.sides import S3Side, SwiftSide
from tests.services.postgres import start_postgres
from tests.services.rabbitmq import start_rabbitmq
from tests.services.seaweedfs import start_seaweedfs
from tests.services.swift import start_swift

NAMES = ("append", "commands", "latency", "replay", "backup", "incremental")
ON_DEMAND = ("swift",)
"""Not run unless named: what is known to miss its floor (docs/reference/benchmarks.md says by how much, and why)."""


async def main(names: list[str]) -> int:
    """One benchmark at a time; the status."""
    sys.stdout.write(f"{platform.platform()}, Python {platform.python_version()}, Postgres 18 with fsync and synchronous_commit on, "
                     "RabbitMQ with quorum queues and confirms\n")
    found: list[Result] = []

    def tell(*results: Result) -> None:
        for result in results:
            found.append(result)
            sys.stdout.write(result.show() + "\n")
            sys.stdout.flush()

    postgres = await start_postgres(durable=True)
    try:
        if "append" in names:
            tell(await append.run_64(postgres), await append.run_256(postgres))
        if {"commands", "latency"} & set(names):
            rabbit = await asyncio.to_thread(start_rabbitmq)
            try:
                if "commands" in names:
                    tell(await commands.run_load(rabbit, postgres))
                if "latency" in names:
                    tell(await commands.run_latency(rabbit, postgres))
            finally:
                rabbit.stop()
        if "replay" in names:
            tell(*await replay.run(postgres))
    finally:
        await postgres.stop()
        postgres.remove()
    if "backup" in names:
        for measure in (backup.run, backup.run_restore, backup.run_compressed):
            with contextlib.closing(await asyncio.to_thread(_s3)) as side:
                tell(*await measure(side))
    if "incremental" in names:
        s3 = await asyncio.to_thread(start_seaweedfs)
        try:
            tell(await incremental.run(s3))
        finally:
            s3.kill()
    if "swift" in names:
        with contextlib.closing(await asyncio.to_thread(_swift)) as side:
            tell(*await backup.run(side))
    missed = [result.name for result in found if not result.holds]
    sys.stdout.write(f"{len(found) - len(missed)} of {len(found)} floors hold{': missed ' + ', '.join(missed) if missed else ''}\n")
    return 1 if missed else 0


def _s3() -> S3Side:
    """A new server for each: what was deleted in another still takes its room."""
    return S3Side(start_seaweedfs())


def _swift() -> SwiftSide:
    return SwiftSide(start_swift(segments=1000))


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(NAMES)
    unknown = set(wanted) - {*NAMES, *ON_DEMAND}
    if unknown:
        sys.exit(f"no benchmark is named {', '.join(sorted(unknown))}; there are {', '.join(NAMES + ON_DEMAND)}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(main(wanted)))
