"""Events as CloudStack's response objects."""

from __future__ import annotations

from typing import Any

from api.responses.shown import OWNED, Names, Row, Show, filled, owned, when

FIELDS: dict[str, dict[str, str]] = {
    "event": {
        "id": "string", "username": "string", "type": "string", "level": "string", "description": "string", **OWNED,
        "resourceid": "string", "resourcetype": "string", "created": "date", "state": "string", "parentid": "string",
        "archived": "boolean", "jobid": "string"},
    "eventtype": {"name": "string"},
}


def event(row: Row, names: Names) -> dict[str, Any]:
    """An event."""
    return filled(
        id=row["id"], username=row["principal"], type=row["type"], level=row["level"], description=row["description"],
        **owned(row), resourceid=row["resource_id"], resourcetype=row["resource_type"], created=when(row["created"]),
        state=row["state"], parentid=row["parent_id"], archived=row["archived"], jobid=row["job_id"])


OBJECTS: dict[str, Show] = {"event": event}
