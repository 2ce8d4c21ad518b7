"""Jobs as CloudStack's response objects: always with a jobresultcode, and a failure in one line."""

from __future__ import annotations

from typing import Any

from api.registry import BY_TYPE
from api.responses.shown import OWNED, Row, filled, owned, percent, when
from schema.failure import Failure
from schema.motion import MotionPlan

FIELDS: dict[str, dict[str, str]] = {
    "asyncjobs": {
        "jobid": "string", "jobstatus": "integer", "jobprocstatus": "integer", "jobresultcode": "integer",
        "jobresulttype": "string", "jobresult": "object", "cmd": "string", **OWNED,
        "jobinstancetype": "string", "jobinstanceid": "string", "created": "date", "completed": "date",
        "step": "string", "progress": "object", "jobstate": "string", "trouble": "string"},
    "scrub": {
        "id": "string", "store": "string", "objects": "long", "of": "long", "bytes": "long", "damaged": "list",
        "missing": "list", "unread": "list", "unknown": "list", "unknowncount": "long"},
    "plan": {
        "step": "string", "move": "string", "strategy": "string", "from": "map", "to": "map", "agent": "string",
        "bytes": "long", "seconds": "long", "basis": "string", "reason": "string", "refused": "list"},
    "": {"success": "boolean", "displaytext": "string"},
}


PROGRESS = ("stage", "bytes", "total", "rate", "eta")


ENDED = ("completed", "failed", "cancelled")


PLACES = {"image_store": "storage", "primary_store": "storage", "": "job", "scrub": "storage", "disk_offering": "offering"}


def command_name(wire: str) -> str:
    """CloudStack's class name of a command: `org.apache.cloudstack.api.command.user.volume.CreateVolumeCmd`; of one that has
    none, its wire name. Clients look at its last part."""
    known = BY_TYPE.get(wire)
    if known is None:
        return wire
    who, place = "user" if "U" in known.roles else "admin", PLACES.get(known.noun, known.noun.replace("_", ""))
    return f"org.apache.cloudstack.api.command.{who}.{place}.{known.name[0].upper()}{known.name[1:]}Cmd"


def job(row: Row, thing: dict[str, Any] | None = None, item: str = "") -> dict[str, Any]:
    """A job; `thing` is the object of its result under the key `item`. A job always has its jobresultcode."""
    status, failure = row["status"], row.get("failure") or {}
    noun, _, instance = (row.get("subject") or "").partition("-")
    fields = filled(
        jobid=row["id"], cmd=command_name(row["command"]), **owned(row),
        jobstatus={"completed": 1, "failed": 2, "cancelled": 2}.get(status, 0),
        jobstate=status, jobprocstatus=100 if status == "completed" else percent(row.get("progress")),
        jobinstancetype="".join(part.capitalize() for part in noun.split("_")), jobinstanceid=instance,
        created=when(row["created"]), completed=when(row.get("completed")), step=row.get("step"))
    fields["jobresultcode"] = 0
    if status == "completed":
        fields |= {"jobresulttype": "object", "jobresult": {item: thing} if thing else {"success": True}}
    elif status in ENDED:
        code = int(failure.get("code", 530))
        fields |= {"jobresultcode": code, "jobresulttype": "object",
                   "jobresult": {"errorcode": code, "errortext": failure_text(failure), **told(Failure.model_validate(
                       {"cause": "it failed", **failure}))}}
    elif failure:
        fields["trouble"] = failure_text(failure)
    if status not in ENDED and row.get("progress"):
        fields["progress"] = {name: row["progress"][name] for name in PROGRESS if row["progress"].get(name) is not None}
    return fields


def told(failure: Failure) -> dict[str, Any]:
    """A failure's parts beside its text (extension), for clients that take it to pieces."""
    return filled(field=failure.field, cause=failure.cause, remedy=failure.remedy, definite=failure.definite)


def failure_text(failure: Row) -> str:
    """One line from a failure that is stored as data: field, cause, remedy."""
    cause = str(failure.get("cause") or "it failed")
    head = f"{failure['field']}: {cause}" if failure.get("field") else cause
    return f"{head.rstrip('.')}. {failure['remedy']}" if failure.get("remedy") else head


def plan(step: str, planned: MotionPlan) -> dict[str, Any]:
    """A plan of planCommand; `bytes` and `seconds` are null where nobody can know them beforehand."""
    cost = planned.cost
    return {"step": step, "move": planned.move, "strategy": planned.strategy, "from": planned.source.model_dump(mode="json"),
            "to": planned.target.model_dump(mode="json"), "agent": planned.agent, "bytes": cost.bytes, "seconds": cost.seconds,
            "basis": cost.basis, "reason": planned.reason, "refused": [one.model_dump(mode="json") for one in planned.refused]}
