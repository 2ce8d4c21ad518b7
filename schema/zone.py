"""Zones and the primary stores in them: both come from configuration in this version."""

from __future__ import annotations

from uuid import UUID

from schema.image import PrimarySpec
from schema.message import Event


class ZoneCreated(Event, type="zone.created"):
    """A zone exists."""

    zone_id: UUID
    name: str


class PrimaryStoreAnnounced(Event, type="primary_store.announced"):
    """An agent reaches this primary store."""

    primary: PrimarySpec
    hypervisor: str
    """KVM, VMware, XenServer, Memory"""
    total_bytes: int = 0
