"""The vocabulary: frozen messages, one module per noun, and how they become bytes. Imports nothing of ours.

Importing this package defines every message, so the registry in `schema.message` is complete from then on.
"""

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
from schema.codec import canonical, decode, encode
from schema.message import REGISTRY, Command, Event, Kind, Message, Order, Report

__all__ = [
    "REGISTRY", "Command", "Event", "Kind", "Message", "Order", "Report",
    "agent", "backup_provider", "canonical", "decode", "encode", "identity", "image_store", "job", "link", "machine",
    "motion", "offering", "primary_store", "resource_tag", "scrub", "snapshot", "snapshot_policy",
    "template", "template_seed", "volume", "volume_attach", "volume_copy", "volume_upload", "zone",
]
