"""Tags: names and values that people give to things. The whole conversation, in the order it happens.

The tags of one thing are one stream, beside the thing's own: tagging never waits for the thing's job.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from schema.identity import ROOT_OWNER, Owner
from schema.message import Command, Event

KINDS: Mapping[str, str] = {"Volume": "volume", "Snapshot": "snapshot", "Template": "template", "ISO": "template"}
"""What may be tagged, in CloudStack's words -> the noun. A further noun is one more line here, and a part of the view
`read.resource_tag`."""


class _Tagging(Command):
    resource_type: str
    """One of KINDS."""
    resource_ids: list[UUID]

    def key(self, job_id: UUID) -> str:
        """The first thing."""
        noun = KINDS.get(self.resource_type, "job")
        return f"{noun}-{self.resource_ids[0] if self.resource_ids else job_id}"


class CreateTags(_Tagging, type="resource_tag.create"):
    """Give each of these things each of these tags."""

    EVENT = "CREATE_TAGS"

    tags: dict[str, str]


class DeleteTags(_Tagging, type="resource_tag.delete"):
    """Take tags from each of these things."""

    EVENT = "DELETE_TAGS"

    tags: dict[str, str] = {}
    """Names with the values that they must have; an empty value is any. None at all: every tag."""


class ResourceTagged(Event, type="resource_tag.created"):
    """A thing has tags that it had not."""

    resource_type: str
    resource_id: UUID
    added: dict[str, str]
    tags: dict[str, str]
    """All that it has now."""
    owner: Owner = ROOT_OWNER


class ResourceUntagged(Event, type="resource_tag.deleted"):
    """A thing lost tags."""

    resource_type: str
    resource_id: UUID
    removed: list[str]
    tags: dict[str, str] = {}
    """All that it has now."""
