"""Commands of tags, as `api.registry` collects them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.api_command import JOB_ID, ApiCommand, Mode, Type, listing, parameter
from schema.resource_tag import KINDS, CreateTags, DeleteTags

TYPE = ("resourcetype", "the type of the things: " + ", ".join(KINDS))
THINGS = (parameter("resourceids", Type.LIST, required=True, of_uuids=True, text="the UUIDs of the things, comma separated"),
          parameter(TYPE[0], required=True, choices=tuple(KINDS), text=TYPE[1]))


def _tagging(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    return {"resource_type": values["resourcetype"], "resource_ids": values["resourceids"], "tags": values.get("tags", {})}


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="createTags", mode=Mode.ASYNC, noun="resource_tag", command=CreateTags, now=True, prepare=_tagging,
        parameters=(*THINGS, parameter("tags", Type.MAP, required=True, text="the tags: tags[0].key=K&tags[0].value=V"), JOB_ID),
        related="listTags", description="Gives tags to volumes, snapshots, templates or ISOs."),
    ApiCommand(
        name="deleteTags", mode=Mode.ASYNC, noun="resource_tag", command=DeleteTags, now=True, prepare=_tagging,
        parameters=(*THINGS, parameter("tags", Type.MAP, keys_alone=True,
                                       text="the tags: tags[0].key=K, with tags[0].value=V only if it has that value; none: all"),
                    JOB_ID),
        related="listTags", description="Takes tags away."),
    ApiCommand(
        name="listTags", mode=Mode.LIST, item="tag", noun="resource_tag",
        parameters=listing(parameter("key", text="the tag's name"), parameter("value", text="the tag's value"),
                           parameter("resourceid", Type.UUID, text="the UUID of the thing"),
                           parameter(TYPE[0], choices=tuple(KINDS), text=TYPE[1]), access=True),
        filters={"key": "name", "value": "value", "resourceid": "resource_id", "resourcetype": "resource_type"},
        description="Lists tags."),
)
