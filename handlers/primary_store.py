"""Primary stores: their states, and the flows that open and close one by a command.

Rules kept here: the agent that will use a place is the one that judges it; a place is one store's, and none lies inside another;
a store is closed when nothing lives on it, which its counters of volumes and of templates' copies decide in the
append. Those that come from an agent's
settings are announced by it and end when it no longer names them.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

from handlers import placement
from handlers.decider import Context, Flow, IllegalTransition, Step
from handlers.directory import Directory
from handlers.job import result_of
from schema.agent import AgentAnnounced, ClosePrimary, OpenPrimary
from schema.failure import BadParameter, Failure, InUse, Unavailable
from schema.ids import derive
from schema.ids import stream as thing_stream
from schema.image import PrimarySpec
from schema.message import Command, Event, Order
from schema.primary_store import (
    CreateStoragePool,
    DeleteStoragePool,
    PrimaryStoreAnnounced,
    PrimaryStoreDeleted,
    PrimaryStoreDeleteRequested,
    PrimaryStoreRejected,
    PrimaryStoreRequested,
)

TRANSITIONS: dict[tuple[str, str], str] = {
    ("", PrimaryStoreRequested.TYPE): "Creating",
    ("", PrimaryStoreAnnounced.TYPE): "Up",
    ("Creating", PrimaryStoreAnnounced.TYPE): "Up",
    ("Creating", PrimaryStoreRejected.TYPE): "Failed",
    ("Up", PrimaryStoreAnnounced.TYPE): "Up",
    ("Up", PrimaryStoreRejected.TYPE): "Failed",  # its agent announced it before the job that opened it was stopped
    ("Up", PrimaryStoreDeleteRequested.TYPE): "Removing",
    ("Removing", PrimaryStoreAnnounced.TYPE): "Removing",  # said before its agent was told
    ("Removing", PrimaryStoreDeleted.TYPE): "Removed",
    ("Removed", PrimaryStoreAnnounced.TYPE): "Up",  # the agent's settings name it again
}
"""(state, event) -> state. Everything else is illegal."""
KINDS = {"defaultprimary": "folder", "folder": "folder", "block": "block"}
"""Provider in lower case -> plug-in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrimaryStoreState:
    """The fold of a primary store's events."""

    status: str
    primary: PrimarySpec
    hypervisor: str
    made_by: UUID | None = None
    """The job that opened it; None: it comes from its agent's settings."""


def evolve(state: PrimaryStoreState | None, event: Event) -> PrimaryStoreState:
    """The store after `event`."""
    status = TRANSITIONS.get((state.status if state else "", event.TYPE))
    if status is None:
        raise IllegalTransition(state.status if state else "absent", event)
    if isinstance(event, PrimaryStoreRequested):
        return PrimaryStoreState(status=status, primary=event.primary, hypervisor=event.hypervisor, made_by=event.job_id)
    if isinstance(event, PrimaryStoreAnnounced):
        made_by = state.made_by if state else None
        return PrimaryStoreState(status=status, primary=event.primary, hypervisor=event.hypervisor, made_by=made_by)
    assert state is not None
    return replace(state, status=status)


def stream(primary_id: UUID) -> str:
    """The stream of a primary store."""
    return thing_stream("primary_store", primary_id)


def volumes(primary_id: UUID) -> str:
    """The counter of volumes that live on it, those that are being made among them."""
    return f"primary_store/{primary_id}/volumes"


def seeds(primary_id: UUID) -> str:
    """The counter of templates' copies on it, those that are being made or deleted among them."""
    return f"primary_store/{primary_id}/seeds"


def full_refused() -> Unavailable:
    """Why a volume cannot come to a store that is being closed."""
    return Unavailable("the primary store is being deleted", field="storageid", remedy="try again")


def _path_claim(primary: PrimarySpec) -> str:
    return f"primary_store.path/{primary.agent}/{primary.path}"


class CreateFlow:
    """Let its agent look at the place, then let volumes live there."""

    subject, placed, cancellable = "primary_store", True, True

    def __init__(self) -> None:
        self.steps = (Step(name="open", order=self._open, undo=self._close, undo_always=True),)

    def streams(self, job_id: UUID, command: CreateStoragePool) -> list[str]:
        """The new store."""
        return [stream(derive(job_id, "primary_store"))]

    def start(self, context: Context) -> None:
        """A host of the zone, a place on it that is nobody's, a provider and a scope that are there."""
        command = context.command
        assert isinstance(command, CreateStoragePool)
        if not command.name or len(command.name) > 255:
            raise BadParameter("must have 1 to 255 characters", field="name")
        zone_id = placement.zone(context.directory, command.zone_id)
        if command.scope.upper() != "HOST":
            raise BadParameter(f"{command.scope[:64]!r} is not HOST: a primary store is one host's", field="scope",
                               remedy="give scope=HOST, and the host in the url")
        if command.hypervisor.lower() not in ("", "kvm"):
            raise BadParameter(f"{command.hypervisor[:64]!r} is not KVM", field="hypervisor")
        kind = KINDS.get(command.provider.lower())
        if kind is None:
            raise BadParameter(f"no provider of primary stores is named {command.provider[:64]!r}", field="provider",
                               remedy="give DefaultPrimary, Folder or Block")
        if set(command.details) - ({"devices"} if kind == "block" else set()) or (kind == "block" and not command.details):
            raise BadParameter("a store of the provider Block has the detail devices; no other has any", field="details")
        host, path = place_of(command.url)
        agent = host_of(context.directory, zone_id, host)
        primary = PrimarySpec(id=context.new_id("primary_store"), name=command.name, kind=kind, path=path, zone_id=zone_id,
                              agent=agent.agent)
        taken = BadParameter(f"{path} on this host is in, or holds, another primary store", field="url",
                             remedy="listStoragePools shows them")
        mine = (spec for spec, _ in context.directory.primaries.values() if spec.agent == agent.agent)
        if any(_nested(path, spec.path) for spec in mine):
            raise taken
        context.claim(_path_claim(primary), str(primary.id), taken)
        context.count(volumes(primary.id), ceiling=0)
        context.count(seeds(primary.id), ceiling=0)
        context.emit(stream(primary.id), PrimaryStoreRequested(
            primary=primary, hypervisor=agent.hypervisor, job_id=context.job_id))

    def _state(self, context: Context) -> PrimaryStoreState:
        state: PrimaryStoreState = context.state(stream(context.new_id("primary_store")))
        return state

    def _open(self, context: Context, work_id: UUID, attempt: int) -> Order:
        command, primary = context.command, self._state(context).primary
        assert isinstance(command, CreateStoragePool)
        devices = [each.strip() for each in command.details.get("devices", "").split(",") if each.strip()]
        return OpenPrimary(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=primary.agent,
                           reply_key=command.key(context.job_id), primary=primary, devices=devices)

    def _close(self, context: Context, work_id: UUID, attempt: int) -> Order:
        return close_order(context, self._state(context).primary, work_id, attempt)

    def finish(self, context: Context) -> dict[str, Any]:
        """Volumes may live on it."""
        state = self._state(context)
        context.count(volumes(state.primary.id), lift=True)
        context.count(seeds(state.primary.id), lift=True)
        context.emit(stream(state.primary.id), PrimaryStoreAnnounced(primary=state.primary, hypervisor=state.hypervisor))
        return result_of("storagepool", state.primary.id)

    def fail(self, context: Context, failure: Failure) -> None:
        """The place is nobody's again."""
        state = self._state(context)
        context.unclaim(_path_claim(state.primary), str(state.primary.id), context.job_id)
        context.emit(stream(state.primary.id), PrimaryStoreRejected(primary_id=state.primary.id, failure=failure))


class DeleteFlow:
    """Close it, once nothing lives on it."""

    subject, placed, cancellable = "primary_store", True, False

    def __init__(self) -> None:
        self.steps = (Step(name="close", order=self._close, attempts=100_000),)

    def streams(self, job_id: UUID, command: DeleteStoragePool) -> list[str]:
        """The store."""
        return [stream(command.id)]

    def _state(self, context: Context) -> PrimaryStoreState:
        command = context.command
        assert isinstance(command, DeleteStoragePool)
        state = context.state(stream(command.id))
        if state is None or state.status in ("Removed", "Failed"):
            raise BadParameter(f"no primary store has the id {command.id}", field="id", remedy="listStoragePools shows them")
        assert isinstance(state, PrimaryStoreState)
        return state

    def start(self, context: Context) -> None:
        """Close the counter of volumes: the append refuses it while it is not zero."""
        command, state = context.command, self._state(context)
        assert isinstance(command, DeleteStoragePool)
        if command.forced:
            raise BadParameter("volumes are not deleted with their primary store", field="forced",
                               remedy="delete them first; listVolumes storageid=... shows them")
        if state.status != "Up":
            raise BadParameter(f"the primary store is {state.status}, not Up", field="id", remedy="wait for its job to end")
        said = context.directory.agents.get(state.primary.agent)
        if state.made_by is None and said is not None and any(each.id == state.primary.id for each in said.primaries):
            raise BadParameter("the primary store comes from its agent's settings, and would be back at once", field="id",
                               remedy=f"take {state.primary.path} out of the settings of {state.primary.agent} first")
        context.count(volumes(state.primary.id), ceiling=0, otherwise=InUse(
            "volumes live on the primary store", field="id",
            remedy=f"delete them first: listVolumes storageid={state.primary.id} shows them"))
        context.count(seeds(state.primary.id), ceiling=0, otherwise=InUse(
            "copies of templates lie on the primary store", field="id",
            remedy=f"unprepareTemplate templateid=... zoneid={state.primary.zone_id} storageid={state.primary.id} deletes one"))
        context.emit(stream(state.primary.id), PrimaryStoreDeleteRequested(
            primary_id=state.primary.id, job_id=context.job_id))

    def _close(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        state = self._state(context)
        return close_order(context, state.primary, work_id, attempt) if state.made_by is not None else None

    def finish(self, context: Context) -> dict[str, Any]:
        """Success, without an object."""
        state = self._state(context)
        if state.made_by is not None:
            context.unclaim(_path_claim(state.primary), str(state.primary.id), state.made_by)
        context.emit(stream(state.primary.id), PrimaryStoreDeleted(primary_id=state.primary.id))
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """It stays Removing: nothing comes to it any more."""


def close_order(context: Context, primary: PrimarySpec, work_id: UUID, attempt: int) -> Order:
    """The order that ends an agent's announcing of it."""
    return ClosePrimary(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=primary.agent,
                        reply_key=context.command.key(context.job_id), primary=primary)


def place_of(url: str) -> tuple[str, str]:
    """(host, path) of a url: `file://host/path`, `SharedMountPoint://host/path`, or a path alone. Raises BadParameter."""
    parts = urlsplit(url)
    if parts.scheme not in ("", "file", "sharedmountpoint", "filesystem") or parts.query or parts.fragment:
        raise BadParameter(f"{parts.scheme[:64]!r} is not a scheme of primary stores here", field="url",
                           remedy="give file://<host>/<path>")
    path = unquote(parts.path)
    if not path.startswith("/") or "\0" in path or len(path) > 1024 or posixpath.normpath(path) in ("/", "//"):
        raise BadParameter("it names no folder by its absolute path", field="url", remedy="give file://<host>/<path>")
    if ".." in path.split("/"):
        raise BadParameter("its path leads upwards", field="url", remedy="give the folder's own path")
    return parts.hostname or "", "/" + posixpath.normpath(path).lstrip("/")


def host_of(directory: Directory, zone_id: UUID, host: str) -> AgentAnnounced:
    """The KVM agent that a url's host means: by its name, with or without `-kvm`; the only one where none is named. Raises
    BadParameter."""
    here = [agent for agent in directory.agents.values() if agent.zone_id == zone_id and "hypervisor" in agent.roles]
    found = [agent for agent in here if host.lower() in (agent.agent.lower(), agent.agent.lower().removesuffix("-kvm"))]
    if host in ("", "localhost") and len(here) == 1:
        found = here
    if len(found) != 1:
        names = ", ".join(sorted(agent.agent for agent in here)) or "none"
        raise BadParameter(f"no host of the zone is named {host[:64]!r}" if host else "it names no host", field="url",
                           remedy=f"give file://<host>/<path>; hosts are {names}")
    return found[0]


def _nested(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other.rstrip('/')}/") or other.startswith(f"{one}/")


FLOWS: dict[type[Command], Flow] = {CreateStoragePool: CreateFlow(), DeleteStoragePool: DeleteFlow()}
"""Every command about this noun, and what it leads to."""

__all__ = ["FLOWS", "PrimaryStoreState", "evolve", "full_refused", "host_of", "place_of", "seeds", "stream", "volumes"]
