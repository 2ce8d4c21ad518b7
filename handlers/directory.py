"""The directory: which zones, primary stores, image stores and agents there are. A fold of the log, kept in memory.

Owns placement's view of the world. It may lag behind the log by a moment; what must never be wrong (a store being
deleted, a name taken twice) is guarded by counters and claims in the append, not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from uuid import UUID

from handlers.carriers import Carriers
from schema.agent import AgentAnnounced, ProviderSpec
from schema.backup_provider import BackupProviderConfigured
from schema.image import PrimarySpec, StoreSpec
from schema.image_store import (
    IMAGE,
    ImageStoreAdded,
    ImageStoreDeleted,
    ImageStoreRejected,
    ImageStoreRequested,
    ImageStoreUpdated,
)
from schema.machine import MachineAnnounced, MachineWithdrawn
from schema.message import Message
from schema.primary_store import (
    PrimaryStoreAnnounced,
    PrimaryStoreDeleted,
    PrimaryStoreDeleteRequested,
    PrimaryStoreRejected,
)
from schema.zone import ZoneCreated

PATTERNS = ("zone.#", "primary_store.#", "image_store.#", "agent.#", "machine.announced", "machine.withdrawn",
            "backup_provider.#")
"""Event types that the directory is folded from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """An image store as placement sees it."""

    spec: StoreSpec
    zone_id: UUID | None
    scope: str
    state: str
    role: str = IMAGE
    """IMAGE, or STAGING: then no image is placed on it."""
    read_only: bool = False
    capacity: int | None = None
    """Bytes that the operator lets rest on it; None: no limit but the store's own."""


@dataclass(slots=True)
class Directory:
    """The fold. `position` says up to where."""

    position: int = 0
    zones: dict[UUID, str] = field(default_factory=dict)
    primaries: dict[UUID, tuple[PrimarySpec, str]] = field(default_factory=dict)
    """id -> (primary store, hypervisor)"""
    closing: set[UUID] = field(default_factory=set)
    """Primary stores that are being deleted: what their agents said before they were told counts no more."""
    free: dict[UUID, int] = field(default_factory=dict)
    """Primary store -> free bytes as its agent last said: not of the fold, and only where there is a choice."""
    stores: dict[UUID, Store] = field(default_factory=dict)
    agents: dict[str, AgentAnnounced] = field(default_factory=dict)
    backup_provider: str = ""
    """The provider that the operator chose for backups; empty: any."""
    used: dict[UUID, int] = field(default_factory=dict)
    """Image store -> bytes on it and reserved, for stores with a capacity: not of the fold, but the counters' values as they
    were when the decision began. The append decides."""
    machines: dict[UUID, MachineAnnounced] = field(default_factory=dict)
    """What agents report; those that are withdrawn are not here."""
    carriers: Carriers = field(default_factory=Carriers)
    """The agents again, as the planner asks for them."""

    def apply(self, event: Message) -> None:
        """Take one event in. Applying it twice is harmless."""
        match event:
            case ZoneCreated():
                self.zones[event.zone_id] = event.name
            case PrimaryStoreAnnounced() if event.primary.id not in self.closing:
                self.primaries[event.primary.id] = (event.primary, event.hypervisor)
            case PrimaryStoreDeleteRequested():
                self.closing.add(event.primary_id)
                self.primaries.pop(event.primary_id, None)
            case PrimaryStoreDeleted() | PrimaryStoreRejected():
                self.closing.discard(event.primary_id)
                self.primaries.pop(event.primary_id, None)
            case AgentAnnounced():
                self.agents[event.agent] = event
                self.carriers.apply(event)
            case MachineAnnounced():
                self.machines[event.machine.id] = event
            case MachineWithdrawn():
                self.machines.pop(event.machine_id, None)
            case BackupProviderConfigured():
                self.backup_provider = event.provider
            case ImageStoreRequested():
                known = self.stores.get(event.store.id)
                if known is None:
                    self.stores[event.store.id] = Store(
                        spec=event.store, zone_id=event.zone_id, scope=event.scope, state="Testing",
                        role=event.role)
            case ImageStoreAdded():
                self._change(event.store_id, state="Ready")
            case ImageStoreUpdated():
                known = self.stores.get(event.store_id)
                if known is not None:
                    self.stores[event.store_id] = replace(
                        known,
                        spec=known.spec.model_copy(update={"name": event.name or known.spec.name}),
                        read_only=known.read_only if event.read_only is None else event.read_only,
                        capacity=known.capacity if event.capacity_bytes is None else event.capacity_bytes or None,
                    )
            case ImageStoreRejected() | ImageStoreDeleted():
                self.stores.pop(event.store_id, None)
            case _:
                pass

    def _change(self, store_id: UUID, *, state: str) -> None:
        known = self.stores.get(store_id)
        if known is not None:
            self.stores[store_id] = replace(known, state=state)

    def of_role(self, role: str = IMAGE) -> Iterator[Store]:
        """The stores that are there for images, or for staging."""
        return (store for store in self.stores.values() if store.role == role)

    def providers(self) -> dict[str, ProviderSpec]:
        """Image store plug-ins that agents announced, by lower-case name."""
        return {spec.name.lower(): spec for agent in self.agents.values() for spec in agent.providers}
