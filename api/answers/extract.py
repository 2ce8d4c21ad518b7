"""Extractions as CloudStack's Extract object: the job's result under the noun's key, with the URL while it is good.

The URL is a secret. It is opened here, for a caller who was shown to have the right to the job; it stands in no table and no
list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from api.listing import Lists
from api.responses.shown import filled, name_of, when

CREATED = "DOWNLOAD_URL_CREATED"


async def extract(lists: Lists, row: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The Extract object of a job that has completed."""
    link = await lists.system.link(UUID(result["id"])) or {}
    table = {"iso": "template"}.get(result["of"], result["of"])
    thing = (await lists.lookup(table, [result["source"]])).get(result["source"], {})
    gone = "" if link.get("url") else "the URL has ended: extract it again"
    return filled(
        id=result["source"], name=thing.get("name"), accountid=thing.get("account_id"), created=when(row.get("completed")),
        state=CREATED if not gone else "DOWNLOAD_URL_EXPIRED", status="Completed", storagetype="secondary",
        extractId=result["id"], extractMode=result["mode"], url=link.get("url"), expires=when(link.get("expires")),
        resultstring=gone, zoneid=result["zone"], zonename=name_of(await lists.table("zone"), result["zone"]))
