"""Answers of commands that only read, where they are more than the rows of one table. A file for each noun.

`LISTS` of a file are lists (a page and how many match), `ANSWERS` are whole bodies. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from api.access import Principal
from api.answers import event, identity, image_store, job, network, offering, os_type, place, snapshot, system, template, volume
from api.listing import Lists, Special
from api.registry import ApiCommand

Answerer = Callable[[Lists, ApiCommand, dict[str, Any], Principal], Awaitable[dict[str, Any]]]
"""(lists, command, values, caller) -> what stands below the envelope's key."""

LISTS: dict[str, Special] = (template.LISTS | job.LISTS | system.LISTS | offering.LISTS | volume.LISTS | place.LISTS
                             | image_store.LISTS | snapshot.LISTS | event.LISTS | os_type.LISTS | identity.LISTS
                             | network.LISTS)
ANSWERS: Mapping[str, Answerer] = job.ANSWERS | system.ANSWERS | template.ANSWERS | identity.ANSWERS
"""Command's name -> who answers it."""

__all__ = ["ANSWERS", "LISTS", "Answerer"]
