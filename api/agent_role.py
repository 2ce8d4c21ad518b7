"""The role of an agent: a storage agent, a KVM agent, or both, in a process that knows the broker and nothing else.

Owns the wiring of agents. Refuses to know a database, the deciders and HTTP: nothing of them is loaded here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from agents import qemu
from agents.census import Census
from agents.grants import Grants, load_or_create_key
from agents.hypervisors import lacking
from agents.machine import MACHINES
from agents.machine_keeper import MachineKeeper
from agents.mover import Mover
from agents.primary_stores.block import BlockPrimaryStore
from agents.primary_stores.folder import FolderPrimaryStore
from agents.primary_stores.opened import OPENED
from agents.runtime import AgentConfig, AgentRuntime
from api.process import OnReady, Roles, agent_token, arm, no_broker, open_transport, stop_signal
from api.settings import Settings
from bus.errors import BrokerAway
from bus.transport import Transport
from schema.failure import Refused
from schema.ids import derive, zone_named
from schema.image import PrimarySpec

KINDS = ("storage", "kvm")


async def run_agent(settings: Settings, on_ready: OnReady, *, kinds: tuple[str, ...] = KINDS) -> None:
    """Agents as a process of their own, until a signal stops it."""
    if settings.amqp_url is None:
        raise no_broker()
    arm(settings)
    stop = stop_signal()
    running = Roles()
    async with contextlib.AsyncExitStack() as stack:
        transport = open_transport(settings)
        stack.push_async_callback(transport.aclose)
        with contextlib.suppress(BrokerAway):  # it goes on trying by itself
            await transport.start()
        stack.push_async_callback(running.close)
        await start_agents(settings, transport, running, zone_named(settings.zone), kinds)
        on_ready({"role": "agent", "pid": str(os.getpid())})
        await running.until(stop)


async def start_agents(settings: Settings, transport: Transport, running: Roles, zone_id: UUID,
                       kinds: tuple[str, ...] = KINDS) -> None:
    """The agents of this host."""
    await asyncio.gather(*(_agent(settings, transport, running, zone_id, kind) for kind in kinds))


async def _agent(settings: Settings, transport: Transport, running: Roles, zone_id: UUID, kind: str) -> None:
    makers: dict[str, Callable[..., Any]] = {"storage": _storage, "kvm": _kvm}
    if kind not in makers:
        raise Refused(f"no agent is of the kind {kind!r}", field="kind", remedy=f"one of {', '.join(makers)}")
    name = f"{settings.agent_name or socket.gethostname()}-{kind}"
    about: dict[str, Any] = await makers[kind](settings, zone_id, name)
    state_dir = settings.data_dir / "agents" / name
    key = await asyncio.to_thread(load_or_create_key, state_dir / "agent.key")
    config = AgentConfig(name=name, zone_id=zone_id, state_dir=state_dir, transfers=settings.transfers,
                         token=await asyncio.to_thread(agent_token, settings), **about)
    mover = Mover({"download_allow": settings.download_allow, "workers": settings.parts_in_flight, "records": str(config.records),
                   "state": str(state_dir), "stall_seconds": settings.stall_seconds,
                   "bytes_per_second": settings.agent_bytes_per_second,
                   "hypervisor_name": about.get("hypervisor", "kvm").lower()})
    try:
        found, motions = await mover.announced(disks=kind == "kvm")
    except BaseException:
        await mover.aclose()
        raise
    config = replace(config, providers=found, motions=motions)
    census = Census(configured=config.primaries, opened=state_dir / OPENED) if kind == "kvm" else None
    runtime = AgentRuntime(config, transport, mover, Grants(name, key, transport), census)
    if census is not None and settings.agent_machines is not None:
        keeper = MachineKeeper(settings.agent_machines.absolute(), state_dir / MACHINES, runtime.tell_news)
        census.machines = keeper.told
        running.run(f"machines-{name}", keeper.run())
    await runtime.start()
    running.at_stop(runtime.stop)


async def _storage(settings: Settings, zone_id: UUID, name: str) -> dict[str, Any]:
    return {"roles": ("storage",)}


async def _kvm(settings: Settings, zone_id: UUID, name: str) -> dict[str, Any]:
    missing = lacking()
    if missing:
        raise Refused(f"the KVM agent needs {', '.join(missing)}", field="kind", remedy=f"{qemu.INSTALL} libnbd0")
    return {"roles": ("hypervisor",), "hypervisor": "KVM", "primaries": await _primaries(settings, zone_id, name)}


async def _primaries(settings: Settings, zone_id: UUID, name: str) -> tuple[PrimarySpec, ...]:
    """The host's primary stores. With devices and no folder named, there is no folder."""
    places: dict[str, Path] = {}
    devices = [device for device in map(str.strip, settings.primary_devices.split(",")) if device]
    if settings.primary_path or not devices:
        places["folder"] = (settings.primary_path or settings.data_dir / "primary").absolute()
        await FolderPrimaryStore(places["folder"]).prepare()
    if devices:
        places["block"] = (settings.data_dir / "block").absolute()
        await BlockPrimaryStore(places["block"]).prepare(devices)
    return tuple(PrimarySpec(id=derive(zone_id, f"primary/{name}/{path}"), name=f"{name}-{kind}", kind=kind, path=str(path),
                             zone_id=zone_id, agent=name) for kind, path in places.items())
