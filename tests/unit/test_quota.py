"""Limits: what an account holds is the sum of what lives, however it began and ended."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from api.edge import Edge
from bus.envelope import Envelope
from bus.submission import submission, submit
from schema.identity import Owner, UpdateResourceLimit
from schema.ids import derive
from schema.image import ImageFormat
from schema.image_store import AddImageStore
from schema.job import CancelJob
from schema.message import Command
from schema.snapshot import CreateSnapshot, DeleteSnapshot
from schema.template import DeleteTemplate, RegisterTemplate
from schema.volume import CreateVolume, DeleteVolume
from tests.support.cloud import Cloud
from tests.support.system import FakeSystem

PERSON = {"username": "ann", "email": "a@b", "firstname": "A", "lastname": "B", "password": "p"}
OWNER = Owner(account_id=UUID(int=7), account="ann", domain_id=UUID(int=8), path="/a/")


async def sent(cloud: Cloud, command: Command) -> UUID:
    """A command of the account, accepted by the edge and delivered."""
    job_id = uuid4()
    await submit(cloud.store, submission(command, job_id=job_id, owner=OWNER))
    [row] = await cloud.store.read_stream(f"job-{job_id}", limit=1)
    await cloud.runtime.handle(Envelope(id=job_id, type=row.type, kind="command", body=row.payload))
    return job_id


async def held(cloud: Cloud) -> dict[str, int]:
    return {name.rpartition("/")[2]: value for name, (value, _) in (await cloud.store.counters()).items() if name.startswith("limit/")}


async def test_a_lifecycle_is_counted_and_leaves_nothing() -> None:
    cloud = await Cloud.start()
    await cloud.send(AddImageStore(name="s", provider="S3", details={"bucket": "b"}))
    await cloud.settle()
    made = await sent(cloud, RegisterTemplate(name="t", url="http://x/y", format=ImageFormat.QCOW2))
    assert (await held(cloud)) == {"template": 1, "secondary_storage": 1 << 30}  # reserved: nobody knows yet how large it is
    await cloud.settle()
    after_fetch = await held(cloud)
    assert after_fetch["template"] == 1 and 0 < after_fetch["secondary_storage"] < 1 << 30  # settled
    volume = derive(await sent(cloud, CreateVolume(name="v", template_id=derive(made, "template"))), "volume")
    await cloud.settle()
    assert (await held(cloud))["volume"] == 1 and (await held(cloud))["primary_storage"] > 0
    snapshot = derive(await sent(cloud, CreateSnapshot(volume_id=volume)), "snapshot")
    await cloud.settle()
    assert (await held(cloud))["snapshot"] == 1 and (await held(cloud))["secondary_storage"] > after_fetch["secondary_storage"]
    for command in (DeleteSnapshot(id=snapshot), DeleteVolume(id=volume), DeleteTemplate(id=derive(made, "template"))):
        await cloud.send(command)  # by anybody who may: what is counted is whose the thing is, not who deletes it
        await cloud.settle()
    assert set((await held(cloud)).values()) == {0}


@pytest.mark.parametrize("end", ["fail", "cancel", "delete the failed one"])
async def test_what_did_not_come_to_be_is_not_counted(end: str) -> None:
    cloud = await Cloud.start()
    job = await sent(cloud, CreateVolume(name="v", size=3))
    assert await held(cloud) == {"volume": 1, "primary_storage": 3 << 30}
    if end == "cancel":
        await cloud.send(CancelJob(job_id=job))
    [order] = [each for each in await cloud.open_orders() if each.job_id == job]
    await (cloud.stop(order) if end == "cancel" else cloud.fail(order))
    await cloud.settle()
    assert set((await held(cloud)).values()) == {0}
    if end == "delete the failed one":
        await cloud.send(DeleteVolume(id=derive(job, "volume")))
        await cloud.settle()
        assert set((await held(cloud)).values()) == {0}


async def test_the_limit_is_said_at_once_and_kept_by_the_append() -> None:
    system = await FakeSystem.start()
    edge = Edge(system)

    async def ask(command: str, **more: object) -> tuple[int, str]:
        answer = await edge.call({"command": command, **{name: str(value) for name, value in more.items()}})
        return answer.status, answer.error

    assert (await ask("createAccount", **PERSON))[0] == 200
    assert (await ask("updateResourceLimit", resourcetype=2, max=2, account="ann"))[0] == 200
    found = (await edge.call({"command": "listResourceLimits", "account": "ann"})).body["listresourcelimitsresponse"]
    assert {each["resourcetypename"]: each["max"] for each in found["resourcelimit"]} == {
        "volume": 2, "snapshot": 20, "template": 20, "primary_storage": 200, "secondary_storage": 400}
    async with system.working():
        for _ in range(2):
            status, _ = await ask("createVolume", name="v", size=1, account="ann")
            assert status == 200
        while (await edge.call({"command": "listVolumes", "state": "Ready"})).body["listvolumesresponse"].get("count") != 2:
            await asyncio.sleep(0.005)
    status, text = await ask("createVolume", name="v", size=1, account="ann")
    assert (status, text) == (535, "the account ann has reached its limit of volume. delete something, or ask an admin for a higher limit")
    assert (await ask("createVolume", name="v", size=1))[0] == 200  # the admin of ROOT has no limit
    assert (await ask("updateResourceLimit", resourcetype=2, max=1, account="ann"))[0] == 431  # it holds two
    assert (await ask("updateResourceLimit", resourcetype=5, max=1, account="ann"))[0] == 431
    assert (await ask("updateResourceLimit", resourcetype=2, max=-1, account="ann"))[0] == 200
    assert (await ask("createVolume", name="v", size=1, account="ann"))[0] == 200


async def test_a_limit_of_bytes_counts_bytes() -> None:
    cloud = await Cloud.start()
    await cloud.send(UpdateResourceLimit(owner=OWNER, resource="primary_storage", max=5 << 30))
    assert await cloud.ends(await sent(cloud, CreateVolume(name="v", size=3))) == []
    refused = await sent(cloud, CreateVolume(name="v", size=3))
    assert await cloud.ends(refused) == ["job.failed"]
    assert b'"code":535' in (await cloud.rows("job.failed"))[-1].payload
