"""The exchange `cloudstack-events` as who listens to CloudStack finds it: a plain AMQP consumer, a real RabbitMQ that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from itertools import pairwise
from typing import Any
from uuid import UUID

import aio_pika
import pytest

from api.edge import Edge
from bus import relay as relay_module
from handlers.cloudstack_events import NAME, CloudStackRelay, clean
from tests.support.system import FakeSystem
from tests.support.transports import LazyRabbit, rabbit_transport

S3 = {"name": "objects", "provider": "S3", "url": "http://s3", "details[0].key": "bucket", "details[0].value": "b",
      "details[1].key": "secretkey", "details[1].value": "canary-91aa"}

SETTLED_S = 5.0
"""A quorum queue of RabbitMQ 3.10 whose broker is killed within a second or two of its making may never have a leader again, and whoever
comes after this test on the same broker would wait for it in vain."""


async def asked(edge: Edge, command: str, **given: str) -> dict[str, Any]:
    answer = await edge.call({"command": command, **given})
    assert answer.status == 200, answer
    return dict(answer.body[f"{command.lower()}response"])


async def ended(system: FakeSystem, job_id: str) -> None:
    async with asyncio.timeout(60):
        while (await system.job(UUID(job_id)) or {}).get("status") not in ("completed", "failed", "cancelled"):
            await asyncio.sleep(0.01)


@pytest.mark.needs_rabbitmq
async def test_a_plain_consumer_has_every_event_though_the_broker_was_away(lazy_rabbit: LazyRabbit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MAX_PAUSE_S", 0.5)
    node = await lazy_rabbit.get()
    system = await FakeSystem.start()
    edge = Edge(system)
    async with rabbit_transport(node) as transport:
        async with await aio_pika.connect(node.url) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange("cloudstack-events", aio_pika.ExchangeType.TOPIC, durable=True)
            inbox = await channel.declare_queue("test.cloudstack", durable=True)
            await inbox.bind(exchange, "management-server.#")
            await inbox.purge()
        # A broker that is killed just after a binding was declared may have lost it: this puts it on its disk.
        await asyncio.to_thread(node.ctl, "eval", "mnesia:sync_log().")
        lane = asyncio.create_task(CloudStackRelay(system.store, transport, holder="test").run())
        async with system.working():
            await asked(edge, "addImageStore", **S3)
            first = await asked(edge, "createVolume", name="v", size="1")
            await ended(system, first["jobid"])
            await asyncio.sleep(SETTLED_S)
            await asyncio.to_thread(node.kill)
            taken = await asked(edge, "createSnapshot", volumeid=first["id"])
            await ended(system, taken["jobid"])
            await asyncio.sleep(0.5)
            await asyncio.to_thread(node.restart)
        head = await system.store.head()
        async with asyncio.timeout(60):
            while True:
                known = await system.store.load_checkpoint(NAME)
                if known is not None and known.position >= head:
                    break
                await asyncio.sleep(0.1)
        lane.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await lane
        found: list[tuple[str, dict[str, Any]]] = []
        async with await aio_pika.connect(node.url) as connection:
            channel = await connection.channel()
            inbox = await channel.declare_queue("test.cloudstack", durable=True)
            while (message := await inbox.get(fail=False, no_ack=True)) is not None:
                found.append((message.routing_key or "", json.loads(message.body)))
            await inbox.delete()
    wanted = [each for row in (await system.store.read_log(0, limit=10_000)).rows if row.kind in ("event", "command")
              for each in await CloudStackRelay(system.store, transport, holder="x").told(row)]
    told = {(key, json.dumps(body, sort_keys=True)) for key, body in found}
    assert told == {(each.key, json.dumps(each.body, sort_keys=True)) for each in wanted}
    check(found, taken["id"], taken["jobid"])
    assert "canary-91aa" not in str(found) and "vault:" not in str(found)


def check(found: list[tuple[str, dict[str, Any]]], snapshot: str, job: str) -> None:
    """Keys and bodies of the contract, for one snapshot."""
    actions = [body["status"] for key, body in found if key == f"management-server.ActionEvent.SNAPSHOT-CREATE.Snapshot.{snapshot}"]
    assert list(dict.fromkeys(actions)) == ["Created", "Started", "Completed"]
    [scheduled] = {json.dumps(body): body for key, body in found
                   if key == "management-server.ActionEvent.SNAPSHOT-CREATE.*.*" and body["status"] == "Scheduled"}.values()
    assert (scheduled["user"], scheduled["account"]) == ("admin", "admin")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}", scheduled["eventDateTime"])
    states = list(dict.fromkeys((body["old-state"], body["new-state"]) for key, body in found
                                if key.startswith("management-server.ResourceStateEvent.") and body["id"] == snapshot))
    assert states[0][0] == "Allocated" and states[-1][1] == "BackedUp"
    assert all(one[1] == two[0] for one, two in pairwise(states))
    [ended] = {json.dumps(body): body for key, body in found
               if key == f"management-server.AsyncJobEvent.complete.Snapshot.{snapshot}"}.values()
    assert (ended["jobId"], ended["status"], ended["resultCode"], ended["commandEventType"]) == (job, "SUCCEEDED", 0, "SNAPSHOT.CREATE")
    assert any(key == f"management-server.UsageEvent.SNAPSHOT-CREATE.Snapshot.{snapshot}" for key, _ in found)


def test_no_reference_into_the_vault_is_told() -> None:
    secret = "vault:7d2f9a10-4c1e-4b53-9a37-0c5f1e2d3b4a"
    assert clean({"a": secret, "b": {"c": secret, "d": 1}, "e": [secret, {"f": secret}]}) == {"b": {"d": 1}, "e": [{}]}
