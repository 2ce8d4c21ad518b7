"""The AsyncAPI document says what the code does: it is generated, its examples validate, and the bus reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import pytest

from api.asyncapi import COMMANDS, EVENTS, document, text
from bus.envelope import PREFIX, Envelope
from bus.event_store import LogRow
from bus.replay import wire
from schema import vocabulary
from schema.codec import canonical, decode
from schema.message import Command, Event, Order, Report

GOLDEN = Path(__file__).parents[2] / "docs/reference/asyncapi.json"
DOCUMENT = document()
MESSAGES = DOCUMENT["components"]["messages"]
KNOWN = {name: cls for (name, _), cls in vocabulary().items() if cls.__module__.startswith("schema.")}


def walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def resolve(reference: str) -> Any:
    at: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        at = at[part]
    return at


def validate(schema: dict[str, Any], value: Any) -> None:
    whole = {**schema, "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(value)


def test_the_kept_document_is_the_generated_one() -> None:
    assert GOLDEN.read_text() == text(), "run `python -m api.asyncapi > docs/reference/asyncapi.json`"


def test_it_is_the_same_each_time() -> None:
    assert json.dumps(document()) == json.dumps(DOCUMENT)


def test_every_reference_leads_somewhere() -> None:
    references = [each["$ref"] for each in walk(DOCUMENT) if "$ref" in each]
    assert len(references) > 200
    for reference in references:
        assert resolve(reference), reference


def test_it_names_every_command_and_event_and_nothing_private() -> None:
    public = {name for name, cls in KNOWN.items() if issubclass(cls, (Command, Event))}
    assert set(DOCUMENT["channels"]) == set(DOCUMENT["operations"]) == set(MESSAGES) == public
    private = {name for name, cls in KNOWN.items() if issubclass(cls, (Order, Report))}
    assert private
    assert not private & set(MESSAGES)
    assert "storebus.work" not in text()


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_examples_validate_and_the_bus_reads_them(name: str) -> None:
    message = MESSAGES[name]
    assert message["examples"]
    for each in message["examples"]:
        validate(message["headers"], each["headers"])
        validate(message["payload"], each["payload"])
        body = canonical(each["payload"])
        envelope = Envelope.read(each["headers"], body)
        assert envelope.type == name
        assert envelope.kind == ("command" if issubclass(KNOWN[name], Command) else "event")
        message_type = decode(envelope.type, envelope.version, body).TYPE
        assert message_type == name


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_channels_say_where_to_publish_and_bind(name: str) -> None:
    channel, operation = DOCUMENT["channels"][name], DOCUMENT["operations"][name]
    command = issubclass(KNOWN[name], Command)
    amqp = channel["bindings"]["amqp"]
    assert amqp["is"] == "routingKey"
    assert amqp["exchange"]["name"] == (COMMANDS if command else EVENTS)
    assert amqp["exchange"]["type"] == "topic"
    assert channel["address"] == (name if command else name + ".{tenant}")
    assert ("tenant" in channel.get("parameters", {})) is not command
    assert operation["action"] == ("receive" if command else "send")
    assert resolve(operation["channel"]["$ref"]) is channel


def test_the_schemas_refuse_what_is_wrong() -> None:
    """The validation above can fail."""
    name = "snapshot.create"
    good = MESSAGES[name]["examples"][0]
    for worse in ({}, {"volume_id": "not a uuid"}, {"volume_id": 7}):
        with pytest.raises(jsonschema.ValidationError):
            validate(MESSAGES[name]["payload"], worse)
    for header in (PREFIX + "id", PREFIX + "type"):
        with pytest.raises(jsonschema.ValidationError):
            validate(MESSAGES[name]["headers"], {key: value for key, value in good["headers"].items() if key != header})


def test_what_goes_out_is_what_the_document_requires() -> None:
    """The headers of a row as the bus sends it validate against EventHeaders."""
    job, thing = uuid4(), uuid4()
    row = LogRow(7, f"snapshot-{thing}", 0, "event", "snapshot.deleted", 1, uuid4(), f"snapshot-{thing}", "", "root",
                 job, None, datetime.now(UTC), canonical({"snapshot_id": str(thing)}), b'{"principal":"engineer"}')
    message = wire(row)
    validate(resolve("#/components/schemas/EventHeaders"), dict(message.headers))
    validate(MESSAGES[row.type]["payload"], json.loads(message.body))
    assert message.headers[PREFIX + "sbreplay"] == "true"
    assert message.headers[PREFIX + "sbprincipal"] == "engineer"
