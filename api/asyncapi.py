"""The AsyncAPI 3 document: all that a plain AMQP client has to know to publish commands and to receive events.

Owns the document, made from the message registry and the envelope, so that it cannot say anything else than the code
does. Refuses to be edited: `docs/reference/asyncapi.json` is its output, and a test compares the two.
Orders, reports and the partition queues are Storebus's own and are not in it.

`python -m api.asyncapi` prints it.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid5

from pydantic.json_schema import models_json_schema

from bus.envelope import MAX_BODY, PREFIX, Envelope
from schema import vocabulary
from schema.codec import canonical, newest_version
from schema.examples import example
from schema.ids import NAMESPACE
from schema.message import Command, Event, Message

VERSION = "1.0.0"
"""Of the interface: the third number for texts, the second for what was added, the first never."""
COMMANDS, EVENTS = "storebus.commands", "storebus.events"
TIME = datetime(2026, 1, 31, 12, tzinfo=UTC).isoformat()

ABOUT = f"""The storage lifecycle of a cloud as events.

**To send a command**, publish to the topic exchange `{COMMANDS}`, routing key = the command's name (`snapshot.create`),
with publisher confirms and `mandatory`. Properties: `content_type` application/json, `delivery_mode` 2, and `user_id` =
the user you are logged in as (the broker checks it; it becomes the principal). Headers: those required by
`CommandHeaders`. Body: one JSON object, UTF-8, at most {MAX_BODY // 1024} KiB. `{PREFIX}id` is a UUID that you choose;
it is the id of the job and makes sending again harmless: after a lost confirm publish the same id and body again.

**To receive events**, declare a queue of your own (bounded: `x-max-length` with `x-overflow` drop-head), bind it to the
topic exchange `{EVENTS}` with a routing key pattern over `<noun>.<event>.<tenant>` (`snapshot.#`, `*.*.root`, `#`) and
consume. An event may come twice; `{PREFIX}id` is the same then. `{PREFIX}sbposition` is its place in the log: what your
queue lost can be replayed from there. The job that a command became ends with `job.completed`, `job.failed` or
`job.cancelled`, whose `{PREFIX}sbcorrelation` is the command's id.

Secrets never travel in commands: give a vault reference (`vault:<uuid>`), or send that command through the HTTP API.
Unknown fields are ignored by both sides; a field is only ever added within a version."""

_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "specversion": ({"const": "1.0"}, "CloudEvents version."),
    "id": ({"format": "uuid"}, "The message's own id. Of a command: the id of its job, chosen by the sender."),
    "type": ({}, "Wire name of the message."),
    "source": ({}, "Who sent it; `storebus` for events."),
    "subject": ({}, "The stream of the thing concerned, `<noun>-<id>`."),
    "time": ({"format": "date-time"}, "When it was recorded."),
    "sbversion": ({"pattern": "^[1-9][0-9]*$"}, "Version of the body's form; 1 when absent."),
    "sbkind": ({"enum": ["command", "event"]}, "What the message is; command when absent."),
    "sbkey": ({}, "Partition key: messages of one key are in order."),
    "sbstreamversion": ({"pattern": "^[0-9]+$"}, "Place of the event in its stream, from 0 without a gap."),
    "sbposition": ({"pattern": "^[1-9][0-9]*$"}, "Place of the event in the log, from 1 without a gap."),
    "sbcorrelation": ({"format": "uuid"}, "The job at the root of it."),
    "sbcausation": ({"format": "uuid"}, "The message that led to it."),
    "sbtenant": ({}, "Whose it is."),
    "sbprincipal": ({}, "Who asked for it. Set by Storebus; what a sender puts here is not believed."),
    "sbreplay": ({"const": "true"}, "Present on what a replay sent: do not repeat side effects."),
}
_FROM_SENDER = ("specversion", "id", "type", "source", "time", "sbversion", "sbkind")


def _header_schema(names: tuple[str, ...], required: tuple[str, ...]) -> dict[str, Any]:
    properties = {PREFIX + name: {"type": "string", "description": _HEADERS[name][1], **_HEADERS[name][0]}
                  for name in names}
    properties["traceparent"] = {"type": "string", "description": "W3C trace context."}
    return {"type": "object", "properties": properties, "required": [PREFIX + name for name in required],
            "additionalProperties": True}


def _newest(kind: type[Message]) -> list[type[Message]]:
    """The newest version of each public message of a kind, by name."""
    known = {name: cls for (name, version), cls in vocabulary().items() if version == newest_version(name)}
    return [known[name] for name in sorted(known)
            if issubclass(known[name], kind) and known[name].__module__.startswith("schema.")]


def _text(cls: type[Message]) -> str:
    return inspect.cleandoc(cls.__doc__ or "")


def _message(cls: type[Message], schemas: dict[str, str]) -> dict[str, Any]:
    command = issubclass(cls, Command)
    text = _text(cls)
    more = {"description": text} if "\n" in text else {}
    return {
        "name": cls.TYPE, "title": cls.__name__, "summary": text.splitlines()[0], **more,
        "contentType": "application/json",
        "headers": {"$ref": f"#/components/schemas/{'CommandHeaders' if command else 'EventHeaders'}"},
        "payload": {"$ref": schemas[cls.TYPE]},
        "correlationId": {"location": f"$message.header#/{PREFIX}{'id' if command else 'sbcorrelation'}"},
        "bindings": {"amqp": {"contentEncoding": "utf-8", "messageType": cls.TYPE, "bindingVersion": "0.3.0"}},
        "examples": [_example(cls, "the whole", full=True)]
        + ([_example(cls, "the least", full=False)] if command else []),
    }


def _example(cls: type[Message], name: str, *, full: bool) -> dict[str, Any]:
    body = example(cls, full=full)
    job = uuid5(NAMESPACE, "example job")
    if issubclass(cls, Command):
        envelope = Envelope(id=job, type=cls.TYPE, version=cls.VERSION, kind="command", body=canonical(body), time=TIME)
        sent = {PREFIX + each for each in _FROM_SENDER}
        headers = {key: value for key, value in envelope.headers().items() if key in sent}
        headers[PREFIX + "source"] = "urn:example:client"
    else:
        stream = f"{cls.TYPE.partition('.')[0]}-{uuid5(NAMESPACE, 'example thing')}"
        headers = Envelope(
            id=uuid5(NAMESPACE, f"example {cls.TYPE}"), type=cls.TYPE, version=cls.VERSION, kind="event",
            body=canonical(body), key=stream, stream=stream, stream_version=1, position=42, time=TIME, correlation=job,
            causation=job).headers()
    return {"name": name, "headers": headers, "payload": body}


def _channel(cls: type[Message]) -> dict[str, Any]:
    command = issubclass(cls, Command)
    exchange = {"name": COMMANDS if command else EVENTS, "type": "topic", "durable": True, "autoDelete": False,
                "vhost": "/"}
    channel: dict[str, Any] = {
        "address": cls.TYPE if command else f"{cls.TYPE}.{{tenant}}",
        "title": f"{exchange['name']}: {cls.TYPE}",
        "messages": {cls.TYPE: {"$ref": f"#/components/messages/{cls.TYPE}"}},
        "bindings": {"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}},
    }
    if not command:
        channel["parameters"] = {"tenant": {"$ref": "#/components/parameters/tenant"}}
    return channel


def _operation(cls: type[Message]) -> dict[str, Any]:
    action: Literal["receive", "send"] = "receive" if issubclass(cls, Command) else "send"
    channel = f"#/channels/{cls.TYPE}"
    binding: dict[str, Any] = {"deliveryMode": 2, "mandatory": action == "receive", "bindingVersion": "0.3.0"}
    if action == "receive":
        binding["ack"] = True
    return {
        "action": action, "channel": {"$ref": channel}, "title": cls.__name__, "summary": _text(cls).splitlines()[0],
        "messages": [{"$ref": f"{channel}/messages/{cls.TYPE}"}], "tags": [{"name": cls.TYPE.partition(".")[0]}],
        "bindings": {"amqp": binding},
    }


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 document, JSON Schemas of all public messages inside. The same code gives the same document."""
    classes = [*_newest(Command), *_newest(Event)]
    places, defined = models_json_schema([(cls, "validation") for cls in classes],
                                         ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = {
        **defined["$defs"],
        "CommandHeaders": _header_schema((*_FROM_SENDER, "subject"), ("id", "type")),
        "EventHeaders": _header_schema(
            tuple(_HEADERS), ("specversion", "id", "type", "source", "subject", "time", "sbversion", "sbkind", "sbkey",
                              "sbstreamversion", "sbposition", "sbcorrelation", "sbtenant", "sbprincipal")),
    }
    names = {cls.TYPE: places[cls, "validation"]["$ref"] for cls in classes}
    return {
        "asyncapi": "3.0.0",
        "id": "urn:storebus",
        "info": {"title": "Storebus", "version": VERSION, "description": ABOUT, "license": {"name": "Apache-2.0"}},
        "defaultContentType": "application/json",
        "servers": {"broker": {
            "host": "{host}:{port}", "protocol": "amqp", "protocolVersion": "0-9-1",
            "description": "The RabbitMQ of the installation; port 5671 and `amqps` with TLS. Your user needs the "
                           f"right to write `{COMMANDS}` and to read `{EVENTS}`, and no other.",
            "variables": {"host": {"default": "localhost"}, "port": {"default": "5672"}},
            "security": [{"$ref": "#/components/securitySchemes/user"}],
        }},
        "channels": {cls.TYPE: _channel(cls) for cls in classes},
        "operations": {cls.TYPE: _operation(cls) for cls in classes},
        "components": {
            "messages": {cls.TYPE: _message(cls, names) for cls in classes},
            "parameters": {"tenant": {"description": "Whose event it is; bind with `*` for all.", "default": "root"}},
            "schemas": dict(sorted((name, _plain(each)) for name, each in schemas.items())),
            "securitySchemes": {"user": {"type": "userPassword", "description": "A user of the broker."}},
        },
    }


def _plain(value: Any) -> Any:
    """Descriptions of one line break each, as classes wrap them."""
    if isinstance(value, dict):
        return {name: re.sub(r"\s*\n\s*", " ", inner) if name == "description" and isinstance(inner, str)
                else _plain(inner) for name, inner in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def text() -> str:
    """The document as it is kept in docs/reference/asyncapi.json."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Print it."""
    sys.stdout.write(text())


__all__ = ["COMMANDS", "EVENTS", "document", "text"]

if __name__ == "__main__":
    main()
