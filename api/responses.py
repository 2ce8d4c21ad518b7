"""Responses: rows of the read tables as CloudStack's response objects.

Owns the fields of each object (which listApis shows) and the words that clients parse. Refuses to ask for anything:
what an object needs from other tables is in `Names`. Fields without a value are left out, as CloudStack does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from api.registry import BY_TYPE
from schema.identity import ROOT_OWNER, Role, domain_path
from schema.motion import MotionPlan

Row = Mapping[str, Any]

PENDING = frozenset({"Testing", "Registering", "Creating", "BackingUp", "Deleting", "Destroying", "Expunging"})
"""States of a thing whose job goes on: lists attach the job's id to it."""
ROLE_NUMBERS = {Role.USER: 0, Role.ADMIN: 1, Role.DOMAIN: 2, Role.RESOURCE: 3}
ROLE_NAMES = {Role.USER: "User", Role.ADMIN: "Root Admin", Role.DOMAIN: "Domain Admin", Role.RESOURCE: "Resource Admin"}
"""Of accounts, in CloudStack's words."""
LIMITED = {"volume": "2", "snapshot": "3", "template": "4", "primary_storage": "10", "secondary_storage": "11"}
"""What is limited -> CloudStack's number of it."""
PROGRESS = ("stage", "bytes", "total", "rate", "eta")
ENDED = ("completed", "failed", "cancelled")

OWNED = dict.fromkeys(("account", "accountid", "domainid", "domain", "domainpath", "projectid", "project"), "string")
"""Whose a thing is: the account's fields, or the project's in place of the account's."""
FIELDS: dict[str, dict[str, str]] = {
    "imagestore": {
        "id": "string", "name": "string", "url": "string", "protocol": "string", "providername": "string",
        "scope": "string", "zoneid": "string", "zonename": "string", "readonly": "boolean", "hasannotations": "boolean",
        "tested": "list", "capacitybytes": "long"},
    "template": {
        "id": "string", "name": "string", "displaytext": "string", "ispublic": "boolean", "isfeatured": "boolean",
        "isextractable": "boolean", "isready": "boolean", "crossZones": "boolean", "created": "date", "removed": "date",
        "passwordenabled": "boolean", "format": "string", "hypervisor": "string", "ostypeid": "string",
        "templatetype": "string", "status": "string", "size": "long", "physicalsize": "long", "checksum": "string",
        "url": "string", "zoneid": "string", "zonename": "string", **OWNED, "downloaddetails": "list",
        "directdownload": "boolean", "deployasis": "boolean", "tags": "list", "jobid": "string",
        "jobstatus": "integer"},
    "volume": {
        "id": "string", "name": "string", "state": "string", "status": "string", "type": "string", "size": "long",
        "physicalsize": "long", "virtualsize": "long", "created": "date", "zoneid": "string", "zonename": "string",
        **OWNED, "storage": "string", "storageid": "string", "storagetype": "string",
        "provisioningtype": "string", "templateid": "string", "templatename": "string",
        "templatedisplaytext": "string", "snapshotid": "string", "hypervisor": "string", "path": "string",
        "displayvolume": "boolean", "isextractable": "boolean", "destroyed": "boolean", "deleteprotection": "boolean",
        "supportsstoragesnapshot": "boolean", "tags": "list", "jobid": "string", "jobstatus": "integer"},
    "snapshot": {
        "id": "string", "name": "string", "state": "string", "status": "string", "created": "date", **OWNED,
        "snapshottype": "string", "intervaltype": "string", "locationtype": "string", "volumeid": "string",
        "volumename": "string", "volumetype": "string", "volumestate": "string", "physicalsize": "long",
        "virtualsize": "long", "revertable": "boolean", "zoneid": "string", "zonename": "string",
        "datastoreid": "string", "datastorename": "string", "datastorestate": "string", "datastoretype": "string",
        "tags": "list", "jobid": "string", "jobstatus": "integer"},
    "asyncjobs": {
        "jobid": "string", "jobstatus": "integer", "jobprocstatus": "integer", "jobresultcode": "integer",
        "jobresulttype": "string", "jobresult": "object", "cmd": "string", **OWNED,
        "jobinstancetype": "string", "jobinstanceid": "string", "created": "date", "completed": "date",
        "step": "string", "progress": "object", "jobstate": "string", "trouble": "string"},
    "zone": {
        "id": "string", "name": "string", "networktype": "string", "allocationstate": "string", "type": "string",
        "securitygroupsenabled": "boolean", "localstorageenabled": "boolean", "dhcpprovider": "string", "tags": "list"},
    "storagepool": {
        "id": "string", "name": "string", "path": "string", "type": "string", "provider": "string", "scope": "string",
        "state": "string", "zoneid": "string", "zonename": "string", "hypervisor": "string", "disksizetotal": "long",
        "created": "date", "agent": "string", "tags": "list"},
    "dataStoreProvider": {
        "name": "string", "type": "string", "scope": "string", "settings": "object", "capabilities": "list"},
    "scrub": {
        "id": "string", "store": "string", "objects": "long", "of": "long", "bytes": "long", "damaged": "list",
        "missing": "list", "unread": "list", "unknown": "list", "unknowncount": "long"},
    "plan": {
        "step": "string", "move": "string", "strategy": "string", "from": "map", "to": "map", "agent": "string",
        "bytes": "long", "seconds": "long", "basis": "string", "reason": "string", "refused": "list"},
    "capability": {
        "cloudstackversion": "string", "securitygroupsenabled": "boolean", "dynamicrolesenabled": "boolean",
        "userpublictemplateenabled": "boolean", "supportELB": "string", "projectinviterequired": "boolean",
        "allowusercreateprojects": "boolean", "customdiskofferingminsize": "long", "customdiskofferingmaxsize": "long",
        "regionsecondaryenabled": "boolean", "kvmsnapshotenabled": "boolean", "allowuserviewdestroyedvm": "boolean",
        "allowuserexpungerecovervm": "boolean", "allowuserexpungerecovervolume": "boolean",
        "allowuserviewalldomainaccounts": "boolean", "defaultuipagesize": "long"},
    "api": {
        "name": "string", "description": "string", "isasync": "boolean", "related": "string", "params": "list",
        "response": "list", "roles": "list"},
    "domain": {
        "id": "string", "name": "string", "level": "integer", "parentdomainid": "string", "path": "string",
        "state": "string", "created": "date"},
    "account": {
        "id": "string", "name": "string", "accounttype": "integer", "roletype": "string", "rolename": "string",
        "domainid": "string", "domain": "string", "domainpath": "string", "state": "string", "created": "date", "user": "list"},
    "user": {
        "id": "string", "username": "string", "firstname": "string", "lastname": "string", "email": "string",
        "timezone": "string", "account": "string", "accountid": "string", "accounttype": "integer", "roletype": "string",
        "rolename": "string", "domainid": "string", "domain": "string", "domainpath": "string", "state": "string",
        "apikey": "string", "created": "date"},
    "userkeys": {"apikey": "string", "secretkey": "string"},
    "project": {
        "id": "string", "name": "string", "displaytext": "string", "domainid": "string", "domain": "string",
        "domainpath": "string", "state": "string", "created": "date"},
    "resourcelimit": {
        "resourcetype": "string", "resourcetypename": "string", "max": "long", **OWNED},
    "": {"success": "boolean", "displaytext": "string"},
}
"""Item key -> the fields of its objects, and their types. The tests hold the objects to it."""


@dataclass(frozen=True, slots=True)
class Names:
    """What objects show of other things: rows by id."""

    zones: Mapping[str, Row] = field(default_factory=dict)
    primaries: Mapping[str, Row] = field(default_factory=dict)
    stores: Mapping[str, Row] = field(default_factory=dict)
    volumes: Mapping[str, Row] = field(default_factory=dict)
    templates: Mapping[str, Row] = field(default_factory=dict)
    copies: Mapping[str, list[Row]] = field(default_factory=dict)
    """Thing's id -> its rows in the `*_store_ref` table."""
    progress: Mapping[str, Row] = field(default_factory=dict)
    """Job id -> its progress."""
    users: Mapping[str, list[Row]] = field(default_factory=dict)
    """Account id -> its users."""


def name_of(rows: Mapping[str, Row], key: str | None) -> str | None:
    """The name of the row with this id; None when it is not known."""
    row = rows.get(key or "")
    return row["name"] if row is not None else None


def when(value: str | None) -> str | None:
    """CloudStack's form of a time: `2026-03-31T11:53:59+0000`."""
    if not value:
        return None
    return datetime.fromisoformat(value).strftime("%Y-%m-%dT%H:%M:%S%z")


def provider_name(name: str) -> str:
    """How CloudStack spells providers: S3, NFS, Swift."""
    return name.upper() if len(name) <= 3 else name.capitalize()


def _filled(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def _pending(row: Row) -> dict[str, Any]:
    if row.get("state") in PENDING and row.get("job_id"):
        return {"jobid": row["job_id"], "jobstatus": 0}
    return {}


def owned(row: Row) -> dict[str, Any]:
    """Whose it is."""
    path = row.get("domain_path") or "/"
    head = {"projectid": row["project_id"], "project": row["account"]} if row.get("project_id") else {
        "account": row.get("account") or ROOT_OWNER.account, "accountid": row.get("account_id") or str(ROOT_OWNER.account_id)}
    return {**head, "domainid": row.get("domain_id") or str(ROOT_OWNER.domain_id), **_domain(path)}


def _domain(path: str) -> dict[str, Any]:
    return {"domain": path.rstrip("/").rpartition("/")[2] or "ROOT", "domainpath": domain_path(path)}


def _role(row: Row) -> dict[str, Any]:
    role = Role(row["role"])
    return {"accounttype": ROLE_NUMBERS[role], "roletype": ROLE_NAMES[role].replace(" ", ""), "rolename": ROLE_NAMES[role]}


def domain(row: Row, names: Names) -> dict[str, Any]:
    """A domain."""
    path = row["domain_path"]
    return _filled(id=row["id"], name=row["name"], level=path.count("/") - 1, parentdomainid=row["parent_id"],
                   path=domain_path(path), state="Active", created=when(row["created"]))


def account(row: Row, names: Names) -> dict[str, Any]:
    """An account with its users."""
    users = [user(each, names) for each in names.users.get(row["id"], [])]
    return _filled(id=row["id"], name=row["name"], domainid=row["domain_id"], state="enabled", created=when(row["created"]),
                   user=users, **_role(row), **_domain(row["domain_path"]))


def user(row: Row, names: Names) -> dict[str, Any]:
    """A user. Its secret key is shown once, by registerUserKeys; here is none."""
    return _filled(
        id=row["id"], username=row["name"], firstname=row["first_name"], lastname=row["last_name"], email=row["email"],
        timezone=row["timezone"], account=row["account"], accountid=row["account_id"], domainid=row["domain_id"],
        state="enabled", apikey=row["api_key"], created=when(row["created"]), **_role(row), **_domain(row["domain_path"]))


def project(row: Row, names: Names) -> dict[str, Any]:
    """A project."""
    return _filled(id=row["id"], name=row["name"], displaytext=row["display_text"], domainid=row["domain_id"], state="Active",
                   created=when(row["created"]), **_domain(row["domain_path"]))


def resource_limit(row: Row, names: Names) -> dict[str, Any]:
    """How much an account may hold; of storage in GiB."""
    most = row["max"] >> 30 if row["name"] in ("primary_storage", "secondary_storage") and row["max"] > 0 else row["max"]
    return _filled(resourcetype=LIMITED[row["name"]], resourcetypename=row["name"], max=most, **owned(row))


def image_store(row: Row, names: Names) -> dict[str, Any]:
    """An image store. Its settings are not in any read table, so they cannot be shown."""
    return _filled(
        id=row["id"], name=row["name"], url=row["url"], protocol=row["protocol"],
        providername=provider_name(row["provider"]), scope=row["scope"], zoneid=row["zone_id"],
        zonename=name_of(names.zones, row["zone_id"]), readonly=bool(row["read_only"]), hasannotations=False,
        capacitybytes=row.get("capacity_bytes") or None)


def percent(progress: Row | None) -> int:
    """Percent of the bytes that the destination acknowledged; 99 at most, for only the job's end is 100."""
    if not progress or not progress.get("total"):
        return 0
    return max(0, min(99, int(progress["bytes"]) * 100 // int(progress["total"])))


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
    return _filled(
        id=row["id"], name=row["name"], displaytext=row["display_text"] or row["name"], ispublic=bool(row["is_public"]),
        isfeatured=bool(row["is_featured"]), isextractable=bool(row["is_extractable"]),
        isready=row["state"] == "Ready" and not bad, crossZones=row["zone_id"] is None,
        created=when(row["created"]), removed=when(row.get("removed")),
        passwordenabled=False, format=str(row["format"]).upper(), hypervisor=row["hypervisor"],
        ostypeid=row["os_type_id"], templatetype="USER", status=template_status(row, names), size=row.get("size"),
        physicalsize=row.get("physical_size"), checksum=row["checksum"], url=row["url"], zoneid=zone,
        zonename=name_of(names.zones, zone), **owned(row), downloaddetails=copies, directdownload=False,
        deployasis=False, tags=[], **_pending(row))


def volume(row: Row, names: Names) -> dict[str, Any]:
    """A volume."""
    source = names.templates.get(row.get("template_id") or "")
    return _filled(
        id=row["id"], name=row["name"], state=row["state"], status=row.get("error"), type="DATADISK", size=row["size"],
        physicalsize=row.get("physical_size"), virtualsize=row["size"], created=when(row["created"]),
        zoneid=row["zone_id"], zonename=name_of(names.zones, row["zone_id"]), **owned(row),
        storage=name_of(names.primaries, row["primary_id"]), storageid=row["primary_id"], storagetype="local",
        provisioningtype="thin", templateid=row.get("template_id"),
        templatename=source["name"] if source else None,
        templatedisplaytext=(source["display_text"] or source["name"]) if source else None,
        snapshotid=row.get("snapshot_id"), hypervisor=row["hypervisor"], path=row.get("path"), displayvolume=True,
        isextractable=True, destroyed=row["state"] in ("Expunging", "Expunged"), deleteprotection=False,
        supportsstoragesnapshot=False, tags=[], **_pending(row))


def snapshot(row: Row, names: Names) -> dict[str, Any]:
    """A snapshot."""
    source = names.volumes.get(row["volume_id"])
    copy = next(iter(names.copies.get(row["id"], [])), None)
    store = names.stores.get(copy["store_id"]) if copy else None
    return _filled(
        id=row["id"], name=row["name"], state=row["state"], status=row.get("error"), created=when(row["created"]),
        **owned(row), snapshottype="MANUAL", intervaltype="MANUAL",
        locationtype="SECONDARY" if copy else "PRIMARY", volumeid=row["volume_id"],
        volumename=source["name"] if source else None, volumetype="DATADISK",
        volumestate=source["state"] if source else None, physicalsize=row.get("physical_size"),
        virtualsize=row.get("size"), revertable=False, zoneid=row["zone_id"],
        zonename=name_of(names.zones, row["zone_id"]), datastoreid=copy["store_id"] if copy else None,
        datastorename=store["name"] if store else None, datastorestate=copy["state"] if copy else None,
        datastoretype="Image" if copy else None, tags=[], **_pending(row))


def zone(row: Row, names: Names) -> dict[str, Any]:
    """A zone."""
    return _filled(
        id=row["id"], name=row["name"], networktype="Advanced", allocationstate="Enabled", type="Core",
        securitygroupsenabled=False, localstorageenabled=True, dhcpprovider="VirtualRouter", tags=[])


def storage_pool(row: Row, names: Names) -> dict[str, Any]:
    """A primary store."""
    return _filled(
        id=row["id"], name=row["name"], path=row["path"], type="Filesystem", provider=provider_name(row["kind"]),
        scope="HOST", state="Up", zoneid=row["zone_id"], zonename=name_of(names.zones, row["zone_id"]),
        hypervisor=row["hypervisor"], disksizetotal=row["total_bytes"] or None, created=when(row["created"]),
        agent=row["agent"], tags=[])


def command_name(wire: str) -> str:
    """CloudStack's class name of a command: `CreateVolumeCmd`; of one that has none, its wire name."""
    known = BY_TYPE.get(wire)
    return f"{known.name[0].upper()}{known.name[1:]}Cmd" if known else wire


def job(row: Row, thing: dict[str, Any] | None = None, item: str = "") -> dict[str, Any]:
    """A job; `thing` is the object of its result under the key `item`. A job always has its jobresultcode."""
    status, failure = row["status"], row.get("failure") or {}
    noun, _, instance = (row.get("subject") or "").partition("-")
    fields = _filled(
        jobid=row["id"], cmd=command_name(row["command"]), **owned(row),
        jobstatus={"completed": 1, "failed": 2, "cancelled": 2}.get(status, 0),
        jobstate=status, jobprocstatus=100 if status == "completed" else percent(row.get("progress")),
        jobinstancetype="".join(part.capitalize() for part in noun.split("_")), jobinstanceid=instance,
        created=when(row["created"]), completed=when(row.get("completed")), step=row.get("step"))
    fields["jobresultcode"] = 0
    if status == "completed":
        fields |= {"jobresulttype": "object", "jobresult": {item: thing} if thing else {"success": True}}
    elif status in ENDED:
        code = int(failure.get("code", 530))
        fields |= {"jobresultcode": code, "jobresulttype": "object",
                   "jobresult": {"errorcode": code, "errortext": failure_text(failure)}}
    elif failure:
        fields["trouble"] = failure_text(failure)
    if status not in ENDED and row.get("progress"):
        fields["progress"] = {name: row["progress"][name] for name in PROGRESS if row["progress"].get(name) is not None}
    return fields


def failure_text(failure: Row) -> str:
    """One line from a failure that is stored as data: field, cause, remedy."""
    cause = str(failure.get("cause") or "it failed")
    head = f"{failure['field']}: {cause}" if failure.get("field") else cause
    return f"{head.rstrip('.')}. {failure['remedy']}" if failure.get("remedy") else head


def plan(step: str, planned: MotionPlan) -> dict[str, Any]:
    """A plan of planCommand; `bytes` and `seconds` are null where nobody can know them beforehand."""
    cost = planned.cost
    return {"step": step, "move": planned.move, "strategy": planned.strategy, "from": planned.source.model_dump(mode="json"),
            "to": planned.target.model_dump(mode="json"), "agent": planned.agent, "bytes": cost.bytes, "seconds": cost.seconds,
            "basis": cost.basis, "reason": planned.reason, "refused": [one.model_dump(mode="json") for one in planned.refused]}


OBJECTS = {"image_store": image_store, "template": template, "volume": volume, "snapshot": snapshot, "zone": zone,
           "primary_store": storage_pool, "domain": domain, "account": account, "user": user, "project": project,
           "resource_limit": resource_limit}
"""Table -> how its rows are shown."""
TABLES = {"imagestore": "image_store", "template": "template", "volume": "volume", "snapshot": "snapshot",
          "domain": "domain", "account": "account", "user": "user", "project": "project"}
"""Key of an object in a job's result -> its table."""

__all__ = ["ENDED", "FIELDS", "OBJECTS", "PENDING", "TABLES", "Names", "failure_text", "job", "name_of", "percent",
           "plan", "provider_name", "when"]
