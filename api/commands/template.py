"""Commands of templates, as `api.registry` collects them, and the words that those of ISOs share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from api.access import Use
from api.api_command import (
    ADMIN,
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
from api.commands.extract import EXTRACT
from schema.failure import BadParameter
from schema.template import (
    CopyTemplate,
    CreateTemplate,
    DeleteTemplate,
    ExtractTemplate,
    PermitTemplate,
    RegisterTemplate,
    UpdateTemplate,
)
from schema.template_seed import PrepareTemplate, UnprepareTemplate

TEMPLATE_FILTERS = ("featured", "self", "selfexecutable", "sharedexecutable", "shared", "executable", "community", "all")
USERS_TYPES = ("USER", "VNF")
TEXTS = {
    "bits": "32 or 64: what the OS is built for", "requireshvm": "it needs hardware virtualization",
    "passwordenabled": "its OS can have its password reset", "sshkeyenabled": "its OS takes SSH keys",
    "isdynamicallyscalable": "its OS has the tools by which a machine grows while it runs",
    "details": "whatever else: details[0].KEY=VALUE",
    "templatetag": "a word by which machines find their host; root admins only",
    "isrouting": "system routers run it; root admins only",
    "templatetype": "USER or VNF; ROUTING, SYSTEM, BUILTIN for root admins", "arch": "x86_64, aarch64 or s390x",
    "directdownload": "false: nothing bypasses the image stores here", "deployasis": "false: it is of OVA", "forcks": "false",
    "bootable": "machines boot from it", "sortkey": "a number to sort by", "cleanupdetails": "true: it has no details any more",
    "forceupdateostype": "accepted: no machine is running it", "op": "add, remove or reset",
    "accounts": "names of accounts in the owner's domain, comma separated", "projectids": "UUIDs of projects, comma separated",
    "destzoneid": "the UUID of the zone it is to be in", "destzoneids": "UUIDs of zones, comma separated",
    "sourcezoneid": "the UUID of the zone whose copy is read", "forced": "accepted: no machine keeps a template here",
    "issystem": "accepted", "displaytext": "a text for people", "imagestoreuuid": "accepted; the store is chosen here"}
TRAITS = {"bits": "bits", "requireshvm": "requires_hvm", "passwordenabled": "password_enabled",
          "sshkeyenabled": "ssh_key_enabled", "isdynamicallyscalable": "dynamically_scalable", "bootable": "bootable",
          "details": "details", "templatetag": "template_tag", "templatetype": "template_type", "arch": "arch"}
"""Parameter -> field of the traits."""
FIELDS = {"name": "name", "displaytext": "display_text", "url": "url", "format": "format", "hypervisor": "hypervisor",
          "checksum": "checksum", "ispublic": "is_public", "isfeatured": "is_featured", "isextractable": "is_extractable",
          "ostypeid": "os_type_id"}
"""Parameter -> field of the message that registers."""
SEEDS = {"storageid": "the UUID of one primary store; without it every one of the zone"}
ARCHES = ("x86_64", "aarch64", "s390x")
TYPES = ("USER", "VNF", "ROUTING", "SYSTEM", "BUILTIN")
ROOT_ONLY: Mapping[str, tuple[Any, ...]] = {"templatetag": (), "isrouting": (False,), "templatetype": USERS_TYPES}
"""Parameter -> its values that others than root admins may give."""
ABOUT = tuple(parameter(name, Type.BOOLEAN, text=TEXTS[name]) for name in (
    "passwordenabled", "isdynamicallyscalable", "directdownload"))
OF_TEMPLATES = (
    parameter("bits", Type.INTEGER, text=TEXTS["bits"]),
    *(parameter(name, Type.BOOLEAN, text=TEXTS[name]) for name in (
        "requireshvm", "sshkeyenabled", "isrouting", "deployasis", "forcks")),
    parameter("details", Type.MAP, text=TEXTS["details"]), parameter("templatetag", text=TEXTS["templatetag"]),
    parameter("templatetype", choices=TYPES, text=TEXTS["templatetype"]))
ARCH = parameter("arch", choices=ARCHES, text=TEXTS["arch"])
SHARING = tuple(parameter(name, Type.BOOLEAN) for name in ("ispublic", "isfeatured", "isextractable"))
PERMIT = (parameter("id", Type.UUID, required=True), *SHARING,
          parameter("op", choices=("add", "remove", "reset"), text=TEXTS["op"]),
          parameter("accounts", Type.LIST, text=TEXTS["accounts"]),
          parameter("projectids", Type.LIST, of_uuids=True, text=TEXTS["projectids"]), JOB_ID)
COPY = (parameter("id", Type.UUID, required=True), parameter("destzoneid", Type.UUID, text=TEXTS["destzoneid"]),
        parameter("destzoneids", Type.LIST, of_uuids=True, text=TEXTS["destzoneids"]),
        parameter("sourcezoneid", Type.UUID, text=TEXTS["sourcezoneid"]), JOB_ID)
SHOWN = (parameter("showremoved", Type.BOOLEAN, text="true: those that were deleted too"), parameter("showunique", Type.BOOLEAN),
         parameter("isready", Type.BOOLEAN), parameter("details", Type.LIST, text="all, or min: the fields that most ask for"))


def registering(values: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The fields of a message that registers."""
    for refused in ("directdownload", "deployasis", "forcks"):
        if values.get(refused):
            raise BadParameter("there is no such thing here", field=refused, remedy="leave it out")
    if values.get("bits") not in (None, 32, 64):
        raise BadParameter(f"{values['bits']} is neither 32 nor 64", field="bits")
    traits = {field: values[name] for name, field in TRAITS.items() if name in values} | more.pop("traits", {})
    if values.get("isrouting"):
        traits["template_type"] = "ROUTING"
    fields = {field: values[name] for name, field in FIELDS.items() if name in values}
    return {**fields, **zones(values), "traits": traits, **more}


def zones(values: Mapping[str, Any]) -> dict[str, Any]:
    """zoneid and zoneids as the message has them; -1, or neither: every zone."""
    several = values.get("zoneids", [])
    if several and "zoneid" in values:
        raise BadParameter("give either zoneid or zoneids", field="zoneids", remedy="leave one of them out")
    if "-1" in several:
        if len(several) > 1:
            raise BadParameter("-1 stands for every zone", field="zoneids", remedy="give it alone")
        return {}
    found = []
    for each in several:
        try:
            found.append(UUID(each))
        except ValueError:
            raise BadParameter(f"{each[:64]!r} is not a UUID", field="zoneids") from None
    return {"zone_ids": found} if len(found) > 1 else {"zone_id": found[0] if found else values.get("zoneid")}


def _register(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    return registering(values)


def _create(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    fields = registering({name: value for name, value in values.items() if name not in ("url", "zoneid")})
    return {**fields, "volume_id": values.get("volumeid"), "snapshot_id": values.get("snapshotid"),
            "zone_id": values.get("zoneid")}


def permit(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    """The fields of a message that permits."""
    return {"id": values["id"], "op": values.get("op", ""), "account_ids": values.get("accountids", []),
            "is_public": values.get("ispublic"), "is_featured": values.get("isfeatured"),
            "is_extractable": values.get("isextractable")}


def copy(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    """The fields of a message that copies."""
    several = values.get("destzoneids", [])
    if bool(several) == ("destzoneid" in values):
        raise BadParameter("give either destzoneid or destzoneids", field="destzoneid" if not several else "destzoneids")
    return {"id": values["id"], "source_zone_id": values.get("sourcezoneid"), "zone_ids": several or [values["destzoneid"]]}


def changed(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    """The fields of a message that updates."""
    names = {"name": "name", "displaytext": "display_text", "ostypeid": "os_type_id", "format": "format", "sortkey": "sort_key",
             "isrouting": "is_routing", "cleanupdetails": "clean_up_details",
             **{name: field for name, field in TRAITS.items() if name != "bits"}}
    return {"id": values["id"], **{field: values[name] for name, field in names.items() if name in values}}


def updating(*more: Parameter) -> tuple[Parameter, ...]:
    """The parameters of a command that updates."""
    return (parameter("id", Type.UUID, required=True), NAME, parameter("displaytext"), parameter("ostypeid"),
            parameter("format", choices=("qcow2", "raw", "iso")),
            *(parameter(name, Type.BOOLEAN, text=TEXTS[name]) for name in (
                "bootable", "requireshvm", "passwordenabled", "sshkeyenabled", "isdynamicallyscalable", "isrouting",
                "cleanupdetails", "forceupdateostype")),
            parameter("sortkey", Type.INTEGER, text=TEXTS["sortkey"]), parameter("details", Type.MAP, text=TEXTS["details"]),
            ARCH, *more, JOB_ID)


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="registerTemplate", mode=Mode.SYNC, item="template", noun="template", command=RegisterTemplate,
        listed=True, prepare=_register, related="listTemplates", root_only=ROOT_ONLY, for_account=True,
        parameters=(
            parameter("name", required=True), parameter("displaytext"), parameter("url", required=True),
            parameter("format", required=True, choices=("qcow2", "raw")), parameter("hypervisor"),
            Parameter(name="zoneid", type=Type.UUID, description=ZONE.description, all_zones=True),
            parameter("zoneids", Type.LIST),
            parameter("checksum"), *SHARING, parameter("ostypeid"), *ABOUT, *OF_TEMPLATES, ARCH, JOB_ID, *OWNER),
        description="Fetches an image from a URL into the image stores of one zone, of several, or of all. Its answer is a row "
                    "for each zone, and names the job (extension)."),
    ApiCommand(
        name="createTemplate", mode=Mode.CREATE, item="template", noun="template", command=CreateTemplate, prepare=_create,
        root_only=ROOT_ONLY, for_account=True, related="listTemplates",
        parameters=(
            parameter("name", required=True), parameter("displaytext"), parameter("volumeid", Type.UUID),
            parameter("snapshotid", Type.UUID), ZONE, *SHARING, parameter("ostypeid"),
            *(parameter(name, Type.BOOLEAN, text=TEXTS[name]) for name in (
                "passwordenabled", "sshkeyenabled", "requireshvm", "isdynamicallyscalable")),
            parameter("bits", Type.INTEGER, text=TEXTS["bits"]), parameter("details", Type.MAP, text=TEXTS["details"]),
            parameter("templatetag", text=TEXTS["templatetag"]), ARCH, JOB_ID, *OWNER),
        description="Makes a template of a volume that no machine uses, or of a snapshot."),
    ApiCommand(
        name="listTemplates", mode=Mode.LIST, item="template", noun="template",
        parameters=listing(
            ID, IDS, NAME, ZONE, parameter("templatefilter", required=True, choices=TEMPLATE_FILTERS),
            parameter("hypervisor"), *SHOWN, TAGS, ARCH, parameter("templatetype", text=TEXTS["templatetype"]), access=True),
        filters={"name": "name", "hypervisor": "hypervisor", "arch": "arch", "templatetype": "template_type"},
        description="Lists templates: one row for each template and zone."),
    ApiCommand(
        name="updateTemplate", mode=Mode.SYNC, item="template", noun="template", command=UpdateTemplate, prepare=changed,
        parameters=updating(parameter("templatetype", choices=TYPES, text=TEXTS["templatetype"]),
                            parameter("templatetag", text=TEXTS["templatetag"])),
        root_only=ROOT_ONLY, now=True, related="listTemplates", description="Changes what a template says about itself."),
    ApiCommand(
        name="updateTemplatePermissions", mode=Mode.SYNC, noun="template", command=PermitTemplate, parameters=PERMIT,
        prepare=permit, now=True, related="listTemplatePermissions",
        description="Says who may use a template besides its account."),
    ApiCommand(
        name="listTemplatePermissions", mode=Mode.SYNC, item="templatepermission", noun="template", uses={"id": Use.CHANGE},
        parameters=(parameter("id", Type.UUID, required=True),), related="updateTemplatePermissions",
        description="Who may use a template besides its account."),
    ApiCommand(
        name="copyTemplate", mode=Mode.ASYNC, item="template", noun="template", command=CopyTemplate, parameters=COPY,
        prepare=copy, related="listTemplates",
        description="Has a template in other zones too: bytes are copied only where no store reaches."),
    ApiCommand(
        name="deleteTemplate", mode=Mode.ASYNC, noun="template", command=DeleteTemplate,
        parameters=(*derived(DeleteTemplate),
                    *(parameter(name, Type.BOOLEAN, text=TEXTS[name]) for name in ("forced", "issystem"))),
        related="listTemplates",
        description="Unregisters a template, or its copy in one zone; the job ends when its bytes are gone."),
    ApiCommand(
        name="extractTemplate", mode=Mode.ASYNC, item="template", noun="template", command=ExtractTemplate,
        parameters=derived(ExtractTemplate, texts=EXTRACT), uses={"id": Use.USE}, related="revokeExtractUrl",
        description="Gives a URL by which anyone may get the template's bytes until it ends. The image store itself serves it."),
    ApiCommand(
        name="prepareTemplate", mode=Mode.SYNC, item="template", noun="template", command=PrepareTemplate, roles=ADMIN,
        listed=True, makes=lambda message: message.template_id, related="unprepareTemplate",
        parameters=derived(PrepareTemplate, texts=SEEDS),
        description="Copies a template to a primary store, or to every one of a zone, so that volumes made there need no "
                    "download. It answers at once, and names the job (extension)."),
    ApiCommand(
        name="unprepareTemplate", mode=Mode.ASYNC, noun="template", command=UnprepareTemplate, roles=ADMIN,
        related="prepareTemplate", parameters=derived(UnprepareTemplate, texts=SEEDS),
        description="Deletes what prepareTemplate made; the template stays (extension)."),
    ApiCommand(
        name="listPendingDeletions", mode=Mode.LIST, item="pendingdeletion", noun="pending_deletion", roles=ADMIN,
        parameters=listing(ID, parameter("kind", text="template, iso or snapshot")), filters={"id": "id", "kind": "kind"},
        description="Lists bytes that were deleted and that their image store has not confirmed to be gone (extension)."),
)
