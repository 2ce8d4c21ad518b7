"""The OpenAPI document says what the registry says, and the committed one is current."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema

from api.openapi import document, text
from api.registry import COMMANDS, Type

GOLDEN = Path(__file__).parents[2] / "docs/reference/openapi.json"
DOCUMENT = document()


def test_the_committed_document_is_current() -> None:
    assert GOLDEN.read_text() == text(), "run `make golden`"


def test_each_command_is_an_operation_with_its_parameters() -> None:
    assert len(DOCUMENT["paths"]) == len(COMMANDS)
    for command in COMMANDS:
        operation = DOCUMENT["paths"][f"/client/api/{command.name}"]["get"]
        told = {each["name"]: each for each in operation["parameters"]}
        for each in command.parameters:
            name = f"{each.name}[0].key" if each.type is Type.MAP else each.name
            assert told[name]["required"] == (each.required and each.type is not Type.MAP) and told[name]["description"]
        assert bool(command.deprecated) == operation.get("deprecated", False)
        assert command.envelope in operation["responses"]["200"]["content"]["application/json"]["schema"]["properties"]


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                at: Any = DOCUMENT
                for part in value["$ref"].removeprefix("#/").split("/"):
                    at = at[part]
            if "schema" in value:
                jsonschema.Draft202012Validator.check_schema(value["schema"])
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(DOCUMENT)
    for each in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(each)
