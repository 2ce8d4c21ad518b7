"""`storebus publish`, `subscribe`, `replay` and `jobs`: the bus and the log from a terminal.

Owns how a command line becomes a call of `Bus` or a question to the read tables, and how events look. Refuses to know
what an event means: it prints what is in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

from api import registry
from api.cli_call import arguments
from api.cli_target import dsn
from api.output import Format, Output
from api.parameters import parse
from api.responses.job import failure_text
from api.settings import Settings
from bus.client import Bus
from bus.read_model import PostgresReadModel
from bus.replay import Outcome
from bus.subscription import FACTS, parse_start
from schema.failure import BadParameter

EVENT_COLUMNS = ("position", "time", "type", "stream", "version", "data")
JOB_COLUMNS = ("id", "command", "status", "step", "subject", "created", "completed", "error")
REBUILD = ("all", "zone", "agent", "primary_store", "image_store", "template", "template_store_ref", "template_zone",
           "launch_permission", "volume", "snapshot", "snapshot_store_ref", "machine", "job")


def uuid(text: str, field: str) -> UUID:
    """A UUID from the command line. Raises BadParameter naming it."""
    try:
        return UUID(text)
    except ValueError:
        raise BadParameter(f"{text[:64]!r} is not a UUID", field=field) from None


async def publish(settings: Settings, name: str, words: list[str], *, id: str | None,  # noqa: A002 - the option's name
                  form: Format | None) -> int:
    """Put a command onto the bus; print its job's id."""
    command, output = registry.find(name), Output(form)
    if command.command is None:
        raise BadParameter(f"{command.name} asks for something; only commands are published", field="command",
                           remedy=f"storebus call {command.name}")
    parsed = parse(command.parameters, await asyncio.to_thread(arguments, words))
    for unknown in parsed.unknown:
        output.say(f"{unknown} is not a parameter of {command.name} and was ignored")
    job_id = uuid(id, "id") if id else parsed.values.get("customjobid") or uuid4()
    message = command.build(parsed.values, job_id)
    async with Bus.connect(settings) as bus:
        job = await bus.publish(message, id=job_id)
    if (form is None or output.for_people) and output.query is None:
        output.line(str(job.id))
    else:
        output.object({"jobid": str(job.id), "command": message.TYPE})
    return 0


async def subscribe(settings: Settings, pattern: str, *, start: str, group: str | None, limit: int | None,
                    form: Format | None, orders: bool = False) -> int:
    """Print events as they come, until the limit or an interrupt."""
    output = Output(form, stream=True)
    kinds = FACTS | {"order"} if orders else FACTS
    if limit is not None and limit < 1:
        raise BadParameter(f"{limit} is not 1 or more", field="limit")
    async with Bus.connect(settings) as bus, bus.subscribe(
            pattern, from_=parse_start(start), group=group, limit=limit, kinds=kinds) as events:
        async for event in events:
            output.event(event.as_dict(), EVENT_COLUMNS)
    return 0


async def replay(settings: Settings, types: list[str], *, start: str, end: str | None, streams: list[str],
                 correlation: str | None, to_queue: str | None, rebuild: str | None, rate: float | None, dry_run: bool,
                 form: Format | None) -> int:
    """A part of the log again: to stdout, to a queue, into the read tables, or only counted."""
    if rebuild is not None:
        return await _rebuild(settings, rebuild, dry_run, Output(form))
    async with Bus.connect(settings) as bus:
        chosen = bus.replay(types, from_=parse_start(start), to=parse_start(end) if end else None, stream=streams,
                            correlation=uuid(correlation, "correlation") if correlation else None, rate=rate)
        if dry_run:
            _outcome(await chosen.count(), Output(form))
        elif to_queue:
            _outcome(await chosen.to_queue(to_queue), Output(form))
        else:
            output = Output(form, stream=True)
            outcome = await chosen.to(lambda event: output.event(event.as_dict(), EVENT_COLUMNS))
            output.say(f"{outcome.count} events")
    return 0


def _outcome(outcome: Outcome, output: Output) -> None:
    fields: dict[str, Any] = {"count": outcome.count, "bytes": outcome.bytes, "after": outcome.span.after,
                              "until": outcome.span.until, "last_position": outcome.last_position}
    if output.for_people:
        output.rows([*({"type": name, "count": count} for name, count in sorted(outcome.by_type.items())),
                     {"type": "all", "count": outcome.count}])
    else:
        output.object({**fields, "by_type": dict(sorted(outcome.by_type.items()))})


async def _rebuild(settings: Settings, projection: str, dry_run: bool, output: Output) -> int:
    """The read tables from nothing. One depends on no other, and the fold is one: all are rebuilt together."""
    from bus.event_store_postgres import PostgresEventStore
    from handlers.projector import expected, rebuild

    if projection not in REBUILD:
        raise BadParameter(f"{projection[:64]!r} is not a projection", field="rebuild",
                           remedy=f"choose one of {', '.join(REBUILD)}")
    where = await asyncio.to_thread(dsn, settings)
    store = await PostgresEventStore.connect(where)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.aclose)
        if dry_run:
            tables = await expected(store, await store.head())
            output.rows([{"projection": name, "rows": len(rows)} for name, rows in sorted(tables.items())])
            return 0
        model = await PostgresReadModel.connect(where, role="storebus_projector")
        stack.push_async_callback(model.aclose)
        position = await rebuild(store, model)
    output.object({"rebuilt": "all" if projection == "all" else f"{projection}, and with it all others",
                   "position": position})
    return 0


@contextlib.asynccontextmanager
async def views(settings: Settings) -> AsyncIterator[PostgresReadModel]:
    """The read tables."""
    model = await PostgresReadModel.connect(await asyncio.to_thread(dsn, settings), role="storebus_app")
    try:
        yield model
    finally:
        await model.aclose()


async def jobs(settings: Settings, job_id: str | None, *, status: str | None, limit: int, form: Format | None) -> int:
    """The newest jobs, or one job's events."""
    output = Output(form)
    if job_id is not None:
        return await _timeline(settings, uuid(job_id, "job"), output)
    if limit < 1:
        raise BadParameter(f"{limit} is not 1 or more", field="limit")
    async with views(settings) as model:
        where = {"status": status} if status else None
        _, total = await model.rows("job", where, limit=1)
        rows, _ = await model.rows("job", where, limit=limit, offset=max(0, total - limit))
    output.rows([_job(row) for row in reversed(rows)], JOB_COLUMNS)
    if total > len(rows) and output.for_people:
        output.say(f"the newest {len(rows)} of {total}; --limit shows more")
    return 0


def _job(row: dict[str, Any]) -> dict[str, Any]:
    failure = row.get("failure")
    return {**{name: row.get(name) for name in JOB_COLUMNS}, "error": failure_text(failure) if failure else None,
            "parent": row.get("parent"), "principal": row.get("principal"), "result": row.get("result")}


async def _timeline(settings: Settings, job_id: UUID, output: Output) -> int:
    """Everything that a job led to, as rows of the log."""
    async with Bus.connect(settings) as bus:
        rows = [event.as_dict() async for event in bus.replay(correlation=job_id, kinds=FACTS | {"order"})]
    if not rows:
        raise BadParameter(f"no job has the id {job_id}", field="job", remedy="storebus jobs shows them")
    output.rows(rows, ("position", "time", "kind", "type", "stream", "version"))
    return 0


__all__ = ["REBUILD", "jobs", "publish", "replay", "subscribe", "uuid", "views"]
