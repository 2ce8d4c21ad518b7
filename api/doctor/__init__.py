"""`storebus doctor`: is everything here that is needed, with a remedy for each fault.

Owns the order of the checks, their bound and how they are told. Refuses to repair anything. A check never raises: what it cannot
find out is what it found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from api.client.connection import Connection, Target
from api.doctor import certificates, cloud, machine, servers
from api.doctor.finding import CHECK_S, Finding
from api.doctor.remote import REMOTE
from api.output import Output
from api.settings import Settings
from schema.failure import Failed, Unavailable

BOUND_S = 16.0
"""Longest for any check. More than a client of a server waits by itself: what that says is worth more than "no answer"."""
Check = Callable[[Settings], Awaitable[Finding | list[Finding]]]
CHECKS: dict[str, Check] = {
    "python": machine.python, "data directory": machine.data_dir, "qemu": machine.qemu_tools, "libnbd": machine.libnbd,
    "database": servers.database, "broker": servers.broker, "api": servers.api, "clock": servers.clock,
    "vault key": servers.vault, "readers": servers.readers,
    "messages": servers.waiting, "agents": cloud.agents, "primary stores": cloud.primaries,
    "image stores": cloud.stores, "certificates": certificates.certificates,
}
"""What is checked, in this order."""
DATABASE = frozenset({"clock", "vault key", "readers", "messages", "agents", "primary stores", "image stores"})
"""Checks that need the database: when it cannot be used, that is told once."""
UNSEEN = Finding("warning", "not looked at: it needs the database", "see database")


async def bounded(work: Awaitable[Finding | list[Finding]]) -> list[Finding]:
    """What a check found, in time; it never raises."""
    try:
        async with asyncio.timeout(BOUND_S):
            found = await work
    except TimeoutError:
        return [Finding("fault", f"no answer within {BOUND_S:g} s", "see whether its server is stuck")]
    except Failed as failed:
        away = isinstance(failed, Unavailable) and failed.failure.field == "data_dir"
        return [Finding("warning" if away else "fault", failed.failure.cause, failed.failure.remedy, stops=True)]
    except Exception as error:  # a doctor that breaks off tells nothing of the rest
        return [Finding("fault", f"it could not be found out: {type(error).__name__}",
                        "see the log of the database and of the API")]
    return found if isinstance(found, list) else [found]


async def examine(name: str, settings: Settings) -> list[Finding]:
    """One check."""
    return await bounded(CHECKS[name](settings))


async def doctor(settings: Settings, output: Output) -> int:
    """Every check; 1 when there is a fault."""
    rows: list[dict[str, Any]] = []
    stopped = False
    for name in CHECKS:
        found = [UNSEEN] if stopped and name in DATABASE else await examine(name, settings)
        stopped = stopped or (name == "database" and any(each.stops for each in found))
        rows += _rows(name, found)
    return _told(rows, output)


async def doctor_by_api(target: Target, output: Output) -> int:
    """What can be asked of an API alone; 1 when there is a fault."""
    rows: list[dict[str, Any]] = []
    connection = Connection(target, timeout_s=CHECK_S, patience_s=0)
    try:
        for name, ask in REMOTE.items():
            rows += _rows(name, await bounded(ask(connection)))
            if rows[-1]["check"] == "api" and rows[-1]["state"] == "fault":
                break
    finally:
        await connection.aclose()
    return _told(rows, output)


def _rows(name: str, found: list[Finding]) -> list[dict[str, Any]]:
    return [{"check": name, "of": each.of, "state": each.state, "detail": each.detail, "remedy": each.remedy} for each in found]


def _told(rows: list[dict[str, Any]], output: Output) -> int:
    output.rows(rows, ("check", "of", "state", "detail", "remedy"))
    return 1 if any(row["state"] == "fault" for row in rows) else 0


__all__ = ["BOUND_S", "CHECKS", "Finding", "doctor", "doctor_by_api", "examine"]
