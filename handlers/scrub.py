"""Scrubs: reading a share of a store again, what follows from what is found, and when it is done by itself.

Rules kept here: one scrub of a store at a time; what is found damaged is quarantined by a job of its own, decided on the
thing's stream, so a deletion that came first wins; a quarantine is lifted by the same way and no other; nothing is ever
deleted; a due time gives one scrub, however many were missed.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from bus.event_store import Timer
from handlers import chain, image_store, placement, snapshot, template
from handlers.copies import Resting, copy_of
from handlers.decider import Context, Flow, IllegalTransition, Step
from handlers.job import result_of
from schema.agent import Scrubbed, ScrubObjects
from schema.codec import canonical
from schema.failure import BadParameter, Failure, InUse
from schema.ids import derive
from schema.message import Command, Event, Order
from schema.scrub import (
    KINDS,
    LiftQuarantine,
    QuarantineCopy,
    ScheduleScrub,
    ScrubEnded,
    ScrubScheduled,
    ScrubStarted,
    ScrubStopped,
    ScrubStore,
    ScrubTarget,
    mark,
    slice_of,
)
from schema.snapshot import SnapshotQuarantined, SnapshotQuarantineLifted
from schema.template import TemplateQuarantined, TemplateQuarantineLifted

KNOWN = 10_000
"""Objects whose marks fit into an order; of a larger store each scrub looks for strangers among a slice of the keys."""
TIMER = "timer.scrub"
SOONEST_S = 60
"""Seconds between two scrubs of a store that nobody asked for, at least."""
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?|\.\d{1,6})\s*(%?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubState:
    """The fold of a scrub's events."""

    status: str
    """Running, Ended, Stopped"""
    store_id: UUID
    objects: tuple[ScrubTarget, ...]
    of: int
    ended: ScrubEnded | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleState:
    """The fold of a store's schedule."""

    every_s: int
    share: str
    run: int


def evolve(state: ScrubState | None, event: Event) -> ScrubState:
    """The scrub after `event`."""
    match event:
        case ScrubStarted() if state is None:
            return ScrubState(status="Running", store_id=event.store_id, objects=tuple(event.objects), of=event.of)
        case ScrubEnded() if state is not None and state.status == "Running":
            return replace(state, status="Ended", ended=event)
        case ScrubStopped() if state is not None and state.status == "Running":
            return replace(state, status="Stopped")
    raise IllegalTransition(state.status if state else "absent", event)


def evolve_schedule(state: ScheduleState | None, event: Event) -> ScheduleState:
    """The schedule after `event`."""
    if isinstance(event, ScrubScheduled):
        return ScheduleState(every_s=event.every_s, share=event.share, run=event.run)
    raise IllegalTransition("scheduled" if state else "absent", event)


def stream(scrub_id: UUID) -> str:
    """The stream of a scrub."""
    return f"scrub-{scrub_id}"


def schedule_stream(store_id: UUID) -> str:
    """The stream of a store's schedule."""
    return f"scrub_schedule-{store_id}"


def share_of(text: str) -> float:
    """`5%`, `0.05` -> 0.05. Raises BadParameter for what is no share above nothing and up to everything."""
    found = _SHARE.fullmatch(text.strip())
    share = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < share <= 1:
        hint = f"; did you mean {text.strip()}%?" if found and not found[2] and 1 < share <= 100 else ""
        raise BadParameter(f"{text[:32]!r} is no share of a store", field="share",
                           remedy=f"give more than 0% and at most 100%, as 5% or 0.05{hint}")
    return share


def _one_at_a_time(store_id: UUID) -> str:
    return f"image_store/{store_id}/scrub"


class ScrubFlow:
    """Read a share of a store again."""

    subject, placed, surveys, cancellable = "scrub", True, True, True

    def __init__(self) -> None:
        self.steps = (Step(name="scrub", order=self._scrub, done=self._scrubbed),)

    def streams(self, job_id: UUID, command: ScrubStore) -> list[str]:
        """The scrub and its store."""
        return [stream(derive(job_id, "scrub")), image_store.stream(command.id)]

    def start(self, context: Context) -> None:
        """A store that is there, a share that is one, no other scrub."""
        command = context.command
        assert isinstance(command, ScrubStore)
        share = share_of(command.share)
        store = image_store.known(context, command.id)
        objects, of = context.survey.pick(command.id, share)
        context.claim(_one_at_a_time(command.id), str(context.job_id), InUse(
            "the image store is being scrubbed already", field="id", remedy="wait for that job to end, or cancelJob it"))
        placement.storage_agent(context.directory, store.spec.provider, store.zone_id)
        scrub_id = context.new_id("scrub")
        context.emit(stream(scrub_id), ScrubStarted(
            scrub_id=scrub_id, store_id=command.id, job_id=context.job_id, share=command.share, of=of, objects=objects))

    def _state(self, context: Context) -> ScrubState:
        state: ScrubState = context.state(stream(context.new_id("scrub")))
        return state

    def _scrub(self, context: Context, work_id: UUID, attempt: int) -> Order:
        state = self._state(context)
        store = template.known_store(context, state.store_id)
        marks = [mark(key) for key, copy in context.survey.copies.items() if copy.store_id == state.store_id]
        slices = max(1, -(-len(marks) // KNOWN))
        turn = context.survey.scrubs[state.store_id] % slices
        known = b"".join(sorted(each for each in marks if slice_of(each, slices) == turn)[:2 * KNOWN])
        return ScrubObjects(
            job_id=context.job_id, work_id=work_id, attempt=attempt, reply_key=context.command.key(context.job_id),
            agent=placement.storage_agent(context.directory, store.spec.provider, store.zone_id), store=store.spec,
            objects=list(state.objects), known=base64.b64encode(known).decode(), slices=slices, slice=turn)

    def _scrubbed(self, context: Context, result: Mapping[str, Any]) -> None:
        """What is still true of what was found. Whatever was deleted meanwhile is nobody's damage."""
        state, found, survey = self._state(context), Scrubbed.model_validate(result), context.survey
        damaged = [damage for damage in found.damaged if survey.there(damage.object) is not None]
        unknown = [stray for stray in found.unknown if survey.stray(stray.key)]
        context.emit(stream(context.new_id("scrub")), ScrubEnded(
            scrub_id=context.new_id("scrub"), store_id=state.store_id, objects=found.objects, bytes=found.bytes, damaged=damaged,
            unread=found.unread, unknown=unknown, unknown_count=found.unknown_count - len(found.unknown) + len(unknown)))
        for damage in damaged:
            copy = survey.there(damage.object)
            if copy is not None:
                context.out.submissions.append((derive(context.job_id, f"quarantine/{damage.object}"), QuarantineCopy(
                    kind=copy.thing[0], thing_id=copy.thing[1], damage=damage)))
        bad = {damage.object for damage in found.damaged} | {each.key for each in found.unread}
        for target in state.objects:
            copy = survey.there(target.key)
            if copy is not None and copy.quarantined and target.key not in bad:
                context.out.submissions.append((derive(context.job_id, f"lift/{target.key}"), LiftQuarantine(
                    kind=copy.thing[0], thing_id=copy.thing[1], object_key=target.key)))

    def finish(self, context: Context) -> dict[str, Any]:
        """What was read and what was found."""
        state = self._state(context)
        assert state.ended is not None
        context.unclaim(_one_at_a_time(state.store_id), str(context.job_id), context.job_id)
        ended = state.ended
        missing = [damage.object for damage in ended.damaged if damage.what == "missing"]
        damaged = [damage.model_dump(mode="json") for damage in ended.damaged if damage.what != "missing"]
        return result_of("scrub", context.new_id("scrub"), store=str(state.store_id), objects=ended.objects, of=state.of,
                         bytes=ended.bytes, damaged=damaged, missing=missing,
                         unread=[each.model_dump(mode="json") for each in ended.unread],
                         unknown=[each.model_dump(mode="json") for each in ended.unknown], unknown_count=ended.unknown_count)

    def fail(self, context: Context, failure: Failure) -> None:
        """Nothing is known; another may begin."""
        state = self._state(context)
        context.unclaim(_one_at_a_time(state.store_id), str(context.job_id), context.job_id)
        if state.status == "Running":
            context.emit(stream(context.new_id("scrub")), ScrubStopped(
                scrub_id=context.new_id("scrub"), store_id=state.store_id))


class _OfOneThing:
    """A flow without orders about the copy of one thing. What came too late changes nothing."""

    subject, placed, cancellable = "", False, False
    steps: tuple[Step, ...] = ()

    def streams(self, job_id: UUID, command: QuarantineCopy | LiftQuarantine) -> list[str]:
        """The thing."""
        return [f"{command.kind}-{command.thing_id}"] if command.kind in KINDS else []

    def copy(self, context: Context, kind: str, thing_id: UUID, key: str) -> Resting | None:
        """The thing's copy whose object has this key, unless it is being deleted. Raises BadParameter."""
        if kind not in KINDS:
            raise BadParameter(f"{kind[:32]!r} has no copies in image stores", field="kind", remedy=f"one of {', '.join(KINDS)}")
        state = context.state(f"{kind}-{thing_id}")
        event = SnapshotQuarantined.TYPE if kind == "snapshot" else TemplateQuarantined.TYPE
        table = snapshot.TRANSITIONS if kind == "snapshot" else template.TRANSITIONS
        found = copy_of(state, key)
        return None if found is None or found.leaving or (state.status, event) not in table else found

    def finish(self, context: Context) -> dict[str, Any]:
        """Done, or there was nothing to do."""
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: there is nothing to wait for."""


class QuarantineFlow(_OfOneThing):
    """Nothing reads this copy any more."""

    def start(self, context: Context) -> None:
        """Its damage, unless it is known."""
        command = context.command
        assert isinstance(command, QuarantineCopy)
        copy = self.copy(context, command.kind, command.thing_id, command.damage.object)
        if copy is None or copy.damage == command.damage:
            return
        name = f"{command.kind}-{command.thing_id}"
        if command.kind == "snapshot":
            context.emit(name, SnapshotQuarantined(
                snapshot_id=command.thing_id, store_id=copy.image.store_id, damage=command.damage))
        else:
            context.emit(name, TemplateQuarantined(
                template_id=command.thing_id, store_id=copy.image.store_id, damage=command.damage))


class LiftFlow(_OfOneThing):
    """This copy may be read again."""

    def start(self, context: Context) -> None:
        """It is quarantined."""
        command = context.command
        assert isinstance(command, LiftQuarantine)
        copy = self.copy(context, command.kind, command.thing_id, command.object_key)
        if copy is None or copy.damage is None:
            return
        name = f"{command.kind}-{command.thing_id}"
        if command.kind == "snapshot":
            context.emit(name, SnapshotQuarantineLifted(
                snapshot_id=command.thing_id, store_id=copy.image.store_id, key=command.object_key,
                hidden=context.state(name).status == "Hidden"))
            chain.merge_again(context, context.state(name))
        else:
            context.emit(name, TemplateQuarantineLifted(
                template_id=command.thing_id, store_id=copy.image.store_id, key=command.object_key))


class ScheduleFlow:
    """Set a store's schedule; or, when its time has come, scrub it and set the next time, in one append."""

    subject, placed, cancellable = "", False, False
    steps: tuple[Step, ...] = ()

    def streams(self, job_id: UUID, command: ScheduleScrub) -> list[str]:
        """The schedule and its store."""
        return [schedule_stream(command.id), image_store.stream(command.id)]

    def start(self, context: Context) -> None:
        """A schedule that is another than before, or a due time that nobody took."""
        command = context.command
        assert isinstance(command, ScheduleScrub)
        share_of(command.share)
        if command.every_s and command.every_s < SOONEST_S:
            raise BadParameter(f"every {command.every_s} s is too often", field="every",
                               remedy=f"at least {SOONEST_S} s; 0: never")
        state: ScheduleState | None = context.state(schedule_stream(command.id))
        run = state.run if state is not None else 0
        store = context.state(image_store.stream(command.id))
        every_s = command.every_s if store is not None and store.status == "Ready" else 0
        timer = timer_id(command.id)
        if command.due is not None:
            if state is None or not every_s or command.due != run or command.every_s != state.every_s:
                if not every_s:
                    context.out.clear_timers.append(timer)
                return
            context.out.submissions.append((derive(command.id, f"scheduled-scrub/{run}"), ScrubStore(
                id=command.id, share=command.share)))
        elif state is not None and (state.every_s, state.share) == (every_s, command.share):
            return
        context.emit(schedule_stream(command.id), ScrubScheduled(
            store_id=command.id, every_s=every_s, share=command.share, run=run + 1))
        if every_s:
            context.out.timers.append(due_timer(command.id, run + 1, every_s))
        else:
            context.out.clear_timers.append(timer)

    def finish(self, context: Context) -> dict[str, Any]:
        """It is as asked."""
        return {"success": True}

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: there is nothing to wait for."""


def timer_id(store_id: UUID) -> str:
    """The timer of a store's schedule."""
    return f"scrub-{store_id}/due"


def due_timer(store_id: UUID, run: int, after_s: float) -> Timer:
    """The timer of the store's scrub number `run`."""
    return Timer(id=timer_id(store_id), after_s=after_s, key=f"image_store-{store_id}", type=TIMER,
                 payload=canonical({"store_id": str(store_id), "run": run}))


FLOWS: dict[type[Command], Flow] = {
    ScrubStore: ScrubFlow(),
    QuarantineCopy: QuarantineFlow(),
    LiftQuarantine: LiftFlow(),
    ScheduleScrub: ScheduleFlow(),
}
"""Every command about this noun, and what it leads to."""
