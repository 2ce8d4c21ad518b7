"""Disk offerings: their states, the flows that make, change and delete them, and what they say about a volume's size.

Rules kept here: an offering has a size, or lets the caller say one, never both; one that is kept for domains is absent to all
others; deleting one changes no volume.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from handlers.decider import Context, Flow, IllegalTransition, Step
from handlers.job import result_of
from schema.failure import BadParameter, Failure
from schema.identity import ROOT_DOMAIN, ROOT_OWNER, Owner
from schema.ids import NAMESPACE, derive
from schema.ids import stream as thing_stream
from schema.message import Command, Event
from schema.offering import (
    CreateDiskOffering,
    DeleteDiskOffering,
    DiskOfferingCreated,
    DiskOfferingDeleted,
    DiskOfferingUpdated,
    OfferingDomain,
    UpdateDiskOffering,
)

PROVISIONING = "thin"
"""How disks are made here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferingState:
    """The fold of an offering's events."""

    id: UUID
    name: str
    disk_size: int | None
    """GiB; None: customized."""
    min_iops: int | None = None
    max_iops: int | None = None
    domains: tuple[OfferingDomain, ...] = ()
    deleted: bool = False


def evolve(state: OfferingState | None, event: Event) -> OfferingState:
    """The offering after `event`."""
    match event:
        case DiskOfferingCreated() if state is None:
            return OfferingState(id=event.offering_id, name=event.name, disk_size=event.disk_size, min_iops=event.min_iops,
                                 max_iops=event.max_iops, domains=tuple(event.domains))
        case DiskOfferingUpdated() if state is not None and not state.deleted:
            return replace(state, name=event.name or state.name)
        case DiskOfferingDeleted() if state is not None and not state.deleted:
            return replace(state, deleted=True)
    raise IllegalTransition("absent" if state is None else "deleted" if state.deleted else "Active", event)


def stream(offering_id: UUID) -> str:
    """The stream of an offering."""
    return f"disk_offering-{offering_id}"


def named(text: str | None) -> UUID | None:
    """The id in a command's field. Raises BadParameter when it is none."""
    if not text:
        return None
    try:
        return UUID(text)
    except ValueError:
        raise BadParameter(f"{text[:64]!r} is not a UUID", field="diskofferingid",
                           remedy="listDiskOfferings shows them") from None


def chosen(context: Context, offering_id: UUID | None, owner: Owner) -> OfferingState | None:
    """The offering that a command names, if it names one. Raises BadParameter when it is not there for the owner."""
    if offering_id is None:
        return None
    state: OfferingState | None = context.state(stream(offering_id))
    if state is None or state.deleted or not open_to([each.path for each in state.domains], owner.path):
        raise BadParameter(f"no disk offering has the id {offering_id}", field="diskofferingid",
                           remedy="listDiskOfferings shows them")
    return state


def open_to(paths: list[str], path: str) -> bool:
    """Whether an offering that is kept for these domains is one of a domain at `path`. ROOT's own accounts may use every one."""
    return not paths or path == "/" or any(path.startswith(each) for each in paths)


def size_of(offering: OfferingState | None, size: int | None, most: int) -> int | None:
    """GiB of a volume by this offering and the size that was given; None where neither says it. Raises BadParameter."""
    if offering is not None and offering.disk_size is not None:
        if size is not None:
            raise BadParameter(f"the disk offering {offering.name} has a size of its own, {offering.disk_size} GiB", field="size",
                               remedy="leave it out, or choose a customized offering")
        return offering.disk_size
    if offering is not None and size is None:
        raise BadParameter("missing", field="size", remedy=f"the disk offering {offering.name} leaves it to you: give GiB")
    if size is not None and not 1 <= size <= most:
        raise BadParameter(f"{size} GiB is not 1 to {most}", field="size")
    return size


def iops(offering: OfferingState | None, least: int | None, most: int | None) -> tuple[int | None, int | None]:
    """(least, most) operations a second: those given, else the offering's. Raises BadParameter."""
    for field, value in (("miniops", least), ("maxiops", most)):
        if value is not None and value < 1:
            raise BadParameter(f"{value} is not 1 or more", field=field)
    if (least is None) != (most is None):
        raise BadParameter("missing", field="miniops" if least is None else "maxiops", remedy="give both or none")
    if least is not None and most is not None and least > most:
        raise BadParameter(f"{least} is more than maxiops, {most}", field="miniops")
    if least is None and offering is not None:
        return offering.min_iops, offering.max_iops
    return least, most


def _text(value: str | None, field: str, most: int) -> None:
    if value is not None and not 1 <= len(value) <= most:
        raise BadParameter(f"must have 1 to {most} characters", field=field)


def _path(context: Context, domain_id: UUID) -> str:
    state = context.state(thing_stream("domain", domain_id))
    if state is None and domain_id != ROOT_DOMAIN:
        raise BadParameter(f"no domain has the id {domain_id}", field="domainid", remedy="listDomains shows them")
    return state.path if state is not None else ROOT_OWNER.path


class _Now:
    """A flow without orders: one append and it is over."""

    subject, placed, cancellable = "disk_offering", False, False
    steps: tuple[Step, ...] = ()

    def streams(self, job_id: UUID, command: Any) -> list[str]:
        """The offering."""
        return [stream(command.id)]

    def known(self, context: Context, offering_id: UUID) -> OfferingState:
        """The offering, unless it is deleted. Raises BadParameter."""
        state: OfferingState | None = context.state(stream(offering_id))
        if state is None or state.deleted:
            raise BadParameter(f"no disk offering has the id {offering_id}", field="id", remedy="listDiskOfferings shows them")
        return state

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: there is nothing to wait for."""


class CreateFlow(_Now):
    """Offer it."""

    def streams(self, job_id: UUID, command: CreateDiskOffering) -> list[str]:
        """The new offering and the domains that it is kept for."""
        return [stream(derive(job_id, "disk_offering")), *(thing_stream("domain", each) for each in command.domain_ids)]

    def start(self, context: Context) -> None:
        """A size or none, domains that are there."""
        command = context.command
        assert isinstance(command, CreateDiskOffering)
        _text(command.name, "name", 255)
        if len(command.display_text) > 4096:
            raise BadParameter("must have at most 4096 characters", field="displaytext")
        if command.customized and command.disk_size is not None:
            raise BadParameter("a customized offering has no size of its own", field="disksize", remedy="leave one of them out")
        if not command.customized and command.disk_size is None:
            raise BadParameter("missing", field="disksize", remedy="give GiB, or customized=true")
        size_of(None, command.disk_size, context.limits.max_volume_gib)
        if command.provisioning_type.lower() != PROVISIONING:
            raise BadParameter(f"{command.provisioning_type[:64]!r}: disks are made thin here and take space as they are written",
                               field="provisioningtype", remedy="thin")
        least, most = iops(None, command.min_iops, command.max_iops)
        offering_id = context.new_id("disk_offering")
        context.emit(stream(offering_id), DiskOfferingCreated(
            offering_id=offering_id, name=command.name, display_text=command.display_text or command.name,
            disk_size=command.disk_size, tags=command.tags, min_iops=least, max_iops=most, domains=self._domains(context),
            provisioning_type=PROVISIONING, display_offering=command.display_offering))

    def _domains(self, context: Context) -> list[OfferingDomain]:
        command = context.command
        assert isinstance(command, CreateDiskOffering)
        return [OfferingDomain(id=each, path=_path(context, each)) for each in dict.fromkeys(command.domain_ids)]

    def finish(self, context: Context) -> dict[str, Any]:
        """The offering."""
        return result_of("diskoffering", context.new_id("disk_offering"))


class UpdateFlow(_Now):
    """Rename or retag it."""

    def start(self, context: Context) -> None:
        """Something is new."""
        command = context.command
        assert isinstance(command, UpdateDiskOffering)
        self.known(context, command.id)
        changes = command.model_dump(exclude={"id"}, exclude_none=True)
        if not changes:
            raise BadParameter("nothing to change", field="name", remedy="give name, displaytext, tags or displayoffering")
        _text(command.name, "name", 255)
        _text(command.display_text, "displaytext", 4096)
        context.emit(stream(command.id), DiskOfferingUpdated(offering_id=command.id, **changes))

    def finish(self, context: Context) -> dict[str, Any]:
        """The offering."""
        command = context.command
        assert isinstance(command, UpdateDiskOffering)
        return result_of("diskoffering", command.id)


class DeleteFlow(_Now):
    """Offer it no more."""

    def start(self, context: Context) -> None:
        """It is there."""
        command = context.command
        assert isinstance(command, DeleteDiskOffering)
        self.known(context, command.id)
        context.emit(stream(command.id), DiskOfferingDeleted(offering_id=command.id))

    def finish(self, context: Context) -> dict[str, Any]:
        """Success, without an object."""
        return {"success": True}


FOUNDED: tuple[tuple[str, DiskOfferingCreated], ...] = tuple(
    (stream(fact.offering_id), fact) for fact in (
        DiskOfferingCreated(offering_id=derive(NAMESPACE, f"disk_offering/{name}"), name=name, display_text=text, disk_size=size)
        for name, text, size in (("Small", "Small Disk, 5 GB", 5), ("Medium", "Medium Disk, 20 GB", 20),
                                 ("Large", "Large Disk, 100 GB", 100), ("Custom", "Custom Disk", None))))
"""(stream, event) of the offerings that every installation begins with: CloudStack's own."""

FLOWS: dict[type[Command], Flow] = {
    CreateDiskOffering: CreateFlow(),
    UpdateDiskOffering: UpdateFlow(),
    DeleteDiskOffering: DeleteFlow(),
}
"""Every command about this noun, and what it leads to."""
