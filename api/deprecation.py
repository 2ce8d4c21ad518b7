"""Deprecation: how callers are told that a command has a better one.

Owns the headers of an answer (RFC 9745's `Deprecation`, RFC 5829's `successor-version`) and the line in the log. Refuses to know
which commands those are: their entries in `api.commands` say so. A deprecated command does all that its replacement does.
"""

from __future__ import annotations

import logging

from api import registry
from api.api_command import ApiCommand

log = logging.getLogger(__name__)

SINCE = 1380585600
"""When CloudStack deprecated them: 2013-10-01, with its release 4.2."""
_TOLD: set[str] = set()


def headers(name: str) -> dict[str, str]:
    """Headers of the answer to this command; none unless it is deprecated."""
    command = registry.BY_NAME.get(name.lower())
    if command is None or not command.deprecated:
        return {}
    return {"Deprecation": f"@{SINCE}", "Link": f'</client/api?command={command.deprecated}>; rel="successor-version"',
            "Warning": f'299 - "{command.name} is deprecated: use {command.deprecated}"'}


def warn(command: ApiCommand) -> None:
    """Tell the log of a deprecated command, once in the life of the process."""
    if command.deprecated and command.name not in _TOLD:
        _TOLD.add(command.name)
        log.warning("a deprecated command was used", extra={
            "action": "deprecated", "command": command.name, "use": command.deprecated})


__all__ = ["SINCE", "headers", "warn"]
