"""The table: which flow takes which command, and which fold makes which noun's state. Read this first."""

from __future__ import annotations

from handlers import image_store, job, snapshot, template, volume
from handlers.decider import Evolve, Flow
from schema.image_store import AddImageStore, DeleteImageStore, UpdateImageStore
from schema.message import Command
from schema.snapshot import BackupSnapshot, CreateSnapshot, DeleteSnapshot
from schema.template import DeleteTemplate, RegisterTemplate
from schema.volume import CreateVolume, DeleteVolume, UpdateVolume

FLOWS: dict[type[Command], Flow] = {
    AddImageStore: image_store.AddFlow(),
    UpdateImageStore: image_store.UpdateFlow(),
    DeleteImageStore: image_store.DeleteFlow(),
    RegisterTemplate: template.RegisterFlow(),
    DeleteTemplate: template.DeleteFlow(),
    CreateVolume: volume.CreateFlow(),
    UpdateVolume: volume.UpdateFlow(),
    DeleteVolume: volume.DeleteFlow(),
    CreateSnapshot: snapshot.CreateFlow(),
    BackupSnapshot: snapshot.BackupFlow(),
    DeleteSnapshot: snapshot.DeleteFlow(),
}
"""Every command but CancelJob, which is about another job and is decided by `handlers.cancel`."""

EVOLVE: dict[str, Evolve] = {
    "job": job.evolve,
    "image_store": image_store.evolve,
    "template": template.evolve,
    "volume": volume.evolve,
    "snapshot": snapshot.evolve,
}
"""Noun (the part of a stream's name before the dash) -> fold."""
