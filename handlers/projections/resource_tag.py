"""Tags in the read tables: a column of the thing's own row. The table of all tags is the view `resource_tag` over these columns,
so that what is gone has none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.projections.columns import Change
from schema.resource_tag import KINDS

TABLES: tuple[str, ...] = ()


def fold(event: Any, at: str) -> Iterator[Change]:
    """What an event changes."""
    yield KINDS[event.resource_type], str(event.resource_id), {"tags": event.tags or None}
