"""What the extract commands of every noun share, and the command that revokes a URL, as `api.registry` collects it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.api_command import JOB_ID, ApiCommand, Mode, Parameter, Type
from schema.link import EndLink

EXTRACT = {"mode": "HTTP_DOWNLOAD: the caller fetches the URL", "lifetime": "seconds for which the URL is good (extension)",
           "zoneid": "the UUID of the zone whose copy is given"}
"""Texts of an extract command's parameters."""


def _end(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    return {"id": values["extractid"]}


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="revokeExtractUrl", mode=Mode.ASYNC, command=EndLink, prepare=_end,
        parameters=(Parameter(name="extractid", type=Type.UUID, required=True, field="id",
                              description="the extractId of the extraction: its job's UUID"), JOB_ID),
        related="extractTemplate", description="Ends the URL of an extraction: it gives nothing from then on (extension)."),
)
