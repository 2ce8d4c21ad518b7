"""Extractions: a thing's own bytes behind a URL that ends. What is the same whatever thing it is.

Owns the step that has the link made, which a noun's flow ends with, and the job's result. The link is the job's own: its id is
the job's, so whoever may see the job may see the URL, and `link.end` revokes it. Refuses to choose what is linked to: a noun's
flow says it in `source`. The URL itself is sealed by the agent and never opened here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

from handlers import link, template
from handlers.decider import Context, Step
from handlers.job import result_of
from schema.failure import BadParameter, Damage, Failure
from schema.image import ImageRef

DOWNLOAD = "HTTP_DOWNLOAD"
"""The one mode there is: the caller fetches. FTP_UPLOAD is a word of CloudStack's that nothing there does either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is linked to."""

    image: ImageRef
    damage: Damage | None = None


class Extraction:
    """Base of an extraction's flow. A subclass has `ITEM`, `of` and `source`, and steps of its own before the link's if it must
    first make what is linked to."""

    ITEM: ClassVar[str] = ""
    """Key of the answer: the noun as CloudStack spells it."""
    subject, placed, cancellable = "link", True, True

    def __init__(self) -> None:
        self.steps: tuple[Step, ...] = (self.link_step(),)

    def link_step(self) -> Step:
        """The step that has the link made."""
        return Step(name="link", order=lambda context, work_id, attempt: link.make(context, context.job_id, work_id, attempt),
                    done=lambda context, result: link.made(context, context.job_id, result),
                    undo=lambda context, work_id, attempt: link.unmake(context, context.job_id, work_id, attempt))

    def of(self, command: Any) -> list[str]:
        """The streams of the thing."""
        raise NotImplementedError

    def source(self, context: Context) -> Source:
        """What is linked to. Raises what refuses it."""
        raise NotImplementedError

    def streams(self, job_id: UUID, command: Any) -> list[str]:
        """The link and the thing."""
        return [link.stream(job_id), *self.of(command)]

    def start(self, context: Context) -> None:
        """A way that there is, a copy that may be read, a store that gives links."""
        command: Any = context.command
        mode(command.mode)
        self.ask(context, self.source(context), command.lifetime)

    def ask(self, context: Context, source: Source, lifetime: int | None) -> None:
        """Want the link. Raises what refuses it."""
        if source.image.parent:
            raise BadParameter(f"this copy of the {self.ITEM} is a delta, and no image by itself", field="id",
                               remedy="make a volume of it, and extract that")
        if source.damage is not None:
            raise template.quarantine_refused(context, self.ITEM, source.image.store_id, source.damage)
        store = template.known_store(context, source.image.store_id)
        link.ask(context, context.job_id, store.spec, store.zone_id, source.image.key,
                 lifetime_s=context.limits.link_lifetime_s if lifetime is None else lifetime)

    def finish(self, context: Context) -> dict[str, Any]:
        """The link's id and the thing; whoever has the vault reads the URL from the link's event."""
        command: Any = context.command
        zone_id = command.zone_id or template.known_store(context, context.state(link.stream(context.job_id)).store_id).zone_id
        return result_of("extract", context.job_id, of=self.ITEM, source=str(command.id),
                         zone=str(zone_id) if zone_id else "", mode=DOWNLOAD)

    def fail(self, context: Context, failure: Failure) -> None:
        """Nothing of the link remains."""
        link.not_given(context, context.job_id, failure)


def mode(asked: str) -> None:
    """Raises BadParameter for a mode that there is not."""
    if asked.upper() != DOWNLOAD:
        raise BadParameter(f"{asked[:32]!r} is not offered", field="mode", remedy=f"give {DOWNLOAD}, and fetch the URL")


__all__ = ["DOWNLOAD", "Extraction", "Source", "mode"]
