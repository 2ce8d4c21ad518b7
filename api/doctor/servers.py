"""The servers of an installation: database, broker, API; its clock, its vault's key, and what waits in its log.

Owns these checks. Refuses to change anything: no key is made where one is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg

from api.cli_target import api_url, dsn
from api.doctor.finding import CHECK_S, Finding, span_text
from api.settings import Settings
from bus.event_store_postgres import PostgresEventStore
from bus.migrate import migrations
from bus.sql import query
from bus.vault import Vault, VaultBroken, parse_key
from schema.failure import BadParameter, Failed
from schema.message import Secret

SKEW_S = (2.0, 60.0)
"""Seconds between two clocks that are worth a warning, and that are a fault: signatures end by the clock."""
LAG_S = (10.0, 60.0)
"""Age of the oldest row that a reader of ours has not read: a warning, a fault."""
READERS = {"projector": "lists are old", "relay": "orders and events wait"}
"""Readers of the log without which nothing goes on, and what it means when they are behind."""


async def database(settings: Settings) -> Finding:
    """Does it answer, is it migrated to this version, does it keep what it was given."""
    where = await asyncio.to_thread(dsn, settings)
    try:
        connection = await asyncpg.connect(where, timeout=CHECK_S)
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        return Finding("fault", f"it does not answer: {error}", "start it, or check STOREBUS_DATABASE_URL", stops=True)
    try:
        server = await connection.fetchrow(query("doctor_server"))
        assert server is not None
        version = server["version"]
        unsafe = [name for name in ("fsync", "synchronous_commit", "full_page_writes") if server[name] == "off"]
        if not server["migrated"]:
            return Finding("fault", f"PostgreSQL {version}, not migrated", "storebus migrate", stops=True)
        known = {row["name"]: row["checksum"] for row in await connection.fetch(query("doctor_migrations"))}
    finally:
        await connection.close()
    steps = {step.name: step.checksum for step in migrations()}
    if set(steps) - set(known):
        return Finding("fault", f"PostgreSQL {version}, migrations missing: {', '.join(sorted(set(steps) - set(known)))}",
                       "storebus migrate", stops=True)
    if known != steps:
        return Finding("fault", f"PostgreSQL {version}, migrated by another version", "run the version that migrated it",
                       stops=True)
    if unsafe:
        return Finding("fault", f"PostgreSQL {version} with {', '.join(unsafe)} off: a crash loses what was accepted",
                       "switch it on in postgresql.conf")
    return Finding("ok", f"PostgreSQL {version}, {len(known)} migrations")


async def broker(settings: Settings) -> Finding:
    """Does RabbitMQ answer."""
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


async def api(settings: Settings) -> Finding:
    """Is the API ready."""
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


@contextlib.asynccontextmanager
async def log_of(settings: Settings) -> AsyncIterator[PostgresEventStore]:
    """The log, for a check."""
    store = await PostgresEventStore.connect(await asyncio.to_thread(dsn, settings))
    try:
        yield store
    finally:
        await store.aclose()


async def clock(settings: Settings) -> Finding:
    """This machine's clock beside the database's."""
    connection = await asyncpg.connect(await asyncio.to_thread(dsn, settings), timeout=CHECK_S)
    try:
        before = datetime.now(UTC)
        theirs: datetime = await connection.fetchval(query("doctor_clock"))
        after = datetime.now(UTC)
    finally:
        await connection.close()
    return skew("the database", theirs, before, after)


def skew(whose: str, theirs: datetime, before: datetime, after: datetime) -> Finding:
    """What a clock that was asked between `before` and `after` says. One that tells whole seconds is taken at its best."""
    apart = max(0.0, (before - theirs).total_seconds(), (theirs - after).total_seconds())
    text = f"{whose} and this machine are {span_text(apart)} apart"
    remedy = "keep the time of all machines: apt-get install chrony"
    state = "ok" if apart < SKEW_S[0] else "warning" if apart < SKEW_S[1] else "fault"
    return Finding(state, text, "" if state == "ok" else remedy)


async def vault(settings: Settings) -> Finding:
    """Is the key there, is it a key, and does it open what was sealed last."""
    def read() -> bytes | None:
        if settings.vault_key is not None:
            return parse_key(settings.vault_key.get_secret_value())
        path = settings.data_dir / "vault.key"
        if not path.exists():
            return None
        if path.stat().st_mode & 0o077:
            raise BadParameter(f"others may read {path}", field="vault_key", remedy=f"chmod 600 {path}")
        return parse_key(path.read_text())

    key = await asyncio.to_thread(read)
    async with log_of(settings) as store:
        newest = await _newest_secret(settings)
        if key is None and newest is None:
            return Finding("ok", "no secret was sealed yet; a key is made with the first one")
        if key is None:
            return Finding("fault", "secrets are sealed, and their key is not here: no store with keys can be used",
                           f"set STOREBUS_VAULT_KEY, or put back {settings.data_dir / 'vault.key'}")
        if newest is None:
            return Finding("ok", "a key is here; no secret was sealed yet")
        try:
            await Vault(store, key).open(newest)
        except VaultBroken as broken:
            return Finding("fault", "the key here does not open what was sealed last", broken.failure.remedy)
    return Finding("ok", "the key opens what was sealed last")


async def _newest_secret(settings: Settings) -> str | None:
    connection = await asyncpg.connect(await asyncio.to_thread(dsn, settings), timeout=CHECK_S)
    try:
        found = await connection.fetchval(query("doctor_secret"))
    finally:
        await connection.close()
    return None if found is None else f"{Secret.PREFIX}{found}"


async def readers(settings: Settings) -> Finding:
    """How far our own readers of the log are behind."""
    async with log_of(settings) as store:
        head, known = await store.head(), await store.list_checkpoints()
        ages: dict[str, float] = {}
        for name in READERS:
            at = known[name].position if name in known else 0
            page = await store.read_log(at, limit=1) if at < head else None
            ages[name] = (datetime.now(UTC) - page.rows[0].recorded_at).total_seconds() if page and page.rows else 0.0
    others = ", ".join(f"{name} at {each.position}" for name, each in sorted(known.items()) if name not in READERS)
    slow = {name: age for name, age in ages.items() if age >= LAG_S[0]}
    if slow:
        text = "; ".join(f"the {name} is {span_text(age)} behind: {READERS[name]}" for name, age in slow.items())
        return Finding("fault" if max(slow.values()) >= LAG_S[1] else "warning", text,
                       "storebus serve log (or up) must run; its log tells what stops it")
    return Finding("ok", f"{head} rows, read to the end{f'; {others}' if others else ''}")


async def waiting(settings: Settings) -> Finding:
    """Messages that failed and wait, with those behind them; dead letters; timers that nobody fires."""
    async with log_of(settings) as store:
        keys, dead = await store.held_keys(), len(await store.held(key=""))
        now = datetime.now(UTC)
        overdue = [each for each in (await store.timers()).values() if (now - each.due_at).total_seconds() > LAG_S[1]]
    if keys:
        return Finding("fault", f"the messages of {len(keys)} {'keys' if len(keys) > 1 else 'key'} are held, and all behind them",
                       "storebus held shows why; then storebus held redrive --all, or discard")
    if overdue:
        return Finding("fault", f"{len(overdue)} timers are overdue", "storebus serve log (or up) must run")
    if dead:
        return Finding("warning", f"{dead} dead letters: messages that nobody can handle", "storebus dlq shows them")
    return Finding("ok", "nothing is held")


__all__ = ["api", "broker", "clock", "database", "log_of", "readers", "skew", "vault", "waiting"]
