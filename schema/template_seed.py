"""Seeds: copies of templates' bytes on primary stores, so that volumes made there need no download. In the order it happens.

What happens to a seed is in its template's stream.
"""

from __future__ import annotations

from uuid import UUID

from schema.failure import Failure
from schema.image import PrimarySpec
from schema.message import Command, Event


class PrepareTemplate(Command, type="template.prepare"):
    """Have a template's bytes on a primary store of a zone, or on every one that can keep them."""

    template_id: UUID
    zone_id: UUID
    storage_id: UUID | None = None
    """The one primary store; None: every one of the zone, by a job each where there are several."""

    def key(self, job_id: UUID) -> str:
        """The template."""
        return f"template-{self.template_id}"


class UnprepareTemplate(Command, type="template.unprepare"):
    """Delete a template's seeds in a zone, or the one on a primary store. The template stays."""

    template_id: UUID
    zone_id: UUID
    storage_id: UUID | None = None
    """The one primary store; None: every one of the zone."""

    def key(self, job_id: UUID) -> str:
        """The template."""
        return f"template-{self.template_id}"


class TemplateSeedRequested(Event, type="template.seed_requested"):
    """A seed is being made."""

    template_id: UUID
    primary: PrimarySpec
    store_id: UUID
    key: str
    """The object that it is made of, and its store."""
    job_id: UUID


class TemplateSeedReady(Event, type="template.seed_ready"):
    """It has its name, and its bytes were compared with the object's manifest."""

    template_id: UUID
    primary_id: UUID
    path: str
    """Within the primary store."""
    size: int
    """Bytes of the file."""
    physical_size: int
    """Bytes that it takes on the primary store."""


class TemplateSeedFailed(Event, type="template.seed_failed"):
    """It could not be made, or its job was stopped; nothing of it remains."""

    template_id: UUID
    primary_id: UUID
    failure: Failure


class TemplateSeedDeleteRequested(Event, type="template.seed_delete_requested"):
    """No volume is made of it any more; its bytes are pending deletion."""

    template_id: UUID
    primary_id: UUID
    job_id: UUID


class TemplateSeedDeleted(Event, type="template.seed_deleted"):
    """The host confirmed that it is gone."""

    template_id: UUID
    primary_id: UUID
