"""The matrix: role x relation x command, generated from the registry, on the system in memory.

The tree: ROOT (admin) - a (domain admin da, resource admin ra, users u and v) - a/b (user w); ROOT - c (user x).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.access import SYSTEM, Principal, Resource, Use, authorize, reach, resource_of, resource_of_row
from api.api_command import Type
from api.edge import Answer, Edge
from api.event_stream import EventStreams, wanted
from api.ownership import FREE, OWNED, ROOT_ONLY, THINGS
from api.registry import COMMANDS, Mode, find
from handlers.agent import proof
from schema.agent import AgentHello
from schema.identity import Owner, Role
from schema.machine import MachineSpec
from tests.support.cloud import TOKEN
from tests.support.system import FakeSystem, holds

PERSON = {"email": "a@b", "firstname": "A", "lastname": "B", "password": "p"}
PEOPLE = {"root": ("", Role.ADMIN), "da": ("a", Role.DOMAIN), "ra": ("a", Role.RESOURCE), "u": ("a", Role.USER), "v": ("a", Role.USER),
          "w": ("b", Role.USER), "x": ("c", Role.USER)}
NUMBER = {Role.USER: 0, Role.ADMIN: 1, Role.DOMAIN: 2, Role.RESOURCE: 3}
SEES = {"root": set(PEOPLE), "da": {"da", "ra", "u", "v", "w"}, "ra": {"da", "ra", "u", "v", "w"}, "u": {"u"}, "v": {"v"}, "w": {"w"},
        "x": {"x"}}
"""Who sees whose things."""
CHANGES = {**SEES, "ra": {"ra"}}
"""Who changes whose things."""


@dataclass
class World:
    """Everybody, with a volume and a template each."""

    system: FakeSystem
    edge: Edge
    who: dict[str, Principal] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    domains: dict[str, str] = field(default_factory=dict)
    things: dict[tuple[str, str], str] = field(default_factory=dict)
    """(table, person) -> id"""

    async def ask(self, person: str, command: str, **parameters: object) -> Answer:
        return await self.edge.call({"command": command, **{name: str(value) for name, value in parameters.items()}},
                                    principal=self.who.get(person, SYSTEM))

    async def ok(self, person: str, command: str, **parameters: object) -> dict[str, Any]:
        answer = await self.ask(person, command, **parameters)
        assert answer.status == 200, (person, command, answer)
        body: dict[str, Any] = answer.body[f"{command.lower()}response"]
        return body

    async def ids(self, person: str, command: str, item: str, **parameters: object) -> set[str]:
        return {each["id"] for each in (await self.ok(person, command, **parameters)).get(item, [])}


async def world() -> World:
    made = World(await FakeSystem.start(), Edge(await FakeSystem.start()))
    made.edge = Edge(made.system, show_s=0.1)
    made.domains["a"] = (await made.ok("", "createDomain", name="a"))["domain"]["id"]
    made.domains["b"] = (await made.ok("", "createDomain", name="b", parentdomainid=made.domains["a"]))["domain"]["id"]
    made.domains["c"] = (await made.ok("", "createDomain", name="c"))["domain"]["id"]
    for name, (domain, role) in PEOPLE.items():
        where = {"domainid": made.domains[domain]} if domain else {}
        account = (await made.ok("", "createAccount", username=name, accounttype=NUMBER[role], **where, **PERSON))["account"]
        row = (await made.system.rows("user", {"id": account["user"][0]["id"]}))[0][0]
        made.users[name] = row["id"]
        made.who[name] = replace(SYSTEM, system=False, name=name, role=role, owner=resource_of("user", row).owner)
    async with made.system.working():
        await made.ok("", "addImageStore", provider="s3", name="s", **{"details[0].key": "bucket", "details[0].value": "b"})
        for name in PEOPLE:
            made.things["volume", name] = (await made.ok(name, "createVolume", name=f"of {name}", size=1))["id"]
            made.things["template", name] = (await made.ok(
                name, "registerTemplate", name=f"of {name}", url="http://x/y", format="qcow2", ispublic=name == "x"))["template"][0]["id"]
        for name in PEOPLE:
            await ended(made, name)
            body = await made.ok(name, "createSnapshot", volumeid=made.things["volume", name])
            made.things["snapshot", name], made.things["job", name] = body["id"], body["jobid"]
            made.things["snapshot_policy", name] = (await made.ok(
                name, "createSnapshotPolicy", volumeid=made.things["volume", name], intervaltype="DAILY", schedule="0:3", timezone="UTC",
                maxsnaps=2))["snapshotpolicy"]["id"]
        for name in PEOPLE:
            await ended(made, name)
    await report_machines(made)
    return made


async def report_machines(made: World) -> None:
    """One for each person, as its agent tells of them."""
    for name in PEOPLE:
        made.things["machine", name] = str(uuid4())
    said = next(iter(made.system.cloud.runtime.directory.agents.values()))
    await made.system.cloud.handle(AgentHello(
        **said.model_dump(), proof=proof(TOKEN, said.agent, said.public_key), machines=[MachineSpec(
            id=UUID(made.things["machine", name]), name=name, state="Running", account=made.who[name].owner.account_id)
            for name in PEOPLE]), kind="report")


async def ended(made: World, person: str) -> None:
    for _ in range(2000):
        jobs = (await made.ok(person, "listAsyncJobs")).get("asyncjobs", [])
        if all(job["jobstatus"] for job in jobs):
            assert {job["jobstatus"] for job in jobs} == {1}, jobs
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"the jobs of {person} do not end")


@pytest.fixture(scope="module")
async def made() -> World:
    return await world()


@pytest.mark.parametrize("person", PEOPLE)
async def test_lists_show_what_one_may_see(made: World, person: str) -> None:
    """listall: the whole reach; without it, the own account's; by id: what is in reach, and nothing else."""
    for table, command in (("volume", "listVolumes"), ("machine", "listVirtualMachines"), ("snapshot", "listSnapshots"), ("template", "listTemplates"), ("job", "listAsyncJobs")):
        item = {"job": "asyncjobs", "machine": "virtualmachine"}.get(table, table)
        more = {"templatefilter": "self"} if table == "template" else {}
        mine = {made.things[table, each] for each in SEES[person]}
        if table == "job":
            shown = {each["jobid"] for each in (await made.ok(person, command, listall="true"))[item]}
            assert shown & {made.things[table, each] for each in PEOPLE} == mine
            continue
        assert await made.ids(person, command, item, listall="true", **more) == mine
        assert await made.ids(person, command, item, **more) == {made.things[table, person]}
        for other in PEOPLE:
            thing = made.things[table, other]
            seen = other in SEES[person] or (table == "template" and other == "x")
            assert await made.ids(person, command, item, id=thing, **more) == ({thing} if seen else set()), (other, table)


@pytest.mark.parametrize("person", PEOPLE)
async def test_the_log_says_whose_each_event_is(made: World, person: str) -> None:
    """What shows events asks the same function: one sees the events of the volumes that one sees, and no store's or zone's."""
    action, told = replace(find("listVolumes"), name="listEvents"), set()
    for row in made.system.cloud.store.rows:  # type: ignore[attr-defined] # the store in memory
        if row.type == "volume.ready" and authorize(made.who[person], action, resource_of_row(json.loads(row.meta)), Use.SEE):
            told.add(row.stream.partition("-")[2])
        if row.type.startswith(("zone.", "image_store.")):
            assert authorize(made.who[person], action, resource_of_row(json.loads(row.meta)), Use.SEE) == (person == "root")
    assert told >= {made.things["volume", each] for each in SEES[person]}
    assert not told & {made.things["volume", each] for each in set(PEOPLE) - SEES[person]}


@pytest.mark.parametrize("person", PEOPLE)
async def test_the_stream_and_the_history_tell_what_one_may_see(made: World, person: str) -> None:
    """Both of them, against the volumes of each: neither one more nor one less."""
    asked = await wanted(made.system.store, {"types": "volume.*,job.*,zone.*,image_store.*"}, "0")
    streams, seen, whole = EventStreams(made.system.store), set(), set()

    async def again() -> Principal:
        return made.who[person]

    reading = await streams.read(asked, made.who[person], again)
    with contextlib.suppress(TimeoutError):
        while True:  # until nothing more comes
            text = (await asyncio.wait_for(anext(reading), 0.5)).decode()
            if "data: " in text:
                seen.add(json.loads(text.split("data: ")[1])["stream"])
    for each in PEOPLE:
        whole |= {f"volume-{made.things['volume', each]}", f"job-{made.things['job', each]}"}
    assert seen & whole == {f"{table}-{made.things[table, each]}" for each in SEES[person] for table in ("volume", "job")}
    assert any(stream.startswith(("zone-", "image_store-")) for stream in seen) == (person == "root")
    told = (await made.ok(person, "listEvents", listall="true", type="SNAPSHOT.CREATE", state="Completed"))["event"]
    assert {each["resourceid"] for each in told} == {made.things["snapshot", each] for each in SEES[person]}
    for other in PEOPLE:
        one = await made.ok(person, "listEvents", listall="true", resourceid=made.things["snapshot", other])
        assert bool(one) == (other in SEES[person])


@pytest.mark.parametrize("person", PEOPLE)
async def test_what_a_list_filters_is_what_authorize_says(made: World, person: str) -> None:
    """One rule in two forms: the filter of a list and the function agree on every row of every table."""
    principal = made.who[person]
    for table in OWNED - {"domain"}:
        for row in (await made.system.rows(table, limit=1000))[0]:
            resource = replace(resource_of(table, row), public=False)
            told = authorize(principal, find("listVolumes"), resource, Use.SEE)
            assert told == holds(row, reach(principal, table)), (table, row)


COMMANDS_OF_THINGS = [
    (command.name, parameter.name) for command in COMMANDS for parameter in command.parameters
    if command.command is not None and "U" in command.roles and (
        parameter.name in ("id", "jobid", "volumeid", "snapshotid", "virtualmachineid") and parameter.type is Type.UUID)]


def _filled(made: World, person: str, command: str, parameter: Any) -> str:
    if parameter.name in THINGS or parameter.name == "id":  # what else it names is one's own
        return made.things[table_of(command, parameter.name), person]
    return str(uuid4()) if parameter.type is Type.UUID else parameter.choices[0] if parameter.choices else "1"


def table_of(command: str, parameter: str) -> str:
    return find(command).noun if parameter == "id" else THINGS[parameter][0]


@pytest.mark.parametrize(("command", "parameter"), COMMANDS_OF_THINGS)
async def test_a_foreign_thing_looks_absent_to_every_command(made: World, command: str, parameter: str) -> None:
    """Each person, each other's thing: refused in the words for an unknown id, nothing written; never refused so when allowed."""
    table = table_of(command, parameter)
    needed = [each for each in find(command).parameters if each.required and each.name != parameter]
    use = find(command).uses.get(parameter, THINGS.get(parameter, ("", Use.CHANGE))[1])
    for person in PEOPLE:
        unknown = uuid4()
        filler = {each.name: _filled(made, person, command, each) for each in needed}
        absent = await made.ask(person, command, **{parameter: unknown}, **filler)
        assert absent.status == 431 and str(unknown) in absent.error
        for other in PEOPLE:
            thing = made.users[other] if table == "user" else made.things[table, other]
            may = other in (SEES if use is Use.SEE else CHANGES)[person]
            may = may or (use is Use.USE and (table, other) == ("template", "x"))  # a public one
            if table == "user" and PEOPLE[other][1] is Role.ADMIN and person != "root":
                may = False
            if may and person != "root":
                principal, row = made.who[person], (await made.system.rows(table, {"id": thing}))[0][0]
                if table == "user" and PEOPLE[person][1] is Role.RESOURCE:
                    assert other == person
                assert authorize(principal, find(command), resource_of(table, row), use), (person, other)
            elif not may:
                head = await made.system.store.head()
                answer = await made.ask(person, command, **{parameter: thing}, **filler)
                assert answer.status == 431 and answer.error.replace(thing, str(unknown)) == absent.error, (person, other, answer)
                assert await made.system.store.head() == head


@pytest.mark.parametrize("command", [each for each in COMMANDS if "U" not in each.roles], ids=lambda each: each.name)
async def test_a_command_of_admins_is_unknown_to_users(made: World, command: Any) -> None:
    for person, (_, role) in PEOPLE.items():
        if role.value not in command.roles:
            answer = await made.ask(person, command.name)
            assert (answer.status, list(answer.body)) == (432, ["errorresponse"])
        shown = {each["name"] for each in (await made.ok(person, "listApis"))["api"]}
        assert (command.name in shown) == (role.value in command.roles)


@pytest.mark.parametrize("command", [each for each in COMMANDS if set(each.roles) & set("RDU")], ids=lambda each: each.name)
def test_every_parameter_that_names_a_thing_is_described(command: Any) -> None:
    """A new command's UUID means something to `api.ownership`, or nobody but root admins may give it."""
    if command.mode is Mode.LIST:
        return
    for parameter in command.parameters:
        if (parameter.type is Type.UUID or parameter.of_uuids) and command.name not in ("login",):
            assert parameter.name in {*THINGS, *FREE, *ROOT_ONLY} or (parameter.name in ("id", "ids") and command.noun in OWNED), (
                f"say in api/ownership.py what {parameter.name} of {command.name} names")


async def test_things_are_made_for_others_by_whoever_may(made: World) -> None:
    for person in PEOPLE:
        for other, (domain, _) in PEOPLE.items():
            where = {"domainid": made.domains[domain]} if domain else {"domainid": made.who["root"].owner.domain_id}
            answer = await made.ask(person, "createVolume", name="n", size=1, account=other, **where)
            may = other in CHANGES[person]
            assert answer.status == (200 if may else 431), (person, other, answer)
            if may:
                row = await made.system.job(UUID(answer.body["createvolumeresponse"]["jobid"]))
                assert row is not None and row["account"] == other


async def test_domains_narrow_lists(made: World) -> None:
    a, b, c = (made.domains[name] for name in "abc")
    assert await made.ids("root", "listSnapshots", "snapshot", domainid=b) == {made.things["snapshot", "w"]}
    assert await made.ids("root", "listSnapshots", "snapshot", domainid=a, isrecursive="true") == {
        made.things["snapshot", each] for each in ("da", "ra", "u", "v", "w")}
    assert await made.ids("da", "listSnapshots", "snapshot", domainid=b, account="w") == {made.things["snapshot", "w"]}
    unknown = uuid4()
    for person in ("da", "u"):
        foreign = await made.ask(person, "listSnapshots", domainid=c)
        assert foreign.error.replace(c, str(unknown)) == (await made.ask(person, "listSnapshots", domainid=unknown)).error
    assert await made.ids("da", "listDomains", "domain", listall="true") == {a, b}
    assert await made.ids("w", "listDomains", "domain", listall="true") == {b}


async def test_nobody_raises_itself(made: World) -> None:
    """A domain admin makes no root admin and no account elsewhere; nobody takes another's keys."""
    for domain, kind in (("c", 0), ("a", 1)):
        answer = await made.ask("da", "createAccount", username="n", domainid=made.domains[domain], accounttype=kind, **PERSON)
        assert answer.status == 431
    assert (await made.ask("da", "registerUserKeys", id=made.users["root"])).status == 431
    assert (await made.ask("u", "registerUserKeys", id=made.users["v"])).status == 431


async def test_a_project_is_shared_by_its_accounts(made: World) -> None:
    project = (await made.ok("u", "createProject", name="p"))["project"]["id"]
    assert (await made.ask("v", "listVolumes", projectid=project)).status == 431
    owner = resource_of("project", (await made.system.rows("project", {"id": project}))[0][0]).owner
    for name in ("u", "v"):
        made.who[name] = replace(made.who[name], projects=frozenset({owner.account_id}))
    await made.ok("u", "addAccountToProject", projectid=project, account="v")
    assert (await made.ask("v", "addAccountToProject", projectid=project, account="ra")).status == 431  # it did not make it
    async with made.system.working():
        body = await made.ok("v", "createVolume", name="shared", size=1, projectid=project)
        while not (await made.ok("u", "queryAsyncJobResult", jobid=body["jobid"]))["jobstatus"]:
            await asyncio.sleep(0.005)
    [shown] = (await made.ok("u", "listVolumes", projectid=project))["volume"]
    assert (shown["id"], shown["projectid"], shown["project"], shown.get("account")) == (body["id"], project, "p", None)
    assert body["id"] not in await made.ids("u", "listVolumes", "volume", listall="true")
    assert body["id"] in await made.ids("u", "listVolumes", "volume", projectid=-1)
    assert (await made.ask("w", "deleteVolume", id=body["id"])).status == 431


def test_no_is_the_default() -> None:
    """Neither a role that is not named, nor a path that only begins alike."""
    one, other = uuid4(), uuid4()
    owner = Owner(account_id=one, account="o", domain_id=other, path="/ab/")
    admin = replace(SYSTEM, system=False, role=Role.DOMAIN, owner=Owner(account_id=other, account="d", domain_id=one, path="/a/"))
    action = find("deleteVolume")
    assert not authorize(admin, action, Resource(owner=owner))
    assert authorize(admin, action, Resource(owner=owner.model_copy(update={"path": "/a/b/"})))
    assert not authorize(replace(admin, role=Role.USER), find("addImageStore"))
    for use, may in ((Use.SEE, True), (Use.USE, True), (Use.CHANGE, False)):
        assert authorize(admin, action, Resource(owner=owner, public=True), use) is may
        assert authorize(admin, action, Resource(owner=owner, granted=frozenset({other})), use) is may
