"""What holds of an installation at rest, whatever was killed on the way there: asked from outside, of the database, the bucket, the
folders and the agents' journals.

Counters are compared twice: `storebus verify` has them equal the fold of what was counted, and here they equal what the tables say is
alive, added up again without the product's own weights.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg

from agents.qemu import run
from api.verify import verify_all
from schema.identity import ROOT_ACCOUNT

RESTING = {
    "volume": {"Ready", "Destroy", "Uploaded", "Failed", "Expunged"},
    "snapshot": {"BackedUp", "CreatedOnPrimary", "Error", "Destroyed"},
    "template": {"Ready", "Failed", "Deleted"},
    "primary_store": {"Up", "Removed", "Failed"},
    "image_store": {"Ready", "Rejected", "Deleted"},
    "template_store_ref": {"Ready"}, "snapshot_store_ref": {"Ready", "Hidden"}, "volume_store_ref": {"Ready"},
    "template_spool_ref": {"Ready"},
}
"""States in which nothing is on its way: table -> states."""
REFS = ("template_store_ref", "snapshot_store_ref", "volume_store_ref")
ENDS = "('job.completed', 'job.failed', 'job.cancelled')"
MARK = ".storebus-primary"
"""In the folder of a primary store that was opened by a command."""
LINK = re.compile(r"^[0-9a-f-]{36}/links/")
Rows = list[dict[str, Any]]


class Tables:
    """The read tables, and what of the log and beside it they are compared with."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection
        self._read: dict[str, Rows] = {}

    async def rows(self, query: str) -> Rows:
        return [dict(row) for row in await self._connection.fetch(query)]

    async def load(self) -> None:
        """Every table once."""
        for table in (*RESTING, "snapshot_policy"):
            self._read[table] = await self.rows(f"SELECT * FROM read.{table}")
        self._read["link"] = await self.rows(
            "SELECT DISTINCT ON (stream) stream, type FROM es.event WHERE stream LIKE 'link-%' ORDER BY stream, version DESC")
        for event in ("link.asked", "link.given", "snapshot.requested", "snapshot.taken"):
            self._read[event] = [json.loads(row["payload"]) for row in await self._connection.fetch(
                "SELECT payload FROM es.event WHERE type = $1", event)]

    def __getitem__(self, table: str) -> Rows:
        return self._read[table]

    def links(self) -> set[str]:
        """The ids of those that are good."""
        return {row["stream"].removeprefix("link-") for row in self["link"] if row["type"] == "link.given"}

    def living(self) -> Rows:
        """Volumes that have a disk."""
        return [row for row in self["volume"] if row["state"] in ("Ready", "Destroy")]


async def findings(dsn: str, base: Path, objects: Callable[[], Awaitable[set[str]]], foreign: set[str]) -> list[str]:
    """Everything that is not as it must be. `foreign`: keys in the bucket that are not the product's."""
    connection = await asyncpg.connect(dsn)
    try:
        tables = Tables(connection)
        rows = await tables.rows(f"SELECT stream, count(*) FILTER (WHERE type IN {ENDS}) AS ends FROM es.event "
                                 "WHERE stream LIKE 'job-%' GROUP BY stream")
        if wrong := [(row["stream"], row["ends"]) for row in rows if row["ends"] != 1]:
            return [f"jobs with other than one end: {wrong}"]  # nothing is at rest
        found = [f"{finding.where}: {finding.what}" for finding in await verify_all(dsn)]
        await tables.load()
        # The broker is shared: what an agent of another installation, of a test before this one, left there is rightly not let in.
        found += [f"held: {row}" for row in await tables.rows(
            "SELECT key, reason FROM es.held WHERE reason NOT LIKE 'proof: the agent %'")]
        found += [f"{table} {row['id']} is {row['state']}" for table, states in RESTING.items() for row in tables[table]
                  if row["state"] not in states]
        found += _compare("timers", {row["id"] for row in await tables.rows("SELECT id FROM es.timer")}, _timers(tables))
        counters = {row["name"]: row["value"] for row in await tables.rows("SELECT name, value FROM es.counter WHERE value <> 0")}
        found += _compare("counters", set(counters.items()), set(_counters(tables).items()))
        claims = {row["name"] for row in await tables.rows("SELECT name FROM es.claim WHERE name LIKE '%/adopted/%'")}
        found += _compare("adopted", {name.rpartition("/adopted/")[2] for name in claims}, _adopted(tables, foreign))
        found += _chains(tables)
    finally:
        await connection.close()
    found += _compare("objects", {_shown(key) for key in await objects()}, _objects(tables, foreign))
    found += [line for row in tables["primary_store"] for line in _folder(tables, row)]
    found += await _disks(tables)
    return found + [line for path in base.glob("data/agents/*/orders.db") for line in _journal(path)]


def _compare(what: str, there: set[Any], wanted: set[Any]) -> list[str]:
    return [f"{what}: there and not wanted {sorted(there - wanted)}, wanted and not there {sorted(wanted - there)}"] if there != wanted else []


def _timers(tables: Tables) -> set[str]:
    """Links that end, policies, volumes that are to be expunged: nothing else waits."""
    return ({f"link-{each}/due" for each in tables.links()}
            | {f"snapshot_policy-{row['id']}/due" for row in tables["snapshot_policy"] if row["removed"] is None}
            | {f"volume-{row['id']}/expunge" for row in tables["volume"] if row["state"] == "Destroy"})


def _counters(tables: Tables) -> dict[str, int]:
    """What each counter must be; those that are zero are left out. Nobody reads and nothing is on its way."""
    value: Counter[str] = Counter()
    owners = {row["id"]: row["account_id"] for table in ("volume", "snapshot", "template") for row in tables[table]}
    for table, thing in zip(REFS, ("template_id", "snapshot_id", "volume_id"), strict=True):
        for row in tables[table]:
            value[f"image_store/{row['store_id']}/residents"] += 1
            value[f"image_store/{row['store_id']}/used"] += row["physical_size"]
            value[f"limit/{owners[row[thing]]}/secondary_storage"] += row["physical_size"]
    good = tables.links()
    for link in tables["link.asked"]:
        value[f"image_store/{link['store_id']}/residents"] += link["link_id"] in good
    for row in tables["volume"]:
        value[f"limit/{row['account_id']}/volume"] += row["state"] in ("Ready", "Destroy", "Uploaded")
    for row in tables.living():
        value[f"primary_store/{row['primary_id']}/volumes"] += 1
        value[f"limit/{row['account_id']}/primary_storage"] += row["size"]
    for row in tables["template_spool_ref"]:
        value[f"primary_store/{row['pool_id']}/seeds"] += 1
    stores = {each["snapshot_id"]: each["store_id"] for each in tables["snapshot.requested"]}
    reserved = {each["snapshot_id"]: each["reserved"] for each in tables["snapshot.taken"]}
    for row in tables["snapshot"]:
        if row["state"] == "CreatedOnPrimary":  # its place in the store is kept for it
            value[f"image_store/{stores[row['id']]}/residents"] += 1
            for name in (f"image_store/{stores[row['id']]}/used", f"image_store/{stores[row['id']]}/reserved",
                         f"limit/{row['account_id']}/secondary_storage"):
                value[name] += reserved[row["id"]]
        value[f"limit/{row['account_id']}/snapshot"] += row["state"] in ("BackedUp", "CreatedOnPrimary")
    for row in tables["template"]:
        value[f"limit/{row['account_id']}/template"] += row["state"] == "Ready"
    return {name: count for name, count in value.items() if count and not name.startswith(f"limit/{ROOT_ACCOUNT}/")}


def _adopted(tables: Tables, foreign: set[str]) -> set[str]:
    return {row["key"] for row in tables["volume_store_ref"] if row["kind"] == "upload"} & foreign


def _objects(tables: Tables, foreign: set[str]) -> set[str]:
    keys = {row["key"] for table in REFS for row in tables[table]}
    good = tables.links()
    names = {f"links/{each['name']}" for each in tables["link.given"] if each["link_id"] in good and each["name"]}
    return keys | {f"{key}.manifest.json" for key in keys} | names | foreign


def _shown(key: str) -> str:
    """A link's name is the agent's: which folder it lies in is not said in the log."""
    return LINK.sub("links/", key)


def _chains(tables: Tables) -> list[str]:
    """What a delta is built on is there; and of what was deleted, only what something is built on."""
    there = {row["snapshot_id"]: row["state"] for row in tables["snapshot_store_ref"]}
    parents = {row["id"]: row["parent_id"] for row in tables["snapshot"] if row["id"] in there and row["parent_id"]}
    return ([f"the snapshot {child} is built on {parent}, which is not there" for child, parent in parents.items() if parent not in there]
            + [f"the hidden snapshot {each} is nobody's parent" for each, state in there.items()
               if state == "Hidden" and each not in parents.values()])


def _folder(tables: Tables, primary: dict[str, Any]) -> Iterator[str]:
    folder = Path(primary["path"])
    if primary["state"] == "Failed" or not folder.is_dir():
        return
    there = {path.name for path in folder.iterdir()}
    wanted = {row["path"] for row in tables.living() if row["primary_id"] == primary["id"]}
    wanted |= {row["path"] for row in tables["template_spool_ref"] if row["pool_id"] == primary["id"]}
    yield from _compare(f"the folder {folder} ({primary['state']})", there - {MARK}, wanted)
    if primary["state"] == "Removed" and MARK in there:
        yield f"{folder} is marked still"


async def _disks(tables: Tables) -> list[str]:
    """No disk holds a snapshot that is not one of the tables', nor more than one record of changes: the newest snapshot's."""
    folders = {row["id"]: row["path"] for row in tables["primary_store"]}
    frozen = Counter(row["volume_id"] for row in tables["snapshot"] if row["on_primary"])
    found = []
    for row in tables.living():
        disk = json.loads(await run("qemu-img", "info", "-U", "-f", "qcow2", "--output=json", f"{folders[row['primary_id']]}/{row['path']}"))
        inside, bitmaps = disk.get("snapshots", []), disk["format-specific"]["data"].get("bitmaps", [])
        if len(inside) != frozen[row["id"]] or len(bitmaps) > 1 + frozen[row["id"]]:
            found.append(f"the disk of {row['id']} holds {inside} and {bitmaps}")
        if disk["virtual-size"] != row["size"]:
            found.append(f"the disk of {row['id']} has {disk['virtual-size']} bytes, listed are {row['size']}")
    return found


def _journal(path: Path) -> Iterator[str]:
    """Every order was released."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        for kind, state in db.execute("SELECT type, state FROM work WHERE state IN ('open', 'done')"):
            yield f"{path.parent.name} has {kind} {state}"


__all__ = ["findings"]
