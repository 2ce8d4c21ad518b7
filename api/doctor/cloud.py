"""What an installation works with: agents, primary stores, image stores, by what it knows of them.

Owns the judgement of their rows. Refuses to ask them anything: agents say hello once a minute, and a store is tested when it is
added and read by scrubs. The same rows come from the tables of an installation and from the lists of an API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from api.cli_bus import views
from api.doctor.finding import Finding, span_text
from api.doctor.servers import log_of
from api.output import size_text
from api.settings import Settings
from bus.read_model import PostgresReadModel
from handlers.agent import Heard, heard
from handlers.capacity import used
from schema.scrub import ScrubStore
from schema.version import installed_version

SILENT_S = 180.0
"""An agent says hello once a minute."""
FULL = (0.9, 0.98)
"""Of a store's room: a warning, a fault."""
JOBS = 500
"""The newest scrubs that are looked at."""


@dataclass(frozen=True, slots=True)
class AgentSeen:
    """An agent as doctor sees it."""

    name: str
    roles: tuple[str, ...]
    silent_s: float | None
    """Since its last hello; None: nobody remembers one."""
    version: str = ""


@dataclass(frozen=True, slots=True)
class StoreSeen:
    """An image store as doctor sees it."""

    name: str
    read_only: bool
    used: int | None = None
    capacity: int | None = None
    """Bytes that may rest on it; None: no limit but its own."""
    scrubbed: str = ""
    """When it was scrubbed last."""
    damaged: int = 0
    """Images on it that are quarantined."""
    state: str = "Ready"


# --- judgement --------------------------------------------------------------------------------------------------------


def judge_agents(agents: Iterable[AgentSeen]) -> list[Finding]:
    """One for each, and one for a role that nobody has."""
    found: list[Finding] = []
    roles: set[str] = set()
    for each in agents:
        text = f"{', '.join(each.roles) or 'no role'}{f', {each.version}' if each.version else ''}"
        if each.silent_s is None or each.silent_s > SILENT_S:
            when = "nobody remembers its last hello" if each.silent_s is None else f"silent for {span_text(each.silent_s)}"
            found.append(Finding("fault", f"{text}; {when}: its orders wait",
                                 "start it again on its host: storebus serve agent; its log tells what stopped it", each.name))
            continue
        roles |= set(each.roles)
        ours = installed_version()
        if each.version and ours and each.version != ours:
            found.append(Finding("warning", f"{text}; this is {ours}", "bring all processes to one version", each.name))
        else:
            found.append(Finding("ok", f"{text}; heard {span_text(each.silent_s)} ago", of=each.name))
    if not found:
        return [Finding("fault", "no agent has announced itself: nothing can be stored", "storebus serve agent")]
    missing = {"storage", "hypervisor"} - roles
    if missing:
        what = {"storage": "nothing reaches an image store", "hypervisor": "no volume can be made"}
        found.append(Finding("warning", "; ".join(f"no agent that is heard is {role}: {what[role]}" for role in sorted(missing)),
                             "storebus serve agent --role storage, --role kvm"))
    return found


def judge_room(name: str, total: int, free: int) -> Finding:
    """A primary store's room."""
    text = f"{size_text(free)} of {size_text(total)} free"
    full = 1 - free / total if total else 1.0
    if full >= FULL[0]:
        return Finding("fault" if full >= FULL[1] else "warning", text, "delete volumes and snapshots, or add a primary store",
                       name)
    return Finding("ok", text, of=name)


def judge_store(store: StoreSeen) -> Finding:
    """An image store."""
    parts = [f"scrubbed {store.scrubbed}" if store.scrubbed else "never scrubbed"]
    if store.used is not None:
        of = f" of {size_text(store.capacity)}" if store.capacity else ""
        parts.insert(0, f"{size_text(store.used)}{of} used")
    text = ", ".join(parts)
    if store.state != "Ready":
        return Finding("warning", f"{store.state}, {text}", "wait for its job, or storebus jobs", store.name)
    if store.damaged:
        return Finding("fault", f"{text}; {store.damaged} images on it are damaged and quarantined",
                       f"storebus scrub {store.name} --share 100% --wait names object and part; restore them, or delete them",
                       store.name)
    full = store.used / store.capacity if store.used is not None and store.capacity else 0.0
    if full >= FULL[0]:
        return Finding("fault" if full >= FULL[1] else "warning", text,
                       "storebus call updateImageStore capacitybytes=, delete what is not needed, or add a store",
                       store.name)
    if store.read_only:
        return Finding("warning", f"{text}; read-only: it takes nothing new",
                       "storebus call updateImageStore readonly=false, if that is over", store.name)
    return Finding("ok", text, of=store.name)


def judge_stores(stores: Iterable[StoreSeen]) -> list[Finding]:
    """One for each; none at all is worth a word."""
    return [judge_store(each) for each in stores] or [
        Finding("warning", "there is no image store: no template and no backup", "storebus call addImageStore")]


# --- from the tables --------------------------------------------------------------------------------------------------


def silence(at: datetime | None) -> float | None:
    """Seconds since then."""
    return None if at is None else max(0.0, (datetime.now(UTC) - at).total_seconds())


async def agents(settings: Settings) -> list[Finding]:
    """Were they heard, and of which version are they."""
    async with views(settings) as model, log_of(settings) as store:
        rows, _ = await model.rows("agent")
        told: Mapping[str, Heard] = await heard(store, [row["id"] for row in rows])
    last = {row["id"]: told.get(row["id"]) for row in rows}
    return judge_agents(AgentSeen(name, tuple(row["roles"] or ()), silence(one.at if one else None), one.version if one else "")
                        for row in rows for name, one in [(row["id"], last[row["id"]])])


async def primaries(settings: Settings) -> list[Finding]:
    """Have they room."""
    async with views(settings) as model, log_of(settings) as store:
        rows, _ = await model.rows("primary_store", {"removed": None})
        told = await heard(store, {row["agent"] for row in rows})
    room = {str(each.id): each for one in told.values() for each in one.usage}
    return [judge_room(row["name"], room[row["id"]].total_bytes, room[row["id"]].free_bytes) if row["id"] in room
            else Finding("warning", "its agent has not told of its room", "see the agent", row["name"]) for row in rows] or [
        Finding("warning", "there is no primary store: no volume can be made", "storebus serve agent --role kvm")]


async def stores(settings: Settings) -> list[Finding]:
    """State, room, the last scrub, what is quarantined."""
    async with views(settings) as model, log_of(settings) as store:
        rows, _ = await model.rows("image_store", {"removed": None})
        counted = await store.counter_values([used(UUID(row["id"])) for row in rows]) if rows else {}
        scrubs, damaged = await _scrubs(model), await _damaged(model)
    return judge_stores(StoreSeen(
        row["name"], bool(row["read_only"]), counted.get(used(UUID(row["id"])), 0), row["capacity_bytes"],
        scrubs.get(row["id"], ""), damaged.get(row["id"], 0), row["state"]) for row in rows)


async def _scrubs(model: PostgresReadModel) -> dict[str, str]:
    """Image store -> the day of its last scrub that came to its end."""
    where = {"command": ScrubStore.TYPE, "status": "completed"}
    _, count = await model.rows("job", where, limit=1)
    rows, _ = await model.rows("job", where, limit=JOBS, offset=max(0, count - JOBS))
    return {str((row["result"] or {}).get("store", "")): str(row["completed"])[:10] for row in rows}


async def _damaged(model: PostgresReadModel) -> dict[str, int]:
    """Image store -> images on it that are quarantined."""
    found: dict[str, int] = {}
    for table in ("template_store_ref", "snapshot_store_ref"):
        rows: list[dict[str, Any]]
        rows, _ = await model.rows(table, {"state": "Quarantined"}, limit=10_000)
        for row in rows:
            found[row["store_id"]] = found.get(row["store_id"], 0) + 1
    return found


__all__ = ["AgentSeen", "StoreSeen", "agents", "judge_agents", "judge_room", "judge_store", "judge_stores", "primaries",
           "silence", "stores"]
