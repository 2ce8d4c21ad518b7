"""OS types as CloudStack's response objects: their fields. They are a fixed table, so no row becomes one."""

from __future__ import annotations

FIELDS: dict[str, dict[str, str]] = {
    "ostype": {"id": "string", "name": "string", "description": "string", "oscategoryid": "string", "oscategoryname": "string",
               "isuserdefined": "boolean", "fordisplay": "boolean"},
    "oscategory": {"id": "string", "name": "string"},
}
