"""The vocabulary: frozen messages, one module per noun, and how they become bytes. Imports nothing of ours.

A noun's module defines its messages when somebody asks for it: a process pays for the nouns that it speaks of, and an agent's are
few. `vocabulary` asks for all, and the codec does when it meets a wire name that it does not know.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from schema.codec import canonical, decode, encode
from schema.message import REGISTRY, Command, Event, Kind, Message, Order, Report

if TYPE_CHECKING:
    from schema import (
        agent,
        backup_provider,
        identity,
        image_store,
        job,
        link,
        machine,
        motion,
        offering,
        primary_store,
        resource_tag,
        scrub,
        snapshot,
        snapshot_policy,
        template,
        template_seed,
        volume,
        volume_attach,
        volume_copy,
        volume_upload,
        zone,
    )

NOUNS = (
    "agent", "backup_provider", "identity", "image_store", "job", "link", "machine", "motion", "offering", "primary_store",
    "resource_tag", "scrub", "snapshot", "snapshot_policy", "template", "template_seed", "volume", "volume_attach", "volume_copy",
    "volume_upload", "zone",
)
"""The modules that define messages."""


def vocabulary() -> dict[tuple[str, int], type[Message]]:
    """`REGISTRY` with every message of ours in it, and those that others have defined by now."""
    for noun in NOUNS:
        import_module(f"schema.{noun}")
    return REGISTRY


def __getattr__(name: str) -> Any:
    """`schema.volume` and the like, after `import schema` alone."""
    if name in NOUNS:
        return import_module(f"schema.{name}")
    raise AttributeError(f"module 'schema' has no attribute {name!r}")


__all__ = [
    "NOUNS", "REGISTRY", "Command", "Event", "Kind", "Message", "Order", "Report",
    "agent", "backup_provider", "canonical", "decode", "encode", "identity", "image_store", "job", "link", "machine",
    "motion", "offering", "primary_store", "resource_tag", "scrub", "snapshot", "snapshot_policy",
    "template", "template_seed", "vocabulary", "volume", "volume_attach", "volume_copy", "volume_upload", "zone",
]
