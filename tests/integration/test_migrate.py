"""Migrations on a real Postgres: once, under a lock, refusing drift; and what the roles they make may not do."""

from __future__ import annotations

import asyncio
import re

import asyncpg
import pytest

from bus import migrate as migrating
from bus.errors import LogBroken, StoreAway
from bus.event_store import NO_STREAM, AppendRequest, Checkpoint
from bus.event_store_postgres import PostgresEventStore
from bus.migrate import Drift, Migration, migrate, migrations
from bus.verify import verify
from schema.failure import BadParameter, Denied
from tests.contract.test_event_store import row
from tests.integration.conftest import LogServer
from tests.services.postgres import TestServer, fresh_database

pytestmark = pytest.mark.needs_postgres


@pytest.fixture
async def server(log_server: LogServer) -> TestServer:
    """A running server."""
    return await log_server.get()


async def empty_database(server: TestServer, name: str) -> str:
    """The DSN of a database without anything in it."""
    admin = await asyncpg.connect(server.dsn)
    try:
        await admin.execute(f"DROP DATABASE IF EXISTS {name}")
        await admin.execute(f"CREATE DATABASE {name}")
    finally:
        await admin.close()
    return server.dsn.replace("@/storebus?", f"@/{name}?")


async def run(dsn: str, sql: str, role: str = "") -> object:
    """One statement on a connection of its own."""
    connection = await asyncpg.connect(dsn, server_settings={"role": role} if role else {})
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_twice_is_once_and_many_at_once_are_one(server: TestServer) -> None:
    dsn = await empty_database(server, "at_once")
    ends = await asyncio.gather(*(migrate(dsn) for _ in range(5)))
    assert sorted(map(len, ends)) == [0, 0, 0, 0, len(migrations())]
    assert await migrate(dsn) == []
    assert await run(dsn, "SELECT count(*) FROM es.installation") == 1


async def test_a_database_that_is_not_migrated_says_so(server: TestServer) -> None:
    dsn = await empty_database(server, "bare")
    with pytest.raises(LogBroken, match="storebus migrate"):
        await PostgresEventStore.connect(dsn)


async def test_other_sql_than_was_applied_is_refused(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    dsn = await fresh_database(server)
    known = migrations()
    monkeypatch.setattr(migrating, "migrations", lambda: [Migration(known[0].name, known[0].sql + "\n-- changed"), *known[1:]])
    with pytest.raises(Drift, match=known[0].name):
        await migrate(dsn)
    monkeypatch.setattr(migrating, "migrations", lambda: [*known, Migration("9999_next", "CREATE TABLE public.next (a int)")])
    assert await migrate(dsn) == ["9999_next"]
    monkeypatch.setattr(migrating, "migrations", lambda: known)
    with pytest.raises(Drift, match="9999_next"):
        await migrate(dsn)


async def test_a_migration_that_fails_leaves_nothing(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    dsn = await empty_database(server, "half")
    known = migrations()
    monkeypatch.setattr(migrating, "migrations", lambda: [*known, Migration("9999_bad", "SELECT 1/0")])
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(dsn)
    assert await run(dsn, "SELECT to_regclass('public.storebus_migration')") is None
    assert await run(dsn, "SELECT to_regnamespace('es')") is None


async def test_a_new_epoch_keeps_what_was_restored_with_the_log_and_stops_groups(server: TestServer) -> None:
    dsn = await fresh_database(server)
    store = await PostgresEventStore.connect(dsn)
    try:
        await store.append(AppendRequest(expected={"a": NO_STREAM}, rows=[row("a"), row("a")]))
        for name, position in (("relay-work", 2), ("projector", 9), ("sub/g", 2)):
            await store.save_checkpoint(name, Checkpoint(position=position, epoch=1))
        await migrate(dsn, new_epoch=True)
        assert await store.epoch() == 2
        known = await store.list_checkpoints()
        assert {name: at.epoch for name, at in known.items()} == {"relay-work": 2, "projector": 1, "sub/g": 1}
        with pytest.raises(LogBroken, match="epoch"):
            await store.save_checkpoint("sub/g", Checkpoint(position=2, epoch=1))
    finally:
        await store.aclose()


async def test_another_number_of_partitions_is_refused(server: TestServer) -> None:
    dsn = await fresh_database(server)
    await run(dsn, "UPDATE es.installation SET partitions = 8")
    with pytest.raises(LogBroken, match="8 partitions"):
        await migrate(dsn)


async def test_a_user_without_the_right_is_told_which(server: TestServer) -> None:
    dsn = await empty_database(server, "poor")
    await run(dsn, "DROP ROLE IF EXISTS poor")
    await run(dsn, "CREATE ROLE poor LOGIN PASSWORD 'poor'")
    poor = re.sub(r"//[^@]*@", "//poor:poor@", dsn)
    with pytest.raises(Denied, match="CREATEROLE"):
        await migrate(poor)
    with pytest.raises(Denied, match="member of storebus_app"):
        await PostgresEventStore.connect(poor)
    with pytest.raises(Denied) as wrong:
        await PostgresEventStore.connect(poor.replace("poor:poor", "poor:hunter2"))
    assert "hunter2" not in str(wrong.value)


async def test_an_absent_server_is_away() -> None:
    with pytest.raises(StoreAway):
        await migrate("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(StoreAway):
        await PostgresEventStore.connect("postgresql://nobody@127.0.0.1:1/none")


@pytest.mark.parametrize("dsn", ["mysql://u:hunter2@h/d", "postgresql://u:hunter2@h:hunter2/d", "postgresql://u:hunter2@[::1"])
async def test_what_is_no_dsn_is_said_without_repeating_it(dsn: str) -> None:
    for doing in (PostgresEventStore.connect, migrate, verify):
        with pytest.raises(BadParameter, match="STOREBUS_DATABASE_URL") as refused:
            await doing(dsn)
        assert "hunter2" not in str(refused.value)


async def test_the_application_writes_no_table(server: TestServer) -> None:
    dsn = await fresh_database(server)
    store = await PostgresEventStore.connect(dsn)
    try:
        await store.append(AppendRequest(expected={"a": NO_STREAM}, rows=[row("a")]))
    finally:
        await store.aclose()
    tables = await run(dsn, "SELECT array_agg(format('%I.%I', schemaname, tablename)) FROM pg_tables WHERE schemaname IN ('es', 'read')")
    assert isinstance(tables, list) and "es.event" in tables and "es.event_0" in tables and "es.claim" in tables
    for role in ("storebus_app", "storebus_projector"):
        for table in tables:
            for statement in (f"DELETE FROM {table}", f"INSERT INTO {table} DEFAULT VALUES", f"TRUNCATE {table}",
                              f"DROP TABLE {table}"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await run(dsn, statement, role)
    for statement in ("TABLE es.secret", "UPDATE es.event SET payload = ''", "CREATE TABLE es.mine (a int)",
                      "SELECT es.apply_effects('{}')"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await run(dsn, statement, "storebus_app")
    for statement in ("SELECT es.put_secret(gen_random_uuid(), '')", "SELECT es.make_partitions()"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await run(dsn, statement, "storebus_projector")
    unpinned = await run(dsn, """SELECT array_agg(proname::text) FROM pg_proc WHERE pronamespace::regnamespace::text IN ('es', 'read')
                                 AND prosecdef AND NOT coalesce(proconfig::text LIKE '%search_path%', false)""")
    assert unpinned is None


async def test_an_append_outside_read_committed_is_refused(server: TestServer) -> None:
    dsn = await fresh_database(server)
    nothing = ", ".join(["'{}'"] * 16)
    connection = await asyncpg.connect(dsn, server_settings={"role": "storebus_app", "synchronous_commit": "off"})
    try:
        async with connection.transaction(isolation="serializable"):
            with pytest.raises(asyncpg.RaiseError, match="READ COMMITTED"):
                await connection.fetch(f"SELECT es.append({nothing}, NULL)")
            raise asyncpg.PostgresError  # the transaction is over anyway
    except asyncpg.PostgresError:
        pass
    async with connection.transaction():
        await connection.fetch(f"SELECT es.append({nothing}, NULL)")
        assert await connection.fetchval("SHOW synchronous_commit") == "on"  # acknowledged means on disk
    await connection.close()
