"""Agents: an enrolled agent's hello becomes what placement and lists see of it, of its primary stores and of its machines.

Rule kept here: only who knows the enrolment token is let in; a hello that says nothing new writes nothing to the log. When an
agent was heard, and what room its primary stores have, changes all the time: that is kept beside the log, as progress is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from bus.errors import Conflict
from bus.event_store import AppendRequest, CounterChange, EventStore, LogRow, NewRow
from handlers import primary_store
from handlers.directory import Directory
from schema.agent import AgentAnnounced, AgentHello, PrimaryUsage
from schema.codec import canonical, decode, encode
from schema.failure import Denied
from schema.identity import ROOT_OWNER, AccountCreated, Owner
from schema.ids import NAMESPACE, derive, stream, zone_named
from schema.machine import MachineAnnounced, MachineSpec, MachineWithdrawn
from schema.message import Event
from schema.primary_store import PrimaryStoreAnnounced, PrimaryStoreDeleted, PrimaryStoreRejected, PrimaryStoreRequested
from schema.zone import ZoneCreated

if TYPE_CHECKING:
    from handlers.runtime import Runtime

log = logging.getLogger(__name__)
ENDED = (PrimaryStoreDeleted.TYPE, PrimaryStoreRejected.TYPE)


def proof(token: bytes, agent: str, public_key: str) -> str:
    """What an agent shows to be let in: HMAC-SHA256 of `<agent>|<public key>` under the enrolment token, hex."""
    return hmac.new(token, f"{agent}|{public_key}".encode(), hashlib.sha256).hexdigest()


async def announce(runtime: Runtime, hello: AgentHello) -> None:
    """Record what an agent said of itself, if it is new. Raises Denied when its proof is wrong."""
    if not hmac.compare_digest(proof(runtime.token, hello.agent, hello.public_key), hello.proof):
        raise Denied(f"the agent {hello.agent!r} does not know the enrolment token", field="proof",
                     remedy="give it the handlers' STOREBUS_AGENT_TOKEN")
    await _hear(runtime.store, hello)
    said = AgentAnnounced(agent=hello.agent, zone_id=hello.zone_id, roles=hello.roles, hypervisor=hello.hypervisor,
                          providers=hello.providers, primaries=hello.primaries, public_key=hello.public_key,
                          motions=hello.motions)
    facts: list[tuple[str, Event]] = [(f"agent-{hello.agent}", said)]
    facts += [(f"primary_store-{primary.id}", PrimaryStoreAnnounced(primary=primary, hypervisor=hello.hypervisor))
              for primary in hello.primaries]
    await record(runtime, facts)
    if hello.machines is not None:
        await _machines(runtime, hello, hello.machines)


# --- when it was heard, and what room it has: beside the log ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """The last hello of an agent, as far as it is no history."""

    at: datetime
    usage: tuple[PrimaryUsage, ...]
    version: str = ""
    """Of its Storebus; empty when it did not say."""


def _place(agent: str) -> str:
    return f"agent/{agent}"


async def _hear(store: EventStore, hello: AgentHello) -> None:
    usage = [each.model_dump(mode="json") for each in hello.usage]
    await store.set_progress(_place(hello.agent), canonical({
        "at": datetime.now(UTC).isoformat(), "usage": usage, "version": hello.version}))


async def heard(store: EventStore, agents: Iterable[str]) -> dict[str, Heard]:
    """The last hello of these agents; one that nobody heard for a day, or since the database crashed, is left out."""
    found = await store.get_progress([_place(agent) for agent in agents])
    told = {place.removeprefix("agent/"): json.loads(said) for place, said in found.items()}
    return {agent: Heard(datetime.fromisoformat(said["at"]), tuple(PrimaryUsage.model_validate(each) for each in said["usage"]),
                         said.get("version", ""))
            for agent, said in told.items()}


async def free_bytes(store: EventStore, directory: Directory) -> dict[UUID, int]:
    """Primary store -> free bytes as its agent last said. Nobody is asked where a zone leaves no choice."""
    zones = [spec.zone_id for spec, _ in directory.primaries.values()]
    if len(set(zones)) == len(zones):
        return {}
    told = await heard(store, {spec.agent for spec, _ in directory.primaries.values()})
    return {each.id: each.free_bytes for one in told.values() for each in one.usage}


# --- machines --------------------------------------------------------------------------------------------------------


async def _machines(runtime: Runtime, hello: AgentHello, machines: list[MachineSpec]) -> None:
    """What changed of the agent's machines; one that it names no more is withdrawn."""
    await runtime.catch_up()
    known = runtime.directory.machines
    facts: list[tuple[str, Event]] = []
    for spec in machines:
        before = known.get(spec.id)
        if before is not None and before.agent != hello.agent:
            log.warning("the machine %s of %s is reported by %s too: the first keeps it", spec.id, before.agent, hello.agent,
                        extra={"action": "machine_twice"})
        elif before is None or before.machine != spec:
            facts.append((stream("machine", spec.id), MachineAnnounced(
                machine=spec, agent=hello.agent, zone_id=hello.zone_id, hypervisor=hello.hypervisor,
                owner=await _owner(runtime.store, spec.account), first_at=before.first_at if before else datetime.now(UTC))))
    named = {spec.id for spec in machines}
    facts += [(stream("machine", each.machine.id), MachineWithdrawn(machine_id=each.machine.id, agent=hello.agent))
              for each in known.values() if each.agent == hello.agent and each.machine.id not in named]
    await record(runtime, facts)


async def _owner(store: EventStore, account: UUID | None) -> Owner:
    """The account with this id; ROOT's admin where none is named, or there is none: then nobody else sees the machine."""
    if account is None:
        return ROOT_OWNER
    rows = await store.read_stream(stream("account", account), limit=1)
    made = decode(rows[0].type, rows[0].type_version, rows[0].payload) if rows else None
    if not isinstance(made, AccountCreated):
        log.warning("no account has the id %s: its machine is ROOT's", account, extra={"action": "account_unknown"})
        return ROOT_OWNER
    return made.owner


# --- facts into the log ----------------------------------------------------------------------------------------------


async def create_zone(runtime: Runtime, name: str) -> UUID:
    """The zone of this name, made if it is not there yet."""
    zone_id = zone_named(name)
    if not await runtime.store.read_stream(stream("zone", zone_id), limit=1):
        await record(runtime, [(stream("zone", zone_id), ZoneCreated(zone_id=zone_id, name=name))])
    return zone_id


async def record(runtime: Runtime, facts: list[tuple[str, Event]]) -> None:
    """Append each fact to its stream unless what the stream last said of it is the same."""
    for name, fact in facts:
        if await _recorded(runtime, name, fact):
            runtime.directory.apply(fact)


async def _recorded(runtime: Runtime, name: str, fact: Event) -> bool:
    """Whether the log says it now. False: it is about something that is gone for good."""
    for _ in range(5):
        rows = (await runtime.store.read_streams([name]))[name]
        said = [row for row in rows if not row.type.startswith("machine.disk_")]
        if said and decode(said[-1].type, said[-1].type_version, said[-1].payload) == fact:
            return True
        if _gone(rows):
            return False
        version = rows[-1].version if rows else -1
        row_id = derive(NAMESPACE, f"{runtime.installation}/{name}/{version + 1}")
        owner = getattr(fact, "owner", ROOT_OWNER)
        meta = {} if owner == ROOT_OWNER else {"account": str(owner.account_id), "domain": owner.path}
        try:
            await runtime.store.append(AppendRequest(
                expected={name: version}, counters=_reopened(rows, fact), rows=[NewRow(
                    stream=name, kind="event", type=fact.TYPE, type_version=fact.VERSION, id=row_id, payload=encode(fact),
                    key=name, correlation=row_id, meta=canonical(meta))]))
            runtime.forget([name])
            break
        except Conflict:
            continue
    return True


def _gone(rows: list[LogRow]) -> bool:
    """A primary store that a command made and that was closed: a hello that was on its way does not bring it back."""
    return bool(rows) and rows[0].type == PrimaryStoreRequested.TYPE and any(row.type in ENDED for row in rows)


def _reopened(rows: list[LogRow], fact: Event) -> list[CounterChange]:
    """A store that settings name again takes volumes and seeds again."""
    if isinstance(fact, PrimaryStoreAnnounced) and rows and rows[-1].type == PrimaryStoreDeleted.TYPE:
        return [CounterChange(name=counter(fact.primary.id), lift_ceiling=True)
                for counter in (primary_store.volumes, primary_store.seeds)]
    return []


__all__ = ["Heard", "announce", "create_zone", "free_bytes", "heard", "proof", "record"]
