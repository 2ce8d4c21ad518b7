"""The registry: every API command described once. Dispatch, validation, listApis, the CLI and the docs come from it.

Owns the list of commands and how one is found by its name. Refuses to know HTTP, tables and how anything runs. A new
command is one entry of `COMMANDS` in its noun's file of `api.commands`; its parameters are derived from its message.
"""

from __future__ import annotations

import difflib

from api import not_here
from api.api_command import ApiCommand, Mode, Parameter, Type, api_name, derived, parameter
from api.commands import (
    deprecated,
    event,
    extract,
    identity,
    image_store,
    iso,
    job,
    machine,
    network,
    offering,
    os_type,
    place,
    resource_tag,
    snapshot,
    snapshot_policy,
    system,
    template,
    volume,
)
from schema.failure import Unsupported

COMMANDS: tuple[ApiCommand, ...] = (
    *image_store.COMMANDS,
    *deprecated.COMMANDS,
    *template.COMMANDS,
    *iso.COMMANDS,
    *volume.COMMANDS,
    *offering.COMMANDS,
    *snapshot.COMMANDS,
    *snapshot_policy.COMMANDS,
    *job.COMMANDS,
    *event.COMMANDS,
    *extract.COMMANDS,
    *place.COMMANDS,
    *machine.COMMANDS,
    *network.COMMANDS,
    *system.COMMANDS,
    *os_type.COMMANDS,
    *identity.COMMANDS,
    *resource_tag.COMMANDS,
)
"""The commands, by noun. Nothing else lists them."""

BY_NAME: dict[str, ApiCommand] = {each.name.lower(): each for each in COMMANDS}
BY_TYPE: dict[str, ApiCommand] = {}
for _each in COMMANDS:
    if _each.command is not None:
        BY_TYPE.setdefault(_each.command.TYPE, _each)


def find(name: str) -> ApiCommand:
    """The command of this name: CloudStack's in any letter case, with or without `Cmd`, or a message's wire name.

    Raises Unsupported, naming the nearest one.
    """
    wanted = name.strip().lower()
    found = BY_NAME.get(wanted) or BY_NAME.get(wanted.removesuffix("cmd")) or BY_TYPE.get(wanted)
    if found is not None:
        return found
    if not wanted:
        raise Unsupported("missing", field="command", remedy="listApis shows the commands")
    if why := not_here.reason(wanted.removesuffix("cmd")):
        raise Unsupported(f"{name.strip()[:64]} is not here: {why}", field="command", remedy="listApis shows those that are")
    close = difflib.get_close_matches(wanted, BY_NAME, n=1)
    remedy = f"did you mean {BY_NAME[close[0]].name}?" if close else "listApis shows the commands"
    raise Unsupported(f"no command is named {name[:64]!r}", field="command", remedy=remedy)


__all__ = ["BY_NAME", "BY_TYPE", "COMMANDS", "ApiCommand", "Mode", "Parameter", "Type", "api_name", "derived", "find",
           "parameter"]
