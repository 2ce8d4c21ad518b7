"""Seeds: a template's bytes on primary stores, as its state has them, and how they go.

Rules kept here: a primary store has one seed of a template at most; one goes only while nothing reads the template; it counts on
its primary store from the moment it is asked for until its host confirmed that it is gone. Refuses to know how one is made
(`template_prepare`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID

from handlers import primary_store
from handlers.decider import Context, Step
from schema.agent import DropSeed
from schema.ids import stream as thing_stream
from schema.image import PrimarySpec
from schema.message import Event, Order
from schema.template_seed import (
    TemplateSeedDeleted,
    TemplateSeedDeleteRequested,
    TemplateSeedFailed,
    TemplateSeedReady,
    TemplateSeedRequested,
)

EVENTS: tuple[type[Event], ...] = (
    TemplateSeedRequested, TemplateSeedReady, TemplateSeedFailed, TemplateSeedDeleteRequested, TemplateSeedDeleted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """A template's bytes on one primary store."""

    status: str
    """Creating, Ready, Destroying"""
    template_id: UUID
    primary: PrimarySpec
    key: str
    """The object that it is made of."""
    job_id: UUID
    """The job that made it, or that deletes it."""
    path: str = ""
    size: int = 0
    """Bytes of its file."""


Seeds = Mapping[UUID, Seed]
"""By primary store."""


def fold(seeds: Seeds, event: Event) -> Seeds:
    """The seeds after an event about one of them."""
    match event:
        case TemplateSeedRequested():
            return {**seeds, event.primary.id: Seed(status="Creating", template_id=event.template_id, primary=event.primary,
                                                    key=event.key, job_id=event.job_id)}
        case TemplateSeedReady():
            return {**seeds, event.primary_id: replace(
                seeds[event.primary_id], status="Ready", path=event.path, size=event.size)}
        case TemplateSeedDeleteRequested():
            return {**seeds, event.primary_id: replace(seeds[event.primary_id], status="Destroying", job_id=event.job_id)}
        case TemplateSeedFailed() | TemplateSeedDeleted():
            return {primary_id: seed for primary_id, seed in seeds.items() if primary_id != event.primary_id}
    return seeds


def usable(seeds: Seeds, primary_id: UUID) -> Seed | None:
    """The seed that volumes on this primary store are made of."""
    seed = seeds.get(primary_id)
    return seed if seed is not None and seed.status == "Ready" else None


def drop(context: Context, seed: Seed, work_id: UUID, attempt: int) -> Order:
    """The order that deletes a seed, given to the host that reaches it."""
    return DropSeed(job_id=context.job_id, work_id=work_id, attempt=attempt, agent=seed.primary.agent,
                    reply_key=context.command.key(context.job_id), primary=seed.primary, template_id=seed.template_id)


def let_go(context: Context, seeds: Iterable[Seed]) -> None:
    """From here on nothing is made of them, and this job deletes them."""
    for seed in seeds:
        context.emit(thing_stream("template", seed.template_id), TemplateSeedDeleteRequested(
            template_id=seed.template_id, primary_id=seed.primary.id, job_id=context.job_id))


def going(context: Context, seeds: Seeds) -> list[Seed]:
    """Those that this job deletes."""
    return [seed for seed in seeds.values() if seed.status == "Destroying" and seed.job_id == context.job_id]


def steps(context: Context, seeds: Seeds) -> tuple[Step, ...]:
    """The orders by which they go, one for each host's primary store."""
    return tuple(Step(name=f"seed-{seed.primary.id}", attempts=100_000, order=partial(_dropped, seed))
                 for seed in going(context, seeds))


def _dropped(seed: Seed, context: Context, work_id: UUID, attempt: int) -> Order:
    return drop(context, seed, work_id, attempt)


def gone(context: Context, seeds: Seeds) -> None:
    """The hosts confirmed that they are."""
    for seed in going(context, seeds):
        context.count(primary_store.seeds(seed.primary.id), -1)
        context.emit(thing_stream("template", seed.template_id), TemplateSeedDeleted(
            template_id=seed.template_id, primary_id=seed.primary.id))


__all__ = ["EVENTS", "Seed", "Seeds", "drop", "fold", "going", "gone", "let_go", "steps", "usable"]
