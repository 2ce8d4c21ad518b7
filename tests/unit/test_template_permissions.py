"""Who may use a template: with identity, by roles and accounts, on the system in memory. ISOs are the same code."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from tests.unit.test_access import PEOPLE, World, world


@pytest.fixture(scope="module")
async def made() -> World:
    return await world()


async def shown(made: World, person: str, wanted: str, **more: object) -> set[str]:
    return await made.ids(person, "listTemplates", "template", templatefilter=wanted, **more)


async def test_what_is_granted_is_listed_and_used_and_not_changed(made: World) -> None:
    template = made.things["template", "u"]
    assert template not in await shown(made, "v", "shared")
    await made.ok("u", "updateTemplatePermissions", id=template, op="add", accounts="v,u")
    assert await made.ok("u", "listTemplatePermissions", id=template) == {"templatepermission": {
        "id": template, "ispublic": False, "domainid": made.domains["a"], "account": ["v"], "projectids": []}}
    for wanted in ("shared", "sharedexecutable", "executable"):
        assert template in await shown(made, "v", wanted)
    assert template in await shown(made, "v", "self", id=template)
    assert template not in await shown(made, "v", "self") | await shown(made, "w", "executable") | await shown(made, "u", "shared")
    assert (await made.ask("v", "createVolume", name="n", templateid=template)).status == 200
    assert (await made.ask("w", "createVolume", name="n", templateid=template)).status == 431
    for command, more in (("updateTemplate", {"name": "mine"}), ("deleteTemplate", {}), ("updateTemplatePermissions", {"op": "reset"}),
                          ("listTemplatePermissions", {})):
        assert (await made.ask("v", command, id=template, **more)).status == 431, command
    await made.ok("da", "updateTemplatePermissions", id=template, op="remove", accounts="v")
    assert template not in await shown(made, "v", "executable")
    rows, _ = await made.system.rows("launch_permission")
    assert rows == []


async def test_a_reset_takes_everything_back(made: World) -> None:
    template = made.things["template", "u"]
    await made.ok("u", "updateTemplatePermissions", id=template, ispublic="true", isfeatured="true", op="add", accounts="v")
    for person in PEOPLE:
        assert template in await shown(made, person, "featured"), person
        assert template in await shown(made, person, "executable"), person
    await made.ok("u", "updateTemplatePermissions", id=template, isfeatured="false")
    assert template in await shown(made, "x", "community") and template not in await shown(made, "x", "featured")
    await made.ok("u", "updateTemplatePermissions", id=template, op="reset")
    assert template not in await shown(made, "x", "community") | await shown(made, "v", "executable")
    assert (await made.ok("u", "listTemplatePermissions", id=template))["templatepermission"]["account"] == []


async def test_a_project_may_be_granted_and_its_accounts_use_it(made: World) -> None:
    template = made.things["template", "u"]
    project = (await made.ok("u", "createProject", name="shares"))["project"]["id"]
    assert (await made.ask("v", "updateTemplatePermissions", id=made.things["template", "v"], op="add", projectids=project)).status == 431
    row = (await made.system.rows("project", {"id": project}))[0][0]
    for name in ("u", "v"):
        made.who[name] = replace(made.who[name], projects=frozenset({UUID(row["account_id"])}))
    await made.ok("u", "updateTemplatePermissions", id=template, op="add", projectids=project)
    assert (await made.ok("u", "listTemplatePermissions", id=template))["templatepermission"]["projectids"] == [project]
    assert template in await shown(made, "v", "sharedexecutable")
    assert (await made.ask("v", "createVolume", name="n", templateid=template)).status == 200
    await made.ok("u", "updateTemplatePermissions", id=template, op="reset")


@pytest.mark.parametrize(("more", "field"), [
    ({"op": "add"}, "accounts"), ({"op": "remove"}, "accounts"), ({"accounts": "v"}, "op"), ({"op": "give", "accounts": "v"}, "op"),
    ({"op": "add", "accounts": "nobody"}, "accounts"), ({"op": "add", "accounts": "x"}, "accounts"),
    ({"op": "add", "projectids": uuid4()}, "projectids"), ({"id": uuid4(), "op": "reset"}, "id")])
async def test_odd_permissions_are_refused_and_nothing_changes(made: World, more: dict[str, object], field: str) -> None:
    head = await made.system.store.head()
    answer = await made.ask("u", "updateTemplatePermissions", **({"id": made.things["template", "u"]} | more))
    assert answer.status == 431 and answer.error.startswith(f"{field}:"), answer
    assert await made.system.store.head() == head


async def test_some_words_are_root_admins(made: World) -> None:
    given = {"name": "t", "url": "http://x/y", "format": "qcow2", "hypervisor": "KVM"}
    for more in ({"templatetag": "gpu"}, {"isrouting": "true"}, {"templatetype": "SYSTEM"}):
        assert (await made.ask("u", "registerTemplate", **given, **more)).status == 531
        assert (await made.ask("u", "updateTemplate", id=made.things["template", "u"], **more)).status == 531
        assert (await made.ask("root", "registerTemplate", **given, **more)).status == 200
    assert (await made.ask("u", "registerTemplate", **given, isrouting="false", templatetype="VNF")).status == 200
    assert (await made.ask("u", "listTemplates", templatefilter="all")).status == 431


async def test_public_is_for_root_where_the_installation_says_so(made: World) -> None:
    limits = made.system.runtime.limits
    made.system.runtime.limits = replace(limits, public_templates=False)
    try:
        for command, more in (("updateTemplatePermissions", {"id": made.things["template", "u"]}),
                              ("registerTemplate", {"name": "t", "url": "http://x/y", "format": "qcow2"})):
            assert (await made.ask("u", command, ispublic="true", **more)).error.startswith("ispublic:")
        assert (await made.ask("root", "registerTemplate", name="t", url="http://x/y", format="qcow2", ispublic="true")).status == 200
    finally:
        made.system.runtime.limits = limits


async def test_isos_are_listed_apart_and_said_to_be_installed(made: World) -> None:
    async with made.system.working():
        body = await made.ok("u", "registerIso", name="cd", displaytext="cd", url="http://x/y.iso", zoneid=-1, ispublic="true",
                             isextractable="true", bootable="false")
        iso = body["iso"][0]["id"]
        while not (await made.ok("u", "queryAsyncJobResult", jobid=body["iso"][0]["jobid"]))["jobstatus"]:
            await asyncio.sleep(0.005)
    [row] = (await made.ok("u", "listIsos"))["iso"]
    assert (row["id"], row["status"], row["isready"], row["format"], row["bootable"]) == (iso, "Successfully Installed", True, "ISO", False)
    assert iso not in await shown(made, "u", "self")
    assert await made.ids("u", "listIsos", "iso", bootable="true") == set()
    assert await made.ids("v", "listIsos", "iso", isofilter="community") == {iso}
    assert (await made.ok("u", "updateIso", id=iso, name="dvd"))["iso"]["name"] == "dvd"
    await made.ok("u", "updateIsoPermissions", id=iso, ispublic="false", op="add", accounts="v")
    assert (await made.ok("u", "listIsoPermissions", id=iso))["templatepermission"]["account"] == ["v"]
    for command, more in (("deleteTemplate", {}), ("copyTemplate", {"destzoneid": made.system.cloud.zone_id}), ("updateTemplate", {"name": "n"}),
                          ("extractTemplate", {"mode": "HTTP_DOWNLOAD"}), ("updateTemplatePermissions", {"op": "reset"}), ("listTemplatePermissions", {})):
        assert (await made.ask("u", command, id=iso, **more)).status == 431, command
    assert (await made.ask("u", "deleteIso", id=made.things["template", "u"])).status == 431
    refused = await made.ask("u", "createVolume", name="n", templateid=iso)
    assert refused.status == 431 and "no disk" in refused.error
    async with made.system.working():
        job = (await made.ok("u", "deleteIso", id=iso))["jobid"]
        while not (await made.ok("u", "queryAsyncJobResult", jobid=job))["jobstatus"]:
            await asyncio.sleep(0.005)
    assert await made.ok("u", "listIsos") == {}
