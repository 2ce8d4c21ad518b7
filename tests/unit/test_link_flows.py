"""Links, decided through the real runtime on the memory store, with agents played by the test: what may be linked to, how a link
ends by a command and by its time, and that the store stays until then."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from bus.envelope import Envelope
from handlers import image_store, runtime
from handlers.link import LONGEST_S, MARGIN_S, TIMER
from schema.agent import MakeLink, RevokeLink
from schema.failure import Damage, Refused, Unavailable
from schema.ids import derive
from schema.image_store import AddImageStore
from schema.job import CancelJob
from schema.link import EndLink, OpenLink
from schema.scrub import QuarantineCopy
from schema.snapshot import DeleteSnapshot
from schema.volume import CreateVolume
from tests.support.cloud import VAULT_KEY, Cloud
from tests.unit.test_scrub_flows import Scene


async def given(scene: Scene, **more: object) -> tuple[UUID, str]:
    """A link that was made, and the object."""
    key = await scene.key(await scene.snapshot())
    job = await scene.done(OpenLink.model_validate({"store_id": scene.store, "object_key": key, "lifetime_s": 600} | more))
    assert await scene.cloud.ends(job) == ["job.completed"]
    return job, key


async def residents(scene: Scene) -> int:
    return await scene.cloud.value(image_store.residents(scene.store))


async def revokes(scene: Scene) -> list[RevokeLink]:
    return [order for order in await scene.cloud.orders() if isinstance(order, RevokeLink)]


async def due(scene: Scene, link: UUID) -> None:
    """The link's timer is delivered, and what follows is done."""
    await scene.cloud.runtime.handle(Envelope(id=uuid4(), type=TIMER, kind="timer", body=b'{"link_id":"%s"}' % str(link).encode()))
    await scene.cloud.settle()


async def test_a_link_is_made_by_an_agent_that_seals_its_url_and_ended_by_a_command_once() -> None:
    scene = await Scene.start()
    link, key = await given(scene)
    (order,) = [order for order in await scene.cloud.orders() if isinstance(order, MakeLink)]
    assert (order.key, order.lifetime_s, order.revocable, order.seal_to) == (key, 600, True, VAULT_KEY)
    assert await residents(scene) == 2, "the snapshot's copy and the link"
    state = await scene.state(link, "link")
    assert (state.status, state.name) == ("Given", f"1900000000-{order.work_id.hex}")
    ends = [await scene.done(EndLink(id=link)) for _ in range(2)]
    assert [await scene.cloud.ends(job) for job in ends] == [["job.completed"]] * 2
    assert [revoke.link_id for revoke in await revokes(scene)] == [state.name]
    assert (await scene.state(link, "link")).status == "Ended"
    assert await residents(scene) == 1
    assert f"link-{link}/due" not in await scene.cloud.store.timers()


async def test_its_time_ends_a_link_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = await Scene.start()
    link, _ = await given(scene)
    timer = (await scene.cloud.store.timers())[f"link-{link}/due"]
    assert timer.type == TIMER
    await due(scene, link)  # too early: a transport that does not outlive the process delivers all at its start
    assert await revokes(scene) == []
    assert f"link-{link}/due" in await scene.cloud.store.timers(), "it is set again"

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override] # as it is called
            return datetime.now(tz) + timedelta(seconds=600 + MARGIN_S)  # type: ignore[arg-type] # as it is called

    monkeypatch.setattr(runtime, "datetime", Later)
    for _ in range(2):
        await due(scene, link)
    assert len(await revokes(scene)) == 1
    assert (await scene.state(link, "link")).status == "Ended"
    assert await residents(scene) == 1


async def test_a_link_that_cannot_be_revoked_asks_no_agent_to() -> None:
    scene = await Scene.start()
    link, _ = await given(scene, revocable=False)
    await scene.done(EndLink(id=link))
    assert await revokes(scene) == []
    assert (await scene.state(link, "link")).status == "Ended"


async def test_what_is_cancelled_or_fails_leaves_no_link() -> None:
    scene = await Scene.start()
    key = await scene.key(await scene.snapshot())
    ask = OpenLink(store_id=scene.store, object_key=key, lifetime_s=600)
    job = await scene.cloud.send(ask)
    await scene.cloud.fail(await scene.open(MakeLink))
    assert await scene.cloud.ends(job) == ["job.failed"]
    late = await scene.cloud.send(ask)
    order = await scene.open(MakeLink)
    await scene.cloud.send(CancelJob(job_id=late))
    await scene.cloud.complete(order)  # it was made before the agent heard
    await scene.cloud.settle()
    assert await scene.cloud.ends(late) == ["job.cancelled"]
    assert len(await revokes(scene)) == 1
    for link in (job, late):
        assert (await scene.state(link, "link")).status == "NotGiven"
        assert f"link-{link}/due" not in await scene.cloud.store.timers()
    assert await residents(scene) == 1
    assert await scene.cloud.ends(await scene.done(EndLink(id=late))) == ["job.completed"]


async def test_what_may_not_be_linked_is_refused_by_field() -> None:
    scene = await Scene.start()
    snapshot = await scene.snapshot()
    key = await scene.key(snapshot)

    async def refused(field: str, **more: object) -> None:
        command = OpenLink.model_validate({"store_id": scene.store, "object_key": key, "lifetime_s": 600} | more)
        with pytest.raises(Refused) as no:
            await scene.cloud.runtime.precheck(command, uuid4())
        assert no.value.failure.field == field and no.value.failure.cause

    for seconds in (0, -1, LONGEST_S + 1):
        await refused("lifetime_s", lifetime_s=seconds)
    for other in ("", "x", f"{key}x", "inst/links/1900000000-x", f"inst/volume/{uuid4()}/1"):
        await refused("object_key", object_key=other)
    await refused("id", store_id=uuid4())
    with pytest.raises(Refused, match="no link"):
        await scene.cloud.runtime.precheck(EndLink(id=uuid4()), uuid4())
    delta = await scene.snapshot()
    await refused("object_key", object_key=await scene.key(delta))
    await scene.done(QuarantineCopy(kind="snapshot", thing_id=snapshot, damage=Damage(
        object=key, what="part", part=1, parts=1, offset=0, size=1, expected="a", found="b")))
    await refused("snapshotid")
    scene.cloud.runtime.vault_key = ""
    with pytest.raises(Unavailable, match="vault"):
        await scene.cloud.runtime.precheck(OpenLink(
            store_id=scene.store, object_key=await scene.key(await scene.snapshot()), lifetime_s=1), uuid4())
    await scene.done(DeleteSnapshot(id=delta))


async def test_a_store_without_links_is_refused_by_what_it_lacks() -> None:
    cloud = await Cloud.start()
    store = await cloud.send(AddImageStore(name="shelf", provider="folder", zone_id=cloud.zone_id))
    await cloud.settle()
    volume = await cloud.send(CreateVolume(name="v", size=1))
    await cloud.settle()
    scene = Scene(cloud, derive(store, "image_store"), derive(volume, "volume"))
    with pytest.raises(Refused, match=r"shelf.*folder lacks presigned_get") as no:
        await cloud.runtime.precheck(OpenLink(
            store_id=scene.store, object_key=await scene.key(await scene.snapshot()), lifetime_s=1), uuid4())
    assert no.value.failure.field == "store_id" and no.value.failure.remedy
