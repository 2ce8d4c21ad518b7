"""The end of a volume: destroyed, recovered, expunged by its time or at once; what is protected stays."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.edge import Edge
from bus.envelope import Envelope
from schema.agent import DeleteDisk
from schema.failure import Refused
from schema.ids import derive
from schema.image_store import AddImageStore
from schema.snapshot import CreateSnapshot
from schema.volume import CreateVolume, DeleteVolume, DestroyVolume, ExpungeVolume, RecoverVolume, UpdateVolume
from tests.support.cloud import Cloud
from tests.support.system import FakeSystem


async def volume_of(cloud: Cloud) -> UUID:
    job = await cloud.send(CreateVolume(name="v", size=1))
    await cloud.settle()
    return derive(job, "volume")


async def status(cloud: Cloud, volume: UUID) -> str:
    state = await cloud.runtime._state(f"volume-{volume}")
    assert state is not None
    return str(state.status)


async def ring(cloud: Cloud, volume: UUID) -> bool:
    """Deliver the volume's timer, if it has one, as the scheduler would."""
    found = (await cloud.store.timers()).get(f"volume-{volume}/expunge")
    if found is None:
        return False
    await cloud.runtime.handle(Envelope(id=uuid4(), type=found.type, kind="timer", body=found.payload))
    return True


async def later(cloud: Cloud, days: float, volume: UUID) -> None:
    """The log is so much older than it was."""
    rows = cloud.store.streams[f"volume-{volume}"]  # type: ignore[attr-defined] # the store in memory
    rows[:] = [row._replace(recorded_at=datetime.now(UTC) - timedelta(days=days)) for row in rows]


async def test_a_destroyed_volume_is_recovered_or_expunged_when_its_time_has_come() -> None:
    cloud = await Cloud.start()
    volume = await volume_of(cloud)
    first = await cloud.send(DestroyVolume(id=volume))
    assert await cloud.ends(first) == ["job.completed"] and await status(cloud, volume) == "Destroy"
    assert await ring(cloud, volume) and await status(cloud, volume) == "Destroy"  # before its time, and it is set again
    assert (await cloud.open_orders()) == []
    await cloud.send(RecoverVolume(id=volume))
    assert await status(cloud, volume) == "Ready" and not await ring(cloud, volume)
    await cloud.send(DestroyVolume(id=volume))
    await later(cloud, 1, volume)
    assert await ring(cloud, volume) and await status(cloud, volume) == "Expunging"
    await cloud.settle()
    assert await status(cloud, volume) == "Expunged" and not await ring(cloud, volume)
    assert {value for value, _ in (await cloud.store.counters()).values()} == {0}
    assert await cloud.store.timers() == {}


async def test_the_time_of_an_earlier_destruction_ends_nothing() -> None:
    """A timer that was delivered late, after the volume was recovered and destroyed again, or is gone."""
    cloud = await Cloud.start()
    volume = await volume_of(cloud)
    first = await cloud.send(DestroyVolume(id=volume))
    await cloud.send(RecoverVolume(id=volume))
    await cloud.send(DestroyVolume(id=volume))
    late = await cloud.send(ExpungeVolume(id=volume, destroyed_by=first))
    assert await cloud.ends(late) == ["job.completed"] and await status(cloud, volume) == "Destroy"
    await cloud.send(DeleteVolume(id=volume))
    await cloud.settle()
    for stale in (ExpungeVolume(id=volume, destroyed_by=first), ExpungeVolume(id=uuid4(), destroyed_by=first)):
        job = await cloud.send(stale)
        assert await cloud.ends(job) == ["job.completed"]
    assert await cloud.open_orders() == [] and await cloud.store.timers() == {}


@pytest.mark.parametrize("command", [DeleteVolume, DestroyVolume])
async def test_what_is_destroyed_can_be_deleted_at_once(command: Any) -> None:
    cloud = await Cloud.start()
    volume = await volume_of(cloud)
    await cloud.send(DestroyVolume(id=volume))
    more = {"expunge": True} if command is DestroyVolume else {}
    job = await cloud.send(command(id=volume, **more))
    [order] = await cloud.open_orders()
    assert isinstance(order, DeleteDisk) and await cloud.store.timers() != {}  # the job's own watch
    assert f"volume-{volume}/expunge" not in await cloud.store.timers()
    await cloud.settle()
    assert await cloud.ends(job) == ["job.completed"] and await status(cloud, volume) == "Expunged"
    with pytest.raises(Refused, match="no volume has the id"):
        await cloud.runtime.precheck(RecoverVolume(id=volume), uuid4())


async def test_what_cannot_be_is_refused() -> None:
    cloud = await Cloud.start()
    await cloud.send(AddImageStore(name="s", provider="S3", details={"bucket": "b"}))
    await cloud.settle()
    volume = await volume_of(cloud)
    with pytest.raises(Refused, match="not Destroy"):
        await cloud.runtime.precheck(RecoverVolume(id=volume), uuid4())
    await cloud.send(CreateSnapshot(volume_id=volume))
    for command in (DestroyVolume(id=volume), DestroyVolume(id=volume, expunge=True), DeleteVolume(id=volume)):
        with pytest.raises(Refused, match="Snapshotting"):
            await cloud.runtime.precheck(command, uuid4())
    await cloud.settle()
    await cloud.send(DestroyVolume(id=volume))
    for command, said in ((DestroyVolume(id=volume), "destroyed already"), (CreateSnapshot(volume_id=volume), "Destroy, not Ready"),
                          (UpdateVolume(id=volume, name="n"), "Destroy")):
        with pytest.raises(Refused, match=said):
            await cloud.runtime.precheck(command, uuid4())  # type: ignore[arg-type] # of several kinds


async def test_a_protected_volume_stays() -> None:
    """Through the edge, in CloudStack's words; until it is protected no more."""
    system = await FakeSystem.start()
    edge = Edge(system)
    volume = str(await volume_of(system.cloud))
    changed = await edge.call({"command": "updateVolume", "id": volume, "deleteProtection": "true", "name": "w"})
    assert changed.status == 200
    for command in ("deleteVolume", "destroyVolume"):
        answer = await edge.call({"command": command, "id": volume, "expunge": "true"})
        assert answer.status == 431 and f"Volume [id = {volume}, name = w] has delete protection enabled" in answer.error
    [shown] = (await edge.call({"command": "listVolumes", "id": volume})).body["listvolumesresponse"]["volume"]
    assert (shown["deleteprotection"], shown["name"], shown["destroyed"]) == (True, "w", False)
    await edge.call({"command": "updateVolume", "id": volume, "deleteprotection": "false"})
    destroyed = await edge.call({"command": "destroyVolume", "id": volume})
    await system.cloud.submissions()
    job = (await edge.call({"command": "queryAsyncJobResult", "jobid": destroyed.body["destroyvolumeresponse"]["jobid"]}))
    result = job.body["queryasyncjobresultresponse"]["jobresult"]["volume"]
    assert (result["id"], result["state"], result["destroyed"]) == (volume, "Destroy", True)
    assert (await edge.call({"command": "listVolumes", "state": "Destroy"})).body["listvolumesresponse"]["count"] == 1
    back = (await edge.call({"command": "recoverVolume", "id": volume})).body["recovervolumeresponse"]["volume"]
    assert (back["state"], back["destroyed"]) == ("Ready", False)


@pytest.mark.parametrize("more", [{}, {"customid": str(uuid4())}, {"name": "x" * 256}])
async def test_an_update_says_something_that_can_be(more: dict[str, str]) -> None:
    system = await FakeSystem.start()
    volume = str(await volume_of(system.cloud))
    answer = await Edge(system).call({"command": "updateVolume", "id": volume, **more})
    assert answer.status == 431, json.dumps(answer.body)
