"""The backup provider: which image stores backups go to. The whole conversation."""

from __future__ import annotations

from schema.message import Command, Event

STREAM = "backup_provider-chosen"
"""There is one choice, so there is one stream."""


class ConfigureBackupProvider(Command, type="backup_provider.configure"):
    """Choose the provider whose image stores take the backups that come from now on."""

    provider: str
    """Name as listBackupProviders gives it; any case."""


class BackupProviderConfigured(Event, type="backup_provider.configured"):
    """Backups go to image stores of this provider."""

    provider: str
    """Lower case."""
