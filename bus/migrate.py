"""Migrations: the database brought to this version's shape, in order, once, under a lock, refusing drift.

A migration is a file of `schema/sql/migrations`: SQL, `NNNN_name.sql`, or `NNNN_name.list` with the paths of SQL files, one a
line, in order; its checksum is over the text as applied. What was applied is recorded and never changes: a later version
adds a migration, and an object that changes does so in a file of its own. Owns the ledger `storebus_migration`. Refuses to
guess: a checksum that differs stops everything.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from uuid import uuid4

import asyncpg

from bus.errors import LogBroken
from bus.event_store_connection import AWAY, CONNECT_S, away, failed
from bus.sql import query
from schema.failure import Denied, Failed
from schema.ids import PARTITIONS

LOCK = 727400
"""Advisory lock: two migrations never run at once."""
MIGRATE_S = 600.0
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
        if entry.name.endswith(".sql"):
            found.append(Migration(entry.name.removesuffix(".sql"), entry.read_text()))
        elif entry.name.endswith(".list"):
            paths = [line for line in entry.read_text().split("\n") if line and not line.startswith("#")]
            found.append(Migration(entry.name.removesuffix(".list"), "\n".join(
                (ROOT / path).read_text() for path in paths)))
    return found


async def migrate(dsn: str, *, new_epoch: bool = False) -> list[str]:
    """Bring the database up to date; the names of the steps applied. Twice is once. Raises Drift, Denied, StoreAway.

    `new_epoch`: after a restore, so that readers whose checkpoints are ahead stop instead of skipping.
    """
    connection = await _connected(dsn)
    try:
        return await _apply(connection, new_epoch)
    except asyncpg.InsufficientPrivilegeError as error:
        raise Denied(f"the database user may not migrate: {error}", field="STOREBUS_DATABASE_URL",
                     remedy="give it CREATEROLE and ownership of the database, or migrate as such a user") from None
    except AWAY as error:
        raise away(error) from None
    finally:
        await connection.close()


async def _connected(dsn: str) -> asyncpg.Connection[asyncpg.Record]:
    try:
        return await asyncpg.connect(dsn, timeout=CONNECT_S, command_timeout=MIGRATE_S)
    except (*AWAY, asyncpg.PostgresError, ValueError) as error:
        raise failed(error) from None


async def _apply(connection: asyncpg.Connection[asyncpg.Record], new_epoch: bool) -> list[str]:
    """All or nothing: one transaction, which waits for whoever migrates at the same time."""
    steps = migrations()
    applied = []
    async with connection.transaction(isolation="read_committed"):
        await connection.execute(query("migration_lock"), LOCK)
        await connection.execute((ROOT / "ledger.sql").read_text())
        known = {row["name"]: row["checksum"] for row in await connection.fetch(query("doctor_migrations"))}
        _refuse_drift(steps, known)
        for step in steps:
            if step.name not in known:
                await connection.execute(step.sql)
                await connection.execute(query("migration_applied"), step.name, step.checksum)
                applied.append(step.name)
        await connection.execute(query("make_installation"), uuid4(), PARTITIONS)
        if new_epoch:
            await connection.execute(query("new_epoch"))
        partitions = await connection.fetchval(query("partitions"))
        if partitions != PARTITIONS:
            raise LogBroken(f"this installation has {partitions} partitions, this version works with {PARTITIONS}",
                            remedy="partitions are fixed when an installation is made; run the version that made it")
        await connection.fetchval(query("make_partitions"))
    return applied


def _refuse_drift(steps: list[Migration], known: dict[str, str]) -> None:
    for step in steps:
        if known.get(step.name, step.checksum) != step.checksum:
            raise Drift(f"migration {step.name} was applied with other SQL than this version's",
                        remedy="run the version that migrated this database, or restore it")
    ahead = sorted(set(known) - {step.name for step in steps})
    if ahead:
        raise Drift(f"the database has migrations that this version does not know: {', '.join(ahead)}",
                    remedy="upgrade this role")
