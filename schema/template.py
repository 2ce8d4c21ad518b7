"""Templates: images that volumes are made from. The whole conversation, in the order it happens."""

from __future__ import annotations

from uuid import UUID

from schema.failure import Damage, Failure
from schema.identity import ROOT_OWNER, Owner
from schema.image import Frozen, ImageFormat, ImageRef
from schema.message import Command, Event


class Traits(Frozen):
    """What a template or an ISO says about itself: kept and shown, and of no meaning to its bytes."""

    bits: int = 64
    requires_hvm: bool = True
    password_enabled: bool = False
    ssh_key_enabled: bool = False
    dynamically_scalable: bool = False
    bootable: bool = True
    details: dict[str, str] = {}
    template_tag: str = ""
    template_type: str = "USER"
    """USER, VNF; ROUTING, SYSTEM and BUILTIN are root admins' words."""
    arch: str = "x86_64"
    sort_key: int = 0


class RegisterTemplate(Command, type="template.register"):
    """Fetch an image from an http(s) URL into the image stores of one zone, of several, or of all."""

    EVENT = "TEMPLATE.CREATE"

    name: str
    display_text: str = ""
    url: str
    format: ImageFormat
    hypervisor: str = "KVM"
    zone_id: UUID | None = None
    """None and no `zone_ids`, or -1 on the API: every zone."""
    checksum: str = ""
    """`{SHA-256}<hex>`, `{MD5}<hex>`, ...; a bare hex digest is MD5, as in CloudStack."""
    is_public: bool = False
    is_featured: bool = False
    is_extractable: bool = False
    os_type_id: str = ""
    zone_ids: list[UUID] = []
    """Several zones, in place of `zone_id`."""
    traits: Traits = Traits()


class RegisterIso(RegisterTemplate, type="iso.register"):
    """The same of an ISO 9660 image, which machines boot from or mount."""

    EVENT = "ISO.CREATE"


class CreateTemplate(Command, type="template.create"):
    """Make a template of a volume at rest or of a snapshot: exactly one of them."""

    name: str
    display_text: str = ""
    volume_id: UUID | None = None
    snapshot_id: UUID | None = None
    zone_id: UUID | None = None
    """Only of a snapshot: where it is to be; None: in the snapshot's zone."""
    is_public: bool = False
    is_featured: bool = False
    is_extractable: bool = False
    os_type_id: str = ""
    traits: Traits = Traits()


class DeleteTemplate(Command, type="template.delete"):
    """Unregister a template at once; its bytes are deleted by the provider after that."""

    id: UUID
    zone_id: UUID | None = None

    def key(self, job_id: UUID) -> str:
        """The template."""
        return f"template-{self.id}"


class DeleteIso(DeleteTemplate, type="iso.delete"):
    """The same of an ISO."""


class UpdateTemplate(Command, type="template.update"):
    """Change what a template says about itself. What is None stays."""

    id: UUID
    name: str | None = None
    display_text: str | None = None
    os_type_id: str | None = None
    format: ImageFormat | None = None
    """Only what it is already: bytes say what they are."""
    bootable: bool | None = None
    requires_hvm: bool | None = None
    password_enabled: bool | None = None
    ssh_key_enabled: bool | None = None
    sort_key: int | None = None
    dynamically_scalable: bool | None = None
    is_routing: bool | None = None
    details: dict[str, str] | None = None
    clean_up_details: bool | None = None
    """True: it has no details any more."""
    arch: str | None = None
    template_type: str | None = None
    template_tag: str | None = None

    def key(self, job_id: UUID) -> str:
        """The template."""
        return f"template-{self.id}"


class UpdateIso(UpdateTemplate, type="iso.update"):
    """The same of an ISO."""


class PermitTemplate(Command, type="template.permit"):
    """Say who may use a template besides its account."""

    id: UUID
    is_public: bool | None = None
    is_featured: bool | None = None
    is_extractable: bool | None = None
    op: str = ""
    """add or remove `account_ids`; reset: nobody, neither public nor featured; empty: they stay."""
    account_ids: list[UUID] = []

    def key(self, job_id: UUID) -> str:
        """The template."""
        return f"template-{self.id}"


class PermitIso(PermitTemplate, type="iso.permit"):
    """The same of an ISO."""


class CopyTemplate(Command, type="template.copy"):
    """Have a template in other zones too: of a store that reaches them nothing is copied."""

    id: UUID
    source_zone_id: UUID | None = None
    """Whose copy is read; None: any that may be read."""
    zone_ids: list[UUID]

    def key(self, job_id: UUID) -> str:
        """The template."""
        return f"template-{self.id}"


class CopyIso(CopyTemplate, type="iso.copy"):
    """The same of an ISO, with CloudStack's own name of its event."""

    EVENT = "TEMPLATE.COPY"


class ExtractTemplate(Command, type="template.extract"):
    """Give a URL, which ends and can be revoked, by which anyone may get a template's bytes."""

    id: UUID
    zone_id: UUID | None = None
    """Whose copy; None: any that may be read."""
    mode: str
    """HTTP_DOWNLOAD"""
    lifetime: int | None = None
    """Seconds, 1 to 604800; None: the installation's."""

    def key(self, job_id: UUID) -> str:
        """The template."""
        return f"template-{self.id}"


class ExtractIso(ExtractTemplate, type="iso.extract"):
    """The same of an ISO."""


class TemplateRegistered(Event, type="template.registered"):
    """It exists and its bytes are on the way."""

    template_id: UUID
    name: str
    display_text: str
    url: str
    format: ImageFormat
    hypervisor: str
    zone_id: UUID | None = None
    checksum: str
    is_public: bool = False
    is_featured: bool = False
    is_extractable: bool = False
    os_type_id: str = ""
    store_id: UUID
    key: str
    """Where its first attempt writes."""
    job_id: UUID
    reserved: int = 0
    """Bytes that the store keeps free for it: how large it is shows when it is there."""
    owner: Owner = ROOT_OWNER
    kind: str = "template"
    """template or iso"""
    zones: list[UUID] = []
    """Zones in which it is listed; none: `zone_id`, or where that is None every zone."""
    traits: Traits = Traits()
    volume_id: UUID | None = None
    """The volume that it is made from."""
    snapshot_id: UUID | None = None
    store_zone_id: UUID | None = None
    """The zone of the store; None: it is a region's."""


class TemplateReserved(Event, type="template.reserved"):
    """How large it can be at most is known: so many bytes are kept free for it."""

    template_id: UUID
    reserved: int


class TemplateWritten(Event, type="template.written"):
    """Its bytes are in the store and verified, and its job is not over: nobody reads them yet."""

    template_id: UUID
    image: ImageRef
    counted: int


class TemplateReady(Event, type="template.ready"):
    """Its bytes are in the store and verified."""

    template_id: UUID
    image: ImageRef
    counted: int = 0
    """Bytes by which it is counted on its store from now on, in place of what was reserved."""
    zone_id: UUID | None = None
    """The zone of the store; None: it is a region's."""


class TemplateQuarantined(Event, type="template.quarantined"):
    """Its object was found damaged: its copy is Quarantined, and nothing reads it."""

    template_id: UUID
    store_id: UUID
    damage: Damage


class TemplateQuarantineLifted(Event, type="template.quarantine_lifted"):
    """Its object was read again, and is what was written."""

    template_id: UUID
    store_id: UUID
    key: str


class TemplateFailed(Event, type="template.failed"):
    """Its bytes could not be had; nothing of them remains."""

    template_id: UUID
    failure: Failure


class TemplateUpdated(Event, type="template.updated"):
    """It says something else about itself. What is None stays."""

    template_id: UUID
    name: str | None = None
    display_text: str | None = None
    os_type_id: str | None = None
    traits: Traits


class TemplatePermitted(Event, type="template.permitted"):
    """Others may use it: as it is from now on, and what changed."""

    template_id: UUID
    is_public: bool
    is_featured: bool
    is_extractable: bool
    granted: list[UUID] = []
    """Accounts that may use it."""
    added: list[UUID] = []
    removed: list[UUID] = []


class TemplateZonesChanged(Event, type="template.zones_changed"):
    """It is listed in other zones. Says nothing about bytes."""

    template_id: UUID
    zones: list[UUID]
    """All of them, from now on."""
    added: list[UUID] = []
    removed: list[UUID] = []
    everywhere: bool = False
    """Until now it was listed in every zone."""


class TemplateCopyRequested(Event, type="template.copy_requested"):
    """A copy of its bytes is on the way to another image store."""

    template_id: UUID
    store_id: UUID
    zone_id: UUID | None
    """The zone that it is for: the store's; None: the store is a region's."""
    job_id: UUID
    reserved: int


class TemplateCopyReady(Event, type="template.copy_ready"):
    """The copy is in its store and verified."""

    template_id: UUID
    image: ImageRef
    counted: int


class TemplateCopyFailed(Event, type="template.copy_failed"):
    """The copy could not be made; nothing of it remains."""

    template_id: UUID
    store_id: UUID
    zone_id: UUID | None = None
    failure: Failure


class TemplateCopyDeleteRequested(Event, type="template.copy_delete_requested"):
    """The bytes of this copy are pending deletion; the template stays."""

    template_id: UUID
    store_id: UUID
    job_id: UUID


class TemplateCopyDeleted(Event, type="template.copy_deleted"):
    """The store confirmed that they are gone."""

    template_id: UUID
    store_id: UUID


class TemplateDeleteRequested(Event, type="template.delete_requested"):
    """It is unregistered; its bytes are pending deletion."""

    template_id: UUID
    job_id: UUID
    store_id: UUID | None = None
    """The store that holds its first object; None when it has none."""
    stores: list[UUID] = []
    """Every store that holds an object of it."""


class TemplateDeleted(Event, type="template.deleted"):
    """The store confirmed that its bytes are gone."""

    template_id: UUID
    store_id: UUID | None = None
    """The store that held its first object; None when it had none."""
    stores: list[UUID] = []
    """Every store that held an object of it."""
