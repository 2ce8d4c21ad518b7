"""Disk offerings: who sees them, and what they say about a volume's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.access import SYSTEM, Principal, resource_of
from api.edge import Answer, Edge
from handlers.founding import found
from schema.identity import Role
from tests.support.system import FakeSystem

PERSON = {"email": "a@b", "firstname": "A", "lastname": "B", "password": "p"}


class Scene:
    """An edge over a system in memory."""

    def __init__(self, system: FakeSystem) -> None:
        self.system, self.edge = system, Edge(system)

    async def ask(self, command: str, who: Principal = SYSTEM, **parameters: object) -> Answer:
        return await self.edge.call({"command": command, **{name: str(value) for name, value in parameters.items()}}, principal=who)

    async def ok(self, command: str, who: Principal = SYSTEM, **parameters: object) -> dict[str, Any]:
        answer = await self.ask(command, who, **parameters)
        assert answer.status == 200, (command, answer)
        body: dict[str, Any] = answer.body[f"{command.lower()}response"]
        return body

    async def made(self, **parameters: object) -> dict[str, Any]:
        """createVolume, done: the volume as it is listed."""
        body = await self.ok("createVolume", **parameters)
        await self.system.cloud.settle()
        [volume] = (await self.ok("listVolumes", id=body["id"]))["volume"]
        assert isinstance(volume, dict)
        return volume

    async def user(self, name: str, domain: str) -> Principal:
        account = (await self.ok("createAccount", username=name, accounttype=0, domainid=domain, **PERSON))["account"]
        row = (await self.system.rows("account", {"id": account["id"]}))[0][0]
        return Principal(user_id=uuid4(), name=name, role=Role.USER, owner=owner_of(row))


def owner_of(row: Mapping[str, Any]) -> Any:
    return resource_of("account", row).owner


@pytest.fixture
async def scene() -> Scene:
    return Scene(await FakeSystem.start())


async def test_every_installation_begins_with_cloudstacks_own(scene: Scene) -> None:
    await found(scene.system.cloud.runtime)
    await found(scene.system.cloud.runtime)
    shown = {each["name"]: each for each in (await scene.ok("listDiskOfferings"))["diskoffering"]}
    assert {name: (each["disksize"], each["iscustomized"]) for name, each in shown.items()} == {
        "Small": (5, False), "Medium": (20, False), "Large": (100, False), "Custom": (0, True)}
    volume = await scene.made(name="v", diskofferingid=shown["Small"]["id"])
    assert (volume["size"], volume["diskofferingname"], volume["state"]) == (5 << 30, "Small", "Ready")


async def test_an_offering_says_the_size_or_leaves_it_to_the_caller(scene: Scene) -> None:
    fixed = (await scene.ok("createDiskOffering", name="two", disksize=2, miniops=10, maxiops=20))["diskoffering"]["id"]
    custom = (await scene.ok("createDiskOffering", name="any", customized="true"))["diskoffering"]["id"]
    volume = await scene.made(name="a", diskofferingid=fixed)
    assert (volume["size"], volume["diskofferingid"], volume["miniops"], volume["maxiops"]) == (2 << 30, fixed, 10, 20)
    assert (await scene.made(name="b", diskofferingid=custom, size=3, miniops=1, maxiops=2))["size"] == 3 << 30
    for wrong, field in (({"diskofferingid": fixed, "size": 3}, "size"), ({"diskofferingid": custom}, "size"),
                         ({"diskofferingid": custom, "size": 2001}, "size"), ({"diskofferingid": custom, "size": 0}, "size"),
                         ({"diskofferingid": uuid4(), "size": 1}, "diskofferingid"), ({}, "size"),
                         ({"size": 1, "miniops": 3, "maxiops": 2}, "miniops"), ({"size": 1, "miniops": 3}, "maxiops")):
        head = await scene.system.store.head()
        answer = await scene.ask("createVolume", name="c", **wrong)
        assert answer.status == 431 and answer.error.startswith(f"{field}"), answer
        assert await scene.system.store.head() == head
    by_offering = (await scene.ok("listVolumes", diskofferingid=fixed))["volume"]
    assert [each["name"] for each in by_offering] == ["a"]


@pytest.mark.parametrize(("wrong", "field"), [
    ({"name": "n"}, "disksize"), ({"name": "n", "disksize": 1, "customized": "true"}, "disksize"),
    ({"name": "n", "disksize": 0}, "size"), ({"name": "n", "disksize": 1, "miniops": 2, "maxiops": 1}, "miniops"),
    ({"name": "n", "disksize": 1, "provisioningtype": "fat"}, "provisioningtype"),
    ({"name": "n", "disksize": 1, "domainid": UUID(int=9)}, "domainid")])
async def test_what_no_offering_can_be_is_refused(scene: Scene, wrong: dict[str, object], field: str) -> None:
    answer = await scene.ask("createDiskOffering", **wrong)
    assert answer.status == 431 and field in answer.error


async def test_an_offering_is_renamed_and_deleted_and_its_volumes_keep_it(scene: Scene) -> None:
    offering = (await scene.ok("createDiskOffering", name="one", disksize=1, displaytext="One"))["diskoffering"]["id"]
    volume = await scene.made(name="v", diskofferingid=offering)
    changed = (await scene.ok("updateDiskOffering", id=offering, name="uno", tags="ssd"))["diskoffering"]
    assert (changed["name"], changed["displaytext"], changed["tags"], changed["disksize"]) == ("uno", "One", "ssd", 1)
    assert (await scene.ask("updateDiskOffering", id=offering)).status == 431
    assert (await scene.ok("deleteDiskOffering", id=offering)) == {"success": True}
    assert (await scene.ok("listDiskOfferings")) == {}
    assert (await scene.ask("deleteDiskOffering", id=offering)).status == 431
    assert (await scene.ask("createVolume", name="w", diskofferingid=offering)).status == 431
    [shown] = (await scene.ok("listVolumes", id=volume["id"]))["volume"]
    assert shown["diskofferingname"] == "uno"


async def test_one_that_is_kept_for_a_domain_is_absent_to_all_others(scene: Scene) -> None:
    a = (await scene.ok("createDomain", name="a"))["domain"]["id"]
    b = (await scene.ok("createDomain", name="b", parentdomainid=a))["domain"]["id"]
    c = (await scene.ok("createDomain", name="c"))["domain"]["id"]
    below, other = await scene.user("w", b), await scene.user("x", c)
    kept = (await scene.ok("createDiskOffering", name="kept", disksize=1, domainid=a))["diskoffering"]
    hidden = (await scene.ok("createDiskOffering", name="hidden", disksize=1, displayoffering="false"))["diskoffering"]
    assert (kept["domainid"], kept["domain"]) == (a, "a")
    assert {each["name"] for each in (await scene.ok("listDiskOfferings"))["diskoffering"]} == {"kept", "hidden"}
    assert [each["name"] for each in (await scene.ok("listDiskOfferings", below))["diskoffering"]] == ["kept"]
    assert await scene.ok("listDiskOfferings", other) == {}
    assert (await scene.ask("createVolume", below, name="v", diskofferingid=kept["id"])).status == 200
    foreign = await scene.ask("createVolume", other, name="v", diskofferingid=kept["id"])
    unknown = uuid4()
    absent = await scene.ask("createVolume", other, name="v", diskofferingid=unknown)
    assert foreign.status == 431 and foreign.error.replace(kept["id"], str(unknown)) == absent.error
    assert (await scene.ask("createDiskOffering", below, name="n", disksize=1)).status == 432
    assert hidden["displayoffering"] is False


async def test_what_only_root_admins_give(scene: Scene) -> None:
    """customid names the volume; displayvolume hides it; a root admin with keys may, a user may not."""
    a = (await scene.ok("createDomain", name="a"))["domain"]["id"]
    user, root = await scene.user("u", a), replace(SYSTEM, system=False)
    chosen = uuid4()
    body = await scene.ok("createVolume", root, name="v", size=1, customid=chosen, displayvolume="false")
    assert body["id"] == str(chosen)
    await scene.system.cloud.settle()
    [volume] = (await scene.ok("listVolumes", root, id=chosen))["volume"]
    assert (volume["id"], volume["displayvolume"]) == (str(chosen), False)
    assert (await scene.ask("createVolume", root, name="v", size=1, customid=chosen)).status == 431
    for more in ({"customid": uuid4()}, {"displayvolume": "true"}):
        answer = await scene.ask("createVolume", user, name="v", size=1, **more)
        assert answer.status == 531, answer
    other = await scene.ok("createVolume", root, name="h", size=1, account="u", domainid=a, displayvolume="false")
    await scene.system.cloud.settle()
    assert await scene.ok("listVolumes", user) == {}
    assert (await scene.ok("listVolumes", root, listall="true", retrieveonlyresourcecount="true")) == {"count": 2}
    assert other["id"]


async def test_a_root_admin_with_keys_works_on_what_belongs_to_nobody(scene: Scene) -> None:
    root = replace(SYSTEM, system=False)
    offering = (await scene.ok("createDiskOffering", root, name="one", disksize=1))["diskoffering"]["id"]
    assert (await scene.ok("updateDiskOffering", root, id=offering, name="uno"))["diskoffering"]["name"] == "uno"
    assert (await scene.ok("deleteDiskOffering", root, id=offering)) == {"success": True}
