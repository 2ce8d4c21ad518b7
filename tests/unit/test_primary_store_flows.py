"""Zones, hosts and primary stores: how they are made, chosen, listed and closed; agents are played by the test."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from api.edge import Edge
from handlers import placement
from handlers.agent import proof
from schema.agent import AgentHello, ClosePrimary, OpenPrimary, PrimaryUsage
from schema.failure import Refused
from schema.ids import derive, zone_named
from schema.image import GIB, PrimarySpec
from schema.primary_store import CreateStoragePool, DeleteStoragePool
from schema.volume import CreateVolume, DeleteVolume
from tests.support.cloud import TOKEN, Cloud
from tests.support.system import FakeSystem


def hello(cloud: Cloud, primaries: list[PrimarySpec], **more: Any) -> AgentHello:
    return AgentHello(agent="h-kvm", zone_id=cloud.zone_id, roles=["hypervisor"], hypervisor="KVM", primaries=primaries,
                      public_key="k", proof=proof(TOKEN, "h-kvm", "k"), **more)


async def second_host(cloud: Cloud, *, free: int = 0) -> PrimarySpec:
    """Another host, with a primary store from its settings."""
    spec = PrimarySpec(id=derive(cloud.zone_id, "second"), name="h", kind="folder", path="/h", zone_id=cloud.zone_id, agent="h-kvm")
    await cloud.handle(hello(cloud, [spec], usage=[PrimaryUsage(id=spec.id, total_bytes=100 * GIB, free_bytes=free)]), kind="report")
    return spec


async def pool(cloud: Cloud, url: str = "file://h/data", **more: Any) -> tuple[UUID, list[str]]:
    job = await cloud.send(CreateStoragePool(name="pool", url=url, zone_id=cloud.zone_id, **more))
    await cloud.settle()
    return derive(job, "primary_store"), await cloud.ends(job)


async def test_a_pool_is_opened_used_and_closed_and_nothing_of_it_remains() -> None:
    cloud = await Cloud.start()
    await second_host(cloud)
    made, ends = await pool(cloud)
    assert ends == ["job.completed"]
    [opened] = [order for order in await cloud.orders() if isinstance(order, OpenPrimary)]
    assert (opened.agent, opened.primary.path, opened.primary.kind) == ("h-kvm", "/data", "folder")
    job = await cloud.send(CreateVolume(name="v", size=1, zone_id=cloud.zone_id, storage_id=made))
    await cloud.settle()
    volume = derive(job, "volume")
    refused = await cloud.send(DeleteStoragePool(id=made))
    assert await cloud.ends(refused) == ["job.failed"]
    forced = await cloud.send(DeleteStoragePool(id=made, forced=True))
    assert await cloud.ends(forced) == ["job.failed"]
    await cloud.send(DeleteVolume(id=volume))
    await cloud.settle()
    gone = await cloud.send(DeleteStoragePool(id=made))
    await cloud.settle()
    assert await cloud.ends(gone) == ["job.completed"]
    assert isinstance((await cloud.orders())[-2], ClosePrimary)
    assert await cloud.store.claims() == {} and await cloud.store.timers() == {}
    assert {value for value, _ in (await cloud.store.counters()).values()} == {0}
    # What its agent had said before it was told does not bring it back, and nothing comes to it.
    await cloud.handle(hello(cloud, [opened.primary]), kind="report")
    late = await cloud.send(CreateVolume(name="v", size=1, zone_id=cloud.zone_id, storage_id=made))
    assert await cloud.ends(late) == ["job.failed"]
    assert (await pool(cloud))[1] == ["job.completed"]  # the place is free again


@pytest.mark.parametrize(("fields", "field"), [
    ({"url": "nfs://h/x"}, "url"), ({"url": "file://h/"}, "url"), ({"url": "file://h/a/../b"}, "url"), ({"url": "file://other/x"}, "url"),
    ({"url": "file:///x"}, "url"), ({"url": "file://h/h/inside"}, "url"), ({"url": "file://h/h"}, "url"), ({"scope": "ZONE"}, "scope"),
    ({"provider": "nosuch"}, "provider"), ({"hypervisor": "VMware"}, "hypervisor"), ({"name": ""}, "name"),
    ({"zone_id": uuid4()}, "zoneid"), ({"details": {"devices": "/dev/x"}}, "details"), ({"provider": "Block"}, "details"),
])
async def test_what_cannot_be_a_pool_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    cloud = await Cloud.start()
    await second_host(cloud)
    command = CreateStoragePool(**{"name": "p", "url": "file://h/data", "zone_id": cloud.zone_id} | fields)
    with pytest.raises(Refused) as refused:
        await cloud.runtime.precheck(command, uuid4())
    assert refused.value.failure.field == field
    assert await cloud.store.claims() == {}


async def test_two_pools_never_share_a_place_and_a_refused_one_gives_it_back() -> None:
    cloud = await Cloud.start()
    await second_host(cloud)
    first = await cloud.send(CreateStoragePool(name="a", url="file://h/data", zone_id=cloud.zone_id))
    second = await cloud.send(CreateStoragePool(name="b", url="file://h-kvm/data/", zone_id=cloud.zone_id))
    assert await cloud.ends(second) == ["job.failed"]
    [order] = [order for order in await cloud.open_orders() if isinstance(order, OpenPrimary)]
    await cloud.fail(order)
    await cloud.settle()
    assert await cloud.ends(first) == ["job.failed"] and await cloud.store.claims() == {}
    made, ends = await pool(cloud)
    assert ends == ["job.completed"] and made in cloud.runtime.directory.primaries


async def test_a_store_of_the_settings_ends_when_they_no_longer_name_it() -> None:
    cloud = await Cloud.start()
    spec = await second_host(cloud)
    refused = await cloud.send(DeleteStoragePool(id=spec.id))
    assert await cloud.ends(refused) == ["job.failed"]
    await cloud.handle(hello(cloud, []), kind="report")
    gone = await cloud.send(DeleteStoragePool(id=spec.id))
    assert await cloud.ends(gone) == ["job.completed"]
    full = await cloud.send(CreateVolume(name="v", size=1, zone_id=cloud.zone_id, storage_id=spec.id))
    assert await cloud.ends(full) == ["job.failed"]
    await second_host(cloud)
    again = await cloud.send(CreateVolume(name="v", size=1, zone_id=cloud.zone_id, storage_id=spec.id))
    await cloud.settle()
    assert await cloud.ends(again) == ["job.completed"]


async def test_volumes_go_where_most_is_free() -> None:
    cloud = await Cloud.start()
    one = next(iter(cloud.runtime.directory.primaries))
    other = await second_host(cloud, free=10)
    await cloud.runtime.catch_up()
    assert placement.primary(cloud.runtime.directory, cloud.zone_id)[0].id == other.id
    assert placement.primary(cloud.runtime.directory, cloud.zone_id, one)[0].id == one
    said = next(iter(cloud.runtime.directory.primaries.values()))[0]
    await cloud.handle(AgentHello(
        agent="host-1", zone_id=cloud.zone_id, roles=["storage", "hypervisor"], primaries=[said], public_key="k",
        proof=proof(TOKEN, "host-1", "k"), usage=[PrimaryUsage(id=one, total_bytes=100, free_bytes=11)]), kind="report")
    await cloud.runtime.catch_up()
    assert placement.primary(cloud.runtime.directory, cloud.zone_id)[0].id == one


async def test_a_hello_that_says_nothing_new_writes_nothing() -> None:
    cloud = await Cloud.start()
    await second_host(cloud, free=1)
    head = await cloud.store.head()
    await second_host(cloud, free=2)
    assert await cloud.store.head() == head


async def ask(edge: Edge, command: str, **parameters: object) -> dict[str, Any]:
    answer = await edge.call({"command": command, **{name: str(value) for name, value in parameters.items()}})
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body[f"{command.lower()}response"]
    return body


async def test_zones_hosts_and_pools_are_listed() -> None:
    system = await FakeSystem.start()
    edge, cloud = Edge(system), system.cloud
    spec = await second_host(cloud, free=60 * GIB)
    zone = (await ask(edge, "createZone", name="z2", networktype="basic", dns1="192.0.2.1", internaldns1="192.0.2.2"))["zone"]
    assert (zone["id"], zone["networktype"], zone["dns1"], zone["internaldns1"]) == (str(zone_named("z2")), "Basic", "192.0.2.1", "192.0.2.2")
    again = await edge.call({"command": "createZone", "name": "z2"})
    assert again.status == 431 and "z2" in again.error
    assert (await edge.call({"command": "createZone", "name": "z3", "networktype": "none"})).status == 431
    assert (await ask(edge, "listZones"))["count"] == 2
    assert [each["name"] for each in (await ask(edge, "listZones", networktype="Basic"))["zone"]] == ["z2"]
    hosts = (await ask(edge, "listHosts"))["host"]
    assert {(each["name"], each["type"], each["state"]) for each in hosts} == {("h-kvm", "Routing", "Up"), ("host-1", "Routing", "Up")}
    one = next(each for each in hosts if each["name"] == "h-kvm")
    assert (await ask(edge, "listHosts", id=one["id"]))["host"] == [one]
    assert await ask(edge, "listHosts", type="SecondaryStorageVM") == {}
    assert (await ask(edge, "listHosts", zoneid=cloud.zone_id, keyword="H-K"))["count"] == 1
    async with system.working():
        made = (await ask(edge, "createStoragePool", name="pool", url="file://h/data", zoneid=cloud.zone_id))["storagepool"]
    assert (made["name"], made["path"], made["ipaddress"], made["state"], made["scope"]) == ("pool", "/data", "h", "Up", "HOST")
    pools = (await ask(edge, "listStoragePools", ipaddress="h", scope="host", status="up"))["storagepool"]
    assert [each["name"] for each in pools] == ["h", "pool"]
    assert (pools[0]["id"], pools[0]["disksizetotal"], pools[0]["disksizeused"]) == (str(spec.id), 100 * GIB, 40 * GIB)
    async with system.working():
        assert await ask(edge, "deleteStoragePool", id=made["id"]) == {"success": True}
    assert (await ask(edge, "listStoragePools"))["count"] == 2
    gone = await edge.call({"command": "deleteStoragePool", "id": made["id"]})
    assert gone.status == 431 and made["id"] in gone.error
