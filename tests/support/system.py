"""A whole installation in memory for tests of the edges: the real System, runtime, deciders and projections.

`FakeSystem` differs from the real one in two things only: its read tables are folded from the log when they are asked
for (so there is no projector to wait for), and its agents are played by the test (`cloud.settle()` and friends).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from api.system import System
from bus.errors import StoreAway
from bus.event_store import LogFilter
from bus.event_store_memory import MemoryEventStore
from bus.read_model import Change
from bus.vault import Vault
from handlers.projections import changes
from tests.support.cloud import Cloud

Tables = Mapping[str, Mapping[str, dict[str, Any]]]
"""Table name -> id -> row."""


class FoldedViews:
    """Read tables folded from the log when they are asked for: what came since the last question."""

    def __init__(self, store: MemoryEventStore) -> None:
        self._store = store
        self._tables: dict[str, dict[str, dict[str, Any]]] = {}
        self._position = 0

    async def tables(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Every table but the views, by id. Later questions change nothing of it."""
        await self._fold()
        return {name: dict(rows) for name, rows in self._tables.items()}

    async def _fold(self) -> None:
        page = await self._store.read_log(self._position, filter=LogFilter(), limit=100_000)
        for row in page.rows:
            for table, key, columns in changes(row):
                rows = self._tables.setdefault(table, {})
                if columns is None:
                    rows.pop(key, None)
                else:
                    rows[key] = {**rows.get(key, {}), **columns, "id": key}
        self._position = page.scanned_to

    async def rows(self, table: str, where: Mapping[str, Any] | None = None, *, search: str = "",
                   order: str = "created", limit: int = 500, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """As PostgresReadModel: absent columns are null, the total is known only where there are rows."""
        await self._fold()
        there = VIEWS[table](self._tables) if table in VIEWS else self._tables.get(table, {}).values()
        found = [dict.fromkeys(COLUMNS[table]) | row for row in there]
        found = [row for row in found if holds(row, where or {}) and search.lower() in (row.get("name") or "").lower()]
        found.sort(key=lambda row: (row.get(order) or "~", row["id"]))
        page = found[offset:offset + limit]
        return page, len(found) if page else 0

    async def apply(self, changes: Sequence[Change]) -> None:
        """Nothing: everything is folded."""

    async def clear(self) -> None:
        """Nothing."""

    async def aclose(self) -> None:
        """Nothing."""


def _snapshots_in_zones(tables: Tables) -> Iterator[dict[str, Any]]:
    """As read.snapshot_in_zone."""
    whole = tables.get("snapshot", {})
    for key, ref in tables.get("snapshot_zone_ref", {}).items():
        row = whole.get(ref["snapshot_id"])
        if row is not None:
            volume = tables.get("volume", {}).get(row.get("volume_id", ""), {})
            yield {column: row.get(column) for column in COLUMNS["snapshot_in_zone"]} | {
                "id": key, "snapshot_id": ref["snapshot_id"], "zone_id": ref["zone_id"]} | {
                f"volume_{column}": volume.get(column) for column in ("name", "state", "removed")}


def _resource_tags(tables: Tables) -> Iterator[dict[str, Any]]:
    """As read.resource_tag."""
    for table, kind in (("volume", "Volume"), ("snapshot", "Snapshot"), ("template", "Template")):
        for row in tables.get(table, {}).values():
            if row["state"] in ("Failed", "Error", "Expunged", "Destroyed", "Deleted"):
                continue
            for name, value in (row.get("tags") or {}).items():
                yield {**{column: row.get(column) for column in (*_OWNED, "created")}, "id": f"{row['id']}/{name}", "name": name,
                       "value": value, "resource_type": "ISO" if row.get("format") == "iso" else kind, "resource_id": row["id"]}


def _events(tables: Tables) -> Iterator[dict[str, Any]]:
    """As read.event."""
    for job in tables.get("job", {}).values():
        kind, _, thing = (job.get("subject") or "").partition("-")
        kind = "".join(part.capitalize() for part in kind.split("_"))
        for step, (state, at) in enumerate((("Scheduled", job["created"]), ("Created", job.get("started") if job.get("makes") else None),
                                            ("Started", job.get("started")), ("Completed", job.get("completed"))), start=1):
            if at is None:
                continue
            bad = step == 4 and job["status"] != "completed"
            level = "INFO" if not bad else "WARN" if job["status"] == "cancelled" else "ERROR"
            told = f"{state} {job['event']}" + (f" of {kind} {thing}" if thing else "") + (
                f", {job['status']}: {(job.get('failure') or {}).get('cause', '')}" if bad else "")
            yield {column: job.get(column) for column in _OWNED} | {
                "id": _event_id(job["id"], state), "name": f"{job['event']} {level} {told}", "type": job["event"], "state": state,
                "level": level, "description": told, "principal": job["principal"], "job_id": job["id"],
                "parent_id": _event_id(job["id"], "Scheduled") if step > 1 else None, "resource_type": kind or None,
                "resource_id": thing or None, "created": at, "open": job.get("completed") is None, "archived": False,
                "rank": -round(datetime.fromisoformat(at).timestamp() * 1_000_000) * 8 - step}


def _event_id(job_id: str, state: str) -> str:
    return str(UUID(hashlib.md5(f"{job_id}/{state}".encode()).hexdigest()))


def _in_zones(tables: Tables) -> Iterator[dict[str, Any]]:
    """As read.template_view."""
    copies, zones = tables.get("template_store_ref", {}).values(), tables.get("zone", {})
    for listed in tables.get("template_zone", {}).values():
        row = tables["template"][listed["template_id"]]
        for zone in zones.values() if listed["zone_id"] is None else [zones[listed["zone_id"]]]:
            here = sorted((copy for copy in copies if copy["template_id"] == row["id"] and copy.get("zone_id") in (None, zone["id"])),
                          key=lambda copy: (copy["state"] != "Ready", copy["created"]))
            copy = here[0] if here else {}
            state = copy.get("state") or ("Absent" if row["state"] == "Ready" else row["state"])
            yield {**row, "id": f"{row['id']}/{zone['id']}", "template_id": row["id"], "in_zone": zone["id"],
                   "zone_name": zone["name"], "state": state, "job_id": copy.get("job_id") or row["job_id"],
                   "error": copy.get("error") or listed.get("error") or row.get("error")}


def _pending(tables: Tables) -> Iterator[dict[str, Any]]:
    """As read.pending_deletion."""
    for noun in ("template", "snapshot"):
        for copy in tables.get(f"{noun}_store_ref", {}).values():
            if copy["state"] == "Destroying":
                of = tables[noun][copy[f"{noun}_id"]]
                yield {**copy, "kind": of.get("kind", noun), "thing_id": of["id"], "name": of["name"],
                       "job_id": copy.get("job_id") or of["job_id"]}
    for seed in tables.get("template_spool_ref", {}).values():
        if seed["state"] == "Destroying":
            of = tables["template"][seed["template_id"]]
            yield {**of, **seed, "kind": of["kind"], "thing_id": of["id"], "store_id": seed["pool_id"], "key": seed["path"]}


VIEWS = {"template_view": _in_zones, "pending_deletion": _pending, "snapshot_in_zone": _snapshots_in_zones,
         "resource_tag": _resource_tags, "event": _events}
"""What the database computes when it is asked, from the tables."""


def holds(row: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """As read.conditions."""
    return all(_pair(row, name, value) for name, value in where.items())


def _pair(row: Mapping[str, Any], name: str, value: Any) -> bool:
    if name in ("any", "all"):
        return (any if name == "any" else all)(holds(row, each) for each in value)
    if isinstance(value, Mapping):
        if "prefix" in value:
            return row.get(name) is not None and str(row[name]).startswith(value["prefix"])
        if "from" in value or "until" in value:
            return row.get(name) is not None and value.get("from", "") <= row[name] <= value.get("until", "~")
        if "has" in value:
            if isinstance(value["has"], list):
                return set(row.get(name) or ()) >= set(value["has"])
            return (row.get(name) or {}).items() >= value["has"].items()
        return row.get(name) in value["in"]
    return _equal(row.get(name), value)


def _equal(have: Any, want: Any) -> bool:
    if want is None or have is None:
        return have is want
    return str(have).lower() == str(want).lower()


_COMMON = ("name", "created")
_OWNED = ("account_id", "account", "domain_id", "domain_path", "project_id")
_TEMPLATE = (*_COMMON, *_OWNED, "display_text", "url", "format", "hypervisor", "zone_id", "state", "size", "physical_size", "checksum",
             "is_public", "is_featured", "is_extractable", "os_type_id", "error", "job_id", "removed", "tags", "kind", "cross_zones",
             "granted", "volume_id", "snapshot_id", "bits", "requires_hvm", "password_enabled", "ssh_key_enabled",
             "dynamically_scalable", "bootable", "details", "template_tag", "template_type", "arch", "sort_key")
COLUMNS: dict[str, tuple[str, ...]] = {
    "zone": (*_COMMON, "network_type", "dns1", "dns2", "internal_dns1", "internal_dns2", "domain"),
    "machine": (*_COMMON, *_OWNED, "state", "memory_mib", "trouble", "agent", "host_id", "zone_id", "hypervisor", "removed"),
    "agent": ("zone_id", "roles", "hypervisor", "providers", "created"),
    "primary_store": (*_COMMON, "kind", "path", "zone_id", "agent", "hypervisor", "total_bytes", "state", "scope", "error", "job_id",
                      "removed"),
    "image_store": (*_COMMON, "provider", "url", "protocol", "scope", "zone_id", "state", "read_only", "error",
                    "job_id", "removed", "role", "details", "capacity_bytes"),
    "backup_provider": (*_COMMON, "provider"),
    "domain": (*_COMMON, "parent_id", "domain_id", "domain_path"),
    "account": (*_COMMON, *_OWNED, "role"),
    "user": (*_COMMON, *_OWNED, "role", "password", "email", "first_name", "last_name", "timezone", "api_key", "secret_key"),
    "project": (*_COMMON, *_OWNED, "display_text", "admin_id"),
    "resource_limit": (*_COMMON, *_OWNED, "max"),
    "resource_tag": (*_COMMON, *_OWNED, "value", "resource_type", "resource_id"),
    "project_account": (*_COMMON, "project_id", "account_id"),
    "template": _TEMPLATE,
    "template_view": (*_TEMPLATE, "template_id", "in_zone", "zone_name"),
    "template_store_ref": ("template_id", "store_id", "zone_id", "key", "state", "size", "physical_size", "job_id", "created"),
    "template_spool_ref": ("template_id", "pool_id", "zone_id", "store_id", "key", "path", "state", "size", "physical_size", "job_id",
                           "created"),
    "template_zone": ("template_id", "zone_id", "error", "created"),
    "launch_permission": ("template_id", "account_id", "created"),
    "pending_deletion": (*_COMMON, *_OWNED, "kind", "thing_id", "store_id", "key", "physical_size", "job_id"),
    "volume": (*_COMMON, *_OWNED, "zone_id", "state", "size", "physical_size", "primary_id", "path", "template_id",
               "snapshot_id", "hypervisor", "job_id", "error", "removed", "type", "disk_offering_id", "min_iops", "max_iops", "display",
               "delete_protection", "machine_id", "device_id", "attached"),
    "volume_store_ref": ("volume_id", "store_id", "zone_id", "kind", "key", "state", "size", "physical_size", "error", "job_id",
                         "created"),
    "disk_offering": (*_COMMON, "display_text", "disk_size", "tags", "min_iops", "max_iops", "provisioning_type", "domains",
                      "display", "removed"),
    "snapshot": (*_COMMON, *_OWNED, "volume_id", "zone_id", "state", "size", "physical_size", "on_primary", "job_id", "error",
                 "removed", "snapshot_type", "policy_id", "location_type", "chain_size"),
    "snapshot_in_zone": (*_COMMON, *_OWNED, "snapshot_id", "zone_id", "volume_id", "state", "snapshot_type", "location_type", "tags",
                         "removed", "size", "physical_size", "job_id", "error", "policy_id", "chain_size", "volume_name", "volume_state",
                         "volume_removed"),
    "snapshot_zone_ref": ("snapshot_id", "zone_id", "created"),
    "snapshot_policy": (*_COMMON, *_OWNED, "volume_id", "interval_type", "schedule", "timezone", "max_snaps", "for_display",
                        "zone_ids", "tags", "next_at", "last_at", "last_job_id", "removed"),
    "snapshot_store_ref": ("snapshot_id", "store_id", "key", "state", "size", "physical_size", "created"),
    "job": (*_OWNED, "command", "status", "step", "subject", "result", "failure", "principal", "body", "cancel_requested",
            "work", "parent", "created", "completed", "event", "started", "makes"),
    "event": (*_OWNED, "name", "type", "state", "level", "description", "principal", "job_id", "parent_id", "resource_type",
              "resource_id", "created", "open", "archived", "rank"),
}


class FakeSystem(System):
    """See the module. `away` makes the database disappear."""

    def __init__(self, cloud: Cloud) -> None:
        super().__init__(cloud.store, cloud.runtime, FoldedViews(cloud.store), Vault(cloud.store, bytes(32)))
        self.cloud = cloud
        self.away = False

    @classmethod
    async def start(cls) -> FakeSystem:
        """One zone, one agent that is storage agent and hypervisor."""
        return cls(await Cloud.start())

    async def wait_for(self, position: int, *, timeout_s: float) -> bool:
        """The tables are always at the head."""
        return True

    async def rows(self, table: str, where: Mapping[str, Any] | None = None, *, search: str = "",
                   order: str = "created", limit: int = 500, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Unless the database is away."""
        if self.away:
            raise StoreAway("Postgres does not answer", remedy="it is tried again by itself")
        return await super().rows(table, where, search=search, order=order, limit=limit, offset=offset)

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """While this is open, the agents do everything that is asked of them."""

        async def work() -> None:
            while True:
                await self.cloud.settle()
                await asyncio.sleep(0.005)

        task = asyncio.create_task(work())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
