"""Grants: an agent gets the secrets that an order of its own names, of each store in it, and no others."""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agents.grants import Grants as AgentGrants
from bus.event_store import NO_STREAM, AppendRequest, NewRow
from bus.event_store_memory import MemoryEventStore
from bus.grant_sealing import seal_to, unseal
from bus.submission import job_stream
from bus.transport_memory import MemoryTransport
from bus.vault import Vault
from handlers.grants import Grants
from schema.agent import AgentAnnounced, MergeImages
from schema.codec import encode
from schema.failure import Denied
from schema.image import StoreSpec
from schema.message import Message


class Vaulted:
    """Stands for the vault's service: seals what it is asked for to one agent."""

    def __init__(self, clear: dict[str, str]) -> None:
        self.clear, self.public, self.asked = clear, b"", [[""]]

    async def call(self, service: str, body: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """As Caller.call."""
        self.asked.append(body["refs"])
        return {"sealed": {ref: base64.b64encode(seal_to(
            self.public, self.clear[ref].encode(), f"{ref}|{body['agent']}|{body['work_id']}".encode())).decode()
            for ref in body["refs"]}}


async def test_the_secrets_of_two_stores_come_apart() -> None:
    """Both call their secret the same; that of the one which is only read from has its name before it."""
    read, write = f"vault:{uuid4()}", f"vault:{uuid4()}"
    vaulted = Vaulted({read: "CANARY-read", write: "CANARY-write"})
    grants = AgentGrants("a", X25519PrivateKey.generate().private_bytes_raw(), MemoryTransport())
    vaulted.public = base64.b64decode(grants.public_key)
    grants._caller = vaulted  # type: ignore[assignment] # a double
    source, target = (StoreSpec(id=uuid4(), name="s", provider="s3", url="u", prefix="i", details={"secretkey": ref, "bucket": "b"})
                      for ref in (read, write))
    order = MergeImages(job_id=uuid4(), work_id=uuid4(), agent="a", reply_key="k", store=target, source=source, links=[], key="k",
                        kind="template", thing_id=uuid4())
    assert await grants.secrets(order) == {"secretkey": "CANARY-write", "source.secretkey": "CANARY-read"}
    assert await grants.secrets(order.model_copy(update={"source": None})) == {"secretkey": "CANARY-write"}
    assert vaulted.asked[1:] == [sorted([read, write]), [write]]


async def append(store: MemoryEventStore, stream: str, message: Message, address: str = "") -> None:
    await store.append(AppendRequest(expected={stream: NO_STREAM}, rows=[NewRow(
        stream=stream, kind=message.KIND, type=message.TYPE, type_version=message.VERSION, id=uuid4(), payload=encode(message),
        key="k", correlation=uuid4(), address=address)]))


async def test_of_two_stores_both_and_nothing_else() -> None:
    store = MemoryEventStore()
    vault, key, job, zone = Vault(store, bytes(32)), X25519PrivateKey.generate(), uuid4(), UUID(int=1)
    refs = [await vault.seal(clear) for clear in ("CANARY-a", "CANARY-b", "CANARY-c")]
    await append(store, "agent-a", AgentAnnounced(agent="a", zone_id=zone, roles=["storage"], public_key=base64.b64encode(
        key.public_key().public_bytes_raw()).decode()))
    specs = [StoreSpec(id=uuid4(), name="s", provider="s3", url="u", prefix="i", details={"secretkey": ref}) for ref in refs]
    order = MergeImages(job_id=job, work_id=uuid4(), agent="a", reply_key="k", store=specs[0], source=specs[1], links=[], key="k",
                        kind="template", thing_id=uuid4())
    await append(store, job_stream(job), order, address="a")
    asked = {"agent": "a", "job_id": str(job), "work_id": str(order.work_id), "attempt": 1}
    sealed = (await Grants(store, vault)("vault.grant", asked | {"refs": refs[:2]}))["sealed"]
    opened = [unseal(key.private_bytes_raw(), base64.b64decode(sealed[ref]), f"{ref}|a|{order.work_id}".encode()) for ref in refs[:2]]
    assert opened == [b"CANARY-a", b"CANARY-b"]
    for wrong in (asked | {"refs": refs}, asked | {"refs": refs[:1], "work_id": str(uuid4())}, asked | {"agent": "b", "refs": refs[:1]}):
        with pytest.raises(Denied):
            await Grants(store, vault)("vault.grant", wrong)
