"""`storebus call`: any API command over HTTP, like any client of the cloud would send it.

Owns the request, the wait with its progress, and what the exit status says: 0 when it worked, 1 when it was refused,
failed or could not be asked. Refuses to check parameters: the API does that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

from api import registry
from api.cli_target import api_url, settings
from api.first_keys import read_keys
from api.output import Format, JobProgress, Output
from api.signature import sign
from schema.failure import BadParameter, Failed, Malformed, Unavailable, Unsupported

POLL_S = (0.05, 1.0)
"""The wait begins with the first and slows down to the second."""
PATIENCE_S = 60.0
"""How long the API may be away while a job is waited for."""
SIGNED_FOR = timedelta(minutes=10)
"""How long a signature counts."""
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


class Refusal(Failed):
    """The API's own error object."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("errortext", "refused without a reason")))
        self.failure = self.failure.model_copy(update={"code": int(error.get("errorcode", 530))})


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


class Client:
    """The API over HTTP. `keys`: API key and secret key to sign with, where the API asks for it."""

    def __init__(self, url: str, keys: tuple[str, str] | None = None) -> None:
        self.url, self._keys = url, keys
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=90, connect=10))

    async def aclose(self) -> None:
        """Let go of the connections."""
        await self._http.close()

    async def ask(self, command: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        """The body below the envelope. Raises Refusal for the API's own errors, Unavailable when it does not answer."""
        form = {**parameters, "command": command, "response": "json"}
        if self._keys is not None and not any(name.lower() == "apikey" for name in form):
            ends = (datetime.now(UTC) + SIGNED_FOR).strftime("%Y-%m-%dT%H:%M:%S+0000")
            form |= {"apiKey": self._keys[0], "signatureVersion": "3", "expires": ends}
            form["signature"] = sign(form, self._keys[1])
        try:
            async with self._http.post(f"{self.url}/client/api", data=form) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unavailable(f"the API at {self.url} does not answer: {error or type(error).__name__}", field="api-url",
                              remedy="start it with `storebus up`, or say where it is with --api-url") from None
        try:
            [body] = json.loads(text).values()
        except (ValueError, AttributeError):
            raise Unavailable(f"{self.url} answers {answer.status}, not as a Storebus API", field="api-url",
                              remedy="check --api-url") from None
        assert isinstance(body, dict)
        if "errorcode" in body:
            raise Refusal(body)
        return body


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
               data_dir: Path | None) -> int:
    """Run it; the exit status."""
    parameters = await asyncio.to_thread(arguments, words)
    output = Output(form, stream=wait)
    found = settings(data_dir=data_dir)
    client = Client(await asyncio.to_thread(api_url, found, url), await asyncio.to_thread(read_keys, found.data_dir))
    try:
        body = await client.ask(command, parameters)
        job_id = job_of(command, body)
        if wait and job_id:
            return _told(await follow(client, command, job_id, output, timeout_s), output)
        _show(command, body, output)
        return 0
    finally:
        await client.aclose()


async def follow(client: Client, command: str, job_id: str, output: Output, timeout_s: float) -> dict[str, Any]:
    """The job that completed, its progress shown meanwhile. Raises Refusal when it did not, Unavailable when time is over."""
    try:
        async with asyncio.timeout(timeout_s):
            with JobProgress(output, command) as progress:
                job = await _ended(client, job_id, progress)
    except TimeoutError:
        raise Unavailable(f"job {job_id} has not ended after {timeout_s:g} s", field="timeout",
                          remedy=f"it goes on: storebus call queryAsyncJobResult jobid={job_id}") from None
    except asyncio.CancelledError:
        output.say(f"job {job_id} goes on: storebus call queryAsyncJobResult jobid={job_id}; "
                   f"storebus call cancelJob jobid={job_id} stops it")
        raise
    if job["jobstatus"] != 1:
        if output.form is Format.JSONL:
            output.object(job)
        raise Refusal(job.get("jobresult") or {})
    return job


def _told(job: Mapping[str, Any], output: Output) -> int:
    """Print a job that completed; the exit status."""
    result = job.get("jobresult") or {}
    if output.form is Format.TABLE:
        things = [thing for thing in result.values() if isinstance(thing, dict)]
        output.object(things[0] if things else result)
    else:
        output.object(job if output.form is Format.JSONL else result)
    return 0


async def _ended(client: Client, job_id: str, progress: JobProgress) -> dict[str, Any]:
    """The job once it has ended. An API that is away for a while is waited for."""
    pause, away_since = POLL_S[0], 0.0
    clock = asyncio.get_running_loop().time
    while True:
        try:
            job = await client.ask("queryAsyncJobResult", {"jobid": job_id})
            away_since = 0.0
        except (Unavailable, Refusal) as error:
            if isinstance(error, Refusal) and error.failure.code != Unavailable.code:
                raise
            away_since = away_since or clock()
            if clock() - away_since > PATIENCE_S:
                raise
        else:
            if job["jobstatus"] != 0:
                return job
            progress.update(job)
        await asyncio.sleep(pause)
        pause = min(POLL_S[1], pause * 1.3)


def _show(command: str, body: Mapping[str, Any], output: Output) -> None:
    """An answer: what a list lists, or the one thing."""
    items = next((value for value in body.values() if isinstance(value, list)), None)
    if items is not None and output.form in (Format.TABLE, Format.JSONL):
        item = next(name for name, value in body.items() if value is items)
        output.rows(items, COLUMNS.get(item, ()))
        if output.form is Format.TABLE and body.get("count", len(items)) > len(items):
            output.say(f"{len(items)} of {body['count']}; page=2 pagesize=500 shows more")
        return
    if not body and output.form is Format.TABLE:
        output.say("nothing")
        return
    things = [value for value in body.values() if isinstance(value, dict)]
    if len(body) == 1 and things and output.form is Format.TABLE:
        output.object(things[0])
    elif body or output.form is not Format.JSONL:
        output.object(body)


__all__ = ["Client", "Refusal", "arguments", "call", "follow", "job_of"]
