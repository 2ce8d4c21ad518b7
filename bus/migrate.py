"""Migrations: the database brought to this version's shape, in order, once, under a lock, refusing drift.

A migration is a folder under `schema/sql/migrations/` holding a file `objects` with the paths of SQL files, one a line, in
order; its checksum is over their text as applied. What was applied is recorded and never changes: a later version adds a
migration. Owns the ledger `es.migration`. Refuses to guess: a checksum that differs stops everything.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from uuid import uuid4

import asyncpg

from bus.errors import LogBroken, StoreAway
from schema.failure import Denied, Failed
from schema.ids import PARTITIONS

LOCK = 727400
"""Advisory lock: two migrations never run at once."""
ROOT = resources.files("schema") / "sql"


class Drift(Failed):
    """The database was migrated with other SQL than this version's."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step, as this version has it."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Hex SHA-256 of the SQL."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All steps in order."""
    found = []
    for entry in sorted((ROOT / "migrations").iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".list"):
            paths = [line for line in entry.read_text().split("\n") if line and not line.startswith("#")]
            found.append(Migration(entry.name.removesuffix(".list"), "\n".join(
                (ROOT / path).read_text() for path in paths)))
    return found


async def migrate(dsn: str, *, new_epoch: bool = False) -> list[str]:
    """Bring the database up to date; the names of the steps applied. Twice is once. Raises Drift, Denied, StoreAway.

    `new_epoch`: after a restore, so that readers whose checkpoints are ahead stop instead of skipping.
    """
    try:
        connection = await asyncpg.connect(dsn, timeout=15)
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise StoreAway(f"Postgres does not answer: {error}", remedy="start it, or check STOREBUS_DATABASE_URL") from None
    try:
        return await _apply(connection, new_epoch)
    except asyncpg.InsufficientPrivilegeError as error:
        raise Denied(f"the database user may not migrate: {error}",
                     remedy="give it CREATEROLE and ownership of the database, or migrate as such a user") from None
    finally:
        await connection.close()


async def _apply(connection: asyncpg.Connection[asyncpg.Record], new_epoch: bool) -> list[str]:
    applied = []
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        await connection.execute((ROOT / "ledger.sql").read_text())
        known = {row["name"]: row["checksum"] for row in await connection.fetch("TABLE storebus_migration")}
        for step in migrations():
            if step.name in known:
                if known[step.name] != step.checksum:
                    raise Drift(f"migration {step.name} was applied with other SQL than this version's",
                                remedy="run the version that migrated this database, or restore it")
                continue
            await connection.execute(step.sql)
            await connection.execute("INSERT INTO storebus_migration (name, checksum) VALUES ($1, $2)", step.name, step.checksum)
            applied.append(step.name)
        ahead = set(known) - {step.name for step in migrations()}
        if ahead:
            raise Drift(f"the database has migrations that this version does not know: {', '.join(sorted(ahead))}",
                        remedy="upgrade this role")
        await connection.execute((ROOT / "installation.sql").read_text().replace("$PARTITIONS", str(PARTITIONS)).replace(
            "$ID", str(uuid4())))
        if new_epoch:
            await connection.execute("UPDATE es.installation SET epoch = epoch + 1")
        partitions = await connection.fetchval("SELECT partitions FROM es.installation")
        if partitions != PARTITIONS:
            raise LogBroken(f"this installation has {partitions} partitions, this version works with {PARTITIONS}")
        await connection.fetchval("SELECT es.make_partitions()")
    return applied
