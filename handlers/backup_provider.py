"""The backup provider: the flow that chooses it. Placement honours the choice for backups that come after it.

Rule kept here: only a provider that has an image store is chosen, for with another one every backup would be refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from handlers.decider import Context, Flow, IllegalTransition, Step
from schema.backup_provider import STREAM, BackupProviderConfigured, ConfigureBackupProvider
from schema.failure import BadParameter, Failure
from schema.message import Command, Event


@dataclass(frozen=True, slots=True)
class Choice:
    """The fold of the one stream."""

    provider: str


def evolve(state: Choice | None, event: Event) -> Choice:
    """The choice after `event`."""
    if isinstance(event, BackupProviderConfigured):
        return Choice(event.provider)
    raise IllegalTransition("chosen" if state else "never chosen", event)


class ConfigureFlow:
    """Choose: one append and it is over."""

    subject, placed, cancellable = "backup_provider", True, False
    steps: tuple[Step, ...] = ()

    def streams(self, job_id: UUID, command: ConfigureBackupProvider) -> list[str]:
        """The one there is."""
        return [STREAM]

    def start(self, context: Context) -> None:
        """The provider has an image store."""
        command = context.command
        assert isinstance(command, ConfigureBackupProvider)
        wanted = command.provider.lower()
        there = sorted({store.spec.provider for store in context.directory.of_role() if store.state == "Ready"})
        if wanted not in there:
            raise BadParameter(f"no image store is of the provider {command.provider[:64]!r}", field="provider",
                               remedy=f"here are: {', '.join(there) or 'none'}; add one with addImageStore")
        state: Choice | None = context.state(STREAM)
        if state is None or state.provider != wanted:
            context.emit(STREAM, BackupProviderConfigured(provider=wanted))

    def finish(self, context: Context) -> dict[str, Any]:
        """Success, without an object."""
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: there is nothing to wait for."""


FLOWS: dict[type[Command], Flow] = {ConfigureBackupProvider: ConfigureFlow()}
"""Every command about this noun, and what it leads to."""
