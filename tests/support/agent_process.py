"""One real agent as a process of its own, for tests that kill it: orders in on standard input, its words out on standard output.

The transport is a memory one of that process, so that only the journal survives a kill: a JSON line in is an order
({"type", "body"}), a line out is {"said": type, "body"} for a report, {"progress": [...]}, {"mover": pid} when a child of it runs.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from agents.grants import Grants, load_or_create_key
from agents.mover import Mover
from agents.runtime import AgentConfig, AgentRuntime
from bus import failpoints
from bus.envelope import Envelope
from bus.grant_sealing import seal_to
from bus.rpc import serve
from bus.transport import Delivery, WireMessage, agent, progress, work
from bus.transport_memory import MemoryTransport
from schema.ids import PARTITIONS, derive

NAME = "host-storage"


def say(**word: Any) -> None:
    """One line out."""
    sys.stdout.write(json.dumps(word) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """argv: state directory, what the guard allows, failpoints, {reference: secret}."""
    state, allow, points, secrets = Path(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.stdin.readline())
    failpoints.arm(dict(part.split("=", 1) for part in points.split(",") if part))
    transport = MemoryTransport()
    await transport.start()
    key = load_or_create_key(state / "agent.key")
    grants = Grants(NAME, key, transport)

    async def grant(command: str, body: dict[str, Any]) -> dict[str, Any]:
        public = base64.b64decode(grants.public_key)
        return {"sealed": {ref: base64.b64encode(seal_to(
            public, secrets[ref].encode(), f"{ref}|{NAME}|{body['work_id']}".encode())).decode() for ref in body["refs"]}}

    server = await serve(transport, "vault.grant", grant)

    async def report(delivery: Delivery) -> None:
        envelope = Envelope.read(delivery.message.headers, delivery.message.body)
        await delivery.ack()
        say(said=envelope.type, body=json.loads(envelope.body), id=str(envelope.id), key=envelope.key)

    async def tell(delivery: Delivery) -> None:
        await delivery.ack()
        say(progress=json.loads(delivery.message.body))

    for partition in range(PARTITIONS):
        await transport.consume(work(partition), report)
    await transport.consume(progress(), tell)
    config = AgentConfig(name=NAME, zone_id=UUID(int=9), roles=("storage",), state_dir=state, token=b"token")
    mover = Mover({"download_allow": allow, "workers": 2, "records": str(config.records)})
    runtime = AgentRuntime(config, transport, mover, grants)
    await runtime.start()
    watch = asyncio.create_task(_tell_mover(mover))
    while line := await asyncio.to_thread(sys.stdin.readline):
        said = json.loads(line)
        body = json.dumps(said["body"]).encode()
        headers = Envelope(id=derive(UUID(said["body"]["work_id"]), line), type=said["type"], kind="order", body=body).headers()
        await transport.publish(agent(NAME), WireMessage(headers=headers, body=body))
    watch.cancel()
    await runtime.stop()
    await server.aclose()
    await transport.aclose()


async def _tell_mover(mover: Mover) -> None:
    last = 0
    while True:
        if mover.pid != last:
            last = mover.pid
            say(mover=last)
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(main())
