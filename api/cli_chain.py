"""`storebus chain`: the chain that a snapshot belongs to, drawn as a tree.

Owns how a chain is found in the read tables and how it looks. Refuses to judge it: `storebus verify` compares the tables with
the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.cli_bus import uuid, views
from api.output import Format, Output, plain, size_text
from api.settings import Settings
from bus.read_model import ReadModel
from schema.failure import BadParameter

LINKS = 10_000
"""Snapshots of one volume that are looked at, at most."""
Row = Mapping[str, Any]


async def chain(settings: Settings, snapshot_id: str, *, form: Format | None) -> int:
    """Draw the tree that the snapshot is in; as JSON, its links with the full one first."""
    output = Output(form)
    async with views(settings) as model:
        links = await family(model, str(uuid(snapshot_id, "snapshot")))
    if output.for_people:
        for line in drawing(links, snapshot_id):
            output.line(line)
    else:
        output.rows(links)
    return 0


async def family(model: ReadModel, snapshot_id: str) -> list[dict[str, Any]]:
    """The links of the snapshot's chain, each after what it is built on. Raises BadParameter."""
    found, _ = await model.rows("snapshot", {"id": snapshot_id}, limit=1)
    if not found:
        raise BadParameter(f"no snapshot has the id {snapshot_id}", field="snapshot", remedy="storebus call listSnapshots")
    rows, total = await model.rows("snapshot", {"volume_id": found[0]["volume_id"]}, limit=LINKS)
    if total > LINKS:
        raise BadParameter(f"its volume has {total} snapshots, more than {LINKS}", field="snapshot")
    by_id = {row["id"]: row for row in rows}
    root = by_id[snapshot_id]
    while root["parent_id"] in by_id:
        root = by_id[root["parent_id"]]
    links: list[dict[str, Any]] = []
    waiting = [root]
    while waiting:
        row = waiting.pop()
        copies, _ = await model.rows("snapshot_store_ref", {"snapshot_id": row["id"]}, limit=1)
        links.append(_link(row, copies[0] if copies else {}))
        waiting += reversed([child for child in rows if child["parent_id"] == row["id"]])
    return links


def _link(row: Row, copy: Row) -> dict[str, Any]:
    return {"id": row["id"], "name": row["name"], "kind": "delta" if row["parent_id"] else "full",
            "bytes": copy.get("physical_size"), "state": row["state"], "copy": copy.get("state"), "parent": row["parent_id"],
            "depth": row["depth"], "reason": row["reason"] or "", "key": copy.get("key"), "created": row["created"]}


def drawing(links: list[dict[str, Any]], marked: str) -> list[str]:
    """The tree in lines; `marked` is the snapshot that was asked for."""
    children: dict[str | None, list[dict[str, Any]]] = {}
    known = {link["id"] for link in links}
    for link in links:
        children.setdefault(link["parent"] if link["parent"] in known else None, []).append(link)
    lines: list[str] = []
    stack = [(link, "", "") for link in reversed(children.get(None, []))]
    while stack:
        link, first, rest = stack.pop()
        lines.append(first + _words(link, marked))
        below = children.get(link["id"], [])
        for child in reversed(below):
            last = child is below[-1]
            stack.append((child, f"{rest}{'└── ' if last else '├── '}", f"{rest}{'    ' if last else '│   '}"))
    return lines


def _words(link: Row, marked: str) -> str:
    state = plain(link["state"]) + (", hidden" if link["copy"] == "Hidden" else "")
    parts = [f"{plain(link['id'])} {plain(link['name'])!r}", plain(link["kind"]),
             "no bytes" if link["bytes"] is None else size_text(int(link["bytes"])), state]
    if link["kind"] == "full" and link["reason"]:
        parts.append(f"because {plain(link['reason'])}")
    return "  ".join(parts) + ("  <-" if link["id"] == marked else "")


__all__ = ["chain", "drawing", "family"]
