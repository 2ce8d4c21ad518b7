"""CloudStack's event bus, for who listens to it already: the exchange `cloudstack-events`, its routing keys and its bodies.

Owns what a row of the log is in CloudStack's words (ActionEvent, AsyncJobEvent, ResourceStateEvent, UsageEvent). It is a lane of
the relay with a lease and a checkpoint of its own: every message is confirmed, and a broker that is away is waited for. What a
row alone does not say (the job's command, a thing's state before) is read from its stream. Rule: no request parameter that may be
secret is told; what the log holds of one is a reference into the vault, and it is left out.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bus.event_store import EventStore, LogRow
from bus.relay import Relay
from bus.transport import Transport, WireMessage, cloudstack
from handlers.projections import changes
from handlers.projections.job import event_name
from schema import job
from schema.codec import UnknownType, decode
from schema.ids import derive
from schema.message import Secret

SOURCE = "management-server"
NAME = "relay-cloudstack"
REMEMBERED = 10_000
"""Jobs and states of things remembered; the others are read again."""
STATEFUL = {"volume": "Volume", "snapshot": "Snapshot", "template": "Template"}
"""Tables of things whose changes of state are told."""
USED = {("VOLUME", "CREATE"), ("VOLUME", "DELETE"), ("SNAPSHOT", "CREATE"), ("SNAPSHOT", "DELETE"), ("TEMPLATE", "CREATE"),
        ("TEMPLATE", "DELETE"), ("ISO", "CREATE"), ("ISO", "DELETE"), ("VOLUME", "RESIZE"), ("VOLUME", "UPLOAD")}
"""What counts as use."""
WHY = {"Creating": "CreateRequested", "BackingUp": "BackupToSecondary", "Destroying": "DestroyRequested",
       "Destroy": "DestroyRequested", "Expunging": "ExpungingRequested", "Registering": "CreateRequested",
       "Error": "OperationFailed", "Failed": "OperationFailed"}
"""New state -> the state machine's event that leads there; else OperationSucceeded."""


@dataclass(frozen=True, slots=True)
class Told:
    """One message: (category, type, resource's type, its id) and the body."""

    category: str
    type: str
    resource: str
    id: str
    body: Mapping[str, Any]

    @property
    def key(self) -> str:
        """CloudStack's routing key: dots inside a part are dashes, an empty part is a star."""
        parts = (SOURCE, self.category, self.type, self.resource, self.id)
        return ".".join(part.replace(".", "-") or "*" for part in parts)


@dataclass(frozen=True, slots=True)
class Job:
    """What the first events of a job say of it."""

    submitted: job.JobSubmitted
    subject: str = ""

    @property
    def event(self) -> str:
        """CloudStack's name of what it does."""
        return event_name(self.submitted.command, self.submitted.version, self.submitted.body)

    @property
    def thing(self) -> tuple[str, str]:
        """(type, id) of what it is about."""
        noun, _, thing = self.subject.partition("-")
        return "".join(part.capitalize() for part in noun.split("_")), thing


class CloudStackRelay(Relay):
    """The lane. Runs until it is cancelled."""

    def __init__(self, store: EventStore, transport: Transport, *, holder: str) -> None:
        super().__init__(store, transport, "facts", holder=holder)
        self.name = NAME
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._states: OrderedDict[str, tuple[int, str]] = OrderedDict()

    async def send(self, row: LogRow) -> asyncio.Future[None] | None:
        """Hand over what a row is in CloudStack's words; the future is the confirm of all of it."""
        confirms = [await self.transport.send(cloudstack(told.key), WireMessage(
            headers={}, body=json.dumps(told.body, ensure_ascii=False).encode())) for told in await self.told(row)]
        return asyncio.ensure_future(_all(confirms)) if confirms else None

    async def told(self, row: LogRow) -> list[Told]:
        """The messages of a row; none for what CloudStack does not tell of."""
        try:
            event = decode(row.type, row.type_version, row.payload)
        except UnknownType:
            return []
        if row.type.startswith("job."):
            return await self._of_job(row, event)
        return [each async for each in self._of_thing(row)]

    # --- jobs ---

    async def _of_job(self, row: LogRow, event: Any) -> list[Told]:
        known = await self._job(row)
        if known is None:
            return []
        match event:
            case job.JobSubmitted():
                return [_action(row, known, "Scheduled"), _asynchronous(row, known, "submit", 0, 0, {})]
            case job.JobStarted():
                noun = known.subject.partition("-")[0]
                made = bool(noun) and known.subject == f"{noun}-{derive(event.job_id, noun)}"
                return [_action(row, known, state) for state in (("Created", "Started") if made else ("Started",))]
            case job.JobCompleted():
                result = {name: value for name, value in event.result.items() if isinstance(value, (str, int, bool))}
                return [_action(row, known, "Completed"), _asynchronous(row, known, "complete", 1, 0, clean(result)),
                        *_used(row, known)]
            case job.JobFailed() | job.JobCancelled():
                failure = {"errorcode": event.failure.code, "errortext": event.failure.text}
                return [_action(row, known, "Completed", f": {event.failure.cause}"),
                        _asynchronous(row, known, "complete", 2, event.failure.code, failure)]
            case _:
                return []

    async def _job(self, row: LogRow) -> Job | None:
        known = self._jobs.get(row.stream)
        if known is None or (not known.subject and row.version > 0):
            rows = await self.store.read_stream(row.stream, limit=2)
            events = [decode(each.type, each.type_version, each.payload) for each in rows]
            if not events or not isinstance(events[0], job.JobSubmitted):
                return None
            started = events[1] if len(events) > 1 else None
            known = Job(events[0], started.subject if isinstance(started, job.JobStarted) and row.version > 0 else "")
        self._remember(self._jobs, row.stream, known)
        return known

    # --- states ---

    async def _of_thing(self, row: LogRow) -> AsyncIterator[Told]:
        for table, key, columns in changes(row):
            new = (columns or {}).get("state")
            if table not in STATEFUL or not new:
                continue
            version, old = self._states.get(key, (row.version, ""))
            if version >= row.version:  # not known, or the lane began again before it
                old = await self._before(row, table, key)
            self._remember(self._states, key, (row.version, new))
            if old != new:
                body = {"resource": STATEFUL[table], "id": key, "old-state": old or "Allocated", "new-state": new,
                        "status": "postStateTransitionEvent", "eventDateTime": _when(row)}
                yield Told("ResourceStateEvent", WHY.get(new, "OperationSucceeded"), STATEFUL[table], key, body)

    async def _before(self, row: LogRow, table: str, key: str) -> str:
        """The state that a thing had before a row: its stream is folded again."""
        state = ""
        for each in await self.store.read_stream(row.stream, limit=10_000):
            if each.version >= row.version:
                break
            for where, which, columns in changes(each):
                if (where, which) == (table, key) and columns:
                    state = columns.get("state") or state
        return state

    def _remember(self, where: OrderedDict[str, Any], key: str, value: Any) -> None:
        where[key] = value
        where.move_to_end(key)
        while len(where) > REMEMBERED:
            where.popitem(last=False)


async def _all(confirms: list[asyncio.Future[None]]) -> None:
    await asyncio.gather(*confirms)


def clean(value: Any) -> Any:
    """The value without references into the vault, at any depth."""
    if isinstance(value, Mapping):
        return {name: clean(each) for name, each in value.items() if not (isinstance(each, str) and Secret.is_reference(each))}
    if isinstance(value, list):
        return [clean(each) for each in value if not (isinstance(each, str) and Secret.is_reference(each))]
    return value


def _when(row: LogRow) -> str:
    return row.recorded_at.strftime("%Y-%m-%d %H:%M:%S %z")


def _who(known: Job) -> dict[str, Any]:
    owner = known.submitted.owner
    who = {"user": known.submitted.principal, "account": owner.account if owner is not None else "admin"}
    return who | ({"project": str(owner.project_id)} if owner is not None and owner.project_id else {})


def _action(row: LogRow, known: Job, status: str, why: str = "") -> Told:
    kind, thing = known.thing
    body = {**_who(known), "event": known.event, "status": status, "entity": kind, "entityuuid": thing,
            **({kind: thing} if thing else {}),
            "description": f"{status} {known.event}{f' of {kind} {thing}' if thing else ''}{why}", "eventDateTime": _when(row)}
    return Told("ActionEvent", known.event, kind, thing, body)


def _asynchronous(row: LogRow, known: Job, what: str, status: int, code: int, result: Mapping[str, Any]) -> Told:
    kind, thing = known.thing
    body = {**_who(known), "command": known.submitted.command, "commandEventType": known.event, "jobId": str(row.correlation),
            "status": ("IN_PROGRESS", "SUCCEEDED", "FAILED")[status], "processStatus": 0, "resultCode": code, "jobResult": result,
            "instanceType": kind, "instanceUuid": thing, "cmdInfo": clean(known.submitted.body), "eventDateTime": _when(row)}
    return Told("AsyncJobEvent", what, kind, thing, body)


def _used(row: LogRow, known: Job) -> Iterator[Told]:
    if tuple(known.event.split(".")) in USED:
        kind, thing = known.thing
        yield Told("UsageEvent", known.event, kind, thing, {
            "account": _who(known)["account"], "zone": known.submitted.body.get("zone_id"), "event": known.event,
            "resource": kind, "id": thing, "eventDateTime": _when(row)})


__all__ = ["NAME", "CloudStackRelay", "Told", "clean"]
