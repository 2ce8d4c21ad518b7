"""Tags as CloudStack's response objects."""

from __future__ import annotations

from typing import Any

from api.responses.shown import OWNED, Names, Row, Show, filled, owned

FIELDS: dict[str, dict[str, str]] = {
    "tag": {"key": "string", "value": "string", "resourcetype": "string", "resourceid": "string", **OWNED},
}


def tag(row: Row, names: Names) -> dict[str, Any]:
    """A tag."""
    return {"value": row["value"]} | filled(
        key=row["name"], resourcetype=row["resource_type"], resourceid=row["resource_id"], **owned(row))


OBJECTS: dict[str, Show] = {"resource_tag": tag}
