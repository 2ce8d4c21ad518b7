"""Users by their keys, and limits: also those of accounts that have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.access import Principal, Use, authorize, resource_of
from api.listing import Listed, Lists, Special, page_of
from api.registry import ApiCommand
from api.responses.identity import LIMITED
from handlers.projections import owned
from schema.failure import BadParameter
from schema.identity import Owner

NUMBERS = {number: name for name, number in LIMITED.items()}
HIGHEST = 11
"""The last of CloudStack's numbers of what is limited."""


async def user(lists: Lists, command: ApiCommand, values: dict[str, Any], principal: Principal) -> dict[str, Any]:
    """getUser: by API key. Whoever may not see the user is told the same as where there is none."""
    rows, _ = await lists.system.rows("user", {"api_key": values["userapikey"]}, limit=1)
    if not rows or not authorize(principal, command, resource_of("user", rows[0]), Use.SEE):
        raise BadParameter("no user has this key", field="userapikey", remedy="registerUserKeys gives keys, listUsers shows them")
    return {command.item: (await lists.objects("user", rows))[0]}


async def limits(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """listResourceLimits: the caller's own when nothing is named; an account that has no limits is told so, with -1."""
    number = values.get("resourcetype")
    if number is not None and not 0 <= number <= HIGHEST:
        raise BadParameter(f"{number} is not 0 to {HIGHEST}", field="resourcetype")
    if number is not None and str(number) not in NUMBERS:
        return [], 0
    asked = {**values, **({"resourcetypename": NUMBERS[str(number)]} if number is not None else {})}
    items, count = await lists.of_table(command, asked, principal)
    if items or count or values.get("listall") or values.get("domainid") or values.get("projectid"):
        return items, count
    owner = await lists.ownership.named(command, values, principal, Use.SEE) if values.get("account") else principal.owner
    free = [await _unlimited(lists, name, owner) for name in LIMITED if asked.get("resourcetypename") in (None, name)]
    page = page_of(values)
    return free[page.offset:page.offset + page.limit], len(free)


async def _unlimited(lists: Lists, name: str, owner: Owner) -> dict[str, Any]:
    row = {"id": f"{owner.account_id}/{name}", "name": name, "max": -1, **owned(owner)}
    return (await lists.objects("resource_limit", [row]))[0]


LISTS: dict[str, Special] = {"listResourceLimits": limits}
ANSWERS = {"getUser": user}
