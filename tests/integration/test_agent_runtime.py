"""The agent's runtime: journaled before acked, one end for each order, late words change nothing, a cancel is one end too."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents import runtime as runtimes
from agents.grants import Grants, load_or_create_key
from agents.image_stores.memory import bucket
from agents.journal import OPEN
from agents.mover import MoverDied
from agents.mover_child import InlineMover
from agents.runtime import AgentConfig, AgentRuntime
from agents.toolbox import Toolbox
from bus.envelope import Envelope
from bus.errors import BrokerAway
from bus.grant_sealing import seal_to
from bus.rpc import serve
from bus.transport import Address, Delivery, WireMessage, agent, dead
from bus.transport_memory import Faults
from schema.agent import DeleteImages
from schema.failure import BadParameter, Refused, WorkFailed
from schema.ids import partition
from schema.image import StoreSpec
from schema.message import Order
from tests.support.agent_bench import FINAL, NAME, TOKEN, Bench, ScriptedWorker, cancel, fetching, order, release


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A running agent."""
    monkeypatch.setattr(runtimes, "CLEAN_PAUSES_S", (0.01, 0.01))
    started = await Bench(tmp_path / "agent").start()
    yield started
    await started.stop()


async def test_an_order_is_accepted_done_and_reported_where_its_job_is(bench: Bench) -> None:
    one = order()
    await bench.give(one)
    assert await bench.end(one) == "work.completed"
    assert bench.about(one) == ["work.accepted", "work.completed"]
    _, body, envelope = bench.said[-1]
    assert body["result"] == {"by": one.work_name}
    assert (envelope.key, envelope.kind, envelope.correlation) == ("job-4", "report", one.job_id)
    assert (body["agent"], body["bytes"]) == (NAME, 5)
    assert bench.queues["job-4"] == f"{partition('job-4'):02d}"


async def test_it_says_hello_with_its_key_and_proof(bench: Bench) -> None:
    _, hello, envelope = await bench.until(lambda: [said for said in bench.said if said[0] == "agent.hello"][:1] and bench.said[0])
    assert envelope.key == f"agent-{NAME}"
    assert hello["proof"] == hmac.new(TOKEN, f"{NAME}|{hello['public_key']}".encode(), hashlib.sha256).hexdigest()
    assert len(base64.b64decode(hello["public_key"])) == 32
    await bench.until(lambda: sum(said[0] == "agent.hello" for said in bench.said) >= 2)


async def test_a_failure_is_reported_as_it_was_raised(bench: Bench) -> None:
    async def fail(one: Order, on_progress: Any) -> None:
        raise BadParameter("it lies", field="url", remedy="tell the truth")

    bench.worker.script = fail
    one = order()
    await bench.give(one)
    assert await bench.end(one) == "work.failed"
    failure = bench.said[-1][1]["failure"]
    assert (failure["code"], failure["field"], failure["cause"], failure["remedy"]) == (431, "url", "it lies", "tell the truth")


async def test_what_nobody_foresaw_is_a_failure_without_its_text(bench: Bench) -> None:
    async def fail(one: Order, on_progress: Any) -> None:
        raise ValueError("CANARY")

    bench.worker.script = fail
    one = order()
    await bench.give(one)
    assert await bench.end(one) == "work.failed"
    assert "CANARY" not in json.dumps(bench.said[-1][1])
    assert "ValueError" in json.dumps(bench.said[-1][1])


async def test_a_final_report_is_sent_until_it_is_released(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runtimes, "REMIND_S", 0.05)
    await bench.stop()
    again = await Bench(tmp_path / "other").start()
    one = order()
    await again.give(one)
    await again.end(one, times=4)
    ids = {envelope.id for kind, _, envelope in again.said if kind == "work.completed"}
    assert len(ids) == 1, "a report sent again is the same message"
    await again.give(release(one))
    await again.quiet()
    count = len(again.about(one))
    await again.quiet()
    assert len(again.about(one)) == count
    assert len(again.worker.ran) == 1
    await again.stop()


async def test_a_duplicate_is_answered_and_never_done_twice(bench: Bench) -> None:
    bench.worker.script = bench.worker.held
    one = order()
    for _ in range(3):
        await bench.give(one)
    await bench.until(lambda: bench.about(one) == ["work.accepted"] * 3)
    bench.worker.free.set()
    await bench.end(one)
    await bench.give(one)
    await bench.end(one, times=2)
    await bench.give(release(one))
    await bench.give(one)
    await bench.quiet()
    assert bench.about(one).count("work.completed") == 2, "released work is not answered"
    assert len(bench.worker.ran) == 1


async def test_released_work_is_not_done_again_after_a_restart_either(bench: Bench) -> None:
    one = order()
    await bench.give(one)
    await bench.end(one)
    await bench.give(release(one))
    await bench.quiet()
    assert bench.runtime is not None
    await bench.runtime.stop()
    await bench.agent()
    await bench.give(one)
    await bench.quiet()
    assert len(bench.worker.ran) == 1


async def test_an_old_attempt_is_ignored_and_a_new_one_waits_for_the_end_of_the_old(bench: Bench) -> None:
    stopped: list[str] = []

    async def slow(one: Order, on_progress: Any) -> dict[str, Any]:
        try:
            await bench.worker.free.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)  # its bytes still stop
            stopped.append(one.work_name)
            raise
        assert one.attempt == 1 or stopped, "two attempts at once"
        return {"result": {}, "bytes": 0}

    bench.worker.script = slow
    first = order()
    second = order(first.work_id, 2)
    await bench.give(first)
    await bench.until(lambda: bench.worker.ran)
    await bench.give(second)
    await bench.until(lambda: len(bench.worker.ran) == 2)
    bench.worker.free.set()
    assert await bench.end(second) == "work.completed"
    await bench.give(first)
    await bench.give(cancel(first))
    await bench.quiet()
    assert stopped == [first.work_name]
    assert bench.about(first) == ["work.accepted"]
    assert bench.about(second) == ["work.accepted", "work.completed"]


async def test_only_so_many_transfers_run_at_once_in_their_order(tmp_path: Path) -> None:
    bench = await Bench(tmp_path).start(transfers=2)
    bench.worker.script = bench.worker.held
    orders = [order() for _ in range(6)]
    for one in orders:
        await bench.give(one)
    await bench.until(lambda: all(bench.about(one) == ["work.accepted"] for one in orders))
    assert len(bench.worker.ran) == 2
    bench.worker.free.set()
    for one in orders:
        await bench.end(one)
    assert bench.worker.most == 2
    assert [ran.split()[1] for ran in bench.worker.ran] == [one.work_name for one in orders]
    await bench.stop()


# --- things that break ----------------------------------------------------------------------------------------------


async def test_interrupted_work_is_done_again_and_if_it_then_fails_its_leftovers_go(bench: Bench) -> None:
    fetch = fetching(order().store)
    bench.worker.script = bench.worker.held
    await bench.give(fetch)
    await bench.until(lambda: bench.worker.ran)
    assert bench.runtime is not None
    await bench.runtime.stop()

    async def gone(one: Order, on_progress: Any) -> dict[str, Any]:
        if isinstance(one, DeleteImages):
            return {"result": {}, "bytes": 0}
        raise BadParameter("the server answers 404", field="url")

    bench.worker.script, bench.worker.ran = gone, []
    await bench.agent()
    assert await bench.end(fetch) == "work.failed"
    assert bench.worker.ran == [f"{fetch.TYPE} {fetch.work_name}", f"{DeleteImages.TYPE} {fetch.work_name}"]


async def test_a_mover_that_dies_is_tried_three_times_and_then_cleaned_up_after(bench: Bench) -> None:
    fetch = fetching(order().store)

    async def die(one: Order, on_progress: Any) -> dict[str, Any]:
        if isinstance(one, DeleteImages):
            return {"result": {}, "bytes": 0}
        raise MoverDied

    bench.worker.script = die
    await bench.give(fetch)
    assert await bench.end(fetch) == "work.failed"
    assert bench.said[-1][1]["failure"]["retryable"]
    assert [ran.split()[0] for ran in bench.worker.ran] == [fetch.TYPE] * 3 + [DeleteImages.TYPE]


async def test_a_mover_killed_for_somebody_elses_cancel_is_not_this_works_fault(bench: Bench) -> None:
    left = [5]

    async def die(one: Order, on_progress: Any) -> dict[str, Any]:
        left[0] -= 1
        if left[0]:
            raise MoverDied(deliberate=True)
        return {"result": {}, "bytes": 0}

    bench.worker.script = die
    one = order()
    await bench.give(one)
    assert await bench.end(one) == "work.completed"


async def test_a_mover_killed_by_the_cancel_itself_is_cleaned_up_after(bench: Bench) -> None:
    fetch = fetching(order().store)

    async def disobey(one: Order, on_progress: Any) -> dict[str, Any]:
        if isinstance(one, DeleteImages):
            return {"result": {}, "bytes": 0}
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise MoverDied(deliberate=True) from None
        raise AssertionError

    bench.worker.script = disobey
    await bench.give(fetch)
    await bench.until(lambda: bench.worker.ran)
    await bench.give(cancel(fetch))
    assert await bench.end(fetch) == "work.cancelled"
    assert [ran.split()[0] for ran in bench.worker.ran] == [fetch.TYPE, DeleteImages.TYPE]


async def test_leftovers_that_cannot_be_removed_are_named(bench: Bench) -> None:
    fetch = fetching(order().store)

    async def die(one: Order, on_progress: Any) -> dict[str, Any]:
        if isinstance(one, DeleteImages):
            raise WorkFailed("the store is away")
        raise MoverDied

    bench.worker.script = die
    await bench.give(fetch)
    assert await bench.end(fetch) == "work.failed"
    assert "the store is away" in bench.said[-1][1]["failure"]["cause"]
    assert bench.said[-1][1]["failure"]["remains"] is True


async def test_a_journal_that_cannot_be_written_holds_the_ack_and_the_report(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.runtime is not None
    journal = bench.runtime._journal
    take, finish, broken = journal.take, journal.finish, [2, 1]

    async def full_take(*arguments: Any) -> Any:
        if broken[0]:
            broken[0] -= 1
            raise sqlite3.OperationalError("database or disk is full")
        return await take(*arguments)

    async def full_finish(*arguments: Any) -> Any:
        if broken[1]:
            broken[1] -= 1
            raise sqlite3.OperationalError("database or disk is full")
        return await finish(*arguments)

    monkeypatch.setattr(journal, "take", full_take)
    monkeypatch.setattr(journal, "finish", full_finish)
    one = order()
    await bench.give(one)
    await bench.until(lambda: broken[0] == 1)
    await bench.quiet()
    assert bench.worker.ran == []
    assert bench.about(one) == []
    assert await bench.end(one) == "work.completed"
    assert len(bench.worker.ran) == 1


async def test_a_broker_that_is_away_loses_no_report(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runtimes, "REMIND_S", 0.05)
    other = await Bench(tmp_path / "other").start()
    publish, away = other.transport.publish, [True]

    async def flaky(to: Address, message: WireMessage) -> None:
        if away[0] and to.kind == "work":
            raise BrokerAway("it is away")
        await publish(to, message)

    monkeypatch.setattr(other.transport, "publish", flaky)
    one = order()
    await other.give(one)
    await other.until(lambda: other.worker.ran)
    await other.quiet()
    assert other.about(one) == []
    away[0] = False
    assert await other.end(one) == "work.completed"
    assert len(other.worker.ran) == 1
    await other.stop()


async def test_duplicated_lost_and_reordered_messages_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "REMIND_S", 0.1)
    bench = await Bench(tmp_path, faults=Faults(seed=7, duplicate=0.3, lose_confirm=0.2, reorder=0.3)).start()
    orders = [order() for _ in range(40)]
    for number, one in enumerate(orders):
        with contextlib.suppress(Exception):  # no confirm: it may have come, and comes again
            await bench.give(one)
        with contextlib.suppress(Exception):
            await bench.give(one)
        if number % 4 == 0:
            with contextlib.suppress(Exception):
                await bench.give(cancel(one))
    for one in orders:
        await bench.end(one)
    await bench.quiet()
    assert len(bench.worker.ran) == len(set(bench.worker.ran))
    for one in orders:
        assert len(set(bench.about(one)) & set(FINAL)) == 1
    await bench.stop()


async def test_what_is_no_order_or_another_agents_is_a_dead_letter_and_harms_nobody(bench: Bench) -> None:
    buried: list[str] = []

    async def bury(delivery: Delivery) -> None:
        buried.append(delivery.message.headers.get("cloudEvents_type", "none"))
        await delivery.ack()

    await bench.transport.consume(dead(), bury)
    good = order()
    await bench.transport.publish(agent(NAME), WireMessage(headers={}, body=b"\xff"))
    for body, kind in ((b"{", good.TYPE), (b"{}", "order.unknown"), (b"{}", "snapshot.taken"), (b"[]", good.TYPE)):
        headers = Envelope(id=uuid4(), type=kind, kind="order", body=body).headers()
        await bench.transport.publish(agent(NAME), WireMessage(headers=headers, body=body))
    await bench.give(order(agent="somebody-else"))
    await bench.give(good)
    assert await bench.end(good) == "work.completed"
    await bench.until(lambda: len(buried) == 6)
    assert len(bench.worker.ran) == 1


async def test_one_process_for_each_agent(bench: Bench) -> None:
    key = load_or_create_key(bench.state / "agent.key")
    config = AgentConfig(name=NAME, zone_id=UUID(int=9), roles=(), state_dir=bench.state, token=TOKEN)
    second = AgentRuntime(config, bench.transport, ScriptedWorker(), Grants(NAME, key, bench.transport))
    with pytest.raises(Refused, match="runs already"):
        await second.start()
    await second.stop()


# --- progress -------------------------------------------------------------------------------------------------------


async def test_progress_never_falls_and_is_whole_only_when_the_work_is(bench: Bench) -> None:
    async def move(one: Order, on_progress: Any) -> dict[str, Any]:
        for stage, done in (("download", 100), ("download", 600), ("download", 300), ("download", 1000), ("verify", 1000)):
            on_progress(stage, done, 1000)
            await asyncio.sleep(0.7)
        return {"result": {}, "bytes": 1000}

    bench.worker.script = move
    one, other = order(), order()
    await bench.give(one)
    await bench.give(other)
    await bench.end(one)
    await bench.until(lambda: sum(told["stage"] == "done" for told in bench.progress) == 2)
    for work_id in (str(one.work_id), str(other.work_id)):
        told = [word for word in bench.progress if word["work_id"] == work_id]
        amounts = [word["bytes"] for word in told]
        assert amounts == sorted(amounts)
        assert all(word["bytes"] < 1000 for word in told if word["stage"] != "done")
        assert (told[-1]["stage"], told[-1]["bytes"], told[-1]["total"]) == ("done", 1000, 1000)
        assert len(told) <= 5, "one message a second"
    count = len(bench.progress)
    await asyncio.sleep(1.2)
    assert len(bench.progress) == count, "what has ended is not spoken of"


# --- secrets, and the whole way in memory ---------------------------------------------------------------------------


async def test_secrets_are_fetched_at_start_and_at_resume_and_kept_nowhere(bench: Bench) -> None:
    ref, clear = f"vault:{uuid4()}", "CANARY-f3b1"
    asked: list[dict[str, Any]] = []
    assert bench.runtime is not None
    public = base64.b64decode(bench.runtime.grants.public_key)

    async def grant(command: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body)
        sealed = seal_to(public, clear.encode(), f"{ref}|{NAME}|{body['work_id']}".encode())
        return {"sealed": {ref: base64.b64encode(sealed).decode()}}

    server = await serve(bench.transport, "vault.grant", grant)
    store = StoreSpec(id=UUID(int=1), name="s", provider="memory", url="memory://x", prefix="i",
                      details={"secretkey": ref, "bucket": "b"})
    one = order(store=store)
    bench.worker.script = bench.worker.held
    await bench.give(one)
    await bench.until(lambda: bench.worker.ran)
    await bench.runtime.stop()
    bench.worker.script = bench.worker.answer
    await bench.agent()
    assert await bench.end(one) == "work.completed"
    assert bench.worker.secrets == [{"secretkey": clear}] * 2
    assert [(body["agent"], body["work_id"], body["attempt"], body["refs"]) for body in asked] == [
        (NAME, str(one.work_id), 1, [ref])] * 2
    for path in bench.state.rglob("*"):
        assert clear.encode() not in path.read_bytes()
    assert clear not in json.dumps([body for _, body, _ in bench.said])
    assert (bench.state / "agent.key").stat().st_mode & 0o077 == 0
    assert bench.state.stat().st_mode & 0o077 == 0
    await server.aclose()


async def test_a_grant_for_another_order_opens_nothing(bench: Bench) -> None:
    ref = f"vault:{uuid4()}"
    assert bench.runtime is not None
    public = base64.b64decode(bench.runtime.grants.public_key)

    async def grant(command: str, body: dict[str, Any]) -> dict[str, Any]:
        sealed = seal_to(public, b"CANARY", f"{ref}|{NAME}|{uuid4()}".encode())
        return {"sealed": {ref: base64.b64encode(sealed).decode()}}

    server = await serve(bench.transport, "vault.grant", grant)
    store = StoreSpec(id=UUID(int=1), name="s", provider="memory", url="memory://x", prefix="i", details={"secretkey": ref})
    one = order(store=store)
    await bench.give(one)
    assert await bench.end(one) == "work.failed"
    assert bench.worker.ran == []
    await server.aclose()


async def test_operations_run_in_this_process_on_plug_ins_in_memory(tmp_path: Path) -> None:
    bench = await Bench(tmp_path, InlineMover(Toolbox(hypervisor_name="memory"))).start()
    where = f"memory://{uuid4()}"
    store = StoreSpec(id=UUID(int=1), name="s", provider="memory", url=where, prefix="inst")
    one = order(store=store)
    await bench.give(one)
    assert await bench.end(one) == "work.completed"
    assert "parallel_parts" in bench.said[-1][1]["result"]["capabilities"]
    assert bucket(where).objects == {}
    bucket(where).objects |= {"inst/a": b"1", "inst/a.manifest.json": b"{}", "inst/b": b"2"}
    two = DeleteImages(job_id=UUID(int=4), work_id=uuid4(), agent=NAME, reply_key="k", store=store, keys=["inst/a", "absent"])
    await bench.give(two)
    assert await bench.end(two) == "work.completed"
    assert set(bucket(where).objects) == {"inst/b"}
    three = order(store=store.model_copy(update={"provider": "nosuch"}))
    await bench.give(three)
    assert await bench.end(three) == "work.failed"
    assert bench.said[-1][1]["failure"]["field"] == "provider"
    assert bench.runtime is not None
    assert await bench.runtime._journal.entries(OPEN) == []
    await bench.stop()
