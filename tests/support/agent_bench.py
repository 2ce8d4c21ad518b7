"""An agent's runtime on a broker in memory, with a worker that does what a test says, and all that the agent said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from agents.grants import Grants, load_or_create_key
from agents.runtime import AgentConfig, AgentRuntime
from bus.envelope import Envelope
from bus.transport import Delivery, WireMessage, agent, progress, work
from bus.transport_memory import Faults, MemoryTransport
from schema.agent import CancelWork, FetchImage, ReleaseWork
from schema.agent import TestImageStore as TryStore
from schema.codec import encode
from schema.ids import PARTITIONS
from schema.image import StoreSpec
from schema.message import Message, Order

NAME, TOKEN = "host-1", b"token"
FINAL = ("work.completed", "work.failed", "work.cancelled")


class ScriptedWorker:
    """A worker that does what the test says: `script` is asked for each order, and may wait, raise or answer."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.secrets: list[Mapping[str, str]] = []
        self.at_once = self.most = 0
        self.script: Callable[[Order, Any], Any] = self.answer
        self.free = asyncio.Event()

    async def answer(self, order: Order, on_progress: Any) -> dict[str, Any]:
        """Done."""
        return {"result": {"by": order.work_name}, "bytes": 5}

    async def held(self, order: Order, on_progress: Any) -> dict[str, Any]:
        """Done when the test says so."""
        await self.free.wait()
        return await self.answer(order, on_progress)

    async def run(self, order: Order, payload: bytes, secrets: Mapping[str, str], on_progress: Any) -> dict[str, Any]:
        """See Worker."""
        self.ran.append(f"{order.TYPE} {order.work_name}")
        self.secrets.append(secrets)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            found: dict[str, Any] = await self.script(order, on_progress)
            return found
        finally:
            self.at_once -= 1

    async def aclose(self) -> None:
        """Nothing."""


class Bench:
    """An agent, its broker, and what it said."""

    def __init__(self, state: Path, worker: Any = None, faults: Faults | None = None) -> None:
        self.state, self.worker = state, worker or ScriptedWorker()
        self.transport = MemoryTransport(faults)
        self.said: list[tuple[str, dict[str, Any], Envelope]] = []
        self.progress: list[dict[str, Any]] = []
        self.queues: dict[str, str] = {}
        """Reply key -> the partition queue that its last report came on."""
        self.runtime: AgentRuntime | None = None

    async def start(self, **more: Any) -> Bench:
        """Start listening, then the agent."""
        await self.transport.start()
        for number in range(PARTITIONS):
            await self.transport.consume(work(number), self._hear)
        await self.transport.consume(progress(), self._watch)
        await self.agent(**more)
        return self

    async def agent(self, **more: Any) -> None:
        """(Re)start the agent on the same folder."""
        key = load_or_create_key(self.state / "agent.key")
        config = AgentConfig(name=NAME, zone_id=UUID(int=9), roles=("storage",), state_dir=self.state, token=TOKEN, **more)
        self.runtime = AgentRuntime(config, self.transport, self.worker, Grants(NAME, key, self.transport))
        await self.runtime.start()

    async def stop(self) -> None:
        """End it all."""
        if self.runtime is not None:
            await self.runtime.stop()
        await self.transport.aclose()

    async def _hear(self, delivery: Delivery) -> None:
        envelope = Envelope.read(delivery.message.headers, delivery.message.body)
        self.queues[envelope.key] = delivery.message.routing_key
        self.said.append((envelope.type, json.loads(envelope.body), envelope))
        await delivery.ack()

    async def _watch(self, delivery: Delivery) -> None:
        self.progress += json.loads(delivery.message.body)
        await delivery.ack()

    async def give(self, order: Message) -> None:
        """Put an order on the agent's queue."""
        body = encode(order)
        headers = Envelope(id=uuid4(), type=order.TYPE, kind="order", body=body).headers()
        await self.transport.publish(agent(NAME), WireMessage(headers=headers, body=body))

    def about(self, order: Order) -> list[str]:
        """Types of the reports about an attempt, in order."""
        return [kind for kind, body, _ in self.said
                if body.get("work_id") == str(order.work_id) and body.get("attempt") == order.attempt]

    async def until(self, what: Callable[[], Any], seconds: float = 5) -> Any:
        """Wait until it is true."""
        async with asyncio.timeout(seconds):
            while not (found := what()):
                await asyncio.sleep(0.005)
        return found

    async def end(self, order: Order, *, times: int = 1) -> str:
        """The final report of an attempt, when it was said this often."""
        return str((await self.until(lambda: [k for k in self.about(order) if k in FINAL][times - 1:]))[0])

    async def quiet(self) -> None:
        """Long enough for anything that would happen."""
        await asyncio.sleep(0.15)


def order(work_id: UUID | None = None, attempt: int = 1, **more: Any) -> TryStore:
    """Some order."""
    store = StoreSpec(id=UUID(int=1), name="s", provider="memory", url="memory://x", prefix="inst")
    fields: dict[str, Any] = {"job_id": UUID(int=4), "work_id": work_id or uuid4(), "attempt": attempt, "agent": NAME,
                              "reply_key": "job-4", "store": store}
    return TryStore.model_validate(fields | more)


def cancel(one: Order, **more: Any) -> CancelWork:
    """The order to stop it."""
    return CancelWork.model_validate({**one.model_dump(include={"job_id", "work_id", "attempt", "agent", "reply_key"}), **more})


def release(one: Order) -> ReleaseWork:
    """The order to forget it."""
    return ReleaseWork.model_validate(one.model_dump(include={"job_id", "work_id", "attempt", "agent", "reply_key"}))


def fetching(store: StoreSpec) -> Order:
    """An order to download into a store, whose leftovers are an object."""
    return FetchImage.model_validate({
        "job_id": UUID(int=4), "work_id": uuid4(), "agent": NAME, "reply_key": "k", "url": "http://example.com/", "format": "raw",
        "store": store, "key": "inst/t/1", "kind": "template", "thing_id": uuid4(), "max_bytes": 1, "max_virtual_size": 1})
