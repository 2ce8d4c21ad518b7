"""Related: which table has the things that a parameter names, and which command lists them.

Owns what names of parameters tell, for whoever offers values: listApis, the shell's completion. Refuses to decide anything by it
(`api.ownership` does that).
"""

from __future__ import annotations

from api import registry
from api.api_command import ApiCommand, Mode, Parameter, Type
from api.ownership import THINGS

TABLES = {"storageid": "primary_store", "storeid": "image_store", "imagestoreid": "image_store"}
"""Parameters whose table is not in their name."""


def table_of(command: ApiCommand, name: str) -> str:
    """The read table of the things that a parameter names; empty when there is none."""
    if name in ("id", "ids"):
        return command.noun
    if name in THINGS:
        return THINGS[name][0]
    if name in TABLES:
        return TABLES[name]
    thing = name.removesuffix("s").removesuffix("id")
    lists = [each for each in registry.COMMANDS
             if each.mode is Mode.LIST and each.noun and each.item and thing.endswith(each.item)]
    return max(lists, key=lambda each: len(each.item)).noun if lists else ""


def lister(table: str) -> ApiCommand | None:
    """The command that lists the things of a table."""
    found = (each for each in registry.COMMANDS if each.mode is Mode.LIST and each.noun == table and not each.deprecated)
    return next(found, None) if table else None


def related(command: ApiCommand, parameter: Parameter) -> str:
    """The name of the command that lists what a parameter may name; empty when it names no thing."""
    if parameter.name == "customjobid" or not (parameter.type is Type.UUID or parameter.of_uuids or parameter.name == "zoneids"):
        return ""
    found = lister(table_of(command, parameter.name))
    return found.name if found is not None else ""


__all__ = ["lister", "related", "table_of"]
