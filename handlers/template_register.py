"""Registering templates and ISOs: a URL into image stores.

Rules kept here: what cannot be is refused at the door (a format that the hypervisor does not run, a suffix that says otherwise, a
checksum that is none); one download, however many zones: the others' copies are made from it by a job that follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from handlers import capacity, image_store, placement, planner
from handlers.decider import Context, Flow, Step
from handlers.directory import Store
from handlers.job import result_of
from handlers.template import (
    TemplateState,
    known_store,
    never,
    object_key,
    reached,
    refuse_public,
    refuse_unknown_os,
    stream,
    unmake,
    zones_of,
)
from schema.agent import FetchImage, ImageResult
from schema.checksum import parse_checksum
from schema.failure import BadParameter, Failure, Unavailable
from schema.ids import derive
from schema.image import ImageFormat
from schema.message import Command, Order
from schema.motion import MotionPlan
from schema.template import CopyIso, CopyTemplate, RegisterIso, RegisterTemplate, TemplateReady, TemplateRegistered

SUITS: Mapping[str, tuple[ImageFormat, ...]] = {"kvm": (ImageFormat.QCOW2, ImageFormat.RAW)}
"""Hypervisor -> formats that it runs, of those that are taken in."""
ELSEWHERE = {"vmware": "OVA", "xenserver": "VHD", "hyperv": "VHDX", "lxc": "TAR", "ovm": "RAW", "ovm3": "RAW",
             "baremetal": "BareMetal"}
"""CloudStack's other hypervisors -> the format that it takes for them; not taken in here."""
SUFFIXES: Mapping[str, tuple[ImageFormat, ...]] = {
    "qcow2": (ImageFormat.QCOW2,), "qcow": (ImageFormat.QCOW2,), "raw": (ImageFormat.RAW,), "iso": (ImageFormat.ISO,),
    "img": (ImageFormat.QCOW2, ImageFormat.RAW), **dict.fromkeys(("vhd", "vhdx", "ova", "ovf", "vmdk", "vdi", "tar", "tgz"), ())}
"""A URL's last suffix -> the formats that it may stand for; one that is not here says nothing, and the bytes decide."""
PACKED = ("zip", "gz", "bz2", "xz", "zst", "7z")


def fits(name: str, url: str, format: ImageFormat, hypervisor: str) -> str:  # noqa: A002 - the field's word
    """The hypervisor as it is spelled. Raises BadParameter for a name, a URL or a format that cannot be."""
    if not name or len(name) > 255:
        raise BadParameter("must have 1 to 255 characters", field="name")
    if not url.lower().startswith(("http://", "https://")):
        raise BadParameter("only http and https are fetched", field="url", remedy="put the image on a web server")
    spelled = hypervisor.lower()
    if format is not ImageFormat.ISO and spelled in ELSEWHERE:
        raise BadParameter(f"{hypervisor} takes {ELSEWHERE[spelled]}, which is not taken in here", field="hypervisor",
                           remedy="images for KVM are: QCOW2 and RAW")
    if format is not ImageFormat.ISO and spelled not in SUITS:
        raise BadParameter(f"{hypervisor[:32]!r} is no hypervisor", field="hypervisor", remedy="KVM")
    last = urlsplit(url).path.rpartition("/")[2].lower()
    suffix = last.rpartition(".")[2] if "." in last else ""
    if suffix in PACKED:
        raise BadParameter(f"the URL ends with .{suffix}: compressed images are not taken", field="url",
                           remedy="offer it uncompressed: compressed formats hide what is in them until all of it was read")
    if suffix in SUFFIXES and format not in SUFFIXES[suffix]:
        raise BadParameter(f"the URL ends with .{suffix} and the format is {format.upper()}", field="format",
                           remedy="give the format of the image, or its right URL")
    return "KVM" if spelled == "kvm" else hypervisor


class RegisterFlow:
    """Fetch a URL into an image store of the first zone; a job that follows copies it for the others."""

    subject, placed, cancellable = "template", True, True

    def __init__(self) -> None:
        self.steps = (Step(name="fetch", order=self._fetch, done=self._fetched, plan=self._plan, undo=self._unfetch,
                           leaves=self._leaves),)

    def streams(self, job_id: UUID, command: RegisterTemplate) -> list[str]:
        """The new template."""
        return [stream(derive(job_id, "template"))]

    def start(self, context: Context) -> None:
        """A name, a URL and a format that go together, stores that reach the zones, a way to copy if there are several."""
        command = context.command
        assert isinstance(command, RegisterTemplate)
        iso = isinstance(command, RegisterIso)
        hypervisor = fits(command.name, command.url, command.format, command.hypervisor)
        if (command.format is ImageFormat.ISO) is not iso:
            raise BadParameter(f"{command.format.upper()} is no format of {'an ISO' if iso else 'a template'}", field="format",
                               remedy="registerIso takes ISO 9660, registerTemplate takes QCOW2 and RAW")
        parse_checksum(command.checksum)
        refuse_public(context, command.is_public, context.owner)
        refuse_unknown_os(command.os_type_id)
        zones = wanted_zones(context, command)
        store = placement.image_store(context.directory, zones[0] if zones else None)
        planner.plan(context.directory, planner.fetch(command.url, store))
        everywhere(context, store, zones)
        template_id = context.new_id("template")
        reserved = capacity.download(context, store)
        capacity.reserve(context, store, reserved)
        context.count(image_store.residents(store.spec.id), +1, otherwise=Unavailable(
            "the image store is being deleted", field="zoneid", remedy="try again"))
        context.emit(stream(template_id), TemplateRegistered(
            template_id=template_id, name=command.name, display_text=command.display_text or command.name,
            url=command.url, format=command.format, hypervisor="None" if iso else hypervisor,
            zone_id=zones[0] if zones and len(zones) == 1 else None, zones=zones or [],
            checksum=command.checksum, is_public=command.is_public, is_featured=command.is_featured,
            is_extractable=command.is_extractable, os_type_id=command.os_type_id, store_id=store.spec.id,
            key=object_key(context, "template", template_id, derive(context.job_id, "fetch"), 1, command.format),
            job_id=context.job_id, reserved=reserved, owner=context.owner, kind="iso" if iso else "template",
            traits=command.traits, store_zone_id=store.zone_id))

    def _state(self, context: Context) -> TemplateState:
        state: TemplateState = context.state(stream(context.new_id("template")))
        return state

    def _store(self, context: Context) -> Store:
        first = self._state(context).first
        assert first is not None
        return known_store(context, first.store_id)

    def _plan(self, context: Context) -> MotionPlan:
        command = context.command
        assert isinstance(command, RegisterTemplate)
        return planner.plan(context.directory, planner.fetch(command.url, self._store(context)))

    def _fetch(self, context: Context, work_id: UUID, attempt: int) -> Order:
        command, state = context.command, self._state(context)
        assert isinstance(command, RegisterTemplate)
        plan = context.planned("fetch")
        return FetchImage(
            job_id=context.job_id, work_id=work_id, attempt=attempt, agent=plan.agent, motion=plan.strategy,
            reply_key=command.key(context.job_id), url=command.url, format=command.format, checksum=command.checksum,
            store=self._store(context).spec, key=self._key(context, attempt), kind="template", thing_id=state.id,
            max_bytes=context.limits.max_image_bytes, max_virtual_size=context.limits.max_virtual_size)

    def _key(self, context: Context, attempt: int) -> str:
        state = self._state(context)
        return object_key(context, "template", state.id, derive(context.job_id, "fetch"), attempt, state.format)

    def _leaves(self, context: Context, attempt: int) -> tuple[UUID, str]:
        return self._store(context).spec.id, self._key(context, attempt)

    def _fetched(self, context: Context, result: Mapping[str, Any]) -> None:
        state, image = self._state(context), ImageResult.model_validate(result).image
        capacity.settle(context, image.store_id, state.counted, image.physical_size)
        context.emit(stream(state.id), TemplateReady(
            template_id=state.id, image=image, counted=image.physical_size, zone_id=self._store(context).zone_id))

    def _unfetch(self, context: Context, work_id: UUID, attempt: int) -> Order | None:
        return unmake(context, self._state(context), work_id, attempt)

    def finish(self, context: Context) -> dict[str, Any]:
        """The template, or the ISO; what lacks of its zones is a job of its own."""
        state, command = self._state(context), context.command
        assert isinstance(command, RegisterTemplate)
        lacking = [zone_id for zone_id in zones_of(context, state) if not state.whole(zone_id)]
        lacking = [zone_id for zone_id in lacking if reached(context, zone_id)]
        if not lacking:
            return result_of(state.kind, state.id)
        job_id = derive(context.job_id, "copies")
        copying = CopyIso if isinstance(command, RegisterIso) else CopyTemplate
        context.out.submissions.append((job_id, copying(id=state.id, zone_ids=lacking)))
        return result_of(state.kind, state.id, copy_job=str(job_id))

    def fail(self, context: Context, failure: Failure) -> None:
        """Nothing of it rests on the store any more."""
        never(context, self._state(context), failure)


def wanted_zones(context: Context, command: RegisterTemplate) -> list[UUID] | None:
    """The zones in which it is to be; None: every one. Raises BadParameter for one that is not known."""
    if command.zone_id is not None and command.zone_ids:
        raise BadParameter("give either zoneid or zoneids", field="zoneids", remedy="leave one of them out")
    zones = list(dict.fromkeys(command.zone_ids)) or ([command.zone_id] if command.zone_id is not None else [])
    for zone_id in zones:
        placement.zone(context.directory, zone_id)
    return zones or None


def everywhere(context: Context, store: Store, zones: list[UUID] | None) -> None:
    """Raise what will keep the bytes of `store` from the zones: no store there, no way to copy; every zone, where each has its
    own store, is for accounts of ROOT."""
    if store.zone_id is None:
        return
    if zones is None and context.owner.path != "/":
        raise BadParameter("only admins have a template in every zone where each zone has its own image store", field="zoneid",
                           remedy="name a zone")
    for zone_id in zones if zones is not None else sorted(context.directory.zones, key=str):
        if zone_id == store.zone_id or (zones is None and not reached(context, zone_id)):
            continue
        other = placement.image_store(context.directory, zone_id)
        planner.plan(context.directory, planner.copy(store, other, size=1, field="zoneids"))


FLOWS: dict[type[Command], Flow] = {RegisterTemplate: RegisterFlow(), RegisterIso: RegisterFlow()}
"""Every command of this file, and what it leads to."""
