"""Every parameter of every command, wrong in every way: generated from the registry, on the system in memory.

Each request is right but for one parameter; the refusal has CloudStack's code, names that parameter, and nothing is written.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.api_command import ApiCommand, Parameter, Type
from api.edge import Answer, Edge
from api.ownership import THINGS
from api.registry import COMMANDS, Mode, find
from tests.support.system import FakeSystem

FILL = {Type.UUID: str(uuid4()), Type.BOOLEAN: "true", Type.INTEGER: "1", Type.LONG: "1", Type.DATE: "2026-01-01", Type.LIST: "a",
        Type.STRING: "x"}
WRONG = {Type.UUID: "nope", Type.BOOLEAN: "maybe", Type.INTEGER: "ten", Type.LONG: "9" * 19, Type.DATE: "yesterday"}
EVERY = [(command, each) for command in COMMANDS for each in command.parameters]
NAMES = [f"{command.name}-{each.name}" for command, each in EVERY]
BESIDE: dict[tuple[str, str], dict[str, str]] = {("createVolume", "snapshotid"): {"zoneid": "ZONE"}}
"""(command, parameter) -> what is needed beside it, where that depends on it. ZONE: the zone that there is."""
NAMED_FILL = {"mode": "HTTP_DOWNLOAD"}
"""Parameter -> a value, where not any of its type will do."""
DEAD = ("volume", "snapshot", "template")
"""Tables of things that can be deleted."""


@pytest.fixture(scope="module")
async def edge() -> Edge:
    return Edge(await FakeSystem.start())


def right(parameter: Parameter) -> dict[str, str]:
    """A value of the right form."""
    if parameter.type is Type.MAP:
        return {f"{parameter.name}[0].key": "k", f"{parameter.name}[0].value": "v"}
    if parameter.of_uuids:
        return {parameter.name: FILL[Type.UUID]}
    plain = parameter.choices[0] if parameter.choices else FILL[parameter.type]
    return {parameter.name: NAMED_FILL.get(parameter.name, plain)}


def others(command: ApiCommand, but: Parameter) -> dict[str, str]:
    """What the command needs besides one parameter."""
    needed = {name: value for each in command.parameters if each.required and each is not but for name, value in right(each).items()}
    return needed | BESIDE.get((command.name, but.name), {})


async def ask(edge: Edge, command: ApiCommand, given: dict[str, Any]) -> Answer:
    """Ask, and check that nothing was written, not even into the vault."""
    system: Any = edge.system
    store = system.store
    given = {name: str(system.cloud.zone_id) if value == "ZONE" else value for name, value in given.items()}
    before, secrets = await store.head(), dict(store._secrets)
    answer = await edge.call({"command": command.name, **given})
    assert await store.head() == before and store._secrets == secrets
    return answer


async def refused(edge: Edge, command: ApiCommand, given: dict[str, Any], named: str, code: int = 431) -> None:
    """Ask for what cannot be."""
    answer = await ask(edge, command, given)
    assert answer.status == code and answer.error.lower().startswith(named.lower()), (command.name, given, answer)
    assert list(answer.body) == [command.envelope] and not any(ord(each) < 0x20 for each in answer.error)
    assert await ask(edge, command, {**given, "nosuchparameter": "1", "nosuchmap[0].key": "1"}) == answer  # what is unknown is ignored


@pytest.mark.parametrize(("command", "parameter"), [pair for pair in EVERY if pair[1].required],
                         ids=[name for name, pair in zip(NAMES, EVERY, strict=True) if pair[1].required])
async def test_missing(edge: Edge, command: ApiCommand, parameter: Parameter) -> None:
    for given in ({}, {} if parameter.type is Type.MAP else {parameter.name: ""}):
        await refused(edge, command, others(command, parameter) | given, parameter.name)


@pytest.mark.parametrize(("command", "parameter"), EVERY, ids=NAMES)
async def test_wrong_in_form(edge: Edge, command: ApiCommand, parameter: Parameter) -> None:
    """Of another type, too long, with control characters, given twice."""
    rest, name = others(command, parameter), parameter.name
    if parameter.type is Type.MAP:
        for given in ({name: "x"}, {f"{name}[a].key": "x"}, {f"{name}[0].value": "x"}, {f"{name}.a": "1", f"{name}[0].A": "2"},
                      *([] if parameter.keys_alone else [{f"{name}[0].key": "x"}])):
            await refused(edge, command, rest | given, name, 430)
        await refused(edge, command, rest | {f"{name}[0].key": "k", f"{name}[0].value": "v" * (parameter.length + 1)}, name)
        await refused(edge, command, rest | {f"{name}.k": "\x1b"}, name)
        return
    wrong = "nope" if parameter.choices or parameter.of_uuids else WRONG.get(parameter.type)
    if wrong is not None:
        await refused(edge, command, rest | {name: wrong}, name)
    if parameter.type is Type.LIST:
        await refused(edge, command, rest | {name: "a,,b"}, name, 430)
    for bad in ("a\x01b", "\x00", "a\nb", "\x7f", "x" * (parameter.length + 1) * (501 if parameter.type is Type.LIST else 1)):
        await refused(edge, command, rest | {name: bad}, name)
    for other in (name.upper(), *parameter.aliases):
        if other != name:
            await refused(edge, command, rest | right(parameter) | {other: right(parameter)[name]}, other)


NAMED = [(command, each) for command, each in EVERY if each.type is Type.UUID and command.command is not None and (
    each.name == "id" or each.name in THINGS) and command.noun != "resource_limit"]


@pytest.mark.parametrize(("command", "parameter"), NAMED, ids=[f"{command.name}-{each.name}" for command, each in NAMED])
async def test_naming_what_is_not_there(edge: Edge, command: ApiCommand, parameter: Parameter) -> None:
    unknown = str(uuid4())
    answer = await ask(edge, command, others(command, parameter) | {parameter.name: unknown})
    assert answer.status == 431, answer
    assert unknown in answer.error or parameter.name in answer.error, answer


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.mode is Mode.LIST], ids=lambda each: each.name)
async def test_lists_by_what_is_not_there(edge: Edge, command: ApiCommand) -> None:
    required = others(command, Parameter(name=""))
    for each in command.parameters:
        if each.type is Type.UUID or each.of_uuids:
            answer = await ask(edge, command, required | {each.name: str(uuid4())})
            assert answer.status in (200, 431), answer
    for given, named in (({"page": "1"}, "pagesize"), ({"pagesize": "7"}, "page"), ({"page": "0", "pagesize": "7"}, "page"),
                         ({"page": "1", "pagesize": "501"}, "pagesize"), ({"page": "1", "pagesize": "0"}, "pagesize")):
        if command.parameter("page") is not None:
            await refused(edge, command, required | given, named)


async def test_what_is_deleted_is_not_acted_on() -> None:
    """Every command that changes a thing, on one that is gone: refused, naming its parameter."""
    system = await FakeSystem.start()
    edge = Edge(system)

    async def ok(command: str, **given: str) -> dict[str, Any]:
        answer = await edge.call({"command": command, **given})
        assert answer.status == 200, answer
        return answer.body[find(command).envelope]

    async def end(job_id: str) -> None:
        for _ in range(1000):
            row = await system.job(UUID(job_id))
            if row is not None and row["status"] == "completed":
                return
            await asyncio.sleep(0.005)
        raise AssertionError(row)

    async with system.working():
        await ok("addImageStore", provider="s3", name="s", **{"details[0].key": "bucket", "details[0].value": "b"})
        volume = await ok("createVolume", name="v", size="1")
        await end(volume["jobid"])
        snapshot = await ok("createSnapshot", volumeid=volume["id"])
        await end(snapshot["jobid"])
        [template] = (await ok("registerTemplate", name="t", url="http://x/y", format="qcow2"))["template"]
        await end(template["jobid"])
        gone = {"volume": volume["id"], "snapshot": snapshot["id"], "template": template["id"]}
        for command in ("deleteSnapshot", "deleteTemplate"):
            await end((await ok(command, id=gone[command[6:].lower()]))["jobid"])
        await ok("deleteVolume", id=gone["volume"])
    checked = 0
    for command, parameter in NAMED:
        table = command.noun if parameter.name == "id" else THINGS[parameter.name][0]
        if table in DEAD:
            answer = await ask(edge, command, others(command, parameter) | {parameter.name: gone[table]})
            assert answer.status == 431 and parameter.name in answer.error, (command.name, parameter.name, answer)
            checked += 1
    assert checked >= 5
