"""Templates as CloudStack's response objects, and the words of their status that clients parse."""

from __future__ import annotations

from typing import Any

from api.responses.shown import OWNED, PENDING, Names, Row, Show, filled, name_of, owned, pending, percent, tags, when

FIELDS: dict[str, dict[str, str]] = {
    "template": {
        "id": "string", "name": "string", "displaytext": "string", "ispublic": "boolean", "isfeatured": "boolean",
        "isextractable": "boolean", "isready": "boolean", "crossZones": "boolean", "created": "date", "removed": "date",
        "passwordenabled": "boolean", "format": "string", "hypervisor": "string", "ostypeid": "string",
        "templatetype": "string", "status": "string", "size": "long", "physicalsize": "long", "checksum": "string",
        "url": "string", "zoneid": "string", "zonename": "string", **OWNED, "downloaddetails": "list",
        "directdownload": "boolean", "deployasis": "boolean", "tags": "list", "jobid": "string",
        "jobstatus": "integer"},
}


def quarantined(row: Row, names: Names) -> bool:
    """Whether a copy of it is Quarantined: there is one copy of each image yet."""
    return any(copy["state"] == "Quarantined" for copy in names.copies.get(row["id"], []))


def template_status(row: Row, names: Names) -> str:
    """The text that clients parse."""
    match row["state"]:
        case "Ready" if quarantined(row, names):
            return f"Quarantined: {row['error']}"
        case "Ready":
            return "Download Complete"
        case "Registering":
            progress = names.progress.get(row.get("job_id") or "")
            return f"{percent(progress)}% Downloaded" if progress else "Processing"
        case "Failed":
            return str(row.get("error") or "Failed")
        case other:
            return "Processing" if other in PENDING else str(other)


def template(row: Row, names: Names, zone_id: str | None = None) -> dict[str, Any]:
    """A template in a zone; `zone_id` where the template itself is in every zone."""
    zone = row["zone_id"] or zone_id
    bad = quarantined(row, names)
    copies = [{"datastore": name_of(names.stores, copy["store_id"]) or copy["store_id"], "downloadPercent": "100",
               "downloadState": "QUARANTINED" if bad else "DOWNLOADED"} for copy in names.copies.get(row["id"], [])]
    return filled(
        id=row["id"], name=row["name"], displaytext=row["display_text"] or row["name"], ispublic=bool(row["is_public"]),
        isfeatured=bool(row["is_featured"]), isextractable=bool(row["is_extractable"]),
        isready=row["state"] == "Ready" and not bad, crossZones=row["zone_id"] is None,
        created=when(row["created"]), removed=when(row.get("removed")),
        passwordenabled=False, format=str(row["format"]).upper(), hypervisor=row["hypervisor"],
        ostypeid=row["os_type_id"], templatetype="USER", status=template_status(row, names), size=row.get("size"),
        physicalsize=row.get("physical_size"), checksum=row["checksum"], url=row["url"], zoneid=zone,
        zonename=name_of(names.zones, zone), **owned(row), downloaddetails=copies, directdownload=False,
        deployasis=False, tags=tags("ISO" if row["format"] == "iso" else "Template", row), **pending(row))


OBJECTS: dict[str, Show] = {"template": template}
TABLES = {"template": "template"}
