"""System: what HTTP and the command line need of a running installation, behind one small surface.

Owns the way from a validated command to an accepted job or a refusal, and from a question to rows. Refuses to know
HTTP and CloudStack's spelling. The commit point of a command is one append here; the broker is not in its path.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from bus.event_store import EventStore
from bus.failpoints import hit
from bus.read_model import ReadModel
from bus.sealing import refuse_password_in_url, sealed
from bus.submission import submission, submit
from bus.vault import Vault
from handlers.agent import Heard, heard
from handlers.link import evolve as evolve_link
from handlers.link import stream as link_stream
from handlers.projections import owned
from handlers.projector import NAME as PROJECTOR
from handlers.runtime import Runtime
from schema.codec import decode
from schema.identity import ROOT_OWNER, Owner
from schema.link import LinkGiven
from schema.message import Command
from schema.motion import MotionPlan

ENDED = ("completed", "failed", "cancelled")


class System:
    """One installation, reached through its database."""

    def __init__(self, store: EventStore, runtime: Runtime, views: ReadModel, vault: Vault) -> None:
        self.store, self.runtime, self.views, self.vault = store, runtime, views, vault

    async def precheck(self, command: Command, job_id: UUID, owner: Owner | None = None) -> None:
        """Raise what would refuse the command now. Its real decision is made when it is handled."""
        refuse_password_in_url(command.model_dump(mode="json", exclude_none=True))
        await self.runtime.precheck(command, job_id, owner)

    async def plan(self, command: Command, job_id: UUID, owner: Owner | None = None) -> list[tuple[str, MotionPlan]]:
        """(step, how its bytes would move), if the command came now. Raises what would refuse it."""
        refuse_password_in_url(command.model_dump(mode="json", exclude_none=True))
        return await self.runtime.plan(command, job_id, owner)

    async def seal_secrets(self, command: Command, job_id: UUID) -> Command:
        """The command with clear secrets replaced by vault references."""
        return await sealed(command, self.vault.seal, job_id=job_id)

    async def open_secret(self, reference: str) -> str:
        """What a vault reference stands for: only for comparing what a caller shows with it."""
        return await self.vault.open(reference)

    async def submit(self, command: Command, *, job_id: UUID, principal: str = "admin", owner: Owner | None = None) -> int:
        """Accept the command: one append. Returns its position; from here on it reaches exactly one end."""
        appended = await submit(self.store, submission(command, job_id=job_id, principal=principal, owner=owner))
        hit("api.after_append")
        return appended.last_position

    async def run_now(self, command: Command, job_id: UUID, *, principal: str = "admin",
                      owner: Owner | None = None) -> dict[str, Any]:
        """Run a command that needs no agent in one append, then wait until lists show it."""
        result, position = await self.runtime.run_now(command, job_id, principal, owner)
        hit("api.after_append")
        await self.wait_for(position, timeout_s=2.0)
        return result

    async def wait_for(self, position: int, *, timeout_s: float) -> bool:
        """Wait until the read tables hold everything up to `position`; False when the time is over (a stale answer)."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            known = await self.store.load_checkpoint(PROJECTOR)
            if known is not None and known.position >= position:
                return True
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)

    async def rows(self, table: str, where: Mapping[str, Any] | None = None, *, search: str = "",
                   order: str = "created", limit: int = 500, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """One page of a read table, and how many rows match in all."""
        return await self.views.rows(table, where, search=search, order=order, limit=limit, offset=offset)

    async def counters(self, names: Sequence[str]) -> dict[str, int]:
        """The values of these counters; one that was never counted is absent."""
        return await self.store.counter_values(names) if names else {}

    async def job(self, job_id: UUID) -> dict[str, Any] | None:
        """A job's row, with `progress` (stage, bytes, total, rate, eta) while it runs. None when there is none."""
        rows, _ = await self.rows("job", {"id": str(job_id)}, limit=1)
        if not rows:
            return await self._unseen(job_id)
        row = rows[0]
        if row["status"] not in ENDED and row.get("work"):
            found = await self.store.get_progress([row["work"]])
            if row["work"] in found:
                row["progress"] = json.loads(found[row["work"]])
        return row

    async def heard(self, agents: Iterable[str]) -> dict[str, Heard]:
        """When these agents were heard last, and what they said of their room."""
        return await heard(self.store, agents)

    async def _unseen(self, job_id: UUID) -> dict[str, Any] | None:
        """A job that was accepted and that the read tables do not show yet."""
        first = await self.store.read_stream(f"job-{job_id}", limit=1)
        if not first:
            return None
        body = json.loads(first[0].payload)
        return {"id": str(job_id), "command": body["command"], "status": "submitted", "body": body["body"],
                "principal": body.get("principal", ""), "created": first[0].recorded_at.isoformat(), "step": None,
                "subject": None, "result": None,
                **owned(Owner.model_validate(body.get("owner") or ROOT_OWNER.model_dump())),
                "failure": None, "cancel_requested": False, "completed": None}

    async def link(self, link_id: UUID) -> dict[str, Any] | None:
        """A link by which bytes may be got: `state` (Asked, Given, NotGiven, Ended), `given`, `expires`, and its `url` while it
        is good. A secret: the caller has seen to it that whoever asked may see it. None when there is none."""
        rows = await self.store.read_stream(link_stream(link_id), limit=1000)
        events = [decode(row.type, row.type_version, row.payload) for row in rows if row.kind == "event"]
        state = None
        for event in events:
            state = evolve_link(state, event)  # type: ignore[arg-type] # rows of the kind event are events
        if state is None:
            return None
        found: dict[str, Any] = {"state": state.status}
        given = next((event for event in events if isinstance(event, LinkGiven)), None)
        if given is not None and state.status == "Given":
            found |= {"expires": given.expires_at.isoformat()}
            if datetime.now(UTC) < given.expires_at:
                found["url"] = self.vault.unseal(given.sealed_url, given.work_id)
        return found

    async def wait_for_end(self, job_id: UUID, *, timeout_s: float) -> dict[str, Any] | None:
        """The job's row once it has ended, None when the time is over (the job goes on)."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            head = await self.store.head()
            row = await self.job(job_id)
            if row is not None and row["status"] in ENDED:
                return row
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return None
            await self.store.wait(head, timeout_s=min(left, 0.25))
