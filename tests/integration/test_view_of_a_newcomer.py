"""What "How do I add a read view?" promises: a migration with the table, and its columns in the projections."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from api import verify as verifying
from bus import migrate as migrating
from bus.event_store import LogRow
from bus.event_store_postgres import PostgresEventStore
from bus.migrate import migrate
from bus.read_model import PostgresReadModel
from bus.submission import submission, submit
from handlers import projections, projector
from schema.ids import derive
from schema.volume import DeleteVolume
from tests.integration.conftest import LogServer
from tests.services.postgres import fresh_database

pytestmark = pytest.mark.needs_postgres
SQL = """-- Deletions that somebody asked for.
CREATE TABLE read.wish (id text PRIMARY KEY, command text{column});
GRANT SELECT ON read.wish TO storebus_app, storebus_projector;
"""


@pytest.fixture
async def dsn(log_server: LogServer) -> str:
    """A database as this version makes it."""
    return await fresh_database(await log_server.get())


@pytest.fixture
def written(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The two files: a migration beside those that are there, and a fold of one event."""
    ours = tmp_path / "sql"
    shutil.copytree(str(migrating.ROOT), ours)
    monkeypatch.setattr(migrating, "ROOT", ours)
    folds = projections.changes

    def changes(row: LogRow) -> Iterator[Any]:
        yield from folds(row)
        if row.type == "job.submitted":
            yield "wish", str(derive(row.id, "wish")), {"command": "volume.delete", "by": "somebody"}

    monkeypatch.setattr(projector, "changes", changes)
    monkeypatch.setattr(verifying, "TABLES", (*projections.TABLES, "wish"))
    yield ours / "migrations/9001_wish.sql"


@pytest.mark.parametrize("column", [", by text", ""])
async def test_a_view_is_a_migration_and_its_columns(dsn: str, written: Path, column: str) -> None:
    written.write_text(SQL.format(column=column))
    assert await migrate(dsn) == ["9001_wish"]
    assert await migrate(dsn) == []
    store = await PostgresEventStore.connect(dsn)
    model = await PostgresReadModel.connect(dsn, role="storebus_projector")
    views = await PostgresReadModel.connect(dsn, role="storebus_app")
    try:
        for _ in range(3):
            await submit(store, submission(DeleteVolume(id=uuid4()), job_id=uuid4(), kind="event"))
        await projector.rebuild(store, model)
        rows, total = await views.rows("wish", order="id")
        assert total == 3
        assert rows[0] | {"id": ""} == {"id": "", "command": "volume.delete"} | ({"by": "somebody"} if column else {})
    finally:
        await views.aclose()
        await model.aclose()
        await store.aclose()
    findings = await verifying.verify_all(dsn)
    assert bool(findings) is not bool(column), "a column that only the fold has is a migration that is missing"
    assert all("no column by" in found.what for found in findings)
