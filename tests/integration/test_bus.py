"""Bus: publish with and without a broker, wait for jobs, follow and cancel them, hand events to handlers."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from api.settings import Settings
from bus.client import Bus
from bus.envelope import Envelope
from bus.errors import BrokerAway, CallTimedOut, PublishUnknown, StoreAway
from bus.event_store import AppendRequest, EventStore, NewRow
from bus.handles import handles
from bus.installation import Installation, write_installation
from bus.job import JobFailure, JobStopped
from bus.submission import job_stream
from bus.transport import Address, WireMessage
from bus.vault import Vault
from schema.codec import canonical, encode
from schema.failure import BadParameter, Cancelled, Denied, Failure, Unavailable
from schema.image_store import AddImageStore
from schema.job import JobCancelled, JobCompleted, JobFailed, JobStarted, JobStepStarted
from schema.message import Event
from schema.snapshot import CreateSnapshot, DeleteSnapshot
from tests.integration.conftest import LogServer
from tests.services.postgres import fresh_database


async def tell(store: EventStore, job: UUID, *events: Event) -> None:
    """Append to a job's stream, as a handler would."""
    stream = job_stream(job)
    at = len(await store.read_stream(stream)) - 1
    rows = [NewRow(stream=stream, kind="event", type=event.TYPE, id=uuid4(), payload=encode(event), key=stream,
                   correlation=job) for event in events]
    await store.append(AppendRequest(expected={stream: at}, rows=rows))


async def test_publish_without_a_broker_is_one_append(store: EventStore) -> None:
    async with Bus(store=store) as bus:
        command = CreateSnapshot(volume_id=uuid4())
        job = await bus.publish(command, principal="engineer", tenant="a", traceparent="00-1-2-3")
        [row] = await store.read_stream(job_stream(job.id))
        assert (row.kind, row.type, row.id, row.key, row.tenant) == (
            "command", "job.submitted", job.id, f"volume-{command.volume_id}", "a")
        assert json.loads(row.meta) == {"principal": "engineer", "traceparent": "00-1-2-3"}
        assert await job.status() == "submitted"
        assert (await bus.publish(command, id=job.id)).id == job.id
        assert await store.head() == 1
        with pytest.raises(BadParameter, match="another command"):
            await bus.publish(CreateSnapshot(volume_id=uuid4()), id=job.id)
        with pytest.raises(BadParameter):
            await bus.publish(DeleteSnapshot(id=uuid4()), id=job.id)


class Broker:
    """A double of a durable transport that fails as told."""

    durable = True

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.sent: list[tuple[Address, WireMessage]] = []

    async def publish(self, to: Address, message: WireMessage) -> None:
        self.sent.append((to, message))
        if self.failures:
            raise self.failures.pop(0)


async def test_publish_with_a_broker_repeats_under_the_same_id_until_confirmed() -> None:
    broker = Broker(PublishUnknown("no confirm"), BrokerAway("closed"))
    bus = Bus(transport=broker)  # type: ignore[arg-type] # only publish is used
    command = DeleteSnapshot(id=uuid4())
    job = await bus.publish(command)
    assert len(broker.sent) == 3
    for to, message in broker.sent:
        envelope = Envelope.read(message.headers, message.body)
        assert (to.kind, to.name) == ("commands", "snapshot.delete")
        assert (envelope.id, envelope.type) == (job.id, "snapshot.delete")
        assert message.body == encode(command)
    with pytest.raises(Unavailable, match="STOREBUS_DATABASE_URL"):
        await job.result(1)
    with pytest.raises(Unavailable):
        bus.subscribe()


async def test_clear_secrets_are_sealed_or_refused(store: EventStore) -> None:
    command = AddImageStore(provider="s3", details={"bucket": "b", "secretkey": "canary"})
    broker = Broker()
    with pytest.raises(Denied, match="secretkey"):
        await Bus(transport=broker).publish(command)  # type: ignore[arg-type] # as above
    assert not broker.sent
    vault = Vault(store, b"k" * 32)
    await Bus(store=store, transport=broker, vault=vault).publish(command)  # type: ignore[arg-type] # as above
    await Bus(store=store, vault=vault).publish(command)
    [row] = (await store.read_log(0)).rows
    for body in (broker.sent[0][1].body, row.payload):
        assert b"canary" not in body
    sent = json.loads(broker.sent[0][1].body)["details"]
    assert await vault.open(sent["secretkey"]) == "canary"


async def test_a_job_ends_in_one_of_three_ways(store: EventStore) -> None:
    bus = Bus(store=store)
    jobs = [await bus.publish(CreateSnapshot(volume_id=uuid4())) for _ in range(3)]
    waiting = [asyncio.create_task(job.result(10)) for job in jobs]
    await asyncio.sleep(0.05)
    failure = Failure(code=536, field="volume", cause="it is busy", remedy="wait")
    await tell(store, jobs[0].id, JobStarted(job_id=jobs[0].id, steps=["take"]))
    await tell(store, jobs[0].id, JobCompleted(job_id=jobs[0].id, result={"id": "s"}))
    await tell(store, jobs[1].id, JobFailed(job_id=jobs[1].id, failure=failure))
    await tell(store, jobs[2].id, JobCancelled(job_id=jobs[2].id, failure=failure))
    assert await waiting[0] == {"id": "s"}
    with pytest.raises(JobFailure, match=r"volume: it is busy\. wait") as failed:
        await waiting[1]
    assert failed.value.failure == failure
    with pytest.raises(JobStopped) as stopped:
        await waiting[2]
    assert isinstance(stopped.value, Cancelled)
    assert await bus.job(str(jobs[0].id)).result() == {"id": "s"}


async def test_waiting_has_an_end(store: EventStore) -> None:
    job = await Bus(store=store).publish(CreateSnapshot(volume_id=uuid4()))
    with pytest.raises(CallTimedOut, match="has not ended"):
        await job.result(0.2)
    assert await Bus(store=store).job(uuid4()).status() == "unknown"


async def test_progress_shows_steps_and_bytes(store: EventStore) -> None:
    job, work = await Bus(store=store).publish(CreateSnapshot(volume_id=uuid4())), uuid4()
    seen: list[dict[str, Any]] = []

    async def follow() -> None:
        async for each in job.progress(every_s=0.02):
            seen.append(each)

    task = asyncio.create_task(follow())
    await tell(store, job.id, JobStepStarted(job_id=job.id, step="backup", work_id=work, attempt=2, agent="kvm-1"))
    for done in (10, 10, 20):
        await store.set_progress(f"{work}.2", canonical({"stage": "write", "bytes": done, "total": 20}))
        await asyncio.sleep(0.08)
    await tell(store, job.id, JobCompleted(job_id=job.id))
    await asyncio.wait_for(task, 60)
    assert [each["event"] for each in seen if "event" in each] == ["job.submitted", "job.step_started", "job.completed"]
    assert [each["bytes"] for each in seen if "stage" in each] == [10, 20]
    assert {each["step"] for each in seen if "stage" in each} == {"backup"}


async def test_cancel_is_a_command_beside_the_job(store: EventStore) -> None:
    bus = Bus(store=store)
    job = await bus.publish(CreateSnapshot(volume_id=uuid4()))
    other = await job.cancel()
    [row] = await store.read_stream(job_stream(other.id))
    assert json.loads(row.payload)["command"] == "job.cancel"
    assert row.key == job_stream(job.id)


async def test_events_reach_marked_functions_and_what_they_raise_ends_the_run(store: EventStore) -> None:
    seen: list[str] = []

    class Listener:
        @handles("job.started", "job.completed")
        async def note(self, subject: str, event: Any) -> None:
            seen.append(subject)
            if subject == "job.completed":
                raise RuntimeError("enough")

    bus = Bus(store=store)
    job = await bus.publish(CreateSnapshot(volume_id=uuid4()))
    await tell(store, job.id, JobStarted(job_id=job.id, steps=[]), JobCompleted(job_id=job.id))
    with pytest.raises(RuntimeError, match="enough"):
        await asyncio.wait_for(bus.run(Listener(), group="g", from_="beginning"), 60)
    await bus.aclose()
    assert seen == ["job.started", "job.completed"]
    with pytest.raises(RuntimeError, match="enough"):  # it was not handled, so it comes again
        await asyncio.wait_for(bus.run(Listener(), group="g", from_="beginning"), 60)
    await bus.aclose()
    assert seen[2:] == ["job.completed"]


async def test_without_a_broker_calls_say_so(store: EventStore) -> None:
    with pytest.raises(Unavailable, match="STOREBUS_AMQP_URL"):
        await Bus(store=store).call("agent")


@pytest.mark.needs_postgres
async def test_a_second_terminal_finds_the_installation_by_its_folder(
        tmp_path: Path, log_server: LogServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await log_server.get()
    url, _, rest = (await fresh_database(server)).partition("@")
    (tmp_path / "vault.key").write_text(base64.b64encode(b"k" * 32).decode())
    write_installation(tmp_path, Installation(
        database_url=SecretStr(f"{url.rpartition(':')[0]}@{rest}"), password_file=server.password_file,
        vault_key_file=tmp_path / "vault.key"))
    monkeypatch.delenv("STOREBUS_DATABASE_URL", raising=False)
    monkeypatch.delenv("STOREBUS_AMQP_URL", raising=False)
    monkeypatch.setenv("STOREBUS_DATA_DIR", str(tmp_path))
    async with Bus.connect() as first, Bus.connect(data_dir=tmp_path) as second, Bus.connect(Settings()) as third:
        job = await first.publish(AddImageStore(provider="s3", details={"secretkey": "canary"}))
        [event] = [event async for event in second.subscribe("job.#", limit=1)]
        assert event.id == job.id
        assert b"canary" not in event.row.payload
        assert await Vault(third.store, b"k" * 32).open(event.data["body"]["details"]["secretkey"]) == "canary"
        assert [event.id async for event in third.replay("job.submitted")] == [job.id]


async def test_what_cannot_be_reached_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StoreAway):
        async with Bus.connect(database_url="postgresql://u:canary@127.0.0.1:1/x") as bus:
            await bus.publish(DeleteSnapshot(id=uuid4()))
    with pytest.raises(Unavailable, match="storebus up"):
        await Bus.connect(data_dir=tmp_path).open()
