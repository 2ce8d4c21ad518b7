"""The toolbox: what an operation works with, opened when it is needed. Hypervisors are named here, primary stores in a registry.

Owns the choice of hypervisor and primary store by the name in an order. Refuses to keep a store open between operations: its
secrets are then forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from agents.hypervisors.base import Hypervisor
from agents.hypervisors.kvm import KvmHypervisor
from agents.hypervisors.memory import MemoryHypervisor
from agents.image_stores.base import ImageStore
from agents.image_stores.registry import open_store
from agents.machine import MACHINES, Machine
from agents.primary_stores.base import PrimaryStore
from agents.primary_stores.opened import OPENED, OpenedStores
from agents.primary_stores.registry import primary
from agents.stall import SECONDS
from agents.throttle import Throttle, limited, rate_of
from agents.transfer_record import TransferRecord
from agents.uninterrupted import to_the_end
from agents.url_guard import UrlGuard, parse_allow
from schema.failure import Refused
from schema.image import PrimarySpec, StoreSpec

HYPERVISORS: dict[str, Callable[[], Hypervisor]] = {"kvm": KvmHypervisor, "memory": MemoryHypervisor}

A = TypeVar("A")
B = TypeVar("B")


@contextlib.asynccontextmanager
async def both(one: AbstractAsyncContextManager[A], other: AbstractAsyncContextManager[B]) -> AsyncIterator[tuple[A, B]]:
    """Two things opened at the same time, each closed whatever becomes of the other. The first one's error is raised."""
    async with contextlib.AsyncExitStack() as stack:
        first = asyncio.create_task(stack.enter_async_context(one))
        second = asyncio.create_task(stack.enter_async_context(other))
        try:
            await asyncio.wait((first, second))
        except asyncio.CancelledError:
            first.cancel()
            second.cancel()
            await to_the_end(asyncio.gather(first, second, return_exceptions=True))
            raise
        if first.exception() is not None:
            second.exception()  # only one can be raised
        yield first.result(), second.result()


@dataclass
class Toolbox:
    """Of one mover."""

    hypervisor_name: str = "kvm"
    download_allow: str = ""
    workers: int = 4
    """Parts of one transfer that are on their way at once."""
    records: str = ""
    """Folder of the records by which transfers are resumed; empty: they begin again."""
    state: str = ""
    """The agent's folder; empty: it remembers nothing."""
    stall_seconds: float = SECONDS
    """Seconds after which a transfer of which nothing moves is ended."""
    bytes_per_second: int = 0
    """To and from image stores, all transfers together; 0: no limit."""
    _hypervisor: Hypervisor | None = field(default=None, repr=False)
    _throttles: dict[str, Throttle] = field(default_factory=dict, repr=False)
    """Limits in use: of the agent under the empty name, of stores under their ids."""

    @property
    def hypervisor(self) -> Hypervisor:
        """The hypervisor of this host."""
        if self._hypervisor is None:
            self._hypervisor = HYPERVISORS[self.hypervisor_name]()
        return self._hypervisor

    @property
    def guard(self) -> UrlGuard:
        """The URL guard with this installation's exceptions."""
        return UrlGuard(parse_allow(self.download_allow))

    def record(self, work: str) -> TransferRecord | None:
        """The record of one attempt's transfer."""
        return TransferRecord(Path(self.records), work) if self.records else None

    def primary(self, spec: PrimarySpec) -> PrimaryStore:
        """The primary store of an order."""
        return primary(spec)

    @property
    def opened(self) -> OpenedStores:
        """The list of primary stores that orders opened."""
        if not self.state:
            raise Refused("this agent keeps no list of primary stores", field="primary")
        return OpenedStores(Path(self.state) / OPENED)

    def machine(self, machine_id: UUID) -> Machine:
        """A machine of this host."""
        if not self.state:
            raise Refused("this agent has no machines", field="virtualmachineid")
        return Machine(Path(self.state) / MACHINES, machine_id)

    def _throttle(self, name: str, rate: int) -> Throttle:
        """The limit of this name; one for each store that this agent was ever ordered to use."""
        known = self._throttles.get(name)
        if known is None or known.rate != rate:
            known = self._throttles[name] = Throttle(rate)
        return known

    @contextlib.asynccontextmanager
    async def store(self, spec: StoreSpec, secrets: Mapping[str, str]) -> AsyncIterator[ImageStore]:
        """The image store of an order, open while this is."""
        limits = [self._throttle(name, rate) for name, rate in (
            (str(spec.id), rate_of(spec)), ("", self.bytes_per_second)) if rate]
        opened = await open_store(spec, secrets)
        try:
            yield limited(opened, limits)
        finally:
            await opened.aclose()
