"""Extracting a template: a URL of its copy in a zone.

Rules kept here: only what is Ready and may be extracted; the zone's own copy where a zone is named.
"""

from __future__ import annotations

from handlers import placement, template
from handlers.decider import Context, Flow
from handlers.extract import Extraction, Source
from handlers.template import TemplateState
from schema.failure import BadParameter
from schema.message import Command
from schema.template import ExtractTemplate


class ExtractFlow(Extraction):
    """Link to a template's copy."""

    ITEM = "template"

    def of(self, command: ExtractTemplate) -> list[str]:
        """The template."""
        return [template.stream(command.id)]

    def source(self, context: Context) -> Source:
        """The copy of a template that is ready and extractable."""
        command = context.command
        assert isinstance(command, ExtractTemplate)
        state: TemplateState | None = context.state(template.stream(command.id))
        if state is None or state.status in ("Deleting", "Deleted"):
            raise BadParameter(f"no template has the id {command.id}", field="id", remedy="listTemplates shows them")
        if command.zone_id is not None:
            placement.zone(context.directory, command.zone_id)
        if state.status != "Ready" or state.image is None:
            raise BadParameter(f"the template is {state.status}, not Ready", field="id", remedy="wait for its job to end")
        if not state.extractable:
            raise BadParameter(f"unable to extract the template {command.id}: it is not extractable", field="id",
                               remedy="updateTemplatePermissions isextractable=true, if it is yours")
        if command.zone_id is not None and state.zone_id not in (None, command.zone_id):
            raise BadParameter(f"the template has no copy in the zone {command.zone_id}", field="zoneid",
                               remedy="copyTemplate brings it there, or name another zone")
        return Source(image=state.image, damage=state.damage, zone_id=command.zone_id or state.zone_id)


FLOWS: dict[type[Command], Flow] = {ExtractTemplate: ExtractFlow()}
"""Every command of this file, and what it leads to."""
