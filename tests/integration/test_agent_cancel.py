"""Cancel: one end for each order, whatever a cancel overtakes, repeats or loses to; and a stop of the agent in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents import runtime as runtimes
from agents.image_stores.memory import bucket
from agents.motion.direct import leave_nothing
from agents.mover_child import InlineMover
from agents.operations import OPERATIONS
from agents.toolbox import Toolbox
from schema.agent import DeleteImages, FetchImage
from schema.failure import WorkRetryable
from schema.image import StoreSpec
from schema.message import Order
from tests.support.agent_bench import NAME, Bench, cancel, fetching, order


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A running agent."""
    monkeypatch.setattr(runtimes, "CLEAN_PAUSES_S", (0.01, 0.01))
    started = await Bench(tmp_path / "agent").start()
    yield started
    await started.stop()


async def test_a_cancel_stops_running_and_waiting_work(tmp_path: Path) -> None:
    bench = await Bench(tmp_path).start(transfers=1)
    bench.worker.script = bench.worker.held
    running, waiting = order(), order()
    for one in (running, waiting):
        await bench.give(one)
    await bench.until(lambda: bench.about(waiting))
    for one in (waiting, running):
        await bench.give(cancel(one))
        assert await bench.end(one) == "work.cancelled"
    assert bench.worker.ran == [f"{running.TYPE} {running.work_name}"]
    await bench.stop()


async def test_a_cancel_right_behind_its_order_is_not_lost(bench: Bench) -> None:
    bench.worker.script = bench.worker.held
    orders = [order() for _ in range(20)]
    for one in orders:
        await bench.give(one)
        await bench.give(cancel(one))
    for one in orders:
        assert await bench.end(one) == "work.cancelled"


async def test_a_second_cancel_does_not_disturb_the_cleaning(bench: Bench) -> None:
    cleaned: list[str] = []

    async def slow(one: Order, on_progress: Any) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.2)
            cleaned.append(one.work_name)
            raise

    bench.worker.script = slow
    one = order()
    await bench.give(one)
    await bench.until(lambda: bench.worker.ran)
    for _ in range(3):
        await bench.give(cancel(one))
        await asyncio.sleep(0.03)
    assert await bench.end(one) == "work.cancelled"
    assert cleaned == [one.work_name]
    await bench.quiet()
    assert bench.about(one) == ["work.accepted", "work.cancelled"]


async def test_a_cancel_that_comes_after_the_end_brings_the_end_again(bench: Bench) -> None:
    one = order()
    await bench.give(one)
    await bench.end(one)
    await bench.give(cancel(one))
    assert await bench.end(one, times=2) == "work.completed"


async def test_a_cancel_that_loses_to_completion_reports_the_completion(bench: Bench) -> None:
    """The mover says that the work had ended before it could stop: the object is there, and nobody may say otherwise."""

    async def stubborn(one: Order, on_progress: Any) -> dict[str, Any]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return {"result": {"object": "is there"}, "bytes": 1}

    bench.worker.script = stubborn
    one = order()
    await bench.give(one)
    await bench.until(lambda: bench.worker.ran)
    await bench.give(cancel(one))
    assert await bench.end(one) == "work.completed"
    assert bench.said[-1][1]["result"] == {"object": "is there"}


async def test_unknown_work_is_cancelled_and_refused_when_it_comes_late(bench: Bench) -> None:
    one = order()
    await bench.give(cancel(one))
    assert await bench.end(one) == "work.cancelled"
    await bench.give(one)
    assert await bench.end(one, times=2) == "work.cancelled"
    await bench.give(cancel(one))
    await bench.end(one, times=3)
    assert bench.worker.ran == []


async def test_a_cancel_overtaking_its_attempt_stops_the_earlier_one_too(bench: Bench) -> None:
    bench.worker.script = bench.worker.held
    first = order()
    second = order(first.work_id, 2)
    await bench.give(first)
    await bench.until(lambda: bench.worker.ran)
    await bench.give(cancel(second))
    assert await bench.end(second) == "work.cancelled"
    await bench.until(lambda: bench.worker.at_once == 0)
    await bench.give(second)
    assert await bench.end(second, times=2) == "work.cancelled"
    assert len(bench.worker.ran) == 1


async def test_a_cancel_survives_a_restart_and_what_the_first_run_left_is_removed(bench: Bench) -> None:
    """The agent dies between the cancel and the end of the cleaning."""
    store = order().store
    one = DeleteImages(job_id=UUID(int=4), work_id=uuid4(), agent=NAME, reply_key="k", store=store, keys=["a"])
    fetch = fetching(store)
    bench.worker.script = bench.worker.held
    await bench.give(one)
    await bench.give(fetch)
    await bench.until(lambda: len(bench.worker.ran) == 2)
    assert bench.runtime is not None
    await bench.runtime.stop()
    database = sqlite3.connect(bench.state / "orders.db")  # as the cancel would have, right before the kill
    with database:
        database.execute("UPDATE work SET cancelled = 1")
    database.close()
    bench.worker.script, bench.worker.ran = bench.worker.answer, []
    await bench.agent()
    assert await bench.end(one) == "work.cancelled"
    assert await bench.end(fetch) == "work.cancelled"
    assert bench.worker.ran == [f"{DeleteImages.TYPE} {fetch.work_name}"], "only the cleaning"


async def test_a_stop_in_the_middle_of_stopping_is_bounded_and_leaves_it_for_the_next_start(bench: Bench) -> None:
    """One run ends for a cancel and one for a later attempt, both slowly, when the agent is told to end."""

    async def slow(one: Order, on_progress: Any) -> dict[str, Any]:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(30)
        raise AssertionError

    bench.worker.script = slow
    cancelled, first = order(), order()
    second = order(first.work_id, 2)
    for one in (cancelled, first):
        await bench.give(one)
    await bench.until(lambda: len(bench.worker.ran) == 2)
    await bench.give(cancel(cancelled))
    await bench.give(second)
    await bench.quiet()
    assert bench.runtime is not None
    async with asyncio.timeout(3):
        await bench.runtime.stop()
    assert bench.about(cancelled) == ["work.accepted"], "nobody may say that it stopped cleanly"
    bench.worker.script = bench.worker.answer
    await bench.agent()
    assert await bench.end(second) == "work.completed"
    assert await bench.end(cancelled) == "work.cancelled"


@pytest.mark.parametrize(("away", "stopped", "said"), [(2, False, "work.failed"), (2, True, "work.cancelled"), (99, False, "work.failed"),
                                                       (99, True, "work.failed")])
async def test_a_store_that_is_away_when_it_should_be_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: int,
                                                              stopped: bool, said: str) -> None:
    """`away`: so many deletions fail. Either nothing remains, or the report says so."""
    monkeypatch.setattr(runtimes, "CLEAN_PAUSES_S", (0.01, 0.01, 0.01))
    bench = await Bench(tmp_path, InlineMover(Toolbox(hypervisor_name="memory"))).start()
    where, refused = f"memory://{uuid4()}", 0
    store = StoreSpec(id=UUID(int=1), name="s", provider="memory", url=where, prefix="inst")
    fetch = fetching(store)
    reached = asyncio.Event()

    async def fetched(order: Order, tools: Toolbox, secrets: object, progress: object) -> Any:
        assert isinstance(order, FetchImage)
        async with tools.store(order.store, {}) as opened:
            upload = await opened.begin(order.key, part_size=4096)
            try:
                await upload.part(1, b"half")
                reached.set()
                if stopped:
                    await asyncio.sleep(60)
                raise WorkRetryable("the store is away")
            except BaseException:
                await leave_nothing(opened, upload, order.key)
                raise

    async def before(operation: str, key: str) -> None:
        nonlocal refused
        if operation in ("abort", "delete") and refused < away:
            refused += 1
            raise WorkRetryable("the store is away")

    monkeypatch.setitem(OPERATIONS, FetchImage, fetched)
    bucket(where).before = before
    await bench.give(fetch)
    await reached.wait()
    if stopped:
        await bench.give(cancel(fetch))
    assert await bench.end(fetch) == said
    gone = not bucket(where).uploads
    assert gone is (away < 99)
    assert gone is not bench.said[-1][1].get("failure", {}).get("remains", False)
    await bench.stop()
