"""The read tables on Postgres: what a page of changes leaves there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import asyncpg
import pytest

from bus.read_model import PostgresReadModel
from tests.support.system import COLUMNS, VIEWS, Tables, holds


def viewed(table: str, tables: Tables) -> dict[str, dict[str, Any]]:
    """A view's rows by id, as tests in memory make them."""
    return {row["id"]: row for row in VIEWS[table](tables)}


@pytest.fixture
async def model(database: str) -> AsyncIterator[PostgresReadModel]:
    made = await PostgresReadModel.connect(database, role="storebus_projector")
    yield made
    await made.aclose()


@pytest.fixture
async def reader(database: str) -> AsyncIterator[PostgresReadModel]:
    made = await PostgresReadModel.connect(database, role="storebus_app")
    yield made
    await made.aclose()


async def row(model: PostgresReadModel, table: str, key: str) -> dict[str, object] | None:
    found, _ = await model.rows(table, {"id": key})
    return {name: value for name, value in found[0].items() if value is not None} if found else None


async def test_given_columns_overlay_a_row_and_twice_is_once(model: PostgresReadModel, reader: PostgresReadModel) -> None:
    await model.apply([("volume", "a", {"name": "first", "size": 5}), ("volume", "b", {"name": "other"}), ("zone", "z", {"name": "here"})])
    for _ in range(2):
        await model.apply([("volume", "a", {"name": "second", "state": "Ready"})])
        assert await row(reader, "volume", "a") == {"id": "a", "name": "second", "size": 5, "state": "Ready"}
    assert await row(reader, "volume", "b") == {"id": "b", "name": "other"}
    assert await row(reader, "zone", "z") == {"id": "z", "name": "here"}


async def test_a_column_that_is_given_as_nothing_is_emptied(model: PostgresReadModel, reader: PostgresReadModel) -> None:
    await model.apply([("volume", "a", {"name": "n", "error": "e"})])
    await model.apply([("volume", "a", {"error": None})])
    assert await row(reader, "volume", "a") == {"id": "a", "name": "n"}


async def test_a_row_that_is_removed_and_made_again_starts_anew(model: PostgresReadModel, reader: PostgresReadModel) -> None:
    await model.apply([("snapshot_store_ref", "a/s", {"key": "old", "root": "r"}), ("snapshot_store_ref", "b/s", {"key": "b"})])
    await model.apply([("snapshot_store_ref", "a/s", None), ("snapshot_store_ref", "b/s", None), ("snapshot_store_ref", "a/s", {"key": "new"})])
    assert await row(reader, "snapshot_store_ref", "a/s") == {"id": "a/s", "key": "new"}
    assert await row(reader, "snapshot_store_ref", "b/s") is None


async def test_no_table_outside_the_schema_can_be_named(model: PostgresReadModel) -> None:
    with pytest.raises(asyncpg.UndefinedTableError):
        await model.apply([("../es.event", "a", {"name": "n"})])
    with pytest.raises(asyncpg.UndefinedTableError):
        await model.apply([("checkpoint", "a", None)])


async def test_a_page_of_nothing(model: PostgresReadModel) -> None:
    await model.apply([])


FILTERS: list[dict[str, object]] = [
    {}, {"account_id": "1"}, {"account_id": None}, {"domain_path": {"prefix": "/a/"}}, {"domain_path": {"prefix": "/a%/"}},
    {"account_id": {"in": ["1", "3", "it's"]}}, {"account_id": {"in": []}}, {"any": []}, {"all": []},
    {"any": [{"account_id": "1"}, {"domain_path": {"prefix": "/a/b/"}}]}, {"name": "v2", "any": [{"account_id": "1"}, {"account_id": "2"}]},
    {"all": [{"domain_path": {"prefix": "/a/"}}, {"any": [{"account_id": "2"}, {"account_id": "3"}]}]}, {"all": [{}, {"account_id": "2"}]},
    {"name": "x' OR true --"}, {"account_id": {"in": ["x') OR true --", '{"}']}}, {"domain_path": {"prefix": "' OR ''='"}},
    {"created": {"from": "2026-01-02T00:00:00+00:00"}}, {"created": {"until": "2026-01-02T00:00:00+00:00"}},
    {"created": {"from": "2026-01-02T00:00:00+00:00", "until": "2026-01-03T00:00:00+00:00"}}, {"name": {"from": "v2", "until": "v' OR true --"}},
    {"tags": {"has": {"a": "1"}}}, {"tags": {"has": {"a": "1", "b": "it's"}}}, {"tags": {"has": {"a": "2"}}}, {"tags": {"has": {"c": "'; --"}}}]


@pytest.mark.parametrize("wanted", FILTERS, ids=str)
async def test_conditions_mean_what_they_mean_in_memory(model: PostgresReadModel, reader: PostgresReadModel, wanted: dict[str, object]) -> None:
    """The double that other tests lean on, and SQL, choose the same rows; what is quoted stays text."""
    rows = {f"v{number}": {"name": f"v{number}", "account_id": account, "domain_path": path, "tags": tags, "created": f"2026-01-0{number + 1}T00:00:00+00:00"} for number, (account, path, tags) in enumerate(
        [("1", "/", None), ("2", "/a/", {}), ("3", "/a/b/", {"a": "1", "b": "it's"}), ("1", "/ab/", {"a": "1"}), (None, None, {"b": "1"}),
         ("it's", "/a%/", {"c": "'; --"})])}
    await model.apply([("volume", key, columns) for key, columns in rows.items()])
    found, total = await reader.rows("volume", wanted, order="id")
    expected = [key for key, columns in rows.items() if holds(columns, wanted)]
    assert [each["id"] for each in found] == expected and total == len(expected)


async def test_the_tags_of_what_is_there_are_a_table(model: PostgresReadModel, reader: PostgresReadModel) -> None:
    """What tests in memory call resource_tag is this view: the same rows with the same columns."""
    rows = {"volume": {"v": {"state": "Ready", "tags": {"b": "2", "a": "1"}, "account_id": "1", "created": "2026-01-01T00:00:00+00:00"},
                       "w": {"state": "Expunged", "tags": {"a": "1"}}, "x": {"state": "Ready"}},
            "snapshot": {"s": {"state": "BackedUp", "tags": {"a": "1"}}, "d": {"state": "Destroyed", "tags": {"a": "1"}}},
            "template": {"t": {"state": "Ready", "format": "qcow2", "tags": {"a": "1"}}, "i": {"state": "Ready", "format": "iso", "tags": {"": ""}},
                         "f": {"state": "Failed", "format": "raw", "tags": {"a": "1"}}}}
    await model.apply([(table, key, columns) for table, found in rows.items() for key, columns in found.items()])
    with_ids = {table: {key: {**columns, "id": key} for key, columns in found.items()}
                for table, found in rows.items()}
    wanted = viewed("resource_tag", with_ids)
    found, total = await reader.rows("resource_tag", order="id")
    assert total == len(wanted) == 5
    assert {each["id"]: each for each in found} == wanted
    one, _ = await reader.rows("resource_tag", {"resource_id": "v", "name": "a"}, search="A")
    assert [each["value"] for each in one] == ["1"]


async def test_snapshots_stand_in_each_of_their_zones(model: PostgresReadModel, reader: PostgresReadModel) -> None:
    """What tests in memory call snapshot_in_zone is this view: the same rows with the same columns."""
    snapshots = {"s": {"name": "s", "state": "BackedUp", "snapshot_type": "DAILY", "location_type": "SECONDARY", "tags": {"a": "1"}},
                 "t": {"name": "t", "state": "Destroyed", "snapshot_type": "MANUAL", "removed": "2026-01-01T00:00:00+00:00"}}
    places = {"s/1": {"snapshot_id": "s", "zone_id": "1"}, "s/2": {"snapshot_id": "s", "zone_id": "2"},
              "t/1": {"snapshot_id": "t", "zone_id": "1"}}
    await model.apply([("snapshot", key, columns) for key, columns in snapshots.items()]
                      + [("snapshot_zone_ref", key, columns) for key, columns in places.items()])
    wanted = viewed("snapshot_in_zone", {"snapshot": {key: {**columns, "id": key} for key, columns in snapshots.items()},
                                         "snapshot_zone_ref": {key: {**columns, "id": key} for key, columns in places.items()}})
    found, total = await reader.rows("snapshot_in_zone", order="id")
    assert total == 3 and {each["id"]: each for each in found} == wanted
    assert set(found[0]) == {*COLUMNS["snapshot_in_zone"], "id"}
    daily, _ = await reader.rows("snapshot_in_zone", {"removed": None, "snapshot_type": {"in": ["DAILY"]}, "zone_id": "2"}, search="S")
    assert [each["id"] for each in daily] == ["s/2"]


async def test_the_view_of_events_is_what_it_is_in_memory(model: PostgresReadModel, reader: PostgresReadModel) -> None:
    """Every way a job may stand: only submitted, running, ended well or not; the newest first."""
    at = [f"2026-01-01T00:00:0{second}.000123+00:00" for second in range(6)]
    base = {"event": "VOLUME.CREATE", "principal": "ann", "account_id": "1", "account": "a", "domain_id": "2", "domain_path": "/", "project_id": None}
    jobs = {
        "new": {"status": "submitted", "created": at[0]},
        "running": {"status": "running", "created": at[1], "started": at[2], "makes": True, "subject": "image_store-7a-b"},
        "done": {"status": "completed", "created": at[1], "started": at[1], "makes": False, "subject": "volume-1", "completed": at[1]},
        "refused": {"status": "failed", "created": at[3], "completed": at[4], "failure": {"cause": "it's not there"}},
        "stopped": {"status": "cancelled", "created": at[3], "started": at[4], "completed": at[5], "subject": "", "failure": {"cause": "stopped"}},
    }
    await model.apply([("job", key, {**base, **columns}) for key, columns in jobs.items()])
    wanted = viewed("event", {"job": {key: {**base, **columns, "id": key} for key, columns in jobs.items()}})
    found, total = await reader.rows("event", order="rank")
    assert total == len(wanted) == 1 + 3 + 3 + 2 + 3
    assert {each["id"]: each for each in found} == wanted
    assert found == sorted(found, key=lambda each: (-datetime.fromisoformat(each["created"]).timestamp(), each["rank"], each["id"]))
    late, _ = await reader.rows("event", {"state": "Started", "open": True, "created": {"from": at[0]}})
    assert [each["job_id"] for each in late] == ["running"]
