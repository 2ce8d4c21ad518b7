"""What clients ask at their start, as CloudStack's clients ask it: OS types, hypervisors, settings, capabilities, people. In memory."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from api import configuration
from api.access import SYSTEM
from api.answers.system import VERSION
from api.edge import Edge
from api.settings import Settings
from schema.identity import Role
from schema.os_type import NAMES, SYSTEMS, os_type_id
from tests.support.system import FakeSystem
from tests.unit.test_access import World, world
from tests.unit.test_resource_tags import Caller, tags

CANARY = "canary-c0nf"


@pytest.fixture(scope="module")
async def made() -> World:
    return await world()


@pytest.fixture
async def api() -> Caller:
    return Caller(await FakeSystem.start())


async def test_os_types_are_a_table_with_ids_that_stay(api: Caller) -> None:
    every = await api.ok("listOsTypes")
    assert every["count"] == len(every["ostype"]) == len(NAMES) == sum(map(len, SYSTEMS.values())) > 60
    assert len({each["id"] for each in every["ostype"]}) == len({each["description"] for each in every["ostype"]}) == len(NAMES)
    debian = "Debian GNU/Linux 12 (64-bit)"
    assert str(os_type_id(debian)) == "458cfb0b-217e-543e-90de-4b4c06687a1d"  # templates name it: it is never another one
    [one] = (await api.ok("listOsTypes", description=debian.upper()))["ostype"]
    assert (one["id"], one["name"]) == (str(os_type_id(debian)), debian)
    assert (await api.ok("listOsTypes", id=one["id"]))["ostype"] == [one]
    assert {each["oscategoryname"] for each in (await api.ok("listOsTypes", oscategoryid=one["oscategoryid"]))["ostype"]} == {"Debian"}
    assert {each["name"] for each in (await api.ok("listOsTypes", keyword="WINDOWS SERVER 2022"))["ostype"]} == {"Windows Server 2022 (64-bit)"}
    page = await api.ok("listOsTypes", page=2, pagesize=10)
    assert page["count"] == len(NAMES) and page["ostype"] == every["ostype"][10:20]
    assert await api.ok("listOsTypes", page=99, pagesize=10) == {"count": len(NAMES)}
    assert await api.ok("listOsTypes", id=uuid4()) == {}
    categories = (await api.ok("listOsCategories"))["oscategory"]
    assert {each["id"] for each in categories} == {each["oscategoryid"] for each in every["ostype"]}
    assert [each["name"] for each in (await api.ok("listOsCategories", name="ubuntu"))["oscategory"]] == ["Ubuntu"]


async def test_hypervisors_are_those_of_agents(api: Caller) -> None:
    assert (await api.ok("listHypervisors"))["hypervisor"] == [{"name": "KVM"}]
    assert (await api.ok("listHypervisors", zoneid=api.system.cloud.zone_id))["count"] == 1
    assert await api.ok("listHypervisors", zoneid=uuid4()) == {}


async def test_settings_are_listed_and_secrets_are_not() -> None:
    settings = Settings(amqp_url=f"amqp://u:{CANARY}@h/", database_url=f"postgresql://u:{CANARY}@h/d", agent_token=CANARY,  # type: ignore[call-arg] # settings have defaults
                        vault_key=CANARY, max_volume_gib=77, max_image_bytes=3 << 30, snapshot_chain=5, public_templates=False)
    edge = Edge(await FakeSystem.start(), configuration=configuration.rows(settings), facts=configuration.facts(settings))

    async def ask(**parameters: str) -> dict[str, object]:
        answer = await edge.call({"command": "listConfigurations", **parameters})
        assert answer.status == 200 and CANARY not in str(answer)
        body: dict[str, object] = answer.body["listconfigurationsresponse"]
        return body

    every = await ask(pagesize="-1")
    values = {each["name"]: each["value"] for each in every["configuration"]}  # type: ignore[attr-defined] # a list
    assert values["storage.max.volume.size"] == values["storebus.max.volume.gib"] == "77"
    assert (values["max.template.iso.size"], values["snapshot.delta.max"], values["default.page.size"]) == ("3", "5", "500")
    assert (values["max.account.volumes"], values["max.account.secondary.storage"]) == ("20", "400")
    assert values["storebus.identity"] == "false"
    for secret in ("vault.key", "agent.token", "amqp.url", "database.url", "secret.key"):
        assert f"storebus.{secret}" not in values
    assert all(each["description"] for each in every["configuration"])  # type: ignore[attr-defined] # a list
    assert (await ask(name="default.page.size"))["count"] == 1
    assert (await ask(category="account defaults"))["count"] == 5
    assert (await ask(keyword="api.throttling"))["count"] == 2
    assert await ask(name="nothing") == {}
    capability = (await edge.call({"command": "listCapabilities"})).body["listcapabilitiesresponse"]["capability"]
    assert (capability["customdiskofferingmaxsize"], capability["cloudstackversion"]) == (77, VERSION)
    assert capability["userpublictemplateenabled"] is False, "STOREBUS_PUBLIC_TEMPLATES"
    assert capability["allowusercreateprojects"] is True and capability["regionsecondaryenabled"] is False


def test_a_setting_that_is_secret_in_time_to_come_is_not_listed() -> None:
    """By its type: every setting that may hold a secret is one that pydantic hides."""
    shown = {row["name"].removeprefix("storebus.").replace(".", "_") for row in configuration.rows(Settings())}  # type: ignore[call-arg] # settings have defaults
    hidden = set(Settings.model_fields) - shown
    assert hidden >= {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert not [name for name in shown & set(Settings.model_fields) if any(word in name for word in ("token", "secret", "password", "_key"))]


async def test_region_stores_are_told_of(api: Caller) -> None:
    async with api.system.working():
        await api.ok("addImageStore", provider="s3", **{"details[0].key": "bucket", "details[0].value": "b"})
    assert (await api.ok("listCapabilities"))["capability"]["regionsecondaryenabled"] is True


async def test_min_leaves_out_what_is_a_list(api: Caller, made: World) -> None:
    [one] = await api.volumes("one")
    await api.ok("createTags", resourceids=one, resourcetype="Volume", **tags(a="b"))
    [whole], [least] = [(await api.ok("listVolumes", **more))["volume"] for more in ({"details": "all"}, {"details": "min"})]
    assert whole["tags"] and set(whole) - set(least) == {"tags"} and least["id"] == one
    [account] = (await made.ok("u", "listAccounts", details="MIN"))["account"]
    assert account["name"] == "u" and "user" not in account


# --- people ---


async def test_a_user_is_found_by_its_key_by_whoever_may_see_it(made: World) -> None:
    keys = (await made.ok("u", "registerUserKeys", id=made.users["u"]))["userkeys"]
    for person in ("root", "da", "ra", "u"):
        user = (await made.ok(person, "getUser", userapikey=keys["apikey"]))["user"]
        assert (user["id"], user["username"], user["account"]) == (made.users["u"], "u", "u")
        assert keys["secretkey"] not in str(user) and "password" not in user
    absent = await made.ask("v", "getUser", userapikey="nothing")
    for person in ("v", "w", "x"):
        answer = await made.ask(person, "getUser", userapikey=keys["apikey"])
        assert (answer.status, answer.error) == (431, absent.error)


async def test_limits_by_number_and_of_who_has_none(made: World) -> None:
    [one] = (await made.ok("u", "listResourceLimits", resourcetype=2))["resourcelimit"]
    assert (one["resourcetypename"], one["max"], one["account"]) == ("volume", 20, "u")
    assert (await made.ok("u", "listResourceLimits"))["count"] == 5
    assert await made.ok("u", "listResourceLimits", resourcetype=0) == {}  # machines are not limited
    assert (await made.ask("u", "listResourceLimits", resourcetype=12)).status == 431
    free = (await made.ok("root", "listResourceLimits"))["resourcelimit"]
    assert len(free) == 5 and {each["max"] for each in free} == {-1} and {each["account"] for each in free} == {"root"}
    [one] = (await made.ok("root", "listResourceLimits", resourcetype=11))["resourcelimit"]
    assert (one["resourcetypename"], one["max"]) == ("secondary_storage", -1)
    [one] = (await made.ok("root", "listResourceLimits", resourcetype=2, account="u", domainid=made.domains["a"]))["resourcelimit"]
    assert (one["max"], one["account"]) == (20, "u")
    assert (await made.ask("u", "listResourceLimits", account="v", domainid=made.domains["a"])).status == 431


async def test_projects_of_an_account(made: World) -> None:
    project = (await made.ok("da", "createProject", name="shared", displaytext="Shared"))["project"]["id"]
    await made.ok("da", "addAccountToProject", projectid=project, account="u")
    for account, shown in (("da", {project}), ("u", {project}), ("v", set())):
        assert await made.ids("da", "listProjects", "project", account=account, domainid=made.domains["a"]) == shown
    assert await made.ids("root", "listProjects", "project", displaytext="Shared") == {project}
    assert (await made.ask("u", "listProjects", account="v", domainid=made.domains["a"])).status == 431


ANSIBLE = [("listStorageProviders", {"type": "image"}), ("listZones", {}), ("listImageStores", {}), ("listOsTypes", {}), ("listTags", {}),
           ("listCapabilities", {}), ("listProjects", {"listall": "true"}), ("listDomains", {"listall": "true"}),
           ("listAccounts", {"listall": "true"}), ("listUsers", {"listall": "true"}), ("listHypervisors", {}), ("listConfigurations", {}),
           ("listResourceLimits", {}), ("listOsCategories", {}), ("listBackupProviders", {}),
           ("listPublicIpAddresses", {}), ("listPortForwardingRules", {}), ("listIpForwardingRules", {})]


@pytest.mark.parametrize(("command", "parameters"), ANSIBLE, ids=lambda given: given if isinstance(given, str) else "")
async def test_every_call_at_start_answers_in_its_envelope(made: World, command: str, parameters: dict[str, str]) -> None:
    """To a client that pages as cs does: exactly one key beside count, and what it counts is what is there."""
    body = await made.ok("root", command, **parameters)
    if command == "listCapabilities":
        assert list(body) == ["capability"]
        return
    kept = [key for key in body if key != "count"]
    assert len(kept) == (1 if body else 0)
    if body:
        assert body["count"] == len(body[kept[0]])
    paged = await made.ok("root", command, **parameters, page=1, pagesize=1)
    assert paged.get("count", 0) == body.get("count", 0)


def test_nobody_but_admins_reads_settings() -> None:
    from api.registry import find
    for role in (Role.USER, Role.DOMAIN, Role.RESOURCE):
        assert role.value not in find("listConfigurations").roles
    assert replace(SYSTEM, role=Role.ADMIN).role.value in find("listConfigurations").roles
