"""`storebus scrub`: an image store read again, asked of the API; what was found, for people and for programs.

Owns how a store is named and how findings look in a terminal. Refuses to judge: what is quarantined was decided by the
handlers before this prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from api.cli_call import connection, follow, prepared
from api.client.connection import Connection
from api.output import Format, Output, size_text
from schema.failure import BadParameter, Damage

COLUMNS = ("finding", "key", "what")
BAD = ("damaged", "missing", "unread")
"""Findings for which the exit status is 1."""


async def scrub(store: str, share: str, *, form: Format | None, wait: bool, timeout_s: float, url: str | None,
                profile: str | None, data_dir: Path | None) -> int:
    """Ask for it and, with `wait`, print what was found; 1 when an object is damaged, missing or unreadable. Raises the API's
    own error."""
    output = Output(form, stream=wait)
    async with await connection(data_dir, url, profile) as client:
        sent, repeat = prepared("scrubImageStore", {"id": await _store(client, store), "share": share})
        body = await client.ask("scrubImageStore", sent, repeat=repeat)
        if not wait:
            output.object(body)
            return 0
        job = await follow(client, "scrubImageStore", body["jobid"], output, timeout_s)
    found = job["jobresult"]["scrub"]
    if output.for_people:
        lines = list(findings(found))
        if lines:
            output.rows(lines, COLUMNS)
        output.say(summary(found))
    else:
        output.object(found)
    return 1 if any(found[name] for name in BAD) else 0


async def _store(client: Connection, given: str) -> str:
    """The id of the store with this id or name. Raises BadParameter."""
    try:
        return str(UUID(given))
    except ValueError:
        found = (await client.ask("listImageStores", {"name": given}, repeat=True)).get("imagestore", [])
    if not found:
        raise BadParameter(f"no image store is named {given[:64]!r}", field="store", remedy="storebus call listImageStores")
    return str(found[0]["id"])


def findings(found: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """What was found, a line each."""
    for damage in found["damaged"]:
        yield {"finding": "damaged", "key": damage["object"], "what": Damage.model_validate(damage).text}
    for key in found["missing"]:
        yield {"finding": "missing", "key": key, "what": "the object or its manifest is not in the store"}
    for each in found["unread"]:
        yield {"finding": "unread", "key": each["key"], "what": each["cause"]}
    for each in found["unknown"]:
        yield {"finding": "unknown", "key": each["key"], "what": f"{size_text(each['size'])}; nobody knows it, it is left alone"}


def summary(found: Mapping[str, Any]) -> str:
    """One line."""
    return (f"{found['objects']} of {found['of']} objects read, {size_text(found['bytes'])}: {len(found['damaged'])} damaged, "
            f"{len(found['missing'])} missing, {len(found['unread'])} could not be read; {found['unknowncount']} unknown objects")


__all__ = ["findings", "scrub", "summary"]
