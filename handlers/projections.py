"""Projections: the read tables as a pure fold of the log. One function for each table's events, no I/O.

Owns which column an event changes. Refuses to know SQL: a change is (table, id, columns). The projector writes them, a
rebuild starts from nothing, and `verify` folds them in memory and compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from bus.event_store import LogRow
from schema import agent, identity, image_store, job, snapshot, template, volume, zone
from schema.codec import UnknownType, decode
from schema.image import ImageRef

Change = tuple[str, str, dict[str, Any] | None]
"""(table, id, columns that take a new value; None: the row is gone)."""
TABLES = ("zone", "agent", "primary_store", "image_store", "template", "template_store_ref", "volume", "snapshot",
          "snapshot_store_ref", "job", "domain", "account", "user", "project", "project_account", "resource_limit")


def changes(row: LogRow) -> Iterator[Change]:
    """What a log row changes in the read tables. A type from the future changes nothing: a reader skips it."""
    if row.kind == "order":
        return
    try:
        event = decode(row.type, row.type_version, row.payload)
    except UnknownType:
        return
    at = row.recorded_at.isoformat()
    noun = row.type.split(".", 1)[0]
    fold = {"job": _job, "volume": _volume, "snapshot": _snapshot, "template": _template,
            "image_store": _image_store, "domain": _domain, "account": _account, "user": _user,
            "project": _project, "resource_limit": _limit}.get(noun, _place)
    yield from fold(event, at)


def _place(event: Any, at: str) -> Iterator[Change]:
    match event:
        case zone.ZoneCreated():
            yield "zone", str(event.zone_id), {"name": event.name, "created": at}
        case zone.PrimaryStoreAnnounced():
            primary = event.primary
            yield "primary_store", str(primary.id), {
                "name": primary.name, "kind": primary.kind, "path": primary.path, "zone_id": str(primary.zone_id),
                "agent": primary.agent, "hypervisor": event.hypervisor, "total_bytes": event.total_bytes, "created": at}
        case agent.AgentAnnounced():
            yield "agent", event.agent, {
                "zone_id": str(event.zone_id), "roles": event.roles, "hypervisor": event.hypervisor,
                "providers": [spec.model_dump(mode="json") for spec in event.providers], "created": at}
        case _:
            pass


def _job(event: Any, at: str) -> Iterator[Change]:
    key = str(event.job_id)
    match event:
        case job.JobSubmitted():
            yield "job", key, {"command": event.command, "status": "submitted", "principal": event.principal,
                               "body": event.body, "cancel_requested": False, "created": at,
                               "parent": str(event.parent) if event.parent else None,
                               **owned(event.owner or identity.ROOT_OWNER)}
        case job.JobStarted():
            yield "job", key, {"status": "running", "subject": event.subject}
        case job.JobStepStarted():
            yield "job", key, {"step": event.step, "work": f"{event.work_id}.{event.attempt}"}
        case job.JobStepFailed():
            yield "job", key, {"failure": event.failure.model_dump(mode="json")}
        case job.JobStepCompleted():
            yield "job", key, {"failure": None}
        case job.JobCancelRequested():
            yield "job", key, {"cancel_requested": True}
        case job.JobUndoStarted():
            yield "job", key, {"status": "undoing", "failure": event.failure.model_dump(mode="json")}
        case job.JobCompleted():
            yield "job", key, {"status": "completed", "result": event.result, "completed": at}
        case job.JobFailed():
            yield "job", key, {"status": "failed", "failure": event.failure.model_dump(mode="json"), "completed": at}
        case job.JobCancelled():
            yield "job", key, {"status": "cancelled", "failure": event.failure.model_dump(mode="json"), "completed": at}
        case _:
            pass


def owned(owner: identity.Owner) -> dict[str, Any]:
    """Whose a thing is: the same columns in every table of things that belong to accounts."""
    return {"account_id": str(owner.account_id), "account": owner.account, "domain_id": str(owner.domain_id),
            "domain_path": owner.path, "project_id": str(owner.project_id) if owner.project_id else None}


def _domain(event: Any, at: str) -> Iterator[Change]:
    if isinstance(event, identity.DomainCreated):
        yield "domain", str(event.domain_id), {
            "name": event.name, "parent_id": str(event.parent_id) if event.parent_id else None,
            "domain_id": str(event.domain_id), "domain_path": event.path, "created": at}


def _account(event: Any, at: str) -> Iterator[Change]:
    if isinstance(event, identity.AccountCreated):
        yield "account", str(event.owner.account_id), {
            "name": event.owner.account, "role": event.role, "created": at, **owned(event.owner)}
        for resource, most in event.limits.items():
            yield _limited(event.owner, resource, most, at)


def _user(event: Any, at: str) -> Iterator[Change]:
    match event:
        case identity.UserCreated():
            yield "user", str(event.user_id), {
                "name": event.username, "role": event.role, "password": event.password, "email": event.email,
                "first_name": event.first_name, "last_name": event.last_name, "timezone": event.timezone, "created": at,
                **owned(event.owner)}
        case identity.UserKeysRegistered():
            yield "user", str(event.user_id), {"api_key": event.api_key, "secret_key": event.secret_key}
        case _:
            pass


def _project(event: Any, at: str) -> Iterator[Change]:
    key = str(event.project_id)
    match event:
        case identity.ProjectCreated():
            yield "project", key, {"name": event.name, "display_text": event.display_text, "created": at,
                                   "admin_id": str(event.admin.account_id),
                                   **owned(event.owner)}
            yield from _member(key, event.admin.account_id, event.admin.account, at)
            for resource, most in event.limits.items():
                yield _limited(event.owner, resource, most, at)
        case identity.ProjectAccountAdded():
            yield from _member(key, event.account_id, event.account, at)
        case _:
            pass


def _limit(event: Any, at: str) -> Iterator[Change]:
    if isinstance(event, identity.ResourceLimitUpdated):
        yield _limited(event.owner, event.resource, event.max, at)


def _limited(owner: identity.Owner, resource: str, most: int, at: str) -> Change:
    return "resource_limit", f"{owner.account_id}/{resource}", {"name": resource, "max": most, "created": at, **owned(owner)}


def _member(project: str, account_id: UUID, name: str, at: str) -> Iterator[Change]:
    yield "project_account", f"{project}/{account_id}", {
        "project_id": project, "account_id": str(account_id), "name": name, "created": at}


def _image_store(event: Any, at: str) -> Iterator[Change]:
    if isinstance(event, image_store.ImageStoreRequested):
        spec = event.store
        yield "image_store", str(spec.id), {
            "name": spec.name, "provider": spec.provider, "url": spec.url,
            "protocol": spec.url.split("://", 1)[0] if "://" in spec.url else spec.provider, "scope": event.scope,
            "zone_id": str(event.zone_id) if event.zone_id else None, "state": "Testing", "read_only": False,
            "job_id": str(event.job_id), "created": at}
        return
    key = str(event.store_id)
    match event:
        case image_store.ImageStoreAdded():
            yield "image_store", key, {"state": "Ready"}
        case image_store.ImageStoreRejected():
            yield "image_store", key, {"state": "Rejected", "error": event.failure.text, "removed": at}
        case image_store.ImageStoreUpdated():
            given = {"name": event.name, "read_only": event.read_only, "capacity_bytes": event.capacity_bytes}
            yield "image_store", key, {name: value for name, value in given.items() if value is not None}
        case image_store.ImageStoreDeleted():
            yield "image_store", key, {"state": "Deleted", "removed": at}
        case _:
            pass


def _ref(thing: str, key: str, store_id: UUID | None, columns: dict[str, Any] | None) -> Iterator[Change]:
    """A copy in an image store changed, or is gone."""
    if store_id is not None:
        yield f"{thing}_store_ref", f"{key}/{store_id}", columns


def _bytes(image: ImageRef) -> dict[str, Any]:
    return {"size": image.virtual_size, "physical_size": image.physical_size}


def _template(event: Any, at: str) -> Iterator[Change]:
    key = str(event.template_id)
    match event:
        case template.TemplateRegistered():
            yield "template", key, {
                "name": event.name, "display_text": event.display_text, "url": event.url, "format": event.format,
                "hypervisor": event.hypervisor, "zone_id": str(event.zone_id) if event.zone_id else None,
                "state": "Registering", "checksum": event.checksum, "is_public": event.is_public,
                "is_featured": event.is_featured, "is_extractable": event.is_extractable,
                "os_type_id": event.os_type_id, "job_id": str(event.job_id), "created": at, **owned(event.owner)}
        case template.TemplateReady():
            image = event.image
            yield "template", key, {"state": "Ready", "checksum": f"{{SHA-256}}{image.sha256}", **_bytes(image)}
            yield "template_store_ref", f"{key}/{image.store_id}", {
                "template_id": key, "store_id": str(image.store_id), "key": image.key, "state": "Ready",
                "root": image.root, "sha256": image.sha256, "created": at, **_bytes(image)}
        case template.TemplateQuarantined():
            yield "template", key, {"error": event.damage.text}
            yield from _ref("template", key, event.store_id, {"state": "Quarantined", "error": event.damage.text})
        case template.TemplateQuarantineLifted():
            yield "template", key, {"error": None}
            yield from _ref("template", key, event.store_id, {"state": "Ready", "error": None})
        case template.TemplateFailed():
            yield "template", key, {"state": "Failed", "error": event.failure.text}
        case template.TemplateDeleteRequested():
            yield "template", key, {"state": "Deleting", "removed": at}
            yield from _ref("template", key, event.store_id, {"state": "Destroying"})
        case template.TemplateDeleted():
            yield "template", key, {"state": "Deleted"}
            yield from _ref("template", key, event.store_id, None)
        case _:
            pass


def _volume(event: Any, at: str) -> Iterator[Change]:
    key = str(event.volume_id)
    match event:
        case volume.VolumeRequested():
            yield "volume", key, {
                "name": event.name, "zone_id": str(event.zone_id), "state": "Creating", "size": event.virtual_size,
                "primary_id": str(event.primary.id), "hypervisor": event.hypervisor, "job_id": str(event.job_id),
                "template_id": str(event.template_id) if event.template_id else None,
                "snapshot_id": str(event.snapshot_id) if event.snapshot_id else None, "created": at,
                **owned(event.owner)}
        case volume.VolumeReady():
            yield "volume", key, {"state": "Ready", "size": event.disk.virtual_size, "path": event.disk.path,
                                  "physical_size": event.physical_size}
        case volume.VolumeFailed():
            yield "volume", key, {"state": "Failed", "error": event.failure.text}
        case volume.VolumeRenamed():
            yield "volume", key, {"name": event.name}
        case volume.VolumeSnapshotStarted():
            yield "volume", key, {"state": "Snapshotting"}
        case volume.VolumeReleased():
            yield "volume", key, {"state": "Ready"}
        case volume.VolumeDeleteRequested():
            yield "volume", key, {"state": "Expunging", "removed": at}
        case volume.VolumeDeleted():
            yield "volume", key, {"state": "Expunged"}
        case _:
            pass


def _snapshot(event: Any, at: str) -> Iterator[Change]:
    key = str(event.snapshot_id)
    match event:
        case snapshot.SnapshotRequested():
            yield "snapshot", key, {
                "name": event.name, "volume_id": str(event.volume_id), "zone_id": str(event.zone_id),
                "state": "Creating", "size": event.disk.virtual_size, "on_primary": False,
                "job_id": str(event.job_id), "created": at, **owned(event.owner)}
        case snapshot.SnapshotTaken():
            yield "snapshot", key, {"state": "CreatedOnPrimary", "size": event.virtual_size, "on_primary": True}
        case snapshot.SnapshotBackupStarted():
            yield "snapshot", key, {"state": "BackingUp", "depth": event.depth, "reason": event.reason,
                                    "parent_id": str(event.parent) if event.parent else None}
        case snapshot.SnapshotBackedUp():
            image = event.image
            full = {} if image.parent else {"parent_id": None, "depth": 0, "reason": event.reason}
            yield "snapshot", key, {"state": "BackedUp", **full, **_bytes(image)}
            yield "snapshot_store_ref", f"{key}/{image.store_id}", {
                "snapshot_id": key, "store_id": str(image.store_id), "key": image.key, "state": "Ready",
                "root": image.root, "created": at, **_bytes(image)}
        case snapshot.SnapshotQuarantined():
            yield "snapshot", key, {"error": event.damage.text}
            yield from _ref("snapshot", key, event.store_id, {"state": "Quarantined"})
        case snapshot.SnapshotQuarantineLifted():
            yield "snapshot", key, {"error": None}
            yield from _ref("snapshot", key, event.store_id, {"state": "Hidden" if event.hidden else "Ready"})
        case snapshot.SnapshotOffPrimary():
            yield "snapshot", key, {"on_primary": False}
        case snapshot.SnapshotFailed():
            yield "snapshot", key, {"state": "Error", "on_primary": False, "error": event.failure.text, "parent_id": None}
            yield from _ref("snapshot", key, event.store_id, None)
        case snapshot.SnapshotDeleteRequested():
            yield "snapshot", key, {"state": "Destroying", "removed": at}
            yield from _ref("snapshot", key, event.store_id, {"state": "Destroying"})
        case snapshot.SnapshotHidden():
            yield "snapshot", key, {"state": "Destroyed"}
            yield from _ref("snapshot", key, event.store_id, {"state": "Hidden"})
        case snapshot.SnapshotDeleted():
            yield "snapshot", key, {"state": "Destroyed"}
            yield from _ref("snapshot", key, event.store_id, None)
        case _:
            pass
