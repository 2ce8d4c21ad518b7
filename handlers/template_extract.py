"""Extracting a template: a URL of its copy in a zone.

Rules kept here: only what is Ready and may be extracted; the zone's own copy where a zone is named.
"""

from __future__ import annotations

from handlers import placement, template
from handlers.decider import Context, Flow
from handlers.extract import Extraction, Source
from schema.failure import BadParameter
from schema.message import Command
from schema.template import ExtractIso, ExtractTemplate


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
        state = template.known(context, command.id, kind=self.ITEM)
        if command.zone_id is not None:
            placement.zone(context.directory, command.zone_id)
        if not state.extractable:
            verb = "updateIsoPermissions" if state.kind == "iso" else "updateTemplatePermissions"
            raise BadParameter(f"unable to extract the {state.kind} {command.id}: it is not extractable", field="id",
                               remedy=f"{verb} isextractable=true, if it is yours")
        copy = template.readable(context, state, command.zone_id)
        assert copy.image is not None
        return Source(image=copy.image, damage=copy.damage)


class ExtractIsoFlow(ExtractFlow):
    """Link to an ISO's copy."""

    ITEM = "iso"


FLOWS: dict[type[Command], Flow] = {ExtractTemplate: ExtractFlow(), ExtractIso: ExtractIsoFlow()}
"""Every command of this file, and what it leads to."""
