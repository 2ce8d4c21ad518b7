"""Tags: given, taken, listed and asked for, through the edge on the system in memory."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from api.edge import Edge
from handlers.decider import Context
from handlers.resource_tag import MOST_TAGS, put, stream
from schema.failure import BadParameter
from schema.identity import ROOT_OWNER
from schema.os_type import os_type_id
from schema.resource_tag import CreateTags, DeleteTags
from tests.support.system import FakeSystem
from tests.unit.test_access import CHANGES, PEOPLE, SEES, World, world


class Caller:
    """An API over an empty cloud."""

    def __init__(self, system: FakeSystem) -> None:
        self.system, self.edge = system, Edge(system, show_s=0.1)

    async def ask(self, command: str, **parameters: object) -> tuple[int, dict[str, Any]]:
        answer = await self.edge.call({"command": command, **{name: str(value) for name, value in parameters.items()}})
        return answer.status, answer.body[next(iter(answer.body))]

    async def ok(self, command: str, **parameters: object) -> dict[str, Any]:
        status, body = await self.ask(command, **parameters)
        assert status == 200, body
        if "jobid" in body:
            await self.system.cloud.submissions()
            await self.system.cloud.settle()
        return body

    async def volumes(self, *names: str) -> list[str]:
        return [(await self.ok("createVolume", name=name, size=1))["id"] for name in names]


@pytest.fixture
async def api() -> Caller:
    return Caller(await FakeSystem.start())


def tags(**pairs: str) -> dict[str, str]:
    return {f"tags[{n}].{part}": text for n, pair in enumerate(pairs.items()) for part, text in zip(("key", "value"), pair, strict=True)}


async def test_tags_are_given_shown_asked_for_and_taken(api: Caller) -> None:
    one, two, three = await api.volumes("one", "two", "three")
    job = await api.ok("createTags", resourceIds=f"{one},{two}", resourceType="volume", **tags(tier="gold", team="a"))
    assert (await api.ok("queryAsyncJobResult", jobid=job["jobid"]))["jobresult"] == {"success": True}
    await api.ok("createTags", resourceids=three, resourcetype="Volume", **tags(tier="gold"))
    [shown] = (await api.ok("listVolumes", id=one))["volume"]
    assert [(each["key"], each["value"], each["resourcetype"], each["account"]) for each in shown["tags"]] == [
        ("team", "a", "Volume", "admin"), ("tier", "gold", "Volume", "admin")]

    async def found(**pairs: str) -> set[str]:
        return {each["name"] for each in (await api.ok("listVolumes", **tags(**pairs))).get("volume", [])}

    assert await found(tier="gold") == {"one", "two", "three"}
    assert await found(tier="gold", team="a") == {"one", "two"}  # each of them, not one of them
    assert await found(tier="silver") == await found(gold="tier") == set()

    assert (await api.ok("listTags"))["count"] == 5
    assert (await api.ok("listTags", key="tier", value="gold"))["count"] == 3
    assert {each["key"] for each in (await api.ok("listTags", resourceid=one))["tag"]} == {"tier", "team"}
    assert (await api.ok("listTags", keyword="TEA"))["count"] == 2
    assert (await api.ok("listTags", page=1, pagesize=2))["count"] == 5
    assert await api.ok("listTags", resourcetype="SNAPSHOT") == {}

    await api.ok("deleteTags", resourceids=f"{one},{three}", resourcetype="Volume", **{"tags[0].key": "tier"})
    assert await found(tier="gold") == {"two"} and await found(team="a") == {"one", "two"}
    await api.ok("deleteTags", resourceids=two, resourcetype="Volume")
    assert [each["resourceid"] for each in (await api.ok("listTags"))["tag"]] == [one]


async def test_tags_go_with_their_thing(api: Caller) -> None:
    [one] = await api.volumes("one")
    await api.ok("createTags", resourceids=one, resourcetype="Volume", **tags(a="b"))
    async with api.system.working():
        await api.ok("deleteVolume", id=one)
    assert await api.ok("listTags") == {}
    status, body = await api.ask("createTags", resourceids=one, resourcetype="Volume", **tags(c="d"))
    assert status == 431 and "no volume has the id" in body["errortext"]


async def test_every_kind_of_thing_is_tagged(api: Caller) -> None:
    async with api.system.working():
        await api.ok("addImageStore", provider="s3", **{"details[0].key": "bucket", "details[0].value": "b"})
    [volume] = await api.volumes("v")
    snapshot = (await api.ok("createSnapshot", volumeid=volume))["id"]
    template = (await api.ok("registerTemplate", name="t", url="http://x/y", format="RAW"))["template"][0]["id"]
    await api.system.cloud.submissions()
    await api.system.cloud.settle()
    for kind, thing in (("Volume", volume), ("Snapshot", snapshot), ("Template", template), ("ISO", template)):
        await api.ok("createTags", resourceids=thing, resourcetype=kind, **{"tags[0].key": kind, "tags[0].value": "x"})
    for command, item, more in (("listSnapshots", "snapshot", {}), ("listTemplates", "template", {"templatefilter": "all"})):
        name = item.capitalize()
        assert (await api.ok(command, **more, **{"tags[0].key": name, "tags[0].value": "x"}))["count"] == 1
        assert name in {each["key"] for each in (await api.ok(command, **more))[item][0]["tags"]}
        assert await api.ok(command, **more, **{"tags[0].key": name, "tags[0].value": "y"}) == {}


async def test_an_iso_is_tagged_as_one_and_a_template_says_its_system(api: Caller) -> None:
    async with api.system.working():
        await api.ok("addImageStore", provider="s3", **{"details[0].key": "bucket", "details[0].value": "b"})
    ubuntu = os_type_id("Ubuntu 24.04 LTS")
    iso = (await api.ok("registerIso", name="cd", displaytext="cd", url="http://x/y.iso", zoneid=-1, ostypeid=ubuntu))["iso"][0]["id"]
    await api.system.cloud.submissions()
    await api.system.cloud.settle()
    await api.ok("createTags", resourceids=iso, resourcetype="iso", **tags(boot="yes"))
    [shown] = (await api.ok("listIsos", isofilter="all", **tags(boot="yes")))["iso"]
    assert (shown["id"], shown["ostypename"], [(each["key"], each["resourcetype"]) for each in shown["tags"]]) == (
        iso, "Ubuntu 24.04 LTS", [("boot", "ISO")])
    assert await api.ok("listIsos", isofilter="all", **tags(boot="no")) == {}
    assert [each["resourcetype"] for each in (await api.ok("listTags", resourcetype="ISO"))["tag"]] == ["ISO"]
    assert await api.ok("listTags", resourcetype="Template") == {}


async def test_a_template_of_which_nobody_said_its_system_has_none(api: Caller) -> None:
    """Clients read ostypename of each template, whether there was one or not."""
    async with api.system.working():
        await api.ok("addImageStore", provider="s3", **{"details[0].key": "bucket", "details[0].value": "b"})
        made = (await api.ok("registerTemplate", name="t", url="http://x/y", format="RAW"))["template"][0]["id"]
    [shown] = (await api.ok("listTemplates", templatefilter="all", id=made))["template"]
    assert (shown["ostypename"], shown["ostypeid"]) == ("None", str(os_type_id("None")))
    [system] = (await api.ok("listOsTypes", id=shown["ostypeid"]))["ostype"]
    assert system["description"] == "None"


@pytest.mark.parametrize(("command", "parameters", "code", "named"), [
    ("createTags", {}, 431, "resourceids"), ("createTags", {"resourceids": str(uuid4())}, 431, "resourcetype"),
    ("createTags", {"resourceids": str(uuid4()), "resourcetype": "Tape", **tags(a="b")}, 431, "resourcetype"),
    ("createTags", {"resourceids": "x", "resourcetype": "Volume", **tags(a="b")}, 431, "resourceids"),
    ("createTags", {"resourceids": str(uuid4()), "resourcetype": "Volume", **tags(a="b")}, 431, "no volume has the id"),
    ("createTags", {"resourceids": str(uuid4()), "resourcetype": "Volume"}, 431, "tags"),
    ("createTags", {"resourceids": str(uuid4()), "resourcetype": "Volume", "tags[0].key": "a"}, 430, "tags[0].value"),
    ("createTags", {"resourceids": ",".join(str(uuid4()) for _ in range(101)), "resourcetype": "Volume", **tags(a="b")}, 431, "1 to 100"),
    ("createTags", {"resourceids": str(uuid4()), "resourcetype": "Volume", "tags[0].key": "a" * 256, "tags[0].value": "b"}, 431, "255"),
    ("deleteTags", {"resourceids": str(uuid4()), "resourcetype": "Volume"}, 431, "no volume has the id"),
])
async def test_bad_input(api: Caller, command: str, parameters: dict[str, str], code: int, named: str) -> None:
    if "255" in named:
        parameters = {**parameters, "resourceids": (await api.volumes("v"))[0]}
    head = await api.system.store.head()
    status, body = await api.ask(command, **parameters)
    assert (status, named in body["errortext"]) == (code, True), body
    assert await api.system.store.head() == head


async def test_a_name_stands_once_and_nothing_is_done_by_halves(api: Caller) -> None:
    one, two = await api.volumes("one", "two")
    await api.ok("createTags", resourceids=two, resourcetype="Volume", **tags(a="1"))
    status, body = await api.ask("createTags", resourceids=f"{one},{two}", resourcetype="Volume", **tags(a="2"))
    assert status == 431 and f"tag a already on Volume with id {two}" in body["errortext"]
    assert "tags" not in (await api.ok("listVolumes", id=one))["volume"][0] or not (
        await api.ok("listVolumes", id=one))["volume"][0]["tags"]
    status, body = await api.ask("deleteTags", resourceids=two, resourcetype="Volume", **tags(a="2"))
    assert status == 431 and "Unable to find any tags" in body["errortext"]
    await api.ok("deleteTags", resourceids=two, resourcetype="Volume", **tags(a="1"))


async def test_the_same_command_again_changes_nothing(api: Caller) -> None:
    [one] = await api.volumes("one")
    given = uuid4()
    for _ in range(2):
        await api.ok("createTags", customjobid=given, resourceids=one, resourcetype="Volume", **tags(a="1"))
    assert len(await api.system.cloud.rows("resource_tag.created")) == 1
    assert len((await api.ok("listTags"))["tag"]) == 1


async def test_two_at_once_keep_both(api: Caller) -> None:
    """Two handlers with the same view of a thing: the stream's version decides, the second decides again."""
    [one] = await api.volumes("one")
    cloud = api.system.cloud
    other = await cloud.another()
    await other.send(DeleteTags(resource_type="Volume", resource_ids=[UUID(one)]))  # refused, but it has seen the thing
    await cloud.send(CreateTags(resource_type="Volume", resource_ids=[UUID(one)], tags={"a": "1"}))
    await other.send(CreateTags(resource_type="Volume", resource_ids=[UUID(one)], tags={"b": "2"}))
    assert {each["key"] for each in (await api.ok("listTags"))["tag"]} == {"a", "b"}


def test_a_thing_has_a_bounded_number_of_tags() -> None:
    """What other flows call when they make something with tags."""
    thing = uuid4()
    context = Context(job_id=uuid4(), command=CreateTags(resource_type="Volume", resource_ids=[thing], tags={}), directory=None,  # type: ignore[arg-type] # nothing is placed
                      states={stream(thing): None, f"job-{uuid4()}": None}, evolve={"resource_tag": __import__("handlers.resource_tag", fromlist=["evolve"]).evolve},
                      installation="i", limits=None)  # type: ignore[arg-type] # none is asked
    put(context, "Volume", thing, ROOT_OWNER, {})
    assert context.out.rows == []
    put(context, "Volume", thing, ROOT_OWNER, {str(n): "v" for n in range(MOST_TAGS)})
    with pytest.raises(BadParameter, match="at most 50"):
        put(context, "Volume", thing, ROOT_OWNER, {"one more": "v"})


@pytest.fixture(scope="module")
async def made() -> World:
    return await world()


async def test_a_foreign_thing_is_not_tagged_and_its_tags_are_not_seen(made: World) -> None:
    for table in ("volume", "snapshot", "template"):
        for other in PEOPLE:
            thing, kind = made.things[table, other], table.capitalize()
            await made.ok("root", "createTags", resourceids=thing, resourcetype=kind, **tags(of=other))
            for person in PEOPLE:
                unknown, head = uuid4(), await made.system.store.head()
                name = f"by-{person}"
                answer = await made.ask(person, "createTags", resourceids=thing, resourcetype=kind, **tags(**{name: "x"}))
                if other in CHANGES[person]:
                    assert answer.status == 200, (person, other, answer)
                    continue
                absent = await made.ask(person, "createTags", resourceids=unknown, resourcetype=kind, **tags(**{name: "x"}))
                assert (answer.status, answer.error.replace(thing, str(unknown))) == (431, absent.error), (person, other)
                assert await made.system.store.head() == head
    for person in PEOPLE:
        seen = {each["value"] for each in (await made.ok(person, "listTags", listall="true", key="of"))["tag"]}
        assert seen == SEES[person]
        mine = {each["value"] for each in (await made.ok(person, "listTags", key="of"))["tag"]}
        assert mine == {person}
