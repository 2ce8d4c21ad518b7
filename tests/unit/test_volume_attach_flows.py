"""Machines that agents report, and volumes that are attached to them: states, refusals, one end each; agents are played."""

from __future__ import annotations

import asyncio
import random
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.edge import Edge
from handlers.agent import proof
from handlers.machine import MOST
from schema.agent import AgentHello, AttachDisk, CreateDisk, DetachDisk
from schema.failure import Refused, Unavailable
from schema.identity import ROOT_ACCOUNT, CreateAccount
from schema.ids import derive
from schema.image import ImageFormat
from schema.image_store import AddImageStore
from schema.job import CancelJob
from schema.machine import MachineSpec
from schema.snapshot import CreateSnapshot
from schema.volume import CreateVolume, DeleteVolume, DestroyVolume, UpdateVolume
from schema.volume_attach import AttachVolume, DetachVolume
from schema.volume_upload import UploadVolume
from tests.support.cloud import TOKEN, Cloud
from tests.support.system import FakeSystem

M, N = UUID("9d1c0f9e-5a1b-4b53-8d43-0a5b6c7d8e01"), UUID("9d1c0f9e-5a1b-4b53-8d43-0a5b6c7d8e02")


def spec(machine_id: UUID = M, state: str = "Running", **more: Any) -> MachineSpec:
    return MachineSpec(id=machine_id, name=f"vm-{str(machine_id)[-2:]}", state=state, memory_mib=64, **more)


async def report(cloud: Cloud, *machines: MachineSpec, agent: str = "host-1", zone_id: UUID | None = None) -> None:
    """What an agent says of its machines."""
    await cloud.runtime.catch_up()
    primaries = [entry for entry, _ in cloud.runtime.directory.primaries.values() if entry.agent == agent]
    await cloud.handle(AgentHello(
        agent=agent, zone_id=zone_id or cloud.zone_id, roles=["storage", "hypervisor"], hypervisor="KVM", primaries=primaries,
        providers=cloud.runtime.directory.agents["host-1"].providers, public_key="k", proof=proof(TOKEN, agent, "k"),
        machines=list(machines)), kind="report")


async def volume_of(cloud: Cloud, **more: Any) -> UUID:
    job = await cloud.send(CreateVolume(name="v", size=1, **more))
    await cloud.settle()
    return derive(job, "volume")


async def ended(cloud: Cloud, command: Any) -> str:
    job = await cloud.send(command)
    await cloud.settle()
    [end] = await cloud.ends(job)
    return end.removeprefix("job.")


async def state(cloud: Cloud, volume: UUID) -> Any:
    name = f"volume-{volume}"
    cloud.runtime.forget([name])
    return await cloud.runtime._state(name)


async def refused(cloud: Cloud, command: Any) -> Any:
    """What refuses it; the command itself ends so too, and writes nothing but that."""
    with pytest.raises(Refused) as told:
        await cloud.runtime.precheck(command, uuid4())
    head = await cloud.store.head()
    job = await cloud.send(command)
    assert await cloud.ends(job) == ["job.failed"] and await cloud.store.head() == head + 2
    return told.value.failure


async def test_a_volume_is_attached_and_detached_by_one_order_each() -> None:
    cloud = await Cloud.start()
    volume = await volume_of(cloud)
    await report(cloud, spec())
    assert await ended(cloud, AttachVolume(id=volume, virtual_machine_id=M)) == "completed"
    [order] = [each for each in await cloud.orders() if isinstance(each, AttachDisk)]
    assert (order.agent, order.machine_id, order.device_id, order.disk.volume_id) == ("host-1", M, 1, volume)
    now = await state(cloud, volume)
    assert (now.status, now.machine, now.device_id) == ("Ready", M, 1)
    assert await ended(cloud, UpdateVolume(id=volume, name="other")) == "completed"  # a name is nobody's work
    assert await ended(cloud, DetachVolume(virtual_machine_id=M, device_id=1)) == "completed"
    [order] = [each for each in await cloud.orders() if isinstance(each, DetachDisk)]
    assert (order.agent, order.machine_id, order.disk.volume_id) == ("host-1", M, volume)
    now = await state(cloud, volume)
    assert (now.status, now.machine, now.device_id) == ("Ready", None, None)
    assert await ended(cloud, DeleteVolume(id=volume)) == "completed"
    assert await cloud.store.claims() == {} and await cloud.store.timers() == {}


async def test_what_is_attached_is_refused_to_all_other_work() -> None:
    cloud = await Cloud.start()
    await ended(cloud, AddImageStore(name="s", provider="S3", details={"bucket": "b"}))
    volume, other = await volume_of(cloud), await volume_of(cloud)
    await report(cloud, spec(), spec(N, "Stopped"))
    assert await ended(cloud, AttachVolume(id=volume, virtual_machine_id=N)) == "completed"
    for command in (DeleteVolume(id=volume), DestroyVolume(id=volume), CreateSnapshot(volume_id=volume),
                    AttachVolume(id=volume, virtual_machine_id=M), AttachVolume(id=volume, virtual_machine_id=N)):
        failure = await refused(cloud, command)
        assert "attached to the machine" in failure.cause and failure.field in ("id", "volumeid")
    job = await cloud.send(AttachVolume(id=other, virtual_machine_id=M))
    for command in (DeleteVolume(id=other), CreateSnapshot(volume_id=other), DetachVolume(id=other)):
        assert "is Attaching, not Ready" in (await refused(cloud, command)).cause
    await cloud.settle()
    assert await cloud.ends(job) == ["job.completed"]


async def test_refusals_name_what_is_wrong() -> None:
    cloud = await Cloud.start()
    volume, other = await volume_of(cloud), await volume_of(cloud)
    await report(cloud, spec())
    await report(cloud, spec(N), agent="host-2")
    foreign = await ended(cloud, CreateAccount(username="u", password="vault:" + str(uuid4()), email="e@f", first_name="f", last_name="l"))
    assert foreign == "completed"
    account = next(row.stream for row in await cloud.rows("account.created") if str(ROOT_ACCOUNT) not in row.stream)
    elsewhere, theirs = uuid4(), uuid4()
    await report(cloud, spec(elsewhere), agent="host-3", zone_id=uuid4())
    await report(cloud, spec(theirs, account=UUID(account.removeprefix("account-"))), agent="host-4")
    assert await ended(cloud, AttachVolume(id=volume, virtual_machine_id=M, device_id=7)) == "completed"
    for command, field, why in (
            (AttachVolume(id=uuid4(), virtual_machine_id=M), "id", "no volume"),
            (AttachVolume(id=other, virtual_machine_id=uuid4()), "virtualmachineid", "no machine has the id"),
            (AttachVolume(id=other, virtual_machine_id=M, device_id=7), "deviceid", "is taken by the volume"),
            (AttachVolume(id=other, virtual_machine_id=M, device_id=0), "deviceid", "0 is not 1 to"),
            (AttachVolume(id=other, virtual_machine_id=M, device_id=3), "deviceid", "CD-ROM"),
            (AttachVolume(id=other, virtual_machine_id=M, device_id=66), "deviceid", "66 is not"),
            (AttachVolume(id=other, virtual_machine_id=M, device_id=-1), "deviceid", "-1 is not"),
            (AttachVolume(id=other, virtual_machine_id=N), "virtualmachineid", "lies on the host host-1"),
            (AttachVolume(id=other, virtual_machine_id=elsewhere), "virtualmachineid", "not in the zone"),
            (AttachVolume(id=other, virtual_machine_id=theirs), "virtualmachineid", "belongs to the account u"),
            (DetachVolume(id=other), "id", "not attached"),
            (DetachVolume(), "id", "missing"),
            (DetachVolume(virtual_machine_id=M), "id", "missing"),
            (DetachVolume(virtual_machine_id=M, device_id=1), "deviceid", "no volume is at the device 1"),
            (DetachVolume(virtual_machine_id=uuid4(), device_id=1), "virtualmachineid", "no machine has the id"),
            (DetachVolume(id=volume, virtual_machine_id=N), "virtualmachineid", "at the device 7"),
            (DetachVolume(id=volume, device_id=1), "virtualmachineid", "at the device 7")):
        failure = await refused(cloud, command)
        assert failure.field == field and why in failure.cause, failure


async def test_a_machine_has_no_more_disks_than_it_may_and_no_device_two() -> None:
    cloud = await Cloud.start()
    await report(cloud, spec())
    volumes = [await volume_of(cloud) for _ in range(MOST + 1)]
    jobs = [await cloud.send(AttachVolume(id=volume, virtual_machine_id=M)) for volume in volumes]
    await cloud.settle()
    ends = [await cloud.ends(job) for job in jobs]
    assert ends.count(["job.completed"]) == MOST and ends[-1] == ["job.failed"]
    places = [(await state(cloud, volume)).device_id for volume in volumes[:-1]]
    assert sorted(places) == [n for n in range(1, MOST + 2) if n != 3]
    assert "most data disks" in (await refused(cloud, AttachVolume(id=volumes[-1], virtual_machine_id=M))).cause


async def test_two_handlers_give_a_device_once() -> None:
    cloud = await Cloud.start()
    await report(cloud, spec())
    volumes = [await volume_of(cloud) for _ in range(8)]
    clouds = [cloud, await cloud.another()]
    jobs = await asyncio.gather(*(clouds[n % 2].send(AttachVolume(id=volume, virtual_machine_id=M, device_id=5))
                                  for n, volume in enumerate(volumes)))
    await cloud.settle()
    assert sum([await cloud.ends(job) == ["job.completed"] for job in jobs]) == 1


@pytest.mark.parametrize("how", ["fails", "is cancelled", "is cancelled when it was done"])
async def test_an_attachment_that_does_not_come_about_is_taken_back(how: str) -> None:
    cloud = await Cloud.start()
    volume = await volume_of(cloud)
    await report(cloud, spec())
    job = await cloud.send(AttachVolume(id=volume, virtual_machine_id=M, device_id=2))
    [order] = [each for each in await cloud.open_orders() if isinstance(each, AttachDisk)]
    if how == "fails":
        await cloud.fail(order)
    else:
        await cloud.send(CancelJob(job_id=job))
        await (cloud.stop(order) if how == "is cancelled" else cloud.complete(order))
    await cloud.settle()
    assert await cloud.ends(job) == ["job.failed" if how == "fails" else "job.cancelled"]
    assert any(isinstance(each, DetachDisk) for each in await cloud.orders())
    now = await state(cloud, volume)
    assert (now.status, now.machine) == ("Ready", None)
    assert await ended(cloud, AttachVolume(id=volume, virtual_machine_id=M, device_id=2)) == "completed"


async def test_a_detachment_that_fails_leaves_it_attached() -> None:
    cloud = await Cloud.start()
    volume = await volume_of(cloud)
    await report(cloud, spec())
    await ended(cloud, AttachVolume(id=volume, virtual_machine_id=M))
    job = await cloud.send(DetachVolume(id=volume))
    [order] = [each for each in await cloud.open_orders() if isinstance(each, DetachDisk)]
    await cloud.fail(order)
    await cloud.settle()
    assert await cloud.ends(job) == ["job.failed"]
    now = await state(cloud, volume)
    assert (now.status, now.machine, now.device_id) == ("Ready", M, 1)
    assert isinstance([each for each in await cloud.orders() if isinstance(each, (AttachDisk, DetachDisk))][-1], AttachDisk)


async def test_a_machine_that_is_gone_gives_its_volumes_back() -> None:
    cloud = await Cloud.start()
    volume = await volume_of(cloud)
    await report(cloud, spec())
    await ended(cloud, AttachVolume(id=volume, virtual_machine_id=M))
    await report(cloud)
    assert "no machine" in (await refused(cloud, AttachVolume(id=await volume_of(cloud), virtual_machine_id=M))).cause
    assert await ended(cloud, DetachVolume(id=volume)) == "completed"
    await report(cloud, spec())
    assert await ended(cloud, AttachVolume(id=volume, virtual_machine_id=M)) == "completed"


async def test_what_agents_say_of_machines_is_written_when_it_is_new() -> None:
    cloud = await Cloud.start()
    await report(cloud, spec(), spec(N, "Stopped"))
    head = await cloud.store.head()
    await report(cloud, spec(), spec(N, "Stopped"))
    assert await cloud.store.head() == head
    await report(cloud, spec(state="Stopped"), spec(N, "Stopped"))
    assert [row.type for row in (await cloud.store.read_log(head)).rows] == ["machine.announced"]
    await report(cloud, spec(), agent="host-2")  # the first keeps it
    assert (await cloud.store.head()) == head + 2 and cloud.runtime.directory.machines[M].agent == "host-1"
    other = await cloud.another()
    await report(other, spec(state="Stopped"))
    assert [row.type for row in (await cloud.store.read_log(head + 2)).rows] == ["machine.withdrawn"]


async def test_lists_show_machines_and_what_is_attached() -> None:
    system = await FakeSystem.start()
    edge, cloud = Edge(system), system.cloud
    volume = await volume_of(cloud)
    await report(cloud, spec(), spec(N, "Stopped", trouble="it is shy"))

    async def ask(command: str, **parameters: object) -> dict[str, Any]:
        answer = await edge.call({"command": command, **{name: str(value) for name, value in parameters.items()}})
        assert answer.status == 200, answer
        body: dict[str, Any] = answer.body[f"{command.lower()}response"]
        return body

    both = (await ask("listVirtualMachines"))["virtualmachine"]
    assert {(each["name"], each["state"], each["hostname"], each["account"]) for each in both} == {
        ("vm-01", "Running", "host-1", "admin"), ("vm-02", "Stopped", "host-1", "admin")}
    assert next(each for each in both if each["id"] == str(N))["trouble"] == "it is shy"
    host = both[0]["hostid"]
    for filters in ({"state": "Running"}, {"id": M}, {"ids": M}, {"name": "vm-01"}, {"keyword": "-01"}):
        assert [each["id"] for each in (await ask("listVirtualMachines", **filters))["virtualmachine"]] == [str(M)]
    assert (await ask("listVirtualMachines", hostid=host, zoneid=cloud.zone_id))["count"] == 2
    assert await ask("listVirtualMachines", hostid=uuid4()) == {}
    assert (await ask("listHosts", virtualmachineid=M))["host"][0]["id"] == host
    async with system.working():
        job = (await ask("attachVolume", id=volume, virtualmachineid=M, deviceid=4))["jobid"]
        while not (found := await ask("queryAsyncJobResult", jobid=job))["jobstatus"]:
            await asyncio.sleep(0.005)
    shown = found["jobresult"]["volume"]
    assert (shown["virtualmachineid"], shown["vmname"], shown["vmstate"], shown["deviceid"]) == (str(M), "vm-01", "Running", 4)
    assert shown["state"] == "Ready" and shown["attached"]
    assert [each["id"] for each in (await ask("listVolumes", virtualmachineid=M))["volume"]] == [str(volume)]
    assert await ask("listVolumes", virtualmachineid=N) == {}
    refusal = await edge.call({"command": "deleteVolume", "id": str(volume)})
    assert refusal.status == 431 and "attached to the machine" in refusal.error
    async with system.working():
        job = (await ask("detachVolume", virtualmachineid=M, deviceid=4))["jobid"]
        while not (found := await ask("queryAsyncJobResult", jobid=job))["jobstatus"]:
            await asyncio.sleep(0.005)
    assert "virtualmachineid" not in found["jobresult"]["volume"]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_agents_do_each_job_ends_once_and_both_streams_agree(seed: int) -> None:
    """Attach, detach and cancel at random, with agents that are late, fail and answer twice."""
    cloud, dice = await Cloud.start(), random.Random(seed)
    volumes = [await volume_of(cloud) for _ in range(4)]
    await report(cloud, spec(), spec(N))
    jobs: list[UUID] = []
    for _ in range(40):
        volume, machine = dice.choice(volumes), dice.choice((M, N))
        command: Any = dice.choice((
            AttachVolume(id=volume, virtual_machine_id=machine, device_id=dice.choice((None, 1, 2))), DetachVolume(id=volume),
            DetachVolume(virtual_machine_id=machine, device_id=1), *(CancelJob(job_id=job) for job in jobs[-1:])))
        jobs.append(await cloud.send(command))
        for order in await cloud.open_orders():
            match dice.randrange(4):
                case 0:
                    await cloud.complete(order)
                case 1:
                    await cloud.fail(order, retryable=dice.random() < 0.3)
                case 2:
                    await cloud.complete(order)
                    await cloud.complete(order)
    for _ in range(10):
        await cloud.settle()
        for job in jobs:
            await cloud.fire(job)
    assert all([len(await cloud.ends(job)) == 1 for job in jobs])
    held = {}
    for machine in (M, N):
        cloud.runtime.forget([f"machine-{machine}"])
        held |= {volume: (machine, device) for device, volume in (await cloud.runtime._state(f"machine-{machine}")).devices.items()}
    for volume in volumes:
        now = await state(cloud, volume)
        assert now.status == "Ready" and held.get(volume) == ((now.machine, now.device_id) if now.machine else None)


async def uploaded(cloud: Cloud) -> UUID:
    await ended(cloud, AddImageStore(name="s", provider="S3", details={"bucket": "b"}))
    job = await cloud.send(UploadVolume(url="http://x/y.qcow2", name="u", zone_id=cloud.zone_id, format=ImageFormat.QCOW2))
    await cloud.settle()
    volume = derive(job, "volume")
    assert (await state(cloud, volume)).status == "Uploaded"
    return volume


async def test_an_uploaded_volume_gets_its_disk_on_the_machines_host_first() -> None:
    cloud = await Cloud.start()
    volume = await uploaded(cloud)
    await report(cloud, spec())
    assert await ended(cloud, AttachVolume(id=volume, virtual_machine_id=M, device_id=6)) == "completed"
    now = await state(cloud, volume)
    assert (now.status, now.machine, now.device_id, now.disk.primary.agent) == ("Ready", M, 6, "host-1")
    assert await ended(cloud, DetachVolume(id=volume)) == "completed"
    assert await ended(cloud, DeleteVolume(id=volume)) == "completed"
    assert {name: value for name, (value, _) in (await cloud.store.counters()).items() if value} == {}
    await report(cloud, spec(N), agent="host-2")
    other = await uploaded_again(cloud)
    assert "no primary store is known on the host host-2" in (await unavailable(cloud, AttachVolume(id=other, virtual_machine_id=N)))


async def uploaded_again(cloud: Cloud) -> UUID:
    job = await cloud.send(UploadVolume(url="http://x/z.qcow2", name="u", zone_id=cloud.zone_id, format=ImageFormat.QCOW2))
    await cloud.settle()
    return derive(job, "volume")


async def unavailable(cloud: Cloud, command: Any) -> str:
    with pytest.raises(Unavailable) as told:
        await cloud.runtime.precheck(command, uuid4())
    return told.value.failure.cause


@pytest.mark.parametrize(("kind", "then"), [(CreateDisk, "Uploaded"), (AttachDisk, "Ready")])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_uploaded_volume_that_is_not_attached_keeps_what_it_has(kind: Any, then: str, cancelled: bool) -> None:
    cloud = await Cloud.start()
    volume = await uploaded(cloud)
    await report(cloud, spec())
    job = await cloud.send(AttachVolume(id=volume, virtual_machine_id=M))
    for _ in range(4):
        [order] = [each for each in await cloud.open_orders() if isinstance(each, (CreateDisk, AttachDisk))]
        if isinstance(order, kind):
            break
        await cloud.complete(order)
    if cancelled:
        await cloud.send(CancelJob(job_id=job))
    await (cloud.stop(order) if cancelled else cloud.fail(order))
    await cloud.settle()
    assert await cloud.ends(job) == ["job.cancelled" if cancelled else "job.failed"]
    now = await state(cloud, volume)
    assert (now.status, now.machine) == (then, None)
    assert await ended(cloud, AttachVolume(id=volume, virtual_machine_id=M, device_id=1)) == "completed"
