"""Links: URLs by which anyone may get an image's object for a while. In the order it happens; the URL is only ever sealed."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from schema.failure import Failure
from schema.message import Command, Event


class OpenLink(Command, type="link.open"):
    """Make a link to the copy that a template or snapshot has in an image store."""

    store_id: UUID
    object_key: str
    lifetime_s: int
    """1 to 604800, from when it is ready."""
    revocable: bool = True
    """False: it costs nothing, and is good until its end whatever happens."""

    def key(self, job_id: UUID) -> str:
        """The store."""
        return f"image_store-{self.store_id}"


class EndLink(Command, type="link.end"):
    """Revoke a link; or, when its end has come, remove what is left of it."""

    id: UUID

    def key(self, job_id: UUID) -> str:
        """The link."""
        return f"link-{self.id}"


class LinkAsked(Event, type="link.asked"):
    """An agent is to make it."""

    link_id: UUID
    store_id: UUID
    object_key: str
    lifetime_s: int
    revocable: bool
    job_id: UUID


class LinkGiven(Event, type="link.given"):
    """It is there."""

    link_id: UUID
    name: str
    """What the store knows it by; empty: it cannot be revoked."""
    expires_at: datetime
    sealed_url: str
    """Base64; the vault reads it for this work."""
    work_id: UUID


class LinkNotGiven(Event, type="link.not_given"):
    """It could not be made, or nobody wants it any more: nothing of it remains."""

    link_id: UUID
    failure: Failure


class LinkEnded(Event, type="link.ended"):
    """Its URL gives nothing, and the store has nothing of it."""

    link_id: UUID
