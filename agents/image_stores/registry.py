"""Which image store plug-ins are installed: the entry points of the group `storebus.image_store`.

It owns the way from a provider's name to its class. It refuses to import any plug-in by name, so that a vendor's store
is one file and one entry point, and nothing here changes. A plug-in whose library is missing is left out of the list
and named, with the line that installs it, when somebody asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from agents.image_stores.base import ImageStore
from agents.image_stores.details import EVERYWHERE
from schema.agent import ProviderSpec
from schema.failure import Refused
from schema.image import StoreSpec

GROUP = "storebus.image_store"
log = logging.getLogger(__name__)
_LOADED: dict[str, type[ImageStore]] = {}
"""By the provider's name, lower case."""


def installed() -> dict[str, EntryPoint]:
    """Every installed plug-in by provider name, lower case; none of them is imported."""
    return {point.name.lower(): point for point in entry_points(group=GROUP)}


def load(provider: str) -> type[ImageStore]:
    """The class of a provider (any case). Reads files: call it from a thread.

    Found once, it is not looked for again: to look through what is installed costs 12 ms, and its module stays as it was loaded.
    Raises Refused when there is none, or when a library that it needs is missing.
    """
    known = _LOADED.get(provider.lower())
    if known is not None:
        return known
    points = installed()
    point = points.get(provider.lower())
    if point is None:
        raise Refused(f"no image store plug-in is called {provider}", field="provider",
                      remedy=f"installed: {', '.join(sorted(points)) or 'none'}")
    try:
        found: type[ImageStore] = point.load()
    except ModuleNotFoundError as error:
        own = error.name is not None and error.name.split(".")[0] in ("agents", "schema", "bus")
        if own:  # a plug-in that is broken, not one that lacks a library
            raise
        raise Refused(f"the image store plug-in {point.name} needs the package {error.name}, which is not installed",
                      field="provider", remedy=f"run: pip install 'storebus[{point.name}]'") from error
    return _LOADED.setdefault(provider.lower(), found)


def providers() -> list[ProviderSpec]:
    """What an agent announces: every plug-in that can be loaded here. Reads files: call it from a thread."""
    found = []
    for name in sorted(installed()):
        try:
            store = load(name)
        except Refused as refused:
            log.info("image store plug-in not announced: %s", refused)
            continue
        found.append(ProviderSpec(name=store.PROVIDER, scope=store.SCOPE, settings=_settings(store),
                                  capabilities=sorted(store.CAPABILITIES)))
    return found


def _settings(store: type[ImageStore]) -> dict[str, Any]:
    """The provider's own details, and those of every provider."""
    schema = store.Settings.model_json_schema()
    limit = {"type": "integer", "default": 0, "title": "Maxbytespersecond",
             "description": "Bytes a second that each agent moves to and from the store, from 1048576 on; 0: no limit."}
    return {**schema, "properties": {**schema.get("properties", {}), EVERYWHERE: limit}}


async def open_store(spec: StoreSpec, secrets: Mapping[str, str]) -> ImageStore:
    """Open the store that `spec` describes; the caller closes it. Raises what its `open` raises, and Refused."""
    store = await asyncio.to_thread(load, spec.provider)
    return await store.open(spec, secrets)
