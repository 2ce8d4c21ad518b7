"""Calls, casts, cancels and their typed errors, on every transport; and the table behind `@handles`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

from bus import rpc
from bus.client import Bus
from bus.envelope import PREFIX
from bus.errors import CallCancelled, CallFailed, CallTimedOut, NoHandler
from bus.handles import Dispatcher, handles
from bus.transport import Transport, WireMessage, reply
from bus.transport import call as call_address
from schema.failure import BadParameter, InUse
from schema.snapshot import DeleteSnapshot
from tests.support.transports import LazyRabbit, memory_transport, rabbit_transport


@pytest.fixture(scope="session")
async def lazy_rabbit() -> AsyncIterator[LazyRabbit]:
    rabbit = LazyRabbit()
    yield rabbit
    await rabbit.stop()


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.needs_rabbitmq)])
async def transport(request: pytest.FixtureRequest, lazy_rabbit: LazyRabbit) -> AsyncIterator[Transport]:
    if request.param == "memory":
        async with memory_transport() as opened:
            yield opened
    else:
        async with rabbit_transport(await lazy_rabbit.get()) as opened:
            yield opened


@pytest.fixture
async def bus(transport: Transport) -> AsyncIterator[Bus]:
    async with Bus(transport=transport) as opened:
        yield opened


def service() -> str:
    return f"test-{uuid4()}"


class Sum(BaseModel):
    """An answer."""

    total: int


class Calculator:
    """A service with a table of handlers."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.stopped = asyncio.Event()
        self.told: list[Any] = []

    @handles("sum.add")
    async def add(self, command: str, body: dict[str, Any]) -> Sum:
        return Sum(total=sum(body["numbers"]))

    @handles("sum.refuse")
    async def refuse(self, command: str, body: dict[str, Any]) -> None:
        raise InUse("volume v needs it", field="id", remedy="delete the volume")

    @handles("sum.crash")
    async def crash(self, command: str, body: dict[str, Any]) -> None:
        raise RuntimeError("password=hunter2")

    @handles("sum.sleep")
    async def sleep(self, command: str, body: dict[str, Any]) -> None:
        self.started.set()
        try:
            await asyncio.sleep(30)
        finally:
            self.stopped.set()

    @handles("told")
    async def take(self, command: str, body: dict[str, Any]) -> dict[str, Any]:
        self.told.append((command, body))
        self.started.set()
        return {"command": command}


async def test_a_call_and_its_answer(bus: Bus) -> None:
    name = service()
    await bus.serve(name, Dispatcher(Calculator()))
    assert await bus.call(name, {"numbers": [1, 2, 3]}, command="sum.add") == {"total": 6}
    answers = await asyncio.gather(*(bus.call(name, {"numbers": [n, n]}, command="sum.add") for n in range(100)))
    assert [answer["total"] for answer in answers] == [n * 2 for n in range(100)]


async def test_a_message_is_called_by_its_wire_name(bus: Bus) -> None:
    name, calculator = service(), Calculator()
    await bus.serve(name, Dispatcher(calculator))
    with pytest.raises(NoHandler, match=r"snapshot\.delete"):
        await bus.call(name, DeleteSnapshot(id=uuid4()))


async def test_nobody_there(bus: Bus) -> None:
    with pytest.raises(NoHandler, match="no service"):
        await bus.call(service(), {}, timeout_s=5)
    with pytest.raises(NoHandler):
        await bus.cast(service(), {})


async def test_what_the_other_side_refuses_and_how_it_crashes(bus: Bus) -> None:
    name = service()
    await bus.serve(name, Dispatcher(Calculator()))
    with pytest.raises(CallFailed) as refused:
        await bus.call(name, command="sum.refuse")
    assert refused.value.remote.code == 536
    assert refused.value.remote.text == str(refused.value) == "id: volume v needs it. delete the volume"
    with pytest.raises(CallFailed) as crashed:
        await bus.call(name, command="sum.crash")
    assert "RuntimeError" in str(crashed.value)
    assert "hunter2" not in str(crashed.value)


async def test_a_timeout_is_unknown_and_stops_the_work(bus: Bus) -> None:
    name, calculator = service(), Calculator()
    await bus.serve(name, Dispatcher(calculator))
    with pytest.raises(CallTimedOut) as late:
        await bus.call(name, command="sum.sleep", timeout_s=0.4)
    assert not late.value.failure.definite
    await asyncio.wait_for(calculator.stopped.wait(), 60)


async def test_cancelling_the_caller_stops_the_work(bus: Bus) -> None:
    name, calculator = service(), Calculator()
    await bus.serve(name, Dispatcher(calculator))
    task = asyncio.create_task(bus.call(name, command="sum.sleep", timeout_s=30))
    await asyncio.wait_for(calculator.started.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(calculator.stopped.wait(), 60)


async def test_a_service_that_goes_away_cancels_its_calls(bus: Bus) -> None:
    name, calculator = service(), Calculator()
    server = await bus.serve(name, Dispatcher(calculator))
    task = asyncio.create_task(bus.call(name, command="sum.sleep", timeout_s=30))
    await asyncio.wait_for(calculator.started.wait(), 60)
    await server.aclose()
    with pytest.raises(CallCancelled):
        await asyncio.wait_for(task, 60)


async def test_one_way(bus: Bus) -> None:
    name, calculator = service(), Calculator()
    await bus.serve(name, Dispatcher(calculator))
    await bus.cast(name, {"a": 1}, command="told.you.so")
    await asyncio.wait_for(calculator.started.wait(), 60)
    assert calculator.told == [("told.you.so", {"a": 1})]


async def test_late_and_foreign_replies_are_ignored(bus: Bus, transport: Transport) -> None:
    name = service()
    await bus.serve(name, Dispatcher(Calculator()))
    assert await bus.call(name, {"numbers": [1]}, command="sum.add") == {"total": 1}
    caller = bus._calls
    stray = WireMessage(headers={PREFIX + "sbcall": "ok"}, body=b'{"total": 666}', correlation_id=str(uuid4()))
    await transport.publish(reply(caller._name), stray)
    assert await bus.call(name, {"numbers": [2]}, command="sum.add") == {"total": 2}
    assert caller.late == 1


async def test_a_request_that_cannot_be_read_is_answered(bus: Bus, transport: Transport) -> None:
    name = service()
    await bus.serve(name, Dispatcher(Calculator()))
    await bus._calls._ready()
    for body in (b"not json", b"[1]"):
        answer: asyncio.Future[WireMessage] = asyncio.get_running_loop().create_future()
        waiting = rpc._Waiting()
        waiting.answer = answer
        bus._calls._waiting[str(body)] = waiting
        await transport.publish(call_address(name), WireMessage(
            headers={PREFIX + "type": "sum.add"}, body=body, reply_to=bus._calls._name, correlation_id=str(body)))
        message = await asyncio.wait_for(answer, 60)
        assert message.headers[PREFIX + "sbcall"] == "failed"
        assert json.loads(message.body)["code"] in (430, 431)
        bus._calls._waiting.pop(str(body))


async def test_bad_arguments(bus: Bus) -> None:
    for timeout in (0, -1, 1e9):
        with pytest.raises(BadParameter, match="timeout_s"):
            await bus.call(service(), timeout_s=timeout)
    with pytest.raises(BadParameter, match="request"):
        await bus.call(service(), {"a": "x" * 300_000})


# --- the table -----------------------------------------------------------------------------------------------------


class Taker:
    """Handlers at several heights."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @handles("snapshot")
    async def parent(self, subject: str, payload: Any) -> str:
        self.seen.append("snapshot")
        return "snapshot"

    @handles("snapshot.taken")
    async def exact(self, subject: str, payload: Any) -> str:
        self.seen.append("snapshot.taken")
        return "snapshot.taken"

    @handles("*.taken", "volume.#")
    async def pattern(self, subject: str, payload: Any) -> str:
        self.seen.append("pattern")
        return "pattern"


@pytest.mark.parametrize(("subject", "everybody"), [
    ("snapshot.taken", ["snapshot.taken", "pattern", "snapshot"]),
    ("snapshot.taken.root", ["snapshot.taken", "snapshot"]),
    ("snapshot.deleted", ["snapshot"]),
    ("snapshot", ["snapshot"]),
    ("volume.ready.root", ["pattern"]),
    ("volume.taken", ["pattern"]),
    ("snapshots.taken", ["pattern"]),
    ("zone.created", []),
])
async def test_who_takes_a_subject(subject: str, everybody: list[str]) -> None:
    taker = Taker()
    dispatcher = Dispatcher(taker)
    assert await dispatcher.dispatch(subject, None) == len(everybody)
    assert taker.seen == everybody
    if everybody:
        assert await dispatcher(subject, None) == everybody[0]
    else:
        with pytest.raises(NoHandler):
            await dispatcher(subject, None)


def test_what_the_table_refuses() -> None:
    with pytest.raises(TypeError, match="has a handler already"):
        Dispatcher(Taker(), Taker())
    with pytest.raises(TypeError, match="nothing that is marked"):
        Dispatcher(object())
    with pytest.raises(TypeError, match="async def"):
        handles("a")(lambda subject, payload: None)  # type: ignore[arg-type,return-value] # what is refused
    with pytest.raises(TypeError, match="at least one"):
        handles()
    with pytest.raises(BadParameter):
        handles("sn*p")
