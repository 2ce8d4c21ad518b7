"""The chosen backup provider in the read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change
from schema.backup_provider import BackupProviderConfigured

TABLES = ("backup_provider",)


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    if isinstance(event, BackupProviderConfigured):
        yield "backup_provider", "chosen", {"name": event.provider, "provider": event.provider, "created": at}
