"""Templates: images that volumes are made from. The whole conversation, in the order it happens."""

from __future__ import annotations

from uuid import UUID

from schema.failure import Damage, Failure
from schema.identity import ROOT_OWNER, Owner
from schema.image import ImageFormat, ImageRef
from schema.message import Command, Event


class RegisterTemplate(Command, type="template.register"):
    """Fetch an image from an http(s) URL into the zone's (or region's) image store."""

    EVENT = "TEMPLATE.CREATE"

    name: str
    display_text: str = ""
    url: str
    format: ImageFormat
    hypervisor: str = "KVM"
    zone_id: UUID | None = None
    """None or -1 on the API: every zone."""
    checksum: str = ""
    """`{SHA-256}<hex>`, `{MD5}<hex>`, ...; a bare hex digest is MD5, as in CloudStack."""
    is_public: bool = False
    is_featured: bool = False
    is_extractable: bool = False
    os_type_id: str = ""


class DeleteTemplate(Command, type="template.delete"):
    """Unregister a template at once; its bytes are deleted by the provider after that."""

    id: UUID
    zone_id: UUID | None = None

    def key(self, job_id: UUID) -> str:
        """The template."""
        return f"template-{self.id}"


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


class TemplateReady(Event, type="template.ready"):
    """Its bytes are in the store and verified."""

    template_id: UUID
    image: ImageRef
    counted: int = 0
    """Bytes by which it is counted on its store from now on, in place of what was reserved."""


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


class TemplateDeleteRequested(Event, type="template.delete_requested"):
    """It is unregistered; its bytes are pending deletion."""

    template_id: UUID
    job_id: UUID
    store_id: UUID | None = None
    """The store that holds its object; None when it has none."""


class TemplateDeleted(Event, type="template.deleted"):
    """The store confirmed that its bytes are gone."""

    template_id: UUID
    store_id: UUID | None = None
    """The store that holds its object; None when it has none."""
