"""`storebus verify`: is the history whole. Owns how what was found is told. Refuses to repair anything."""

from __future__ import annotations

import asyncio

from api.cli_target import dsn
from api.output import Output
from api.settings import Settings


async def verify(settings: Settings, output: Output) -> int:
    """Walk the log, its claims and counters, and the read tables; name whatever is wrong. 1 when something is."""
    from api.verify import verify_all

    findings = await verify_all(await asyncio.to_thread(dsn, settings))
    if findings:
        output.rows([{"where": each.where, "what": each.what} for each in findings], ("where", "what"))
        output.say(f"{len(findings)} found")
        return 1
    if output.for_people:
        output.say("the log is whole; claims, counters and read tables equal its fold")
    else:
        output.rows([])
    return 0


__all__ = ["verify"]
