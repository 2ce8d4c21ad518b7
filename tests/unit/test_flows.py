"""The deciders and the engine, through the real runtime on the memory store, with agents played by the test."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from bus.envelope import Envelope
from schema.agent import DeleteImages, FetchImage
from schema.failure import Refused
from schema.ids import derive
from schema.image import ImageFormat
from schema.image_store import AddImageStore, DeleteImageStore, RemoveLeftovers
from schema.job import CancelJob
from schema.snapshot import CreateSnapshot, DeleteSnapshot
from schema.template import DeleteTemplate, RegisterTemplate
from schema.volume import CreateVolume, DeleteVolume, UpdateVolume
from tests.support.cloud import Cloud


async def store_of(cloud: Cloud) -> UUID:
    job = await cloud.send(AddImageStore(name="s", provider="S3", details={"bucket": "b"}))
    await cloud.settle()
    assert await cloud.ends(job) == ["job.completed"]
    return derive(job, "image_store")


async def template_of(cloud: Cloud) -> UUID:
    job = await cloud.send(RegisterTemplate(name="t", url="http://x/y", format=ImageFormat.QCOW2))
    await cloud.settle()
    assert await cloud.ends(job) == ["job.completed"]
    return derive(job, "template")


async def volume_of(cloud: Cloud, **more: object) -> UUID:
    job = await cloud.send(CreateVolume(name="v", **({"size": 1} | more)))  # type: ignore[arg-type] # test's own keywords
    await cloud.settle()
    assert await cloud.ends(job) == ["job.completed"]
    return derive(job, "volume")


async def test_the_whole_lifecycle_leaves_counters_at_zero() -> None:
    cloud = await Cloud.start()
    store = await store_of(cloud)
    template = await template_of(cloud)
    volume = await volume_of(cloud, template_id=template, size=None)
    taken = await cloud.send(CreateSnapshot(volume_id=volume))
    await cloud.settle()
    snapshot = derive(taken, "snapshot")
    restored = await volume_of(cloud, snapshot_id=snapshot, zone_id=cloud.zone_id, size=None)
    assert await cloud.value(f"image_store/{store}/residents") == 2
    for command in (DeleteVolume(id=restored), DeleteVolume(id=volume), DeleteSnapshot(id=snapshot),
                    DeleteTemplate(id=template)):
        job = await cloud.send(command)
        await cloud.settle()
        assert await cloud.ends(job) == ["job.completed"]
    last = await cloud.send(DeleteImageStore(id=store))
    assert await cloud.ends(last) == ["job.completed"]
    assert {value for value, _ in (await cloud.store.counters()).values()} == {0}
    assert await cloud.store.claims() == {}
    assert await cloud.store.timers() == {}


async def test_an_image_store_with_residents_is_not_deleted() -> None:
    cloud = await Cloud.start()
    store = await store_of(cloud)
    await template_of(cloud)
    job = await cloud.send(DeleteImageStore(id=store))
    assert await cloud.ends(job) == ["job.failed"]
    again = await cloud.send(RegisterTemplate(name="t2", url="http://x/y", format=ImageFormat.QCOW2))
    await cloud.settle()
    assert await cloud.ends(again) == ["job.completed"]


async def test_providers_are_not_mixed_and_names_are_not_shared() -> None:
    cloud = await Cloud.start()
    await store_of(cloud)
    for command in (AddImageStore(name="f", provider="folder", url="folder:///f"),
                    AddImageStore(name="s", provider="s3", details={"bucket": "c"})):
        with pytest.raises(Refused):
            await cloud.runtime.precheck(command, uuid4())
        job = await cloud.send(command)
        assert await cloud.ends(job) == ["job.failed"]


@pytest.mark.parametrize(("command", "field"), [
    (AddImageStore(name="x", provider="nosuch"), "provider"),
    (AddImageStore(name="x", provider="s3"), "details.bucket"),
    (AddImageStore(name="x", provider="s3", details={"bucket": "b", "secretkey": "clear"}), "details.secretkey"),
    (AddImageStore(name="x", provider="s3", details={"bucket": "b", "nosuch": "1"}), "details.nosuch"),
    (CreateVolume(name="v"), "size"),
    (CreateVolume(name="v", size=0), "size"),
    (CreateVolume(name="", size=1), "name"),
    (CreateVolume(name="v", snapshot_id=uuid4()), "zoneid"),
    (CreateVolume(name="v", template_id=uuid4()), "templateid"),
    (CreateVolume(name="v", size=1, zone_id=uuid4()), "zoneid"),
    (RegisterTemplate(name="t", url="ftp://x/y", format=ImageFormat.QCOW2), "url"),
    (CreateSnapshot(volume_id=uuid4()), "volumeid"),
    (DeleteVolume(id=uuid4()), "id"),
    (DeleteSnapshot(id=uuid4()), "id"),
    (DeleteTemplate(id=uuid4()), "id"),
    (DeleteImageStore(id=uuid4()), "id"),
    (UpdateVolume(id=uuid4(), name="n"), "id"),
    (CancelJob(job_id=uuid4()), "jobid"),
])
async def test_bad_input_names_the_field_and_writes_nothing_but_the_refusal(command: object, field: str) -> None:
    cloud = await Cloud.start()
    before = await cloud.store.counters(), await cloud.store.claims()
    with pytest.raises(Refused) as refused:
        await cloud.runtime.precheck(command, uuid4())  # type: ignore[arg-type] # parametrised
    assert refused.value.failure.field == field
    head = await cloud.store.head()
    job = await cloud.send(command)  # type: ignore[arg-type] # parametrised
    assert await cloud.ends(job) == ["job.failed"]
    assert await cloud.store.head() == head + 2
    assert (await cloud.store.counters(), await cloud.store.claims()) == before


async def test_a_duplicate_command_changes_nothing_and_another_body_is_refused() -> None:
    cloud = await Cloud.start()
    job = await cloud.send(CreateVolume(name="v", size=1))
    head = await cloud.store.head()
    await cloud.send(CreateVolume(name="v", size=1), job)
    assert await cloud.store.head() == head
    with pytest.raises(Refused):
        await cloud.send(CreateVolume(name="other", size=1), job)
    assert await cloud.store.head() == head


async def test_a_command_that_comes_again_to_a_fresh_process_changes_nothing() -> None:
    """Its handler died between the append and the ack: the next process knows nothing of it yet."""
    cloud = await Cloud.start()
    job = await cloud.send(CreateVolume(name="v", size=1))
    head = await cloud.store.head()
    for fresh in (await cloud.another(), await cloud.another()):
        await fresh.send(CreateVolume(name="v", size=1), job)
    row = (await cloud.store.read_stream(f"job-{job}", limit=1))[0]
    relayed = await cloud.another()
    await relayed.runtime.handle(Envelope(id=job, type=row.type, kind="command", body=row.payload))
    assert await cloud.store.head() == head


async def test_a_second_job_on_a_busy_volume_is_refused() -> None:
    cloud = await Cloud.start()
    await store_of(cloud)
    volume = await volume_of(cloud)
    first = await cloud.send(CreateSnapshot(volume_id=volume))
    for command in (CreateSnapshot(volume_id=volume), DeleteVolume(id=volume)):
        job = await cloud.send(command)
        assert await cloud.ends(job) == ["job.failed"]
    await cloud.settle()
    assert await cloud.ends(first) == ["job.completed"]


async def test_two_handlers_with_old_knowledge_do_not_both_take_a_busy_volume() -> None:
    cloud = await Cloud.start()
    await store_of(cloud)
    volume = await volume_of(cloud)
    other = await cloud.another()
    assert await cloud.ends(await other.send(UpdateVolume(id=volume, name="n"))) == ["job.completed"]  # it knows the volume now
    first = await cloud.send(CreateSnapshot(volume_id=volume))
    second = await other.send(CreateSnapshot(volume_id=volume))
    assert await cloud.ends(second) == ["job.failed"]
    await cloud.settle()
    assert await cloud.ends(first) == ["job.completed"]


async def test_async_backup_ends_on_primary_and_a_second_job_backs_up() -> None:
    cloud = await Cloud.start()
    await store_of(cloud)
    volume = await volume_of(cloud)
    job = await cloud.send(CreateSnapshot(volume_id=volume, async_backup=True))
    (take,) = await cloud.open_orders()
    await cloud.complete(take)
    assert await cloud.ends(job) == ["job.completed"]
    await cloud.settle()
    assert [row.type for row in await cloud.store.read_stream(f"snapshot-{derive(job, 'snapshot')}")] == [
        "snapshot.requested", "snapshot.taken", "snapshot.backup_started", "snapshot.backed_up", "snapshot.off_primary"]


async def test_a_timer_sends_the_order_again_without_a_new_row() -> None:
    cloud = await Cloud.start()
    job = await cloud.send(CreateVolume(name="v", size=1))
    assert list(await cloud.store.timers()) == [f"job-{job}/work"]
    head = await cloud.store.head()
    await cloud.fire(job)
    assert await cloud.store.head() == head
    assert [to.kind for to, _ in cloud.transport.sent] == ["agent"]


async def test_a_retryable_failure_gets_a_new_attempt_with_a_new_name() -> None:
    cloud = await Cloud.start()
    job = await cloud.send(CreateVolume(name="v", size=1))
    (order,) = await cloud.open_orders()
    await cloud.fail(order, retryable=True)
    await cloud.fire(job)
    (again,) = await cloud.open_orders()
    assert (again.work_id, again.attempt) == (order.work_id, 2)
    await cloud.complete(order)  # late: the first attempt after all
    assert await cloud.ends(job) == []
    await cloud.complete(again)
    assert await cloud.ends(job) == ["job.completed"]


async def test_what_an_attempt_left_in_a_store_that_is_away_is_removed_however_long_that_takes() -> None:
    cloud = await Cloud.start()
    store = await store_of(cloud)
    job = await cloud.send(RegisterTemplate(name="t", url="http://x/y", format=ImageFormat.QCOW2))
    (first,) = await cloud.open_orders()
    assert isinstance(first, FetchImage)
    await cloud.fail(first, retryable=True, remains=True)
    await cloud.submissions()
    (removal,) = await cloud.open_orders()
    assert isinstance(removal, DeleteImages)
    assert removal.keys == [first.key]
    for _ in range(9):  # the store is away, for longer than any attempt waits
        await cloud.fail(removal, retryable=True)
        await cloud.fire(removal.job_id)
        (removal,) = await cloud.open_orders()
    await cloud.fire(job)
    second = next(one for one in await cloud.open_orders() if isinstance(one, FetchImage))
    assert second.key != first.key
    await cloud.complete(second)
    assert await cloud.ends(job) == ["job.completed"]
    await cloud.send(DeleteTemplate(id=second.thing_id))
    await cloud.complete(next(one for one in await cloud.open_orders() if one.job_id not in (job, removal.job_id)))
    refused = await cloud.send(DeleteImageStore(id=store))
    assert await cloud.ends(refused) == ["job.failed"], "forgotten while something of ours is in it"
    await cloud.complete(removal)
    assert await cloud.ends(removal.job_id) == ["job.completed"]
    assert await cloud.ends(await cloud.send(DeleteImageStore(id=store))) == ["job.completed"]
    assert {value for value, _ in (await cloud.store.counters()).values()} == {0}


async def test_what_a_thing_owns_is_no_leftover() -> None:
    cloud = await Cloud.start()
    store = await store_of(cloud)
    await cloud.send(RegisterTemplate(name="t", url="http://x/y", format=ImageFormat.QCOW2))
    (order,) = await cloud.open_orders()
    assert isinstance(order, FetchImage)
    await cloud.complete(order)
    owned = await cloud.send(RemoveLeftovers(id=store, objects=[order.key]))
    assert await cloud.ends(owned) == ["job.completed"]
    foreign = await cloud.send(RemoveLeftovers(id=store, objects=["elsewhere/precious"]))
    assert await cloud.ends(foreign) == ["job.failed"]
    assert await cloud.open_orders() == []


async def test_a_cancel_that_loses_against_completion_is_undone() -> None:
    cloud = await Cloud.start()
    job = await cloud.send(CreateVolume(name="v", size=1))
    (order,) = await cloud.open_orders()
    await cloud.send(CancelJob(job_id=job))
    await cloud.complete(order)
    (undo,) = await cloud.open_orders()
    assert undo.TYPE == "order.delete_disk"
    await cloud.complete(undo)
    assert await cloud.ends(job) == ["job.cancelled"]
    assert {value for value, _ in (await cloud.store.counters()).values()} == {0}


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_agents_do_each_job_ends_once_and_counters_equal_live_things(seed: int) -> None:
    cloud = await Cloud.start()
    store = await store_of(cloud)
    jobs = [await cloud.send(RegisterTemplate(name=f"t{n}", url="http://x/y", format=ImageFormat.QCOW2)) for n in range(3)]
    volumes = []
    for n in range(3):
        job = await cloud.send(CreateVolume(name=f"v{n}", size=1))
        jobs.append(job)
        volumes.append(derive(job, "volume"))

    async def cancel(job: UUID) -> None:
        await cloud.send(CancelJob(job_id=job))

    await cloud.chaos(seed, jobs, cancel)
    more = [await cloud.send(CreateSnapshot(volume_id=volume, async_backup=bool(seed % 2))) for volume in volumes]
    more += [await cloud.send(CreateVolume(name="w", template_id=derive(jobs[n], "template"))) for n in range(3)]
    await cloud.chaos(seed + 1000, more, cancel)
    for job in jobs + more:
        assert len(await cloud.ends(job)) == 1
    types = [row.type for row in await cloud.rows("template.ready", "snapshot.backed_up")]
    gone = [row.type for row in await cloud.rows("template.deleted", "snapshot.failed")]
    live = await cloud.value(f"image_store/{store}/residents")
    states = [cloud.runtime._states.get(f"template-{derive(j, 'template')}", (0, None))[1] for j in jobs[:3]]
    states += [cloud.runtime._states.get(f"snapshot-{derive(j, 'snapshot')}", (0, None))[1] for j in more[:3]]
    assert live == sum(1 for state in states if state is not None and state.status in ("Ready", "BackedUp"))
    assert live <= len(types) and len(gone) >= 0
    assert await cloud.store.timers() == {}


async def test_what_another_process_wrote_is_looked_at_before_a_refusal() -> None:
    """A process that remembers a volume as it was does not refuse by that what the log allows now."""
    cloud = await Cloud.start()
    other = await cloud.another()
    made = await cloud.send(CreateVolume(name="v", size=1))
    volume = derive(made, "volume")
    early = await other.send(DeleteVolume(id=volume))
    assert await cloud.ends(early) == ["job.failed"]  # it is Creating, and remembered so
    await cloud.settle()
    late = await other.send(DeleteVolume(id=volume))
    await cloud.settle()
    assert await cloud.ends(late) == ["job.completed"]
