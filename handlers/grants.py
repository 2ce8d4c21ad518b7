"""Grants: an agent that has an order in the log gets the secrets which that order names, sealed to its enrolled key.

Rules kept here: the order must exist, be this agent's and name the reference; what leaves is readable by that agent
alone. Refuses to send anything in clear.
"""

from __future__ import annotations

import base64
import logging
from typing import Any
from uuid import UUID

from bus.event_store import EventStore
from bus.grant_sealing import seal_to
from bus.submission import job_stream
from bus.vault import Vault
from schema.agent import AgentAnnounced
from schema.codec import decode
from schema.failure import Denied

log = logging.getLogger(__name__)

SERVICE = "vault.grant"


class Grants:
    """The service behind `bus.call("vault.grant", ...)`."""

    def __init__(self, store: EventStore, vault: Vault) -> None:
        self.store, self.vault = store, vault

    async def __call__(self, command: str, body: dict[str, Any]) -> dict[str, Any]:
        """{agent, job_id, work_id, attempt, refs} -> {sealed: {reference: base64}}. Raises Denied."""
        agent, work_id = str(body["agent"]), str(UUID(str(body["work_id"])))
        refs = [str(ref) for ref in body["refs"]][:100]
        await self._check(agent, UUID(str(body["job_id"])), work_id, refs)
        key = await self._key(agent)
        sealed = {}
        for ref in refs:
            clear = await self.vault.open(ref)
            sealed[ref] = base64.b64encode(seal_to(key, clear.encode(), f"{ref}|{agent}|{work_id}".encode())).decode()
        log.info("granted %d secrets to %s", len(refs), agent, extra={"action": "granted", "work": work_id})
        return {"sealed": sealed}

    async def _check(self, agent: str, job_id: UUID, work_id: str, refs: list[str]) -> None:
        for row in await self.store.read_stream(job_stream(job_id), limit=10_000):
            if row.kind == "order" and row.address == agent:
                order = decode(row.type, row.type_version, row.payload)
                named = {value for field in ("store", "source")
                         for value in (getattr(getattr(order, field, None), "details", {}) or {}).values()}
                if str(getattr(order, "work_id", "")) == work_id and set(refs) <= named:
                    return
        raise Denied("no order of this agent names these secrets", field="refs")

    async def _key(self, agent: str) -> bytes:
        rows = (await self.store.read_streams([f"agent-{agent}"]))[f"agent-{agent}"]
        if not rows:
            raise Denied(f"the agent {agent!r} is not enrolled", field="agent")
        said = decode(rows[-1].type, rows[-1].type_version, rows[-1].payload)
        assert isinstance(said, AgentAnnounced)
        return base64.b64decode(said.public_key)
