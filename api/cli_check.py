"""`storebus verify` and `storebus doctor`: is the history whole, and is everything here that is needed.

Owns the checks of a machine and an installation, each with the remedy for what is wrong. Refuses to repair anything.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from agents import qemu, sandbox
from api.cli_target import api_url, dsn
from api.output import Output
from api.settings import Settings
from schema.failure import Failed, Unavailable

CHECK_S = 10.0
BOUND_S = 16.0
"""Longest for any check. More than a client of a server waits by itself: what that says is worth more than "no answer"."""
"""How long one check may take."""
ROOM = 1 << 30
"""Bytes that should be free in the data directory."""
QEMU = {"qemu-img": "qemu-utils", "qemu-storage-daemon": "qemu-system-common"}
"""Tool -> Debian's package of it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `state`: ok, warning (it works without) or fault."""

    state: str
    detail: str
    remedy: str = ""


Check = Callable[[Settings], Awaitable[Finding]]


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


async def _python(settings: Settings) -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("ok", version)


async def _data_dir(settings: Settings) -> Finding:
    def look() -> Finding:
        here = settings.data_dir
        while not here.exists() and here != here.parent:
            here = here.parent
        if not os.access(here, os.W_OK):
            return Finding("fault", f"{here} may not be written by this user",
                           f"choose another with --data-dir, or run: chown {os.geteuid()} {here}")
        free = shutil.disk_usage(here).free
        text = f"{settings.data_dir}, {free / (1 << 30):.1f} GiB free"
        if free < ROOM:
            return Finding("fault", text, "free some space, or choose another folder with --data-dir")
        return Finding("ok", text)

    return await asyncio.to_thread(look)


async def _qemu(settings: Settings) -> Finding:
    missing = [tool for tool in QEMU if shutil.which(tool) is None]
    if missing:
        return Finding("fault", f"{', '.join(missing)} not found: no volume can be made here",
                       f"apt-get install {' '.join(sorted({QEMU[tool] for tool in missing}))}")
    text = (await qemu.version()).split("\n")[0]
    if not await asyncio.to_thread(sandbox.isolated):
        return Finding("warning", f"{text}; its programs share this host's network: namespaces are not allowed here",
                       "allow `unshare --net` (as root), or unprivileged user namespaces")
    return Finding("ok", text)


async def _libnbd(settings: Settings) -> Finding:
    import ctypes

    try:
        await asyncio.to_thread(ctypes.CDLL, "libnbd.so.0")
    except OSError:
        return Finding("fault", "libnbd.so.0 not found: no volume can be read or written here", "apt-get install libnbd0")
    return Finding("ok", "libnbd.so.0")


async def _database(settings: Settings) -> Finding:
    import asyncpg

    from bus.migrate import migrations
    from bus.sql import query

    where = await asyncio.to_thread(dsn, settings)
    try:
        connection = await asyncpg.connect(where, timeout=CHECK_S)
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        return Finding("fault", f"it does not answer: {error}", "start it, or check STOREBUS_DATABASE_URL")
    try:
        server = await connection.fetchrow(query("doctor_server"))
        assert server is not None
        version = server["version"]
        unsafe = [name for name in ("fsync", "synchronous_commit", "full_page_writes") if server[name] == "off"]
        if not server["migrated"]:
            return Finding("fault", f"PostgreSQL {version}, not migrated", "storebus migrate")
        known = {row["name"]: row["checksum"] for row in await connection.fetch(query("doctor_migrations"))}
    finally:
        await connection.close()
    steps = {step.name: step.checksum for step in migrations()}
    if set(steps) - set(known):
        return Finding("fault", f"PostgreSQL {version}, migrations missing: {', '.join(sorted(set(steps) - set(known)))}",
                       "storebus migrate")
    if known != steps:
        return Finding("fault", f"PostgreSQL {version}, migrated by another version", "run the version that migrated it")
    if unsafe:
        return Finding("fault", f"PostgreSQL {version} with {', '.join(unsafe)} off: a crash loses what was accepted",
                       "switch it on in postgresql.conf")
    return Finding("ok", f"PostgreSQL {version}, {len(known)} migrations")


async def _broker(settings: Settings) -> Finding:
    if settings.amqp_url is None:
        return Finding("ok", "none is configured: the memory transport is used")
    from bus.transport_rabbit import RabbitTransport

    transport = RabbitTransport(settings.amqp_url.get_secret_value())
    try:
        await transport.start()
    except Failed as failed:
        return Finding("fault", failed.failure.cause, failed.failure.remedy or "start RabbitMQ, or check STOREBUS_AMQP_URL")
    finally:
        await transport.aclose()
    return Finding("ok", "RabbitMQ answers")


async def _api(settings: Settings) -> Finding:
    import aiohttp

    url = await asyncio.to_thread(api_url, settings)
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CHECK_S)) as http, \
                http.get(f"{url}/readyz") as answer:
            body = await answer.json(content_type=None)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        return Finding("fault", f"{url} does not answer: {error or type(error).__name__}",
                       "storebus up, or storebus serve api")
    if answer.status != 200:
        return Finding("fault", f"{url} is not ready: {body.get('checks')}", "see its log")
    return Finding("ok", url)


async def _agents(settings: Settings) -> Finding:
    from api.cli_bus import views

    async with views(settings) as model:
        rows, _ = await model.rows("agent")
    if not rows:
        return Finding("fault", "no agent has announced itself: nothing can be stored", "storebus serve agent")
    roles = {role for row in rows for role in row["roles"] or []}
    text = ", ".join(f"{row['id']} ({', '.join(row['roles'] or [])})" for row in rows)
    missing = {"storage", "hypervisor"} - roles
    if missing:
        return Finding("warning", f"{text}; no agent is {', '.join(sorted(missing))}", "storebus serve agent")
    return Finding("ok", text)


async def _log(settings: Settings) -> Finding:
    from bus.event_store_postgres import PostgresEventStore

    store = await PostgresEventStore.connect(await asyncio.to_thread(dsn, settings))
    try:
        head, readers = await store.head(), await store.list_checkpoints()
        keys = await store.held_keys()
    finally:
        await store.aclose()
    text = ", ".join(f"{name} at {each.position}" for name, each in sorted(readers.items()))
    if keys:
        return Finding("warning", f"{len(keys)} keys are held", "storebus held shows why; storebus held redrive --all")
    return Finding("ok", f"{head} rows; {text or 'no reader yet'}")


CHECKS: dict[str, Check] = {
    "python": _python, "data directory": _data_dir, "qemu": _qemu, "libnbd": _libnbd, "database": _database,
    "broker": _broker, "api": _api, "agents": _agents, "log": _log,
}
"""What is checked, in this order."""


async def examine(name: str, settings: Settings) -> Finding:
    """One check, bounded; it never raises."""
    try:
        async with asyncio.timeout(BOUND_S):
            return await CHECKS[name](settings)
    except TimeoutError:
        return Finding("fault", f"no answer within {BOUND_S:g} s", "see whether its server is stuck")
    except Failed as failed:
        state = "warning" if isinstance(failed, Unavailable) and failed.failure.field == "data_dir" else "fault"
        return Finding(state, failed.failure.cause, failed.failure.remedy)


async def doctor(settings: Settings, output: Output) -> int:
    """Every check; 1 when there is a fault."""
    rows: list[dict[str, Any]] = []
    for name in CHECKS:
        found = await examine(name, settings)
        rows.append({"check": name, "state": found.state, "detail": found.detail, "remedy": found.remedy})
    output.rows(rows, ("check", "state", "detail", "remedy"))
    return 1 if any(row["state"] == "fault" for row in rows) else 0


__all__ = ["CHECKS", "Finding", "doctor", "examine", "verify"]
