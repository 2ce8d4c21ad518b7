"""The peer's event class: importable by its topic."""

from __future__ import annotations

from eventsourcing.domain import DomainEvent


class Renamed(DomainEvent):
    """As large as ours."""

    name: str
    volume_id: str
