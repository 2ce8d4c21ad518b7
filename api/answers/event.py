"""The history as CloudStack's listEvents tells it, and the types that it may hold."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from api.access import Principal
from api.listing import Listed, Lists, Special, page_of
from api.registry import ApiCommand
from schema import vocabulary
from schema.failure import BadParameter
from schema.message import Command


async def events(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """Newest first."""
    page, where = page_of(values), lists.where_of(command, values)
    where |= await lists.ownership.visible(command, values, principal)
    more: list[dict[str, Any]] = []
    if "startid" in values:
        start = str(values["startid"])
        more.append({"any": [{"id": start}, {"parent_id": start}]})
    if span := between(values):
        more.append({"created": span})
    if "entrytime" in values or "duration" in values:
        more.append(_late(values))
    if more:
        where["all"] = [*where.get("all", []), *more]
    search = values.get("keyword") or ""
    rows, count = await lists.system.rows("event", where, search=search, order="rank", limit=page.limit, offset=page.offset)
    if not rows and page.offset:
        _, count = await lists.system.rows("event", where, search=search, limit=1)
    return await lists.objects("event", rows), count


def between(values: Mapping[str, Any]) -> dict[str, str]:
    """The condition that startdate and enddate make; a date without a time ends with its day. Raises BadParameter."""
    span, first, last = {}, values.get("startdate"), values.get("enddate")
    if first is not None:
        span["from"] = first.isoformat()
    if last is not None:
        if last.time() == datetime.min.time():
            last += timedelta(days=1) - timedelta(microseconds=1)
        if first is not None and last < first:
            raise BadParameter("it is before startdate", field="enddate")
        span["until"] = last.isoformat()
    return span


def _late(values: Mapping[str, Any]) -> dict[str, Any]:
    """What began within the last `entrytime` seconds and has gone on for longer than `duration` seconds."""
    for name in ("entrytime", "duration"):
        if values.get(name) is None:
            raise BadParameter("missing", field=name, remedy="entrytime and duration come together")
    entered, lasted = values["entrytime"], values["duration"]
    if not 0 <= lasted < entered:
        raise BadParameter(f"{entered} is not more than duration", field="entrytime",
                           remedy="both are seconds before now, the earlier one first")
    now = datetime.now(UTC)
    span = {"from": (now - timedelta(seconds=entered)).isoformat(), "until": (now - timedelta(seconds=lasted)).isoformat()}
    return {"state": "Started", "open": True, "created": span}


async def types(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    found = sorted({name for each in vocabulary().values() if issubclass(each, Command) for name in each.events()})
    return [{"name": name} for name in found], len(found)


LISTS: dict[str, Special] = {"listEvents": events, "listEventTypes": types}
