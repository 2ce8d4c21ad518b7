"""What the rows of many read tables have in common: whose a thing is, its copies, its sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from schema import identity
from schema.image import ImageRef

Change = tuple[str, str, dict[str, Any] | None]
"""(table, id, columns that take a new value; None: the row is gone)."""


def owned(owner: identity.Owner) -> dict[str, Any]:
    """Whose a thing is: the same columns in every table of things that belong to accounts."""
    return {"account_id": str(owner.account_id), "account": owner.account, "domain_id": str(owner.domain_id),
            "domain_path": owner.path, "project_id": str(owner.project_id) if owner.project_id else None}


def copy(thing: str, key: str, store_id: UUID | None, columns: dict[str, Any] | None) -> Iterator[Change]:
    """A copy in an image store changed, or is gone."""
    if store_id is not None:
        yield f"{thing}_store_ref", f"{key}/{store_id}", columns


def sizes(image: ImageRef) -> dict[str, Any]:
    """How large an image is: as a machine sees it, and in its store."""
    return {"size": image.virtual_size, "physical_size": image.physical_size}
