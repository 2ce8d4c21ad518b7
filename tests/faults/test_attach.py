"""Volumes at machines through the whole product, each role a process of its own on a real RabbitMQ and Postgres: how a command
travels, watched from the broker and from the kernel; and the KVM agent killed at every named place on the way.

That api, handlers and agents do not import one another is the contract "schema <- bus <- {handlers, agents} <- api" of import-linter,
and "Who answers HTTP reaches an agent over the bus alone", both asked by tests/architecture/test_imports.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import aio_pika
import asyncpg
import pytest

from agents.machine import MACHINES, Machine
from api.verify import verify_all
from bus.envelope import Envelope
from bus.failpoints import NAMES
from tests.faults.cluster import Cluster, running
from tests.faults.commands import seeded
from tests.support.machines import define, disks, end_all, killed, pid

pytestmark = [pytest.mark.needs_rabbitmq, pytest.mark.needs_qemu, pytest.mark.usefixtures("machine_program")]
ID = UUID("5b6c7d8e-9f0a-4b1c-8d2e-3f4a5b6c7d8e")
AGENT = "host-kvm"
TRACE = "amq.rabbitmq.trace"


@dataclass(frozen=True)
class Seen:
    """A message that somebody gave to the broker."""

    exchange: str
    key: str
    envelope: Envelope


@contextlib.asynccontextmanager
async def published(rabbit: Any) -> AsyncIterator[list[Seen]]:
    """What is published while this is open, in order: the broker's firehose."""
    seen: list[Seen] = []

    async def note(message: Any) -> None:
        if (message.routing_key or "").startswith("publish."):
            with contextlib.suppress(Exception):  # what carries no envelope is none of ours
                properties = message.headers["properties"]["headers"]
                seen.append(Seen(message.headers["exchange_name"], message.headers["routing_keys"][0],
                                 Envelope.read(properties, message.body)))

    async with await aio_pika.connect(rabbit.url) as connection:
        channel = await connection.channel()
        tap = await channel.declare_queue(exclusive=True)
        await tap.bind(await channel.get_exchange(TRACE), "#")
        await tap.consume(note, no_ack=True)
        await asyncio.to_thread(rabbit.ctl, "trace_on")
        try:
            yield seen
            await asyncio.sleep(0.5)
        finally:
            await asyncio.to_thread(rabbit.ctl, "trace_off")


def family(process: int) -> list[int]:
    """A process and everything below it."""
    found = [process]
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def connections(process: int) -> tuple[set[int], set[int]]:
    """(ports that a role listens on, ports that it connected to), as the kernel has it. TCP: a unix socket reaches no other host."""
    held = set()
    for one in family(process):
        for entry in Path(f"/proc/{one}/fd").iterdir():
            with contextlib.suppress(OSError):
                held.add(os.readlink(entry))
    rows = []
    for table in ("tcp", "tcp6"):
        lines = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        rows += [(int(each[1].rpartition(":")[2], 16), int(each[2].rpartition(":")[2], 16), each[3]) for each in lines
                 if f"socket:[{each[9]}]" in held]
    listening = {local for local, _, state in rows if state == "0A"}
    return listening, {remote for local, remote, state in rows if state == "01" and local not in listening}


@dataclass
class Place:
    """An installation with one machine."""

    cluster: Cluster
    machine: Machine

    async def until(self, true: Callable[[], Any], what: str) -> Any:
        """Wait until it says yes."""
        for _ in range(900):
            with contextlib.suppress(AssertionError, KeyError):
                found = true()
                found = await found if asyncio.iscoroutine(found) else found
                if found:
                    return found
            await asyncio.sleep(0.1)
        raise AssertionError(f"{what}: {self.cluster.logs()[-3000:]}")

    async def state(self, state: str = "Running") -> dict[str, Any]:
        """The machine as lists show it, once it is in this state."""
        async def look() -> Any:
            [one] = (await self.cluster.persist("listVirtualMachines"))["virtualmachine"]
            return one if one["state"] == state else None

        one: dict[str, Any] = await self.until(look, f"the machine is not {state}")
        return one

    async def done(self, command: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command that is a job."""
        answer = await self.cluster.persist(command, **parameters)
        ended = await self.cluster.end(answer["jobid"])
        assert ended["jobstatus"] == 1, ended
        result: dict[str, Any] = ended["jobresult"] | {"jobid": answer["jobid"]}
        return result

    async def volume(self) -> str:
        """A new one's id."""
        made = await self.done("createVolume", name="v", size=1)
        return str(made["volume"]["id"])

    async def at_rest(self) -> None:
        """Each job one end, the log whole, the tables its fold; the machine has what the tables say, and nothing else."""
        async def ends() -> bool:
            connection = await asyncpg.connect(self.cluster.dsn)
            try:
                wrong = await connection.fetch(
                    "SELECT stream FROM es.event WHERE stream LIKE 'job-%' GROUP BY stream HAVING count(*) FILTER "
                    "(WHERE type IN ('job.completed', 'job.failed', 'job.cancelled')) <> 1")
                return not wrong and await connection.fetchval("SELECT count(*) FROM es.timer") == 0
            finally:
                await connection.close()

        await self.until(ends, "jobs or timers are left")
        assert await verify_all(self.cluster.dsn) == []
        shown = (await self.cluster.persist("listVolumes", virtualmachineid=ID)).get("volume", [])
        wanted = {f"sb-{UUID(each['id']).hex}": str(self.cluster.base / "primary" / each["path"]) for each in shown}
        assert await disks(self.machine) == wanted
        assert {f"sb-{each.disk.volume_id.hex}" for each in self.machine.attached()} == set(wanted)


@pytest.fixture(scope="module")
async def place(rabbitmq: Any, postgres_server: Any, s3_server: Any) -> AsyncIterator[Place]:
    """One for all tests here."""
    async with running(rabbitmq, postgres_server, s3_server) as cluster:
        define(cluster.base / "machines", ID)
        cluster.kill("kvm")
        cluster.start("kvm")
        made = Place(cluster, Machine(cluster.base / "data/agents" / AGENT / MACHINES, ID))
        try:
            await made.state()
            yield made
        finally:
            cluster.kill("kvm")  # else it would start them again
            end_all(cluster.base)


@pytest.mark.timeout(600)
async def test_attach_detach_and_delete_travel_as_command_order_and_report(place: Place, rabbitmq: Any) -> None:
    """By nothing but the broker: the command to a partition, the order to the agent's queue, its reports to the partition of the
    command's key, the release back; and no role is connected to another."""
    volume = await place.volume()
    for command, order, parameters in (
            ("attachVolume", "order.attach_disk", {"id": volume, "virtualmachineid": str(ID), "deviceid": 2}),
            ("detachVolume", "order.detach_disk", {"id": volume}),
            ("deleteVolume", "order.delete_disk", {"id": volume})):
        async with published(rabbitmq) as seen:
            answer = await place.cluster.persist(command, **parameters)
            assert answer == {"success": True} or (await place.cluster.end(answer["jobid"]))["jobstatus"] == 1
            await place.until(lambda seen=seen: [each for each in seen if each.envelope.type == "order.release"], "no release")
        if command == "attachVolume":
            assert list(await disks(place.machine)) == [f"sb-{UUID(volume).hex}"]
        job = next(each for each in seen if each.envelope.type == "job.submitted").envelope.id
        of_job = [each for each in seen if each.envelope.correlation == job or each.envelope.id == job]
        said = [each for each in of_job if each.exchange != "storebus.events"]
        partition = said[0].key
        assert [(each.envelope.type, each.envelope.kind, each.exchange, each.key) for each in said] == [
            ("job.submitted", "command", "storebus.work", partition),
            (order, "order", "storebus.orders", AGENT),
            ("work.accepted", "report", "storebus.work", partition),
            ("work.completed", "report", "storebus.work", partition),
            ("order.release", "order", "storebus.orders", AGENT)], command
        told = [each.envelope.type for each in of_job if each.exchange == "storebus.events"]
        assert told[-1] == "job.completed" and {"job.started", "job.step_started", "job.step_completed"} <= set(told)
    cluster = place.cluster
    database = urlsplit(cluster.dsn).port or 5432
    assert connections(cluster.processes["kvm"].pid) == (set(), {rabbitmq.port})
    listening, reached = connections(cluster.processes["handlers"].pid)
    assert listening == set() and {rabbitmq.port} <= reached <= {rabbitmq.port, database}
    serving, asked = connections(cluster.processes["api"].pid)
    assert serving == {cluster.port} and asked <= {rabbitmq.port, database}
    await place.at_rest()


SEED = int(os.environ.get("STOREBUS_SOAK_SEED", os.environ.get("STOREBUS_SEED", "1")))
SOAK = bool(os.environ.get("STOREBUS_SOAK_N"))
KILLS = [("attachVolume", name) for name in sorted(NAMES) if name.startswith("agent.")]
KILLS += [("detachVolume", "agent.before_work"), ("detachVolume", "agent.after_work_before_report")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("command", "point"), KILLS if SOAK else seeded(KILLS, 2, SEED))
async def test_the_agent_is_killed_on_the_way(place: Place, point: str, command: str) -> None:
    """SIGKILL of the KVM agent at each of its named places: the job ends once, the machine lived on, and it, the agent's list and
    the log say the same."""
    cluster, volume = place.cluster, await place.volume()
    if command == "detachVolume":
        await place.done("attachVolume", id=volume, virtualmachineid=ID)
    before = pid(place.machine)
    cluster.kill("kvm")
    cluster.start("kvm", f"{point}=kill")
    parameters = {"virtualmachineid": ID} if command == "attachVolume" else {}
    job = (await cluster.persist(command, id=volume, **parameters))["jobid"]
    await place.until(lambda: cluster.processes["kvm"].poll() is not None, f"{point} was not reached")
    cluster.start("kvm")
    assert (await cluster.end(job))["jobstatus"] == 1
    assert pid(place.machine) == before
    [shown] = (await cluster.persist("listVolumes", id=volume))["volume"]
    assert shown.get("virtualmachineid") == (str(ID) if command == "attachVolume" else None) and shown["state"] == "Ready"
    await place.at_rest()
    if command == "attachVolume":
        await place.done("detachVolume", id=volume)
    await cluster.persist("deleteVolume", id=volume)
    await place.at_rest()


OTHERS = [(command, role) for command in ("attachVolume", "detachVolume") for role in ("api", "handlers", "log", "storage")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("command", "role"), OTHERS if SOAK else seeded(OTHERS, 2, SEED))
async def test_another_role_is_killed_on_the_way(place: Place, command: str, role: str) -> None:
    """SIGKILL of any other role while a volume is attached or detached: the job ends once, and everybody says the same."""
    cluster, volume, job = place.cluster, await place.volume(), str(uuid4())
    if command == "detachVolume":
        await place.done("attachVolume", id=volume, virtualmachineid=ID)
    parameters = {"virtualmachineid": ID} if command == "attachVolume" else {}
    asked = asyncio.create_task(cluster.persist(command, id=volume, customjobid=job, **parameters))
    await cluster.reached(job, random.Random(f"{SEED} {command} {role}").randint(0 if role == "api" else 1, 4))
    await asyncio.to_thread(cluster.kill, role)
    cluster.start(role)
    assert (await asked)["jobid"] == job
    assert (await cluster.end(job))["jobstatus"] == 1
    await place.at_rest()
    if command == "attachVolume":
        await place.done("detachVolume", id=volume)
    await cluster.persist("deleteVolume", id=volume)
    await place.at_rest()


@pytest.mark.timeout(600)
async def test_a_machine_that_dies_and_an_agent_that_is_away_change_nothing_of_what_is_attached(place: Place) -> None:
    """qemu is killed while its agent is, too; a volume attached meanwhile is there when both are back."""
    cluster, first, second = place.cluster, await place.volume(), await place.volume()
    await place.done("attachVolume", id=first, virtualmachineid=ID, deviceid=9)
    cluster.kill("kvm")
    await killed(place.machine)
    job = (await cluster.persist("attachVolume", id=second, virtualmachineid=ID))["jobid"]
    refused = await _error(cluster, "deleteVolume", id=second)
    assert "431" in refused and "not Ready" in refused
    cluster.start("kvm")
    assert (await cluster.end(job))["jobstatus"] == 1
    await place.state()
    await place.until(place.machine.running, "it was not started again")
    await place.at_rest()
    assert len(await disks(place.machine)) == 2
    for command in ("deleteVolume", "createSnapshot", "destroyVolume", "resizeVolume"):
        more = {"volumeid": first} if command == "createSnapshot" else {"id": first} | ({"size": 2} if command == "resizeVolume" else {})
        assert "attached to the machine" in await _error(cluster, command, **more)
    for volume in (first, second):
        await place.done("detachVolume", id=volume)
        await cluster.persist("deleteVolume", id=volume)
    await place.at_rest()


async def _error(cluster: Cluster, command: str, **parameters: Any) -> str:
    with pytest.raises(AssertionError) as refused:
        await cluster.persist(command, **parameters)
    return str(refused.value)


@pytest.mark.timeout(600)
async def test_a_pool_is_opened_and_closed_on_the_agents_host(place: Place) -> None:
    """createStoragePool on a real folder; a volume made there is attached; deleting the pool waits for it."""
    cluster, folder = place.cluster, place.cluster.base / "second"
    zone = (await cluster.persist("listZones"))["zone"][0]["id"]
    refused = await _error(cluster, "createStoragePool", name="p", url=f"file://host{folder}", zoneid=zone)
    assert "is not there" in refused
    folder.mkdir()
    pool = (await cluster.persist("createStoragePool", name="p", url=f"file://host{folder}", zoneid=zone))["storagepool"]
    assert (pool["state"], pool["path"], pool["ipaddress"]) == ("Up", str(folder), "host")
    volume = (await place.done("createVolume", name="v", size=1, storageid=pool["id"]))["volume"]
    assert (folder / volume["path"]).exists()
    await place.done("attachVolume", id=volume["id"], virtualmachineid=ID)
    assert list((await disks(place.machine)).values()) == [str(folder / volume["path"])]
    assert "volumes live on" in await _error(cluster, "deleteStoragePool", id=pool["id"])
    cluster.kill("kvm")
    cluster.start("kvm")  # it remembers what it opened

    async def room() -> Any:
        [one] = (await cluster.persist("listStoragePools", id=pool["id"]))["storagepool"]
        return one.get("disksizetotal")

    assert await place.until(room, "no room is told of")
    await place.done("detachVolume", id=volume["id"])
    await cluster.persist("deleteVolume", id=volume["id"])
    assert await cluster.persist("deleteStoragePool", id=pool["id"]) == {"success": True}
    assert list(folder.iterdir()) == []
    await place.at_rest()
