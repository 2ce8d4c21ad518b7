"""The read model: where projections rest and lists are read from. Generic; knows tables by name only.

Owns the two database roles of reading: the projector's (writes read tables only) and the application's (reads them).
Refuses to know what a column means. A change is `[table, id, columns or None]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import asyncpg
from pydantic_core import from_json

from bus.errors import StoreAway
from bus.event_store_connection import AWAY

Change = tuple[str, str, dict[str, Any] | None]
SETTINGS = {"application_name": "storebus", "jit": "off", "max_parallel_workers_per_gather": "0"}
"""A page is small: to compile for it, or to start workers, takes longer than to read it."""


class ReadModel(Protocol):
    """Overlay changes, read pages."""

    async def apply(self, changes: Sequence[Change]) -> None:
        """Remove the rows whose columns are None, then overlay the columns of the others, in one commit. Twice is once.

        A row comes at most once among the removed, and at most once among the others: removed and given, it starts anew.
        """

    async def clear(self) -> None:
        """Empty every table, for a rebuild."""

    async def rows(self, table: str, where: Mapping[str, Any] | None = None, *, search: str = "",
                   order: str = "created", limit: int = 500, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """One page in `order`, and how many rows match in all. `search` is a substring of the name."""

    async def aclose(self) -> None:
        """Let go of connections."""


class PostgresReadModel:
    """The read tables in the schema `read`."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._pool = pool

    @classmethod
    async def connect(cls, dsn: str, *, role: str) -> PostgresReadModel:
        """`role`: storebus_projector or storebus_app. Raises StoreAway."""

        try:
            # None is kept open: to restore one while the server is away, the pool would fill the log with tracebacks.
            pool = await asyncpg.create_pool(dsn, min_size=0, max_size=4, reset=_keep, command_timeout=60, timeout=15,
                                             server_settings={"role": role, **SETTINGS})
            await pool.release(await pool.acquire())  # now, not at the first page, it shows whether it can be had
        except AWAY as error:
            raise StoreAway(f"Postgres does not answer: {error}",
                            remedy="start it, or check STOREBUS_DATABASE_URL") from None
        return cls(pool)

    async def apply(self, changes: Sequence[Change]) -> None:
        """See ReadModel."""
        await self._run("SELECT read.apply($1::jsonb)", json.dumps(changes))

    async def clear(self) -> None:
        """See ReadModel."""
        await self._run("SELECT read.clear()")

    async def rows(self, table: str, where: Mapping[str, Any] | None = None, *, search: str = "",
                   order: str = "created", limit: int = 500, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """See ReadModel."""
        # One text for a page: to take hundreds of rows from the connection costs more than to read them.
        found = await self._run("SELECT total, items FROM read.page($1, $2::jsonb, $3, $4, $5, $6)", table,
                                json.dumps(dict(where or {})), search, order, limit, offset)
        return (from_json(found[0]["items"], cache_strings="keys"), found[0]["total"]) if found else ([], 0)

    async def _run(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        try:
            return await self._pool.fetch(query, *arguments, timeout=60)
        except AWAY as error:
            raise StoreAway(f"Postgres does not answer: {error}", remedy="it is tried again by itself") from None

    async def aclose(self) -> None:
        """See ReadModel."""
        await self._pool.close()


async def _keep(connection: Any) -> None:
    """Nothing to reset: a session's state is its role, for good, and a reset costs a round trip."""
