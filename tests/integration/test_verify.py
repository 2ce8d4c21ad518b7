"""Verify names what a superuser did to the log and to what is kept with it: one change, named; nothing done, nothing found."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from bus.errors import Conflict, LogBroken, StoreAway
from bus.event_store import NO_STREAM, AppendRequest, Claim, CounterChange, LogFilter
from bus.event_store_postgres import PostgresEventStore
from bus.verify import Finding, verify
from tests.contract.test_event_store import row
from tests.integration.conftest import LogServer
from tests.services.postgres import fresh_database

pytestmark = pytest.mark.needs_postgres
SWAP = [f"UPDATE es.event SET position = {to} WHERE position = {at}" for at, to in ((5, 99), (8, 5), (99, 8))]
COPY = """INSERT INTO es.event SELECT 13, stream, version, kind, type, type_version, id, key, address, tenant, correlation,
                 causation, recorded_at, payload, meta, effects, hash FROM es.event WHERE position = 12"""


@pytest.fixture
async def dsn(log_server: LogServer) -> AsyncIterator[str]:
    """A database with twelve rows of three streams, a claim, a passed-on claim and a counter; one refused request."""
    made = await fresh_database(await log_server.get())
    store = await PostgresEventStore.connect(made)
    for version in range(4):
        for stream in ("a", "b", "c"):
            more: dict[str, object] = {}
            if stream == "a":
                more = {"counters": [CounterChange(name="quota", delta=version + 1, ceiling=100)]}
            if stream == "b" and version < 2:
                more = {"take": [Claim(name=f"name/{version}", value="v", holder="b")]}
            if stream == "b" and version == 3:
                more = {"release": [Claim(name="name/1", value="v", holder="b")]}
            await store.append(AppendRequest(expected={stream: version - 1}, rows=[
                row(stream, payload=b'{"n":%d}' % version)], **more))  # type: ignore[arg-type] # each of its own type
    with pytest.raises(Conflict):
        await store.append(AppendRequest(expected={"a": 9, "d": NO_STREAM}, rows=[row("d")],
                                         counters=[CounterChange(name="other", delta=1)]))
    await store.aclose()
    yield made


async def tamper(dsn: str, *statements: str) -> list[Finding]:
    """Do it as the superuser; what verify finds."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            for statement in statements:
                assert (await connection.execute(statement)).split()[-1] != "0", f"changed nothing: {statement}"
    finally:
        await connection.close()
    return await verify(dsn)


async def test_a_log_that_nobody_touched_is_clean(dsn: str) -> None:
    assert await verify(dsn) == []


@pytest.mark.parametrize("column", [
    "payload = '{}'", "type = 'x'", "stream = 'c'", "version = 7", "kind = 'order'", "type_version = 2",
    "id = gen_random_uuid()", "key = 'x'", "address = 'x'", "tenant = 'x'", "correlation = gen_random_uuid()",
    "causation = gen_random_uuid()", "recorded_at = recorded_at + interval '1 microsecond'", "meta = '{\"a\":1}'",
    "effects = '{}'", "effects = 'no JSON'", "hash = sha256('x')", "key = key || address, address = key || 'x'",
    "payload = payload || meta, meta = ''"])
async def test_any_column_of_a_row_that_was_changed_is_named(dsn: str, column: str) -> None:
    findings = await tamper(dsn, f"UPDATE es.event SET {column} WHERE position = 5")
    assert any(found.where.startswith("position 5 (") and "hash chain" in found.what for found in findings), findings


async def test_only_the_changed_row_is_named(dsn: str) -> None:
    (found,) = await tamper(dsn, "UPDATE es.event SET payload = '{\"n\":2}' WHERE position = 5")
    assert found.where == "position 5 (b v1, thing.happened)"


async def test_a_deleted_row_is_named_by_its_position(dsn: str) -> None:
    findings = await tamper(dsn, "DELETE FROM es.event WHERE position = 5")
    assert Finding("position 5", "missing from the log") in findings
    assert any(found.where.startswith("position 8 (b v2") and found.what == "version 2 follows version 0" for found in findings)


async def test_the_last_row_deleted_is_named_by_its_stream(dsn: str) -> None:
    findings = await tamper(dsn, "DELETE FROM es.event WHERE position = 12")
    assert findings == [Finding("stream c", "its head says version 3, the log has 2")]


async def test_an_inserted_row_is_named(dsn: str) -> None:
    findings = await tamper(dsn, COPY)
    assert any(found.where.startswith("position 13 (c v3") and "hash chain" in found.what for found in findings)
    assert any(found.where.startswith("position 13 (c v3") and found.what == "version 3 follows version 3" for found in findings)


async def test_swapped_rows_are_both_named(dsn: str) -> None:
    findings = await tamper(dsn, *SWAP)
    for place in ("position 5 (b v2", "position 8 (b v1"):
        assert any(found.where.startswith(place) and "hash chain" in found.what for found in findings), findings


@pytest.mark.parametrize(("statement", "named"), [
    ("UPDATE es.counter SET value = 11 WHERE name = 'quota'", Finding("counter quota", "it is 11 of 100, the log says 10 of 100")),
    ("UPDATE es.counter SET ceiling = NULL WHERE name = 'quota'",
     Finding("counter quota", "it is 10 of None, the log says 10 of 100")),
    ("DELETE FROM es.counter WHERE name = 'quota'", Finding("counter quota", "it is 0 of None, the log says 10 of 100")),
    ("INSERT INTO es.counter VALUES ('more', 1, NULL)", Finding("counter more", "it is 1 of None, the log says 0 of None")),
    ("UPDATE es.claim SET value = 'w'", Finding("claim name/0", "b holds 'w', the log says 'v'")),
    ("UPDATE es.claim SET holder = 'z'", Finding("claim name/0", "z holds 'v', the log says None")),
    ("DELETE FROM es.claim", Finding("claim name/0", "b holds None, the log says 'v'")),
    ("INSERT INTO es.claim (name, holder, value) VALUES ('name/1', 'b', 'v')",
     Finding("claim name/1", "b holds 'v', the log says None")),
    ("UPDATE es.stream SET version = 4 WHERE name = 'a'", Finding("stream a", "its head says version 4, the log has 3")),
    ("DELETE FROM es.stream WHERE name = 'a'", Finding("stream a", "its head is missing, the log has version 3")),
])
async def test_what_is_kept_with_the_log_is_compared_with_its_fold(dsn: str, statement: str, named: Finding) -> None:
    assert named in await tamper(dsn, statement)


async def test_a_hole_stops_readers(dsn: str) -> None:
    await tamper(dsn, "DELETE FROM es.event WHERE position BETWEEN 4 AND 6")
    store = await PostgresEventStore.connect(dsn)
    try:
        for wanted in (None, LogFilter(streams=("a",))):
            assert (await store.read_log(6, filter=wanted)).scanned_to == 12
            with pytest.raises(LogBroken):
                await store.read_log(0, filter=wanted)
        with pytest.raises(LogBroken, match="position 4"):
            await store.read_log(3)
        with pytest.raises(LogBroken):
            await store.read_log(3, filter=LogFilter(until_position=5))
    finally:
        await store.aclose()


async def test_pages_make_no_difference(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bus.verify.PAGE", 2)
    assert await verify(dsn) == []
    (found,) = await tamper(dsn, "UPDATE es.event SET payload = '{\"n\":2}' WHERE position = 5")
    assert found.where.startswith("position 5 (")


async def test_a_ruined_log_is_no_endless_list(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bus.verify.MOST", 4)
    assert len(await tamper(dsn, "UPDATE es.event SET hash = ''")) == 4


async def test_verify_says_when_there_is_nothing_to_verify(dsn: str) -> None:
    with pytest.raises(StoreAway):
        await verify("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(LogBroken, match="migrate"):
        await tamper(dsn, "ALTER SCHEMA es RENAME TO gone")
