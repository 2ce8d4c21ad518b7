"""`storebus call`: any API command over HTTP, like any client of the cloud would send it.

Owns the request, the wait with its progress, and what the exit status says: 0 when it worked, 1 when it was refused,
failed or could not be asked. Refuses to check parameters: the API does that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from api import registry
from api.cli_target import settings, target
from api.client.calling import JOB
from api.client.connection import Connection
from api.client.job import Job
from api.output import Format, JobProgress, Output
from schema.failure import BadParameter, Malformed, Unsupported

PATIENCE_S = 1.0
"""How long a request goes on when the API does not answer: a person would rather be told."""
COLUMNS = {
    "imagestore": ("id", "name", "providername", "scope", "zonename", "url", "readonly"),
    "template": ("id", "name", "status", "format", "size", "physicalsize", "zonename"),
    "volume": ("id", "name", "state", "size", "physicalsize", "storage", "zonename"),
    "snapshot": ("id", "name", "state", "volumename", "physicalsize", "locationtype", "created"),
    "asyncjobs": ("jobid", "cmd", "jobstatus", "jobprocstatus", "step", "created", "completed"),
    "api": ("name", "isasync", "description"),
    "dataStoreProvider": ("name", "type", "scope"),
}
"""What a table shows of lists."""


def arguments(given: Iterable[str]) -> dict[str, str]:
    """`key=value` words as parameters. `key=@file` takes the file's text (for secrets), `key=@@x` means `@x`."""
    found: dict[str, str] = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise Malformed("not key=value", field=word[:64], remedy="write parameters as key=value")
        if value.startswith("@@"):
            value = value[1:]
        elif value.startswith("@"):
            try:
                value = Path(value[1:]).read_text().rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise BadParameter(f"{value[1:]} cannot be read: {error}", field=name) from None
        if name.lower() in (known.lower() for known in found):
            raise Malformed("given twice", field=name)
        found[name] = value
    return found


def prepared(command: str, parameters: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """The parameters as they are sent, with a job's id where the command makes one; and whether they may be sent again when no
    answer comes: with the id it is the same job."""
    try:
        known = registry.find(command)
    except Unsupported:
        return dict(parameters), False
    if known.command is None:
        return dict(parameters), known.name not in ("login", "logout")
    if known.parameter(JOB) is None:
        return dict(parameters), False
    given = any(name.lower() == JOB for name in parameters)
    return dict(parameters) if given else {**parameters, JOB: str(uuid4())}, True


async def connection(data_dir: Path | None, url: str | None, profile: str | None) -> Connection:
    """The API that a command line means."""
    found = await asyncio.to_thread(lambda: target(settings(data_dir=data_dir), url=url, profile=profile))
    return Connection(found, patience_s=PATIENCE_S)


def job_of(command: str, body: Mapping[str, Any]) -> str:
    """The id of the job that an answer started; empty when it started none."""
    if "jobid" in body and "jobstatus" not in body:
        return str(body["jobid"])
    try:
        known = registry.find(command)
    except Unsupported:
        return ""
    things = body.get(known.item)
    if known.listed and isinstance(things, list) and things:
        return str(things[0].get("jobid", ""))
    return ""


async def call(command: str, words: list[str], *, form: Format | None, wait: bool, timeout_s: float, url: str | None,
               profile: str | None, data_dir: Path | None) -> int:
    """Run it; the exit status."""
    parameters = await asyncio.to_thread(arguments, words)
    output = Output(form, stream=wait)
    async with await connection(data_dir, url, profile) as client:
        sent, repeat = prepared(command, parameters)
        body = await client.ask(command, sent, repeat=repeat)
        job_id = job_of(command, body)
        if wait and job_id:
            return _told(await follow(client, command, job_id, output, timeout_s), output)
        _show(command, body, output)
        return 0


async def follow(client: Connection, command: str, job_id: str, output: Output, timeout_s: float) -> dict[str, Any]:
    """The job that completed, its progress shown meanwhile. Raises its failure when it did not, Unknown when time is over."""
    job: Job[Any] = Job(client, job_id)
    found: dict[str, Any] = {}
    try:
        with JobProgress(output, command) as progress:
            async for found in job.reports(timeout_s=timeout_s):
                if found["jobstatus"] == 0:
                    progress.update(found)
    except asyncio.CancelledError:
        output.say(f"job {job_id} goes on: storebus call queryAsyncJobResult jobid={job_id}; "
                   f"storebus call cancelJob jobid={job_id} stops it")
        raise
    if found["jobstatus"] != 1 and output.form is Format.JSONL and output.query is None:
        output.object(found)
    job.outcome(found)
    return found


def _told(job: Mapping[str, Any], output: Output) -> int:
    """Print a job that completed; the exit status."""
    result = job.get("jobresult") or {}
    if output.for_people:
        things = [thing for thing in result.values() if isinstance(thing, dict)]
        output.object(things[0] if things else result)
    else:
        output.object(job if output.form is Format.JSONL and output.query is None else result)
    return 0


def _show(command: str, body: Mapping[str, Any], output: Output) -> None:
    """An answer: what a list lists, or the one thing."""
    if output.query is not None:  # it is asked of the whole answer, whatever the form
        output.object(body)
        return
    items = next((value for value in body.values() if isinstance(value, list)), None)
    if items is not None and output.form in (Format.TABLE, Format.JSONL):
        item = next(name for name, value in body.items() if value is items)
        output.rows(items, COLUMNS.get(item, ()))
        if output.for_people and body.get("count", len(items)) > len(items):
            output.say(f"{len(items)} of {body['count']}; page=2 pagesize=500 shows more")
        return
    if not body and output.for_people:
        output.say("nothing")
        return
    things = [value for value in body.values() if isinstance(value, dict)]
    if len(body) == 1 and things and output.for_people:
        output.object(things[0])
    elif body or output.form is not Format.JSONL:
        output.object(body)


__all__ = ["arguments", "call", "connection", "follow", "job_of", "prepared"]
