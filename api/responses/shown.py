"""How values are shown: times, owners, names of other things; what every object shares.

Owns `Names`, the rows that an object needs of other tables. Refuses to know any object. Fields without a value are left out, as
CloudStack does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from schema.identity import ROOT_OWNER, domain_path

Row = Mapping[str, Any]


PENDING = frozenset({"Testing", "Registering", "Creating", "BackingUp", "Deleting", "Destroying", "Expunging",
                     "Resizing", "RevertSnapshotting", "Attaching", "Detaching",
                     "UploadOp", "Copying"})
"""States of a thing whose job goes on: lists attach the job's id to it."""


OWNED = dict.fromkeys(("account", "accountid", "domainid", "domain", "domainpath", "projectid", "project"), "string")
"""Whose a thing is: the account's fields, or the project's in place of the account's."""


@dataclass(frozen=True, slots=True)
class Names:
    """What objects show of other things: rows by id."""

    zones: Mapping[str, Row] = field(default_factory=dict)
    primaries: Mapping[str, Row] = field(default_factory=dict)
    stores: Mapping[str, Row] = field(default_factory=dict)
    volumes: Mapping[str, Row] = field(default_factory=dict)
    templates: Mapping[str, Row] = field(default_factory=dict)
    offerings: Mapping[str, Row] = field(default_factory=dict)
    machines: Mapping[str, Row] = field(default_factory=dict)
    copies: Mapping[str, list[Row]] = field(default_factory=dict)
    """Thing's id -> its rows in the `*_store_ref` table."""
    progress: Mapping[str, Row] = field(default_factory=dict)
    """Job id -> its progress."""
    used: Mapping[str, int] = field(default_factory=dict)
    """Image store's id -> bytes that rest there or are on their way."""
    users: Mapping[str, list[Row]] = field(default_factory=dict)
    """Account id -> its users."""


def name_of(rows: Mapping[str, Row], key: str | None) -> str | None:
    """The name of the row with this id; None when it is not known."""
    row = rows.get(key or "")
    return row["name"] if row is not None else None


def when(value: str | None) -> str | None:
    """CloudStack's form of a time: `2026-03-31T11:53:59+0000`."""
    if not value:
        return None
    if value[-6:-5] in "+-" and value[-3:-2] == ":" and value[10:11] == "T":  # as Postgres writes it: nothing to read
        return f"{value[:19]}{value[-6:-3]}{value[-2:]}"
    return datetime.fromisoformat(value).strftime("%Y-%m-%dT%H:%M:%S%z")


def provider_name(name: str) -> str:
    """How CloudStack spells providers: S3, NFS, Swift."""
    return name.upper() if len(name) <= 3 else name.capitalize()


def filled(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def pending(row: Row) -> dict[str, Any]:
    """The job of a thing whose job goes on."""
    if row.get("state") in PENDING and row.get("job_id"):
        return {"jobid": row["job_id"], "jobstatus": 0}
    return {}


def owned(row: Row) -> dict[str, Any]:
    """Whose it is."""
    path = row.get("domain_path") or "/"
    head = {"projectid": row["project_id"], "project": row["account"]} if row.get("project_id") else {
        "account": row.get("account") or ROOT_OWNER.account, "accountid": row.get("account_id") or str(ROOT_OWNER.account_id)}
    return {**head, "domainid": row.get("domain_id") or str(ROOT_OWNER.domain_id), **domain_names(path)}


@functools.lru_cache(maxsize=10_000)
def domain_names(path: str) -> Mapping[str, str]:
    """A domain by its path."""
    return {"domain": path.rstrip("/").rpartition("/")[2] or "ROOT", "domainpath": domain_path(path)}


def tags(kind: str, row: Row) -> list[dict[str, Any]]:
    """The tags of a thing, by name; each with whose it is, as CloudStack shows them."""
    return [{"key": name, "value": value, "resourceid": row["id"], "resourcetype": kind, **owned(row)}
            for name, value in sorted((row.get("tags") or {}).items())]


def percent(progress: Row | None) -> int:
    """Percent of the bytes that the destination acknowledged; 99 at most, for only the job's end is 100."""
    if not progress or not progress.get("total"):
        return 0
    return max(0, min(99, int(progress["bytes"]) * 100 // int(progress["total"])))


Show = Callable[[Row, Names], dict[str, Any]]
"""(row, names) -> the object."""
