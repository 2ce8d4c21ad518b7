"""Commands of templates, as `api.registry` collects them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.access import Use
from api.api_command import ID, IDS, NAME, OWNER, TAGS, ZONE, ApiCommand, Mode, Type, derived, listing, parameter
from api.commands.extract import EXTRACT
from schema.failure import BadParameter
from schema.template import DeleteTemplate, ExtractTemplate, RegisterTemplate

TEMPLATE_FILTERS = ("featured", "self", "selfexecutable", "sharedexecutable", "shared", "executable", "community", "all")


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


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="registerTemplate", mode=Mode.SYNC, item="template", noun="template", command=RegisterTemplate,
        listed=True, prepare=_template, related="listTemplates",
        parameters=(*derived(RegisterTemplate, all_zones=True), parameter("zoneids", Type.LIST), *OWNER), for_account=True,
        description="Fetches an image from a URL into an image store. Its answer names the job (extension)."),
    ApiCommand(
        name="listTemplates", mode=Mode.LIST, item="template", noun="template",
        parameters=listing(
            ID, IDS, NAME, ZONE, parameter("templatefilter", required=True, choices=TEMPLATE_FILTERS),
            parameter("hypervisor"), parameter("isready", Type.BOOLEAN), parameter("showunique", Type.BOOLEAN), TAGS,
            access=True),
        filters={"id": "id", "name": "name", "hypervisor": "hypervisor"},
        description="Lists templates: one row for each template and zone."),
    ApiCommand(
        name="deleteTemplate", mode=Mode.ASYNC, noun="template", command=DeleteTemplate,
        parameters=derived(DeleteTemplate), related="listTemplates",
        description="Unregisters a template; the job ends when its bytes are gone."),
    ApiCommand(
        name="extractTemplate", mode=Mode.ASYNC, item="template", noun="template", command=ExtractTemplate,
        parameters=derived(ExtractTemplate, texts=EXTRACT), uses={"id": Use.USE}, related="revokeExtractUrl",
        description="Gives a URL by which anyone may get the template's bytes until it ends. The image store itself serves it."),
)
