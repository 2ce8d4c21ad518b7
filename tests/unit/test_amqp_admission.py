"""Commands from the bus by account: the matrix of HTTP, through the forwarder, on the system in memory."""

from __future__ import annotations

import json
from uuid import UUID, uuid4

import pytest

from api.amqp_admission import Admission, users
from api.authentication import Authentication
from api.ownership import Ownership
from bus.envelope import Envelope
from bus.event_store import LogFilter
from bus.forwarder import Forwarder, Principal
from bus.transport import Delivery, WireMessage
from schema.codec import encode
from schema.failure import BadParameter
from schema.identity import ROOT_OWNER, CreateDomain, Role, UpdateResourceLimit
from schema.image_store import DeleteImageStore
from schema.message import Command
from schema.scrub import LiftQuarantine
from schema.snapshot import CreateSnapshot
from schema.volume import CreateVolume, DeleteVolume, UpdateVolume
from tests.unit.test_access import CHANGES, PEOPLE, World, world

DOMAINS = {"": "", "a": "a/", "b": "a/b/", "c": "c/"}
KNOWN = {f"rabbit-{name}": f"{DOMAINS[domain]}{name}" for name, (domain, _) in PEOPLE.items()}


@pytest.fixture(scope="module")
async def made() -> World:
    return await world()


async def sent(made: World, person: str, command: Command) -> tuple[dict[str, object] | None, UUID]:
    """A command as the broker brings it, of a user that it validated: (the job's row, its id)."""
    forwarder = Forwarder(made.system.store, made.system.cloud.transport, lambda user: Principal(user, "root"), Admission(  # type: ignore[arg-type] # a double
        made.system, Authentication(made.system), Ownership(made.system), KNOWN))
    settled: list[str] = []

    async def settle(how: str) -> None:
        settled.append(how)

    job_id = uuid4()
    headers = Envelope(id=job_id, type=command.TYPE, kind="command", body=encode(command), principal="root-admin", tenant="forged").headers()
    for _ in range(2):  # a redelivery changes nothing
        await forwarder._once(Delivery(WireMessage(headers=headers, body=encode(command), user_id=f"rabbit-{person}"), False, 1, settle))
    assert settled == ["ack", "ack"] and forwarder.parked == 0
    return await made.system.job(job_id), job_id


async def test_each_person_on_each_others_volume(made: World) -> None:
    """What may be is accepted in the account's name; what may not ends at once, in the words for what is not there."""
    for person in PEOPLE:
        absent, _ = await sent(made, person, UpdateVolume(id=(unknown := uuid4()), name="n"))
        assert absent is not None and absent["status"] == "failed"
        text = json.dumps(absent["failure"])
        for other in PEOPLE:
            thing = UUID(made.things["volume", other])
            before = await made.system.store.read_stream(f"volume-{thing}")
            job, job_id = await sent(made, person, UpdateVolume(id=thing, name="n"))
            assert job is not None and job["principal"] == f"rabbit-{person}"
            rows = (await made.system.store.read_log(0, filter=LogFilter(streams=(f"job-{job_id}",)), limit=10)).rows
            if other in CHANGES[person]:
                assert (job["status"], job["account"]) == ("submitted", other)
                assert [row.kind for row in rows] == ["command"]  # the relay brings it to the handlers
            else:
                assert (job["status"], job["account"]) == ("failed", person)
                assert json.dumps(job["failure"]).replace(str(thing), str(unknown)) == text
                assert [row.type for row in rows] == ["job.submitted", "job.failed"] and {row.kind for row in rows} == {"event"}
            assert await made.system.store.read_stream(f"volume-{thing}") == before


@pytest.mark.parametrize("command", [
    DeleteImageStore(id=uuid4()), LiftQuarantine(kind="snapshot", thing_id=uuid4(), store_id=uuid4(), object_key="k"), CreateDomain(name="d"),
    UpdateResourceLimit(owner=ROOT_OWNER, resource="volume", max=-1)], ids=lambda each: each.TYPE)
async def test_what_is_for_root_admins(made: World, command: Command) -> None:
    for person, (_, role) in PEOPLE.items():
        job, _ = await sent(made, person, command)
        assert job is not None and (job["status"] == "submitted") == (role is Role.ADMIN), (person, job)


async def test_what_is_made_is_the_senders_and_nobody_is_nobody(made: World) -> None:
    for person in PEOPLE:
        job, _ = await sent(made, person, CreateVolume(name="mine", size=1))
        assert job is not None and (job["status"], job["account"]) == ("submitted", person)
        job, _ = await sent(made, person, CreateSnapshot(volume_id=UUID(made.things["volume", person])))
        assert job is not None and (job["status"], job["account"]) == ("submitted", person)
    job, _ = await sent(made, "stranger", DeleteVolume(id=UUID(made.things["volume", "u"])))
    failure = job["failure"] if job is not None else None
    assert isinstance(failure, dict) and (failure["code"], failure["field"]) == (531, "user_id")


def test_the_setting_is_read_or_named() -> None:
    assert users(" a=b, c = d/e/f ,") == {"a": "b", "c": "d/e/f"}
    for wrong in ("a", "=b", "a="):
        with pytest.raises(BadParameter, match="STOREBUS_AMQP_USERS"):
            users(wrong)
