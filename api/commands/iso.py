"""Commands of ISOs, as `api.registry` collects them: those of templates, of images that machines mount."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.access import Use
from api.api_command import (
    ID,
    IDS,
    JOB_ID,
    NAME,
    OWNER,
    TAGS,
    ZONE,
    ApiCommand,
    Mode,
    Parameter,
    Type,
    derived,
    listing,
    parameter,
)
from api.commands import template as words
from api.commands.extract import EXTRACT
from schema.image import ImageFormat
from schema.template import CopyIso, DeleteIso, ExtractIso, PermitIso, RegisterIso, UpdateIso


def _register(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    return words.registering(values, format=ImageFormat.ISO, hypervisor="None")


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="registerIso", mode=Mode.SYNC, item="iso", noun="template", command=RegisterIso, listed=True, prepare=_register,
        related="listIsos", for_account=True,
        parameters=(
            parameter("name", required=True), parameter("displaytext"), parameter("url", required=True),
            Parameter(name="zoneid", type=Type.UUID, description=ZONE.description, all_zones=True),
            parameter("zoneids", Type.LIST),
            parameter("checksum"), *words.SHARING, parameter("ostypeid"), *words.ABOUT,
            parameter("bootable", Type.BOOLEAN, text=words.TEXTS["bootable"]),
            parameter("imagestoreuuid", text=words.TEXTS["imagestoreuuid"]), words.ARCH, JOB_ID, *OWNER),
        description="Fetches an ISO 9660 image from a URL into the image stores of one zone, of several, or of all."),
    ApiCommand(
        name="listIsos", mode=Mode.LIST, item="iso", noun="template",
        parameters=listing(
            ID, IDS, NAME, ZONE, parameter("isofilter", choices=words.TEMPLATE_FILTERS,
                                           text="as templatefilter; selfexecutable if left out"),
            parameter("hypervisor"), parameter("bootable", Type.BOOLEAN, text=words.TEXTS["bootable"]),
            parameter("ispublic", Type.BOOLEAN), *words.SHOWN, TAGS, words.ARCH, access=True),
        filters={"name": "name", "hypervisor": "hypervisor", "arch": "arch", "bootable": "bootable", "ispublic": "is_public"},
        description="Lists ISOs: one row for each ISO and zone."),
    ApiCommand(
        name="updateIso", mode=Mode.SYNC, item="iso", noun="template", command=UpdateIso, prepare=words.changed,
        parameters=words.updating(), root_only=words.ROOT_ONLY, now=True, related="listIsos",
        description="Changes what an ISO says about itself."),
    ApiCommand(
        name="updateIsoPermissions", mode=Mode.SYNC, noun="template", command=PermitIso, parameters=words.PERMIT,
        prepare=words.permit, now=True, related="listIsoPermissions", description="Says who may use an ISO besides its account."),
    ApiCommand(
        name="listIsoPermissions", mode=Mode.SYNC, item="templatepermission", noun="template", uses={"id": Use.CHANGE},
        parameters=(parameter("id", Type.UUID, required=True),), related="updateIsoPermissions",
        description="Who may use an ISO besides its account."),
    ApiCommand(
        name="copyIso", mode=Mode.ASYNC, item="iso", noun="template", command=CopyIso, parameters=words.COPY, prepare=words.copy,
        related="listIsos", description="Has an ISO in other zones too: bytes are copied only where no store reaches."),
    ApiCommand(
        name="deleteIso", mode=Mode.ASYNC, noun="template", command=DeleteIso, parameters=derived(DeleteIso), related="listIsos",
        description="Unregisters an ISO, or its copy in one zone; the job ends when its bytes are gone."),
    ApiCommand(
        name="extractIso", mode=Mode.ASYNC, item="iso", noun="template", command=ExtractIso,
        parameters=derived(ExtractIso, texts=EXTRACT), uses={"id": Use.USE}, related="revokeExtractUrl",
        description="Gives a URL by which anyone may get the ISO's bytes until it ends. The image store itself serves it."),
)
