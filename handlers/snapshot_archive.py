"""Archiving: a snapshot that only lies in its disk is backed up, and removed from there.

It is the backup that every snapshot gets (`snapshot.BackupFlow`), asked for by hand where that one was stopped before it began.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from handlers import snapshot, volume
from handlers.decider import Context, Flow
from schema.failure import BadParameter
from schema.message import Command
from schema.snapshot import ArchiveSnapshot


class ArchiveFlow(snapshot.BackupFlow):
    """Back up a snapshot that an earlier job took, whose own backup never began."""

    def snapshot_id(self, context: Context) -> UUID:
        """The snapshot named in the command."""
        assert isinstance(context.command, ArchiveSnapshot)
        return context.command.id

    def streams(self, job_id: UUID, command: Any) -> list[str]:
        """The snapshot."""
        return [snapshot.stream(command.id)]

    def follow(self, command: Command, states: Mapping[str, Any]) -> list[str]:
        """Its volume, and what a backup follows from there."""
        volumes = [volume.stream(state.volume_id) for name, state in states.items()
                   if name.startswith("snapshot-") and state is not None]
        return [*dict.fromkeys(volumes), *super().follow(command, states)]

    def start(self, context: Context) -> None:
        """A snapshot that only lies in its disk."""
        snapshot_id = self.snapshot_id(context)
        state: snapshot.SnapshotState | None = context.state(snapshot.stream(snapshot_id))
        if state is None or state.status in ("Destroying", "Destroyed", "Hidden"):
            raise BadParameter(f"no snapshot has the id {snapshot_id}", field="id", remedy="listSnapshots shows them")
        if state.status != "CreatedOnPrimary":
            raise BadParameter(f"the snapshot is {state.status}, and only one that is on the primary store alone is archived",
                               field="id", remedy="listSnapshots locationtype=PRIMARY shows those that are")
        self.begin(context)


FLOWS: dict[type[Command], Flow] = {ArchiveSnapshot: ArchiveFlow()}
"""Every command of this file, and what it leads to."""
