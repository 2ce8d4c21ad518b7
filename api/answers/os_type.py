"""Lists of OS types and their categories: a fixed table, in its own order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.access import Principal
from api.listing import Listed, Lists, Special, page_of
from api.registry import ApiCommand
from schema.os_type import SYSTEMS, category_id, os_type_id


async def os_types(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """By id, category, whole name, or a part of it."""
    found = [{"id": str(os_type_id(name)), "name": name, "description": name, "oscategoryid": str(category_id(category)),
              "oscategoryname": category, "isuserdefined": False, "fordisplay": True}
             for category, names in SYSTEMS.items() for name in names]
    return _chosen(found, values, {"id": "id", "oscategoryid": "oscategoryid", "description": "description"})


async def os_categories(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """By id, name, or a part of it."""
    found: list[dict[str, Any]] = [{"id": str(category_id(name)), "name": name} for name in SYSTEMS]
    return _chosen(found, values, {"id": "id", "name": "name"})


def _chosen(found: list[dict[str, Any]], values: Mapping[str, Any], equal: Mapping[str, str]) -> Listed:
    page, word = page_of(values), (values.get("keyword") or "").lower()
    kept = [each for each in found if word in each["name"].lower() and all(
        each[name].lower() == str(values[given]).lower() for given, name in equal.items() if values.get(given) is not None)]
    return kept[page.offset:page.offset + page.limit], len(kept)


LISTS: dict[str, Special] = {"listOsTypes": os_types, "listOsCategories": os_categories}
