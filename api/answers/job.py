"""Jobs as they are asked for: with the thing that they made, and in lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from api import registry, responses
from api.access import Principal
from api.answers.extract import extract
from api.listing import Listed, Lists, Special, page_of
from api.registry import ApiCommand
from api.responses.job import command_name, job
from schema import vocabulary
from schema.failure import BadParameter
from schema.message import Command

COMMANDS = tuple(sorted({name for (name, _), each in vocabulary().items() if issubclass(each, Command)}))
"""Wire names of every command."""


async def jobs(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """Oldest first. A keyword is part of the command's name."""
    page, where = page_of(values), await lists.ownership.visible(command, values, principal)
    if values.get("startdate") is not None:
        where["created"] = {"from": values["startdate"].isoformat()}
    if word := (values.get("keyword") or "").lower():
        where["command"] = {"in": [wire for wire in COMMANDS if word in command_name(wire).lower()]}
    rows, count = await lists.system.rows("job", where, limit=page.limit, offset=page.offset)
    if not rows and page.offset:
        _, count = await lists.system.rows("job", where, limit=1)
    return [await shown(lists, row, brief=True) for row in rows], count


async def shown(lists: Lists, row: Mapping[str, Any], *, brief: bool = False) -> dict[str, Any]:
    """A job as queryAsyncJobResult shows it; `brief`: its result is the thing's id only (for lists of jobs)."""
    result = row.get("result") or {}
    item, thing_id = result.get("noun", ""), result.get("id", "")
    more = {registry.api_name(name): value for name, value in result.items() if name not in ("noun", "id")}
    if row["status"] == "completed" and item == "extract":
        return job(row, {"id": result["source"]} if brief else await extract(lists, row, result), result["of"])
    if row["status"] == "completed" and item == "scrub":  # it is told whole: no table has it
        return job(row, {"id": thing_id, **({} if brief else more)}, item)
    if row["status"] != "completed" or item not in responses.TABLES:
        return job(row)
    thing = {"id": thing_id} if brief else await lists.object(responses.TABLES[item], thing_id)
    return job(row, {**(thing or {"id": thing_id}), **more}, item)


async def found(lists: Lists, job_id: UUID) -> dict[str, Any]:
    """A job with its progress or result. Raises BadParameter when there is none."""
    row = await lists.system.job(job_id)
    if row is None:
        raise BadParameter(f"no job has the id {job_id}", field="jobid", remedy="listAsyncJobs shows them")
    return await shown(lists, row)


async def query(lists: Lists, command: ApiCommand, values: dict[str, Any], principal: Principal) -> dict[str, Any]:
    """queryAsyncJobResult: the job's fields stand where other answers have their object."""
    await lists.ownership.check(command, values, principal)
    return await found(lists, values["jobid"])


LISTS: dict[str, Special] = {"listAsyncJobs": jobs}
ANSWERS = {"queryAsyncJobResult": query}
