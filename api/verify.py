"""Verify: the log against itself, everything kept with it against its fold, the read tables against theirs.

Owns the order of the checks and the words of a finding. Each names the place and what is wrong; none repairs anything.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from bus.event_store_postgres import PostgresEventStore
from bus.read_model import PostgresReadModel
from bus.verify import Finding, verify
from handlers.projections import TABLES
from handlers.projector import NAME, expected
from schema.failure import Failed

PAGE = 500


async def verify_all(dsn: str) -> list[Finding]:
    """Everything that is not as it must be; empty when all is well. Constant memory for the log, one fold for the tables."""
    findings = await verify(dsn)
    store = await PostgresEventStore.connect(dsn)
    model = await PostgresReadModel.connect(dsn, role="storebus_app")
    try:
        findings += await _projections(store, model)
    except Failed as failed:
        findings.append(Finding("projections", failed.failure.text))
    finally:
        await model.aclose()
        await store.aclose()
    return findings


async def _projections(store: PostgresEventStore, model: PostgresReadModel, tries: int = 20) -> list[Finding]:
    head = await store.head()
    known = None
    for _ in range(50):  # a running projector catches up within moments
        known = await store.load_checkpoint(NAME)
        if known is not None and known.position >= head:
            break
        await store.wait(head, timeout_s=0.1)
    if known is None or known.position == 0:
        return []
    wanted = await expected(store, known.position)
    findings = []
    for table in TABLES:
        rows = await _rows(model, table)
        again = await store.load_checkpoint(NAME)
        if again is None or again.position != known.position:
            if not tries:
                return [Finding("projections", "the log moves on faster than it can be compared; stop its writers")]
            return await _projections(store, model, tries - 1)  # it moved on meanwhile
        findings += _compare(table, wanted.get(table, {}), rows)
    return findings


async def _rows(model: PostgresReadModel, table: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    while True:
        page, total = await model.rows(table, order="id", limit=PAGE, offset=len(found))
        found |= {row["id"]: row for row in page}
        if len(found) >= total or not page:
            return found


def _compare(table: str, wanted: dict[str, dict[str, Any]], rows: dict[str, dict[str, Any]]) -> list[Finding]:
    findings = [Finding(f"read.{table} {key}", "the row is missing") for key in wanted.keys() - rows.keys()]
    findings += [Finding(f"read.{table} {key}", "the row is not in the log") for key in rows.keys() - wanted.keys()]
    for key in wanted.keys() & rows.keys():
        findings += [Finding(f"read.{table} {key}", f"the table has no column {column}, the log has it: a migration is missing")
                     for column in sorted(wanted[key].keys() - rows[key].keys())]
        for column, value in rows[key].items():
            if column != "id" and _plain(value) != _plain(wanted[key].get(column)):
                findings.append(Finding(
                    f"read.{table} {key}", f"{column} is {value!r}, the log says {wanted[key].get(column)!r}"))
    return findings


def _plain(value: Any) -> Any:
    """Times in one form; everything else as it is."""
    if isinstance(value, str) and len(value) > 18 and value[4:5] == "-" and value[10:11] == "T":
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            return value
    return value
