"""The registry: every API command described once. Dispatch, validation, listApis, the CLI and the docs come from it.

Owns CloudStack's names of commands and parameters and how they map onto the messages of `schema`: a parameter is its
field's name without underscores. Refuses to know HTTP, tables and how anything runs. A new command is one entry of
`COMMANDS`; its parameters are derived from its message.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Union, get_args, get_origin
from uuid import UUID

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from schema.failure import BadParameter, Unsupported
from schema.image_store import AddImageStore, DeleteImageStore, UpdateImageStore
from schema.job import CancelJob
from schema.message import Command
from schema.scrub import ScrubStore
from schema.snapshot import CreateSnapshot, DeleteSnapshot
from schema.template import DeleteTemplate, RegisterTemplate
from schema.volume import CreateVolume, DeleteVolume, UpdateVolume

ADMIN = ("A",)
EVERYONE = ("A", "R", "D", "U")
"""Roles as in CloudStack: root admin, resource admin, domain admin, user."""


class Mode(StrEnum):
    """How a command answers."""

    SYNC = "sync"  # with the result
    ASYNC = "async"  # with a job id
    CREATE = "async+create"  # with the id of what it makes, and a job id
    LIST = "list"  # with a page of things


class Type(StrEnum):
    """Parameter types, in listApis' words."""

    STRING = "string"
    UUID = "uuid"
    BOOLEAN = "boolean"
    INTEGER = "integer"
    LONG = "long"
    MAP = "map"
    LIST = "list"
    DATE = "date"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter as a caller writes it; names are matched in any letter case."""

    name: str
    type: Type = Type.STRING
    required: bool = False
    description: str = ""
    aliases: tuple[str, ...] = ()
    length: int = 255
    """Most characters of the value (of each value, in a map or list)."""
    field: str = ""
    """The message's field that takes it; empty when the command's `prepare` or its list does."""
    choices: tuple[str, ...] = ()
    """Allowed values, in any letter case; empty: any."""
    all_zones: bool = False
    """`-1` is allowed and stands for every zone."""
    of_uuids: bool = False
    """A list whose items are UUIDs."""


Prepare = Callable[[dict[str, Any], UUID], dict[str, Any]]
"""(parsed values by parameter name, job id) -> fields of the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiCommand:
    """One command of the API. `name` is CloudStack's; extensions have names that CloudStack does not use."""

    name: str
    mode: Mode
    item: str = ""
    """Key of the answer's objects; empty: the answer is `{"success": true}` or plain fields."""
    description: str
    command: type[Command] | None = None
    noun: str = ""
    """Table of what it makes, changes or lists, and the role of a new thing's id in its job."""
    parameters: tuple[Parameter, ...] = ()
    roles: tuple[str, ...] = EVERYONE
    now: bool = False
    """It needs no agent: it runs at the edge, in one append."""
    listed: bool = False
    """Sync, and answers in the list envelope before its job has ended (registerTemplate)."""
    prepare: Prepare | None = None
    related: str = ""
    filters: Mapping[str, str] = field(default_factory=dict)
    """Of a list: parameter -> column that must be equal."""

    @property
    def envelope(self) -> str:
        """Top-level key of the answer."""
        return f"{self.name.lower()}response"

    @property
    def is_async(self) -> bool:
        """True when the answer is a job id."""
        return self.mode in (Mode.ASYNC, Mode.CREATE)

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of this name or alias, in lower case."""
        return next((each for each in self.parameters if name == each.name or name in each.aliases), None)

    def build(self, values: Mapping[str, Any], job_id: UUID) -> Command:
        """The message. Raises BadParameter naming the parameter as the caller writes it."""
        assert self.command is not None
        given = {name: value for name, value in values.items() if value is not None}
        if self.prepare is not None:
            fields = self.prepare(dict(given), job_id)
        else:
            by_name = {each.name: each.field for each in self.parameters if each.field}
            fields = {by_name[name]: value for name, value in given.items() if name in by_name}
        try:
            return self.command.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise BadParameter(str(first["msg"]), field=api_name(str(first["loc"][0])) if first["loc"] else "") from None


def api_name(field_name: str) -> str:
    """The parameter's name of a message's field."""
    return field_name.replace("_", "")


DESCRIPTIONS = {
    "id": "the UUID of the thing", "ids": "UUIDs, comma separated", "name": "the name", "url": "the URL",
    "zoneid": "the UUID of the zone", "provider": "the provider, as listStorageProviders names it",
    "details": "settings of the provider: details[0].key=K&details[0].value=V, or details.K=V",
    "readonly": "true: it takes nothing new", "capacitybytes": "bytes that may rest on it; 0: no limit but its own",
    "displaytext": "a text for people", "format": "QCOW2 or RAW",
    "hypervisor": "the hypervisor: KVM", "checksum": "{SHA-256}hex, {MD5}hex, ...; a bare hex digest is MD5",
    "ispublic": "every account may use it", "isfeatured": "it is shown first", "ostypeid": "the OS type",
    "isextractable": "it may be downloaded", "size": "size in GiB", "snapshotid": "the UUID of the snapshot",
    "templateid": "the UUID of the template (extension)", "diskofferingid": "accepted; offerings are not kept yet",
    "volumeid": "the UUID of the volume", "asyncbackup": "end the job once the snapshot is on the primary store",
    "of": "the command that is planned", "share": "how much of the store: 5% or 0.05",
    "jobid": "the UUID of the job", "keyword": "part of the name", "page": "page number, from 1, together with pagesize",
    "pagesize": "items of a page; -1 without page: everything", "account": "accepted for CloudStack's clients",
    "domainid": "accepted for CloudStack's clients", "projectid": "accepted for CloudStack's clients",
    "listall": "accepted for CloudStack's clients", "isrecursive": "accepted for CloudStack's clients",
    "customjobid": "the id of the job: sending the same command again with it is the same job",
    "protocol": "scheme of the URL", "type": "the type", "state": "the state", "storageid": "the UUID of the primary store",
    "templatefilter": "featured, self, selfexecutable, sharedexecutable, shared, executable, community or all",
    "isready": "true: only those that can be used", "showunique": "true: one row for a template, not one for each zone",
    "startdate": "from this date on: yyyy-MM-dd or yyyy-MM-dd HH:mm:ss", "path": "its path",
    "zoneids": "the UUID of the zone, or -1 for every zone", "accesskey": "the S3 access key",
    "secretkey": "the S3 secret key; it is kept in the vault", "endpoint": "the S3 endpoint's URL",
    "bucket": "the bucket; it must exist", "s3signer": "the signer's type", "usehttps": "speak TLS",
    "connectiontimeout": "milliseconds", "maxerrorretry": "how often a request is tried again",
    "sockettimeout": "milliseconds", "connectionttl": "milliseconds", "usetcpkeepalive": "keep connections alive",
}
LENGTHS = {"url": 2048, "endpoint": 2048, "displaytext": 4096, "details": 4096, "keyword": 255, "secretkey": 4096}
JOB_ID = Parameter(name="customjobid", type=Type.UUID, description=DESCRIPTIONS["customjobid"])
PAGING = ("keyword", Type.STRING), ("page", Type.INTEGER), ("pagesize", Type.INTEGER)
ACCESS = (("account", Type.STRING), ("domainid", Type.UUID), ("projectid", Type.STRING), ("listall", Type.BOOLEAN),
          ("isrecursive", Type.BOOLEAN))
"""Parameters of CloudStack's access control: accepted; there is one account yet."""


def parameter(name: str, type: Type = Type.STRING, *, required: bool = False,  # noqa: A002 - listApis' word
              aliases: tuple[str, ...] = (), choices: tuple[str, ...] = (), of_uuids: bool = False) -> Parameter:
    """A parameter that no message's field describes."""
    return Parameter(name=name, type=type, required=required, description=describe(name), aliases=aliases,
                     length=LENGTHS.get(name, 255), choices=choices, of_uuids=of_uuids)


def describe(name: str) -> str:
    """The text of a parameter. A new name needs one: listApis shows it."""
    if name not in DESCRIPTIONS:
        raise KeyError(f"DESCRIPTIONS has no text for the parameter {name}: write it there")
    return DESCRIPTIONS[name]


def derived(message: type[Command], *, optional: tuple[str, ...] = (), aliases: Mapping[str, tuple[str, ...]] | None = None,
            all_zones: bool = False) -> tuple[Parameter, ...]:
    """The parameters of a message: one for each field, in its order, and `customjobid`."""
    found = []
    for field_name, info in message.model_fields.items():
        name = api_name(field_name)
        kind, choices = _type_of(info)
        found.append(Parameter(
            name=name, type=kind, required=info.is_required() and name not in optional,
            description=describe(name), aliases=(aliases or {}).get(name, ()), length=LENGTHS.get(name, 255),
            field=field_name, choices=choices, all_zones=all_zones and name == "zoneid"))
    return (*found, JOB_ID)


def _type_of(info: FieldInfo) -> tuple[Type, tuple[str, ...]]:
    annotation = info.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    if get_origin(annotation) is dict:
        return Type.MAP, ()
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return Type.STRING, tuple(str(each.value) for each in annotation)
    known: dict[Any, Type] = {UUID: Type.UUID, bool: Type.BOOLEAN, int: Type.LONG, str: Type.STRING}
    return known[annotation], ()


def listing(*own: Parameter, access: bool = False) -> tuple[Parameter, ...]:
    """The parameters of a list: its own, the paging's and, where CloudStack has them, the access control's."""
    return (*own, *(parameter(name, kind) for name, kind in (*PAGING, *(ACCESS if access else ()))))


# --- what differs between CloudStack's parameters and the messages' fields -------------------------------------------

S3_SETTINGS = (("s3signer", Type.STRING), ("usehttps", Type.BOOLEAN), ("connectiontimeout", Type.INTEGER),
               ("maxerrorretry", Type.INTEGER), ("sockettimeout", Type.INTEGER), ("connectionttl", Type.INTEGER),
               ("usetcpkeepalive", Type.BOOLEAN))


def _s3_store(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    values.pop("customjobid", None)
    details = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
    return {"provider": "s3", "url": values["endpoint"], "name": f"{values['endpoint']}/{values['bucket']}",
            "details": details}


def _template(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    zones = values.pop("zoneids", [])
    if zones and "zoneid" in values:
        raise BadParameter("give either zoneid or zoneids", field="zoneids", remedy="leave one of them out")
    if len(zones) > 1:
        raise BadParameter("a template goes to one zone or to all", field="zoneids",
                           remedy="give one id, or -1 for every zone")
    if zones and zones[0] != "-1":
        try:
            values["zoneid"] = UUID(zones[0])
        except ValueError:
            raise BadParameter(f"{zones[0][:64]!r} is not a UUID", field="zoneids") from None
    by_name = {each.name: each.field for each in derived(RegisterTemplate) if each.field}
    return {by_name[name]: value for name, value in values.items() if name in by_name}


def _volume(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    values.setdefault("name", f"volume-{job_id}")
    by_name = {each.name: each.field for each in derived(CreateVolume) if each.field}
    return {by_name[name]: value for name, value in values.items() if name in by_name}


TEMPLATE_FILTERS = ("featured", "self", "selfexecutable", "sharedexecutable", "shared", "executable", "community", "all")
ID = parameter("id", Type.UUID)
IDS = parameter("ids", Type.LIST, of_uuids=True)
NAME = parameter("name")
ZONE = parameter("zoneid", Type.UUID)
STORE_ALIASES = {"provider": ("providername",), "name": ("storename",)}

COMMANDS: tuple[ApiCommand, ...] = (
    # image stores
    ApiCommand(
        name="addImageStore", mode=Mode.SYNC, item="imagestore", noun="image_store", command=AddImageStore, roles=ADMIN,
        parameters=derived(AddImageStore, aliases=STORE_ALIASES), related="listImageStores",
        description="Tests an image store step by step and opens it for templates and snapshots."),
    ApiCommand(
        name="addImageStoreS3", mode=Mode.SYNC, item="imagestore", noun="image_store", command=AddImageStore,
        roles=ADMIN, prepare=_s3_store, related="listImageStores",
        parameters=(*(parameter(name, required=True) for name in ("accesskey", "secretkey", "endpoint", "bucket")),
                    *(parameter(name, kind) for name, kind in S3_SETTINGS), JOB_ID),
        description="addImageStore for the provider S3, with its settings as parameters."),
    ApiCommand(
        name="listImageStores", mode=Mode.LIST, item="imagestore", noun="image_store", roles=ADMIN,
        parameters=listing(ID, parameter("name", aliases=("storename",)), parameter("protocol"),
                           parameter("provider", aliases=("providername",)), ZONE, parameter("readonly", Type.BOOLEAN)),
        filters={"id": "id", "name": "name", "protocol": "protocol", "provider": "provider", "zoneid": "zone_id",
                 "readonly": "read_only"},
        description="Lists image stores."),
    ApiCommand(
        name="updateImageStore", mode=Mode.SYNC, item="imagestore", noun="image_store", command=UpdateImageStore,
        roles=ADMIN, now=True, parameters=derived(UpdateImageStore), related="listImageStores",
        description="Renames an image store, makes it read-only, or limits what may rest on it."),
    ApiCommand(
        name="deleteImageStore", mode=Mode.SYNC, noun="image_store", command=DeleteImageStore, roles=ADMIN, now=True,
        parameters=derived(DeleteImageStore), related="listImageStores",
        description="Deletes an image store on which nothing rests."),
    ApiCommand(
        name="scrubImageStore", mode=Mode.ASYNC, item="scrub", noun="scrub", command=ScrubStore, roles=ADMIN,
        parameters=derived(ScrubStore), related="listImageStores",
        description="Reads a share of an image store's objects again and compares them with what was written (extension)."),
    ApiCommand(
        name="listStorageProviders", mode=Mode.LIST, item="dataStoreProvider", roles=("A", "R"),
        parameters=listing(parameter("type", required=True, choices=("image", "primary"))),
        description="Lists the plug-ins that agents carry for image stores or primary stores."),
    # templates
    ApiCommand(
        name="registerTemplate", mode=Mode.SYNC, item="template", noun="template", command=RegisterTemplate,
        listed=True, prepare=_template, related="listTemplates",
        parameters=(*derived(RegisterTemplate, all_zones=True), parameter("zoneids", Type.LIST)),
        description="Fetches an image from a URL into an image store. Its answer names the job (extension)."),
    ApiCommand(
        name="listTemplates", mode=Mode.LIST, item="template", noun="template",
        parameters=listing(
            ID, IDS, NAME, ZONE, parameter("templatefilter", required=True, choices=TEMPLATE_FILTERS),
            parameter("hypervisor"), parameter("isready", Type.BOOLEAN), parameter("showunique", Type.BOOLEAN),
            access=True),
        filters={"id": "id", "name": "name", "hypervisor": "hypervisor"},
        description="Lists templates: one row for each template and zone."),
    ApiCommand(
        name="deleteTemplate", mode=Mode.ASYNC, noun="template", command=DeleteTemplate,
        parameters=derived(DeleteTemplate), related="listTemplates",
        description="Unregisters a template; the job ends when its bytes are gone."),
    # volumes
    ApiCommand(
        name="createVolume", mode=Mode.CREATE, item="volume", noun="volume", command=CreateVolume, prepare=_volume,
        parameters=derived(CreateVolume, optional=("name",)), related="listVolumes",
        description="Makes a volume: empty, from a template (extension) or from a snapshot."),
    ApiCommand(
        name="listVolumes", mode=Mode.LIST, item="volume", noun="volume",
        parameters=listing(ID, IDS, NAME, ZONE, parameter("storageid", Type.UUID), parameter("state"),
                           parameter("type", choices=("ROOT", "DATADISK")), access=True),
        filters={"id": "id", "name": "name", "zoneid": "zone_id", "storageid": "primary_id", "state": "state"},
        description="Lists volumes."),
    ApiCommand(
        name="updateVolume", mode=Mode.ASYNC, item="volume", noun="volume", command=UpdateVolume, now=True,
        parameters=derived(UpdateVolume), related="listVolumes", roles=ADMIN, description="Renames a volume."),
    ApiCommand(
        name="deleteVolume", mode=Mode.SYNC, noun="volume", command=DeleteVolume, parameters=derived(DeleteVolume),
        related="listVolumes", description="Deletes a volume and its bytes."),
    # snapshots
    ApiCommand(
        name="createSnapshot", mode=Mode.CREATE, item="snapshot", noun="snapshot", command=CreateSnapshot,
        parameters=derived(CreateSnapshot), related="listSnapshots",
        description="Takes a snapshot of a volume and backs it up to an image store."),
    ApiCommand(
        name="listSnapshots", mode=Mode.LIST, item="snapshot", noun="snapshot",
        parameters=listing(ID, IDS, NAME, ZONE, parameter("volumeid", Type.UUID), access=True),
        filters={"id": "id", "name": "name", "zoneid": "zone_id", "volumeid": "volume_id"},
        description="Lists snapshots."),
    ApiCommand(
        name="deleteSnapshot", mode=Mode.ASYNC, noun="snapshot", command=DeleteSnapshot,
        parameters=derived(DeleteSnapshot), related="listSnapshots", description="Deletes a snapshot and its bytes."),
    # jobs
    ApiCommand(
        name="queryAsyncJobResult", mode=Mode.SYNC, parameters=(parameter("jobid", Type.UUID, required=True),),
        item="", description="A job's state, progress (extension) and result.", related="listAsyncJobs"),
    ApiCommand(
        name="listAsyncJobs", mode=Mode.LIST, item="asyncjobs", noun="job",
        parameters=listing(parameter("startdate", Type.DATE), access=True), description="Lists jobs, oldest first."),
    ApiCommand(
        name="cancelJob", mode=Mode.SYNC, command=CancelJob, now=True, parameters=derived(CancelJob),
        description="Asks a running job to stop and to take back what it did (extension).", related="listAsyncJobs"),
    # the rest of the cloud, and the API itself
    ApiCommand(
        name="listZones", mode=Mode.LIST, item="zone", noun="zone",
        parameters=listing(ID, IDS, NAME), filters={"id": "id", "name": "name"}, description="Lists zones."),
    ApiCommand(
        name="listStoragePools", mode=Mode.LIST, item="storagepool", noun="primary_store", roles=ADMIN,
        parameters=listing(ID, NAME, ZONE, parameter("path")),
        filters={"id": "id", "name": "name", "zoneid": "zone_id", "path": "path"}, description="Lists primary stores."),
    ApiCommand(
        name="listApis", mode=Mode.LIST, item="api", parameters=(NAME, parameter("listall", Type.BOOLEAN)),
        description="Describes the commands of this API."),
    ApiCommand(
        name="planCommand", mode=Mode.SYNC, item="plan", parameters=(parameter("of", required=True),),
        description="How another command's image bytes would move, given its parameters; nothing is done (extension)."),
    ApiCommand(
        name="listCapabilities", mode=Mode.SYNC, item="capability", description="What this installation can do."),
)
"""The commands, by noun. Nothing else lists them."""

BY_NAME: dict[str, ApiCommand] = {each.name.lower(): each for each in COMMANDS}
BY_TYPE: dict[str, ApiCommand] = {}
for _each in COMMANDS:
    if _each.command is not None:
        BY_TYPE.setdefault(_each.command.TYPE, _each)


def find(name: str) -> ApiCommand:
    """The command of this name: CloudStack's in any letter case, with or without `Cmd`, or a message's wire name.

    Raises Unsupported, naming the nearest one.
    """
    wanted = name.strip().lower()
    found = BY_NAME.get(wanted) or BY_NAME.get(wanted.removesuffix("cmd")) or BY_TYPE.get(wanted)
    if found is not None:
        return found
    if not wanted:
        raise Unsupported("missing", field="command", remedy="listApis shows the commands")
    close = difflib.get_close_matches(wanted, BY_NAME, n=1)
    remedy = f"did you mean {BY_NAME[close[0]].name}?" if close else "listApis shows the commands"
    raise Unsupported(f"no command is named {name[:64]!r}", field="command", remedy=remedy)


__all__ = ["BY_NAME", "BY_TYPE", "COMMANDS", "ApiCommand", "Mode", "Parameter", "Type", "api_name", "derived", "find",
           "parameter"]
