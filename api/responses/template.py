"""Templates and ISOs as CloudStack's response objects, and the words of their status that clients parse.

A row is of `template` (the thing itself) or of `template_view` (the thing in a zone: `in_zone`, and the state of the copy there).
"""

from __future__ import annotations

from typing import Any

from api.responses.shown import OWNED, PENDING, Names, Row, Show, filled, name_of, owned, pending, percent, tags, when
from schema.os_type import NAMES as OS_NAMES
from schema.os_type import UNSAID, UNSAID_ID

TEMPLATE = {
    "id": "string", "name": "string", "displaytext": "string", "ispublic": "boolean", "isfeatured": "boolean",
    "isextractable": "boolean", "isready": "boolean", "crossZones": "boolean", "created": "date", "removed": "date",
    "passwordenabled": "boolean", "sshkeyenabled": "boolean", "requireshvm": "boolean", "bootable": "boolean",
    "isdynamicallyscalable": "boolean", "format": "string", "hypervisor": "string", "arch": "string", "bits": "integer",
    "ostypeid": "string", "ostypename": "string", "templatetype": "string", "templatetag": "string", "sortkey": "integer",
    "status": "string", "size": "long", "physicalsize": "long", "checksum": "string", "url": "string", "zoneid": "string",
    "zonename": "string", **OWNED, "details": "map", "downloaddetails": "list", "directdownload": "boolean",
    "deployasis": "boolean", "tags": "list", "jobid": "string", "jobstatus": "integer", "copyjob": "string", "copied": "integer"}
FIELDS: dict[str, dict[str, str]] = {
    "template": TEMPLATE, "iso": TEMPLATE,
    "templatepermission": {"id": "string", "ispublic": "boolean", "domainid": "string", "account": "list", "projectids": "list"},
    "pendingdeletion": {"id": "string", "kind": "string", "resourceid": "string", "name": "string", "datastore": "string",
                        "datastoreid": "string", "physicalsize": "long", "created": "date", **OWNED, "jobid": "string"},
}
MIN = ("id", "name", "displaytext", "isready", "ispublic", "isfeatured", "isextractable", "format", "hypervisor", "status",
       "zoneid", "zonename", "templatetype", "created", "ostypeid", "crossZones", "account", "domainid")
"""Fields of details=min."""
COMING = ("Registering", "Creating")
"""States in which bytes are on their way."""
DOWNLOADS = {"Ready": ("DOWNLOADED", "100"), "Quarantined": ("QUARANTINED", "100"), "Creating": ("DOWNLOAD_IN_PROGRESS", "0"),
             "Destroying": ("DOWNLOADED", "100")}
"""State of a copy -> CloudStack's downloadState and downloadPercent."""


def state_of(row: Row, names: Names) -> str:
    """Its state, in the zone or, where the row is of no zone, wherever it is best."""
    if "in_zone" in row or row["state"] != "Ready":
        return str(row["state"])
    states = {copy["state"] for copy in names.copies.get(row["id"], [])}
    return "Quarantined" if states and states <= {"Quarantined"} else "Ready"


def template_status(row: Row, names: Names, state: str = "") -> str:
    """The text that clients parse. `state`: where it is known already."""
    match state or state_of(row, names):
        case "Quarantined":
            return f"Quarantined: {row['error']}"
        case "Ready":
            return "Successfully Installed" if row["kind"] == "iso" else "Download Complete"
        case "Registering" | "Creating":
            progress = names.progress.get(row.get("job_id") or "")
            return f"{percent(progress)}% Downloaded" if progress else "Processing"
        case "Failed":
            return str(row.get("error") or "Failed")
        case "Absent":
            return str(row.get("error") or "Processing")
        case other:
            return "Processing" if other in PENDING else str(other)


def template(row: Row, names: Names) -> dict[str, Any]:
    """A template or an ISO, in a zone where the row is of one."""
    zone, state = row.get("in_zone") or row["zone_id"], state_of(row, names)
    copies = [{"datastore": name_of(names.stores, copy["store_id"]) or copy["store_id"],
               "downloadPercent": DOWNLOADS.get(copy["state"], ("", "0"))[1],
               "downloadState": DOWNLOADS.get(copy["state"], ("NOT_DOWNLOADED", ""))[0]}
              for copy in names.copies.get(row["id"], [])]
    return filled(
        id=row["id"], name=row["name"], displaytext=row["display_text"] or row["name"], ispublic=bool(row["is_public"]),
        isfeatured=bool(row["is_featured"]), isextractable=bool(row["is_extractable"]),
        isready=state == "Ready", crossZones=bool(row["cross_zones"]),
        created=when(row["created"]), removed=when(row.get("removed")),
        passwordenabled=bool(row["password_enabled"]), sshkeyenabled=bool(row["ssh_key_enabled"]),
        requireshvm=bool(row["requires_hvm"]), bootable=bool(row["bootable"]),
        isdynamicallyscalable=bool(row["dynamically_scalable"]), format=str(row["format"]).upper(),
        hypervisor=row["hypervisor"], arch=row["arch"], bits=row["bits"], ostypeid=row["os_type_id"] or UNSAID_ID,
        ostypename=OS_NAMES.get((row["os_type_id"] or "").lower(), UNSAID),
        templatetype=row["template_type"], templatetag=row["template_tag"], sortkey=row["sort_key"],
        status=template_status(row, names, state), size=row.get("size"), physicalsize=row.get("physical_size"),
        checksum=row["checksum"], url=row["url"], zoneid=zone,
        zonename=row.get("zone_name") or name_of(names.zones, zone), **owned(row), details=row["details"] or {},
        downloaddetails=copies, directdownload=False, deployasis=False,
        tags=tags("ISO" if row["kind"] == "iso" else "Template", row), **pending(row))


def pending_deletion(row: Row, names: Names) -> dict[str, Any]:
    """Bytes that a store has not confirmed to be gone."""
    return filled(
        id=row["id"], kind=row["kind"], resourceid=row["thing_id"], name=row["name"], datastoreid=row["store_id"],
        datastore=name_of(names.stores, row["store_id"]), physicalsize=row["physical_size"], created=when(row["created"]),
        **owned(row), jobid=row["job_id"])


OBJECTS: dict[str, Show] = {"template": template, "pending_deletion": pending_deletion}
TABLES = {"template": "template", "iso": "template"}
