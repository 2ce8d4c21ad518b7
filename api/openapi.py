"""The OpenAPI 3.1 document of the HTTP API, from the registry.

Owns how a command, its parameters and its answer are described there. Refuses to know any command. Each command has a path of its
own, `/client/api/<command>`, which means the same as CloudStack's `/client/api?command=<command>`.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import Any

from api import registry
from api.answers.system import VERSION, shown_as
from api.api_command import ApiCommand, Mode, Parameter, Type
from api.listing import PAGE
from api.parameters import INT, LONG
from api.responses import FIELDS

KINDS: dict[str, dict[str, Any]] = {
    "string": {"type": "string"}, "date": {"type": "string"}, "uuid": {"type": "string"}, "integer": {"type": "integer"},
    "short": {"type": "integer"}, "long": {"type": "integer"}, "boolean": {"type": "boolean"}, "list": {"type": "array"},
    "set": {"type": "array"}, "object": {"type": "object"}, "map": {"type": "object"}}
"""listApis' words for the types of an answer's fields."""
XML: dict[str, Any] = {"text/xml": {"schema": {"type": "string"}}}
"""The same in elements."""
SECRETS = frozenset({"password", "secretkey", "key"})
ERROR = {
    "type": "object", "required": ["errorcode", "cserrorcode", "errortext", "uuidList"],
    "properties": {"errorcode": {"type": "integer"}, "cserrorcode": {"type": "integer"}, "errortext": {"type": "string"},
                   "uuidList": {"type": "array"}}}


def _schema(parameter: Parameter) -> dict[str, Any]:
    match parameter.type:
        case Type.UUID:
            found: dict[str, Any] = {"type": "string", "format": "uuid"}
            return {"anyOf": [found, {"const": "-1"}]} if parameter.all_zones else found
        case Type.BOOLEAN:
            return {"type": "boolean"}
        case Type.INTEGER:
            return {"type": "integer", "minimum": -INT, "maximum": INT - 1}
        case Type.LONG:
            return {"type": "integer", "minimum": -LONG, "maximum": LONG - 1}
        case Type.DATE:
            return {"type": "string", "examples": ["2026-03-31", "2026-03-31 11:53:59"]}
        case Type.LIST:
            return {"type": "array", "items": {"type": "string"} | ({"format": "uuid"} if parameter.of_uuids else {})}
        case _:
            text: dict[str, Any] = {"type": "string", "maxLength": parameter.length}
            return text | ({"enum": list(parameter.choices)} if parameter.choices else {})


def _parameters(command: ApiCommand) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "response", "in": "query", "required": False, "schema": {"enum": ["json", "xml"]},
                                    "description": "json; without it the answer is XML"}]
    for each in command.parameters:
        names = (f"{each.name}[0].key", f"{each.name}[0].value") if each.type is Type.MAP else (each.name,)
        for name in names:
            one: dict[str, Any] = {"name": name, "in": "query", "required": each.required and each.type is not Type.MAP,
                                   "description": each.description, "schema": _schema(each)}
            if each.type is Type.LIST:
                one |= {"style": "form", "explode": False}
            if each.name in SECRETS:
                one["schema"] = one["schema"] | {"format": "password"}
            found.append(one)
    return found


def _answer(command: ApiCommand) -> dict[str, Any]:
    """What stands below the envelope's key."""
    item = {"$ref": f"#/components/schemas/{shown_as(command)}"}
    if command.mode is Mode.LIST or command.listed:
        return {"type": "object", "properties": {"count": {"type": "integer"}, command.item: {"type": "array", "items": item}}}
    if command.is_async:
        names = ["id", "jobid"] if command.mode is Mode.CREATE else ["jobid"]
        return {"type": "object", "required": names, "properties": {name: {"type": "string", "format": "uuid"} for name in names}}
    if not command.item:
        return {"type": "object"}
    return {"type": "object", "properties": {command.item: {}}}


def _body(key: str, inner: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": {"type": "object", "required": [key], "properties": {key: inner}}}, **XML}


def _operation(command: ApiCommand) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": command.name, "summary": command.description, "tags": [command.noun or "api"],
        "parameters": _parameters(command),
        "responses": {
            "200": {"description": "it was done, or accepted", "content": _body(command.envelope, _answer(command))},
            "4XX": {"description": "it was refused; nothing was done", "content": {"application/json": {"schema": {
                "type": "object", "minProperties": 1, "maxProperties": 1,
                "additionalProperties": {"$ref": "#/components/schemas/error"}}}, **XML}},
            "5XX": {"description": "CloudStack's codes 503 and 530 to 537: it could not be done", "content": _body(
                command.envelope, {"$ref": "#/components/schemas/error"})}},
        "x-storebus-roles": list(command.roles), "x-storebus-mode": str(command.mode)}
    if command.deprecated:
        found |= {"deprecated": True, "description": f"Use {command.deprecated}."}
    return found


def document() -> dict[str, Any]:
    """The whole document. Deterministic."""
    schemas = {name or "success": {"type": "object", "properties": {field: KINDS.get(kind, {}) for field, kind in fields.items()}}
               for name, fields in sorted(FIELDS.items())}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Storebus", "version": "0.1.0",
            "description": f"CloudStack's query API ({VERSION}), as far as it concerns storage. GET and POST mean the same; "
                           f"names of parameters may have any letter case; pages have at most {PAGE} items. With identity each "
                           "request has `apiKey` and `signature` (HMAC-SHA1 of the sorted parameters, `command` among them) or a "
                           "session's `sessionkey`."},
        "servers": [{"url": "/"}],
        "paths": {f"/client/api/{each.name}": {"get": _operation(each)}
                  for each in sorted(registry.COMMANDS, key=lambda one: one.name)},
        "components": {"schemas": {**schemas, "error": ERROR}}}


@cache
def text() -> str:
    """The document as it is committed."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


__all__ = ["document", "text"]

if __name__ == "__main__":
    sys.stdout.write(text())
