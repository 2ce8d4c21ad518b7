"""Agents: an enrolled agent's hello becomes what placement sees of it.

Rule kept here: only who knows the enrolment token is let in; a hello that says nothing new writes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from typing import TYPE_CHECKING
from uuid import UUID

from bus.errors import Conflict
from bus.event_store import AppendRequest, NewRow
from schema.agent import AgentAnnounced, AgentHello
from schema.codec import decode, encode
from schema.failure import Denied
from schema.ids import NAMESPACE, derive, zone_named
from schema.message import Event
from schema.zone import PrimaryStoreAnnounced, ZoneCreated

if TYPE_CHECKING:
    from handlers.runtime import Runtime

log = logging.getLogger(__name__)


def proof(token: bytes, agent: str, public_key: str) -> str:
    """What an agent shows to be let in: HMAC-SHA256 of `<agent>|<public key>` under the enrolment token, hex."""
    return hmac.new(token, f"{agent}|{public_key}".encode(), hashlib.sha256).hexdigest()


async def announce(runtime: Runtime, hello: AgentHello) -> None:
    """Record what an agent said of itself, if it is new. Raises Denied when its proof is wrong."""
    if not hmac.compare_digest(proof(runtime.token, hello.agent, hello.public_key), hello.proof):
        raise Denied(f"the agent {hello.agent!r} does not know the enrolment token", field="proof",
                     remedy="give it the handlers' STOREBUS_AGENT_TOKEN")
    said = AgentAnnounced(agent=hello.agent, zone_id=hello.zone_id, roles=hello.roles, hypervisor=hello.hypervisor,
                          providers=hello.providers, primaries=hello.primaries, public_key=hello.public_key,
                          motions=hello.motions)
    facts: list[tuple[str, Event]] = [(f"agent-{hello.agent}", said)]
    facts += [(f"primary_store-{primary.id}", PrimaryStoreAnnounced(primary=primary, hypervisor=hello.hypervisor))
              for primary in hello.primaries]
    await record(runtime, facts)


async def create_zone(runtime: Runtime, name: str) -> UUID:
    """The zone of this name, made if it is not there yet."""
    zone_id = zone_named(name)
    await record(runtime, [(f"zone-{zone_id}", ZoneCreated(zone_id=zone_id, name=name))])
    return zone_id


async def record(runtime: Runtime, facts: list[tuple[str, Event]]) -> None:
    """Append each fact to its stream unless the stream's last event says the same."""
    for stream, fact in facts:
        for _ in range(5):
            rows = (await runtime.store.read_streams([stream]))[stream]
            if rows and decode(rows[-1].type, rows[-1].type_version, rows[-1].payload) == fact:
                break
            version = rows[-1].version if rows else -1
            row_id = derive(NAMESPACE, f"{runtime.installation}/{stream}/{version + 1}")
            try:
                await runtime.store.append(AppendRequest(expected={stream: version}, rows=[NewRow(
                    stream=stream, kind="event", type=fact.TYPE, type_version=fact.VERSION, id=row_id,
                    payload=encode(fact), key=stream, correlation=row_id)]))
                break
            except Conflict:
                continue
        runtime.directory.apply(fact)
