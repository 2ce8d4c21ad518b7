"""The envelope: what travels with every message. CloudEvents 1.0 attributes in AMQP headers, JSON body beside them.

Owns the header names. Refuses to look into the body. `principal` and `tenant` are set by the edge or the forwarder
and never believed from a foreign caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from schema.failure import Malformed

PREFIX = "cloudEvents_"
"""Header prefix that we write; `cloudEvents:` is read as well."""
MAX_BODY = 256 * 1024
"""Bytes of the largest body accepted from anybody."""
_SPECVERSION, _ID, _TYPE, _SOURCE, _SUBJECT, _TIME = (
    PREFIX + name for name in ("specversion", "id", "type", "source", "subject", "time"))
_VERSION, _KIND, _KEY, _STREAM_VERSION, _POSITION, _CORRELATION, _CAUSATION, _TENANT, _PRINCIPAL, _REPLAY = (
    f"{PREFIX}sb{name}" for name in ("version", "kind", "key", "streamversion", "position", "correlation", "causation", "tenant",
                                     "principal", "replay"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message on its way. `id` is logical (the job id for a command); the transport adds its own id per attempt."""

    id: UUID
    type: str
    version: int = 1
    kind: str
    body: bytes
    key: str = ""
    """Partition key."""
    stream: str = ""
    stream_version: int = -1
    position: int = 0
    """Place in the log for what the relay sends; 0 for what never was in it."""
    time: str = ""
    """RFC 3339."""
    correlation: UUID | None = None
    causation: UUID | None = None
    tenant: str = "root"
    principal: str = "system"
    traceparent: str = ""
    replay: bool = False
    """Sent by a replay: nobody may repeat a side effect because of it."""

    def headers(self) -> dict[str, str]:
        """CloudEvents attributes as headers; empty ones are left out."""
        headers = {
            _SPECVERSION: "1.0", _ID: str(self.id), _TYPE: self.type, _SOURCE: "storebus",
            _SUBJECT: self.stream or self.key, _TIME: self.time or datetime.now(UTC).isoformat(), _VERSION: str(self.version),
            _KIND: self.kind, _KEY: self.key}
        if self.stream_version >= 0:
            headers[_STREAM_VERSION] = str(self.stream_version)
        if self.position:
            headers[_POSITION] = str(self.position)
        if self.correlation:
            headers[_CORRELATION] = str(self.correlation)
        if self.causation:
            headers[_CAUSATION] = str(self.causation)
        headers |= {_TENANT: self.tenant, _PRINCIPAL: self.principal}
        if self.replay:
            headers[_REPLAY] = "true"
        if self.traceparent:
            headers["traceparent"] = self.traceparent
        if not (self.key and self.tenant and self.principal):  # what is empty is left out
            headers = {name: value for name, value in headers.items() if value}
        return headers

    @classmethod
    def read(cls, headers: Mapping[str, Any], body: bytes) -> Envelope:
        """The envelope in AMQP headers and a body. Raises Malformed naming the header at fault."""
        known: dict[str, str] = {}
        for name, value in headers.items():
            for prefix in (PREFIX, "cloudEvents:"):
                if name.startswith(prefix):
                    known[name.removeprefix(prefix)] = _text(name, value)
        if len(body) > MAX_BODY:
            raise Malformed(f"the body has {len(body)} bytes; at most {MAX_BODY} are taken", field="body")
        for required in ("id", "type"):
            if not known.get(required):
                raise Malformed("header is missing", field=PREFIX + required, remedy="send CloudEvents 1.0 attributes as headers")
        return cls(
            id=_uuid(known, "id"), type=known["type"], version=_number(known, "sbversion", 1),
            kind=known.get("sbkind", "command"), body=body, key=known.get("sbkey", ""),
            stream=known.get("subject", ""), stream_version=_number(known, "sbstreamversion", -1),
            position=_number(known, "sbposition", 0), time=known.get("time", ""),
            correlation=_uuid(known, "sbcorrelation") if known.get("sbcorrelation") else None,
            causation=_uuid(known, "sbcausation") if known.get("sbcausation") else None,
            tenant=known.get("sbtenant", "root"), principal=known.get("sbprincipal", ""),
            traceparent=str(headers.get("traceparent", "")), replay=known.get("sbreplay") == "true",
        )


def _text(name: str, value: Any) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise Malformed("the header is not UTF-8", field=name[:64]) from None


def _uuid(known: Mapping[str, str], name: str) -> UUID:
    try:
        return UUID(known[name])
    except ValueError:
        raise Malformed(f"{known[name][:64]!r} is not a UUID", field=PREFIX + name) from None


def _number(known: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(known.get(name) or default)
    except ValueError:
        raise Malformed(f"{known[name][:64]!r} is not a number", field=PREFIX + name) from None
