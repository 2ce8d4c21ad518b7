"""Connections to the log's database: as the application role, bounded, with errors that say what is wrong.

Owns what asyncpg raises when the server is away and what that means. Refuses to know queries. Rule: the password is in the
DSN and nowhere else, so no text here holds a DSN.
"""

from __future__ import annotations

from typing import Any

import asyncpg

from bus.errors import LogBroken, StoreAway
from schema.failure import BadParameter, Denied, Failed

AWAY = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.CannotConnectNowError,
        asyncpg.AdminShutdownError, asyncpg.CrashShutdownError, asyncpg.TooManyConnectionsError,
        asyncpg.InternalClientError, TimeoutError)
"""What asyncpg raises when the server is away. InternalClientError: a connection that was cut in the midst of an answer."""
CONNECT_S = 10.0
ANSWER_S = 120.0
SETTINGS = {"role": "storebus_app", "application_name": "storebus", "default_transaction_isolation": "read committed"}


async def connect(dsn: str) -> asyncpg.Connection[asyncpg.Record]:
    """One connection as the application role. Raises what asyncpg raises."""
    return await asyncpg.connect(dsn, timeout=CONNECT_S, command_timeout=ANSWER_S, server_settings=SETTINGS)


async def open_pool(dsn: str, size: int) -> asyncpg.Pool[asyncpg.Record]:
    """A pool as the application role. Raises StoreAway, LogBroken (not migrated), Denied or BadParameter (the DSN)."""
    try:
        pool = await asyncpg.create_pool(dsn, min_size=0, max_size=size, reset=_keep, command_timeout=ANSWER_S,
                                         timeout=CONNECT_S, server_settings=SETTINGS)
        await pool.release(await pool.acquire())  # now, not at the first query, it shows whether the DSN is right
        return pool
    except (*AWAY, asyncpg.PostgresError, ValueError) as error:
        raise failed(error) from None


def failed(error: Exception) -> Failed:
    """What a connection that could not be made means."""
    if isinstance(error, ValueError):  # also asyncpg's ClientConfigurationError; the text of either may quote the DSN
        return BadParameter("it is not a DSN", field="STOREBUS_DATABASE_URL", remedy="postgresql://user:password@host/database")
    if isinstance(error, AWAY):
        return away(error)
    assert isinstance(error, asyncpg.PostgresError)
    return refused(error)


def away(error: BaseException) -> StoreAway:
    """Postgres does not answer."""
    return StoreAway(f"Postgres does not answer: {type(error).__name__} {error}".strip(),
                     remedy="start it, or check STOREBUS_DATABASE_URL; it is tried again by itself")


def refused(error: asyncpg.PostgresError) -> Failed:
    """Postgres answers, and says no: the role or the tables are not there, or the user may not."""
    if isinstance(error, asyncpg.UndefinedObjectError | asyncpg.InvalidParameterValueError | asyncpg.UndefinedTableError
                  | asyncpg.InvalidSchemaNameError | asyncpg.UndefinedFunctionError):
        return LogBroken("the database is not migrated", remedy="storebus migrate")
    return Denied(f"Postgres refuses the connection: {error}", field="STOREBUS_DATABASE_URL",
                  remedy="check user, password and database; the user must be a member of storebus_app")


async def _keep(connection: Any) -> None:
    """Nothing to reset: no session state is ever changed here, and a reset costs a round trip."""
