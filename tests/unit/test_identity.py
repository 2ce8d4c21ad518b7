"""Domains, accounts, users: made through the edge, on the system in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.access import SYSTEM, Principal
from api.edge import Edge
from schema.identity import ROOT_DOMAIN, Owner, Role
from tests.support.system import FakeSystem

PERSON = {"email": "a@b", "firstname": "A", "lastname": "B", "password": "canary-pass-91"}


async def ok(edge: Edge, command: str, who: Principal = SYSTEM, **parameters: object) -> dict[str, Any]:
    answer = await edge.call({"command": command, **{name: str(value) for name, value in parameters.items()}}, principal=who)
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body[f"{command.lower()}response"]
    return body


async def refused(edge: Edge, command: str, who: Principal = SYSTEM, **parameters: object) -> str:
    answer = await edge.call({"command": command, **{name: str(value) for name, value in parameters.items()}}, principal=who)
    assert answer.status == 431, answer
    return answer.error


def principal(account: dict[str, Any], path: str, role: Role = Role.USER) -> Principal:
    owner = Owner(account_id=UUID(account["id"]), account=account["name"], domain_id=UUID(account["domainid"]), path=path)
    return replace(SYSTEM, system=False, role=role, owner=owner, name=account["name"])


async def test_the_tree_and_its_people() -> None:
    edge = Edge(await FakeSystem.start())
    a = (await ok(edge, "createDomain", name="a"))["domain"]
    b = (await ok(edge, "createDomain", name="b", parentdomainid=a["id"]))["domain"]
    assert (b["path"], b["level"], b["parentdomainid"]) == ("ROOT/a/b", 2, a["id"])
    account = (await ok(edge, "createAccount", username="ann", account="anns", domainid=b["id"], **PERSON))["account"]
    assert (account["name"], account["domainpath"], account["accounttype"]) == ("anns", "ROOT/a/b", 0)
    assert [user["username"] for user in account["user"]] == ["ann"]
    second = (await ok(edge, "createUser", username="bob", account="anns", domainid=b["id"], **PERSON))["user"]
    assert second["accountid"] == account["id"]
    assert {user["username"] for user in (await ok(edge, "listUsers", listall="true"))["user"]} >= {"ann", "bob"}
    assert "password" not in second and "secretkey" not in second


@pytest.mark.parametrize(("command", "parameters", "field"), [
    ("createDomain", {"name": "a"}, "name"), ("createDomain", {"name": "x/y"}, "name"),
    ("createDomain", {"name": "x", "parentdomainid": uuid4()}, "parentdomainid"),
    ("createAccount", {"username": "ann", **PERSON}, "account"), ("createAccount", {"username": "x", **PERSON, "email": "x"}, "email"),
    ("createAccount", {"username": "x", **PERSON, "accounttype": 7}, "accounttype"),
    ("createAccount", {"username": "admin", **PERSON}, "account"), ("createAccount", {"username": "Admin", "account": "o", **PERSON}, "username"),
    ("createUser", {"username": "ann", "account": "ann", **PERSON}, "username"),
    ("createUser", {"username": "x", "account": "nobody", **PERSON}, "account"),
    ("registerUserKeys", {"id": uuid4()}, "id")])
async def test_what_cannot_be_is_refused_by_name(command: str, parameters: dict[str, object], field: str) -> None:
    edge = Edge(await FakeSystem.start())
    await ok(edge, "createDomain", name="A")
    await ok(edge, "createAccount", username="ann", **PERSON)
    assert (await refused(edge, command, **parameters)).startswith(f"{field}: ")


async def test_keys_are_shown_once_and_no_secret_is_in_the_log() -> None:
    system = await FakeSystem.start()
    edge = Edge(system)
    account = (await ok(edge, "createAccount", username="ann", **PERSON))["account"]
    keys = (await ok(edge, "registerUserKeys", id=account["user"][0]["id"]))["userkeys"]
    shown = (await ok(edge, "listUsers", username="ann"))["user"][0]
    assert shown["apikey"] == keys["apikey"] and len(keys["secretkey"]) == 64
    log = b"".join(row.payload for row in system.cloud.store.rows)
    for secret in (keys["secretkey"], PERSON["password"], "scrypt$"):
        assert secret.encode() not in log and secret not in str(shown)
    again = (await ok(edge, "registerUserKeys", id=account["user"][0]["id"]))["userkeys"]
    assert again["apikey"] != keys["apikey"]


async def test_a_foreign_thing_looks_like_one_that_is_not_there() -> None:
    system = await FakeSystem.start()
    edge = Edge(system)
    people = {name: principal((await ok(edge, "createAccount", username=name, **PERSON))["account"], "/") for name in ("ann", "bob")}
    async with system.working():
        made = await ok(edge, "createVolume", people["ann"], name="v", size=1)
        while (await ok(edge, "queryAsyncJobResult", people["ann"], jobid=made["jobid"]))["jobstatus"] == 0:
            await asyncio.sleep(0.01)
        [mine] = (await ok(edge, "listVolumes", people["ann"]))["volume"]
    assert (mine["id"], mine["account"]) == (made["id"], "ann")
    assert await ok(edge, "listVolumes", people["bob"], listall="true") == {}
    assert await ok(edge, "listVolumes", people["bob"], id=made["id"]) == {}
    unknown = uuid4()
    for command, name in (("deleteVolume", "id"), ("createSnapshot", "volumeid"), ("queryAsyncJobResult", "jobid")):
        foreign = made["jobid"] if name == "jobid" else made["id"]
        there = await refused(edge, command, people["bob"], **{name: foreign})
        assert there.replace(str(foreign), str(unknown)) == await refused(edge, command, people["bob"], **{name: unknown})
    answer = await edge.call({"command": "addImageStore", "provider": "s3"}, principal=people["ann"])
    assert (answer.status, list(answer.body)) == (432, ["errorresponse"])
    assert str(ROOT_DOMAIN) == mine["domainid"]
