"""The lists of templates on Postgres: what the flows of the memory rig led to, projected there, is listed as it is in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from api.edge import Edge
from bus.read_model import PostgresReadModel
from handlers.projector import fold
from schema.agent import FetchImage
from schema.failure import Damage
from schema.scrub import QuarantineCopy
from tests.support.two_zones import TwoZones

EXPLAIN = "EXPLAIN SELECT * FROM read.template_view t WHERE {where} ORDER BY t.created, t.id LIMIT 20"


@pytest.fixture
async def scene() -> TwoZones:
    """Templates in every state that a list tells apart."""
    scene = await TwoZones.start()
    for more in ({"name": "both", "zoneid": -1, "ispublic": "true", "isfeatured": "true"}, {"name": "here", "zoneid": scene.here},
                 {"name": "broken", "zoneids": f"{scene.here},{scene.other}"}, {"name": "gone", "zoneid": scene.other},
                 {"name": "left", "zoneid": -1, "ispublic": "true"}):
        await scene.register(**more)
        await scene.cloud.settle()
    ids = {row["name"]: row["id"] for row in (await scene.ok("listTemplates", templatefilter="all"))["template"]}
    await scene.ok("registerIso", name="cd", url="http://x/y.iso", zoneid=scene.here)
    await scene.cloud.settle()
    await scene.ended((await scene.ok("deleteTemplate", id=ids["gone"]))["jobid"])
    await scene.ended((await scene.ok("deleteTemplate", id=ids["left"], zoneid=scene.here))["jobid"])
    [fetch] = [order for order in await scene.orders(FetchImage) if str(order.thing_id) == ids["broken"]]
    await scene.cloud.send(QuarantineCopy(kind="template", thing_id=UUID(ids["broken"]), damage=Damage(object=fetch.key, what="missing")))
    await scene.register(name="coming", zoneid=scene.here)
    await scene.cloud.submissions()
    return scene


@pytest.fixture
async def reader(database: str, scene: TwoZones) -> AsyncIterator[PostgresReadModel]:
    """The same log's read tables."""
    writer = await PostgresReadModel.connect(database, role="storebus_projector")
    await writer.apply(fold(scene.cloud.store.rows))  # type: ignore[attr-defined] # the store in memory
    await writer.aclose()
    made = await PostgresReadModel.connect(database, role="storebus_app")
    yield made
    await made.aclose()


async def test_every_filter_lists_the_same_as_in_memory(scene: TwoZones, reader: PostgresReadModel) -> None:
    memory, views = scene.system.views, reader
    rows = (await scene.ok("listTemplates", templatefilter="all"))["template"]
    assert {(row["name"], row["isready"]) for row in rows} == {
        ("both", True), ("here", True), ("broken", True), ("broken", False), ("left", True), ("coming", False)}
    asked: list[dict[str, Any]] = [
        {}, {"showunique": "true"}, {"showremoved": "true"}, {"showremoved": "true", "showunique": "true"}, {"isready": "true"}, {"isready": "false"},
        {"zoneid": scene.here}, {"zoneid": scene.other}, {"zoneid": scene.other, "showunique": "true"}, {"id": rows[0]["id"]},
        {"ids": ",".join(row["id"] for row in rows[:3])}, {"name": "here"}, {"keyword": "O"}, {"keyword": "%"}, {"keyword": "_"}, {"keyword": "\\"}, {"keyword": "'"}, {"arch": "x86_64"}, {"page": 2, "pagesize": 3},
        {"details": "min"}, *({"templatefilter": one} for one in ("self", "featured", "community", "executable", "shared", "selfexecutable"))]
    for filters in [*asked, *({"iso": 1, "isofilter": one} for one in ("self", "featured")), {"iso": 1}, {"iso": 1, "bootable": "false"}]:
        iso = "iso" in filters
        given = {**({} if iso else {"templatefilter": "all"}), **{name: value for name, value in filters.items() if name != "iso"}}
        answers = []
        for source in (memory, views):
            scene.system.views = source
            answers.append(await Edge(scene.system).call(
                {"command": "listIsos" if iso else "listTemplates", **{name: str(value) for name, value in given.items()}}))
        scene.system.views = memory
        there, here = (_comparable(answer.body) for answer in answers)
        assert answers[0].status == answers[1].status == 200, (filters, answers)
        assert there == here, filters


def _comparable(body: dict[str, Any]) -> Any:
    [inner] = body.values()
    items = inner.get("template", inner.get("iso", []))
    return inner.get("count"), sorted((item["id"], item.get("zoneid", ""), item["status"], item["isready"]) for item in items)


async def test_a_page_is_found_by_an_index_and_names_by_trigrams(database: str, reader: PostgresReadModel) -> None:
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("SET enable_seqscan = off")
        for where, index in (("t.kind = 'template'", "template_by_"), ("t.account_id = 'x' AND t.removed IS NULL", "template_live_of_account")):
            plan = "\n".join(row[0] for row in await connection.fetch(EXPLAIN.format(where=where)))
            assert index in plan, plan
        plan = "\n".join(row[0] for row in await connection.fetch(
            "EXPLAIN SELECT * FROM read.template WHERE lower(name) LIKE '%deb%'"))
        assert "template_by_name" in plan, plan
    finally:
        await connection.close()
