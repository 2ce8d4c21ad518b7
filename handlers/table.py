"""The table: which flow takes which command, and which fold makes which noun's state. Read this first."""

from __future__ import annotations

from handlers import (
    backup_provider,
    collapse,
    identity,
    image_store,
    job,
    leftovers,
    link,
    machine,
    offering,
    primary_store,
    resource_tag,
    scrub,
    snapshot,
    snapshot_archive,
    snapshot_copy,
    snapshot_delete,
    snapshot_extract,
    snapshot_policy,
    snapshot_revert,
    template,
    template_copy,
    template_create,
    template_delete,
    template_extract,
    template_prepare,
    template_register,
    template_update,
    volume,
    volume_attach,
    volume_destroy,
    volume_extract,
    volume_resize,
    volume_upload,
    zone,
)
from handlers.decider import Evolve, Flow
from schema.message import Command

FLOWS: dict[type[Command], Flow] = (
    image_store.FLOWS
    | template_register.FLOWS
    | template_delete.FLOWS
    | template_copy.FLOWS
    | template_create.FLOWS
    | template_prepare.FLOWS
    | template_update.FLOWS
    | volume.FLOWS
    | volume_destroy.FLOWS
    | volume_extract.FLOWS
    | volume_resize.FLOWS
    | volume_upload.FLOWS
    | offering.FLOWS
    | snapshot.FLOWS
    | scrub.FLOWS
    | leftovers.FLOWS
    | link.FLOWS
    | identity.FLOWS
    | template_extract.FLOWS
    | resource_tag.FLOWS
    | snapshot_delete.FLOWS
    | snapshot_policy.FLOWS
    | snapshot_revert.FLOWS
    | snapshot_archive.FLOWS
    | snapshot_copy.FLOWS
    | snapshot_extract.FLOWS
    | zone.FLOWS
    | primary_store.FLOWS
    | backup_provider.FLOWS
    | volume_attach.FLOWS
    | collapse.FLOWS
)
"""Each noun's own table together: every command but CancelJob, which is about another job and is decided by `handlers.job`."""

EVOLVE: dict[str, Evolve] = {
    "job": job.evolve,
    "zone": zone.evolve,
    "primary_store": primary_store.evolve,
    "machine": machine.evolve,
    "image_store": image_store.evolve,
    "template": template.evolve,
    "volume": volume.evolve,
    "snapshot": snapshot.evolve,
    "snapshot_policy": snapshot_policy.evolve,
    "link": link.evolve,
    "volume_copy": volume_extract.evolve,
    "disk_offering": offering.evolve,
    "domain": identity.evolve_domain,
    "account": identity.evolve_account,
    "user": identity.evolve_user,
    "project": identity.evolve_project,
    "resource_limit": identity.evolve_limit,
    "resource_tag": resource_tag.evolve,
    "backup_provider": backup_provider.evolve,
    "scrub": scrub.evolve,
    "scrub_schedule": scrub.evolve_schedule,
}
"""Noun (the part of a stream's name before the dash) -> fold."""
