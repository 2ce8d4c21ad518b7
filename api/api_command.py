"""What an API command is: its name, parameters, roles and the message it becomes.

Owns the words in which a command is described and how parameters come from a message: a parameter is its field's name
without underscores. Refuses to know which commands there are (`api.commands`), HTTP, tables and how anything runs.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Union, get_args, get_origin
from uuid import UUID

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from api.access import Use
from schema.failure import BadParameter, Failure
from schema.message import Command

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
    keys_alone: bool = False
    """A map whose entries may have a key without a value: it is empty then."""


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
    for_account: bool = False
    """Its parameters account, domainid and projectid (`OWNER`) say whose what it makes will be."""
    home: str = ""
    """Its parameter that is the caller's own domain when it is left out."""
    makes: Callable[[Any], UUID] | None = None
    """Message -> the id of what it makes, where that does not follow from the job."""
    uses: Mapping[str, Use] = field(default_factory=dict)
    """Parameter -> what is done with the thing that it names, where that is not what `api.ownership` takes for granted: a
    template that is extracted is only used, so it may be a public one."""
    root_only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Parameters that only root admins may give -> their values that everybody may."""
    related: str = ""
    filters: Mapping[str, str] = field(default_factory=dict)
    """Of a list: parameter -> column that must be equal."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Of a list: what its rows have in common, column -> value."""
    deprecated: str = ""
    """The name of the command that replaces it: callers are told (`api.deprecation`)."""
    since: str = ""
    """The release of CloudStack that brought it, where that is not the oldest one; empty for extensions too."""

    @property
    def envelope(self) -> str:
        """Top-level key of the answer."""
        return f"{self.name.lower()}response"

    @property
    def is_async(self) -> bool:
        """True when the answer is a job id."""
        return self.mode in (Mode.ASYNC, Mode.CREATE)

    @property
    def event(self) -> str:
        """The type of its events, as listEvents shows them; empty when it changes nothing."""
        return self.command.event({}) if self.command is not None else ""

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

    def spelled(self, failure: Failure) -> Failure:
        """The failure with its field as the caller writes it: a message's field may be a parameter of another name."""
        named = next((each.name for each in self.parameters if each.field and api_name(each.field) == failure.field), "")
        return failure.model_copy(update={"field": named}) if named else failure


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
    "templateid": "the UUID of the template (extension)", "diskofferingid": "the UUID of the disk offering",
    "miniops": "least operations a second: kept and shown", "maxiops": "most operations a second: kept and shown",
    "displayvolume": "false: only root admins see it", "customid": "the id that it shall have (root admins)",
    "volumeid": "the UUID of the volume", "asyncbackup": "end the job once the snapshot is on the primary store",
    "of": "the command that is planned", "share": "how much of the store: 5% or 0.05",
    "jobid": "the UUID of the job", "keyword": "part of the name", "page": "page number, from 1, together with pagesize",
    "pagesize": "items of a page; -1 without page: everything", "account": "the account's name; it is in the domain domainid",
    "domainid": "the UUID of the domain; the caller's own when it is left out",
    "projectid": "the UUID of the project; -1 in lists: every project", "isrecursive": "domains below the domain too",
    "listall": "everything that the caller may see; false: of its own account only",
    "customjobid": "the id of the job: sending the same command again with it is the same job",
    "protocol": "scheme of the URL", "scope": "how far it reaches: ZONE or REGION",
    "type": "the type", "state": "the state", "storageid": "the UUID of the primary store",
    "templatefilter": "featured, self, selfexecutable, sharedexecutable, shared, executable, community or all",
    "isready": "true: only those that can be used", "showunique": "true: one row for a template, not one for each zone",
    "startdate": "from this date on: yyyy-MM-dd or yyyy-MM-dd HH:mm:ss", "path": "its path",
    "zoneids": "the UUID of the zone, or -1 for every zone", "accesskey": "the S3 access key",
    "secretkey": "the S3 secret key; it is kept in the vault", "endpoint": "the S3 endpoint's URL",
    "bucket": "the bucket; it must exist", "s3signer": "the signer's type", "usehttps": "speak TLS",
    "connectiontimeout": "milliseconds", "maxerrorretry": "how often a request is tried again",
    "sockettimeout": "milliseconds", "connectionttl": "milliseconds", "usetcpkeepalive": "keep connections alive",
    "tags": "only things with each of these tags: tags[0].key=K&tags[0].value=V",
}
LENGTHS = {"url": 2048, "endpoint": 2048, "displaytext": 4096, "details": 4096, "keyword": 255, "secretkey": 4096}
JOB_ID = Parameter(name="customjobid", type=Type.UUID, description=DESCRIPTIONS["customjobid"])
PAGING = ("keyword", Type.STRING), ("page", Type.INTEGER), ("pagesize", Type.INTEGER)
ACCESS = (("account", Type.STRING), ("domainid", Type.UUID), ("projectid", Type.STRING), ("listall", Type.BOOLEAN),
          ("isrecursive", Type.BOOLEAN))
"""Parameters of CloudStack's access control in lists: see `api.ownership`."""


def parameter(name: str, type: Type = Type.STRING, *, required: bool = False,  # noqa: A002 - listApis' word
              aliases: tuple[str, ...] = (), choices: tuple[str, ...] = (), of_uuids: bool = False,
              keys_alone: bool = False, text: str = "") -> Parameter:
    """A parameter that no message's field describes. `text`: its description, when its name has none yet."""
    return Parameter(name=name, type=type, required=required, description=text or describe(name), aliases=aliases,
                     length=LENGTHS.get(name, 255), choices=choices, of_uuids=of_uuids, keys_alone=keys_alone)


def describe(name: str) -> str:
    """The text of a parameter whose name many commands share. Raises KeyError: a new name needs one, listApis shows it."""
    if name not in DESCRIPTIONS:
        raise KeyError(f"the parameter {name} has no text: give its command's entry one (text=, texts=)")
    return DESCRIPTIONS[name]


def derived(message: type[Command], *, optional: tuple[str, ...] = (), aliases: Mapping[str, tuple[str, ...]] | None = None,
            all_zones: bool = False, texts: Mapping[str, str] | None = None) -> tuple[Parameter, ...]:
    """The parameters of a message: one for each field, in its order, and `customjobid`. `texts`: parameter -> description."""
    found = []
    for field_name, info in message.model_fields.items():
        name = api_name(field_name)
        kind, choices = _type_of(info)
        found.append(Parameter(
            name=name, type=kind, required=info.is_required() and name not in optional,
            description=(texts or {}).get(name) or describe(name), aliases=(aliases or {}).get(name, ()),
            length=LENGTHS.get(name, 255), of_uuids=kind is Type.LIST,
            field=field_name, choices=choices, all_zones=all_zones and name == "zoneid"))
    return (*found, JOB_ID)


def _type_of(info: FieldInfo) -> tuple[Type, tuple[str, ...]]:
    annotation = info.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    if get_origin(annotation) is dict:
        return Type.MAP, ()
    if annotation == list[UUID]:
        return Type.LIST, ()
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return Type.STRING, tuple(str(each.value) for each in annotation)
    known: dict[Any, Type] = {UUID: Type.UUID, bool: Type.BOOLEAN, int: Type.LONG, str: Type.STRING}
    return known[annotation], ()


def listing(*own: Parameter, access: bool = False) -> tuple[Parameter, ...]:
    """The parameters of a list: its own, the paging's and, where CloudStack has them, the access control's."""
    return (*own, *(parameter(name, kind) for name, kind in (*PAGING, *(ACCESS if access else ()))))


OWNER = (parameter("account"), parameter("domainid", Type.UUID), parameter("projectid", Type.UUID))
"""Parameters of a command that makes something `for_account`."""
ID = parameter("id", Type.UUID)
IDS = parameter("ids", Type.LIST, of_uuids=True)
NAME = parameter("name")
ZONE = parameter("zoneid", Type.UUID)
TAGS = parameter("tags", Type.MAP)
DETAILS = parameter("details", Type.LIST, text="min: without fields that are lists themselves; all")
"""Parameters of nearly every list."""

__all__ = ["ADMIN", "DETAILS", "EVERYONE", "ID", "IDS", "JOB_ID", "NAME", "OWNER", "TAGS", "ZONE", "ApiCommand", "Mode",
           "Parameter", "Prepare", "Type", "api_name", "derived", "listing", "parameter"]
