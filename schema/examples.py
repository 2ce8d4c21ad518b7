"""Examples of messages, made from their classes: for the AsyncAPI document and the golden files of the wire.

Owns what an example value looks like. Deterministic: the same class gives the same example for ever, so a golden file
that changes shows a message that changed.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid5

from schema.ids import NAMESPACE
from schema.message import Message

WORDS: dict[str, str] = {
    "name": "debian-12", "display_text": "Debian 12", "url": "https://images.example/debian-12.qcow2", "provider": "s3",
    "hypervisor": "KVM", "checksum": "{SHA-256}" + "ab" * 32, "root": "ab" * 32, "sha256": "ab" * 32, "scope": "REGION",
    "agent": "kvm-1", "kind": "folder", "path": "disk.qcow2", "prefix": "4f1c", "tag": "s1", "principal": "engineer",
    "tenant": "root", "command": "snapshot.create", "key": "volume-7a1e", "cause": "the store did not answer",
    "remedy": "start it", "field": "url", "step": "backup", "stage": "write", "work": "7a1e.1",
    "expires_at": "2026-11-30T12:00:00Z", "first_at": "2026-11-30T12:00:00Z",
    "due_at": "2026-11-30T12:00:00Z", "next_at": "2026-12-01T12:00:00Z",
    "password": "vault:7d2f9a10-4c1e-4b53-9a37-0c5f1e2d3b4a",
    "secret_key": "vault:1b9e6c52-8f3d-4e0a-b1c4-6a7d8e9f0a1b", "email": "ann@example.org",
}
"""What a text field of this name holds in an example."""
OTHER_FIELD = "bucket"


def example(message: type[Message], *, full: bool = True) -> dict[str, Any]:
    """A body that the class reads: with every field, or (full=False) with the required ones only."""
    schema = message.model_json_schema()
    return _object(schema, schema.get("$defs", {}), message.TYPE, full)


def _object(schema: dict[str, Any], defs: dict[str, Any], path: str, full: bool) -> dict[str, Any]:
    required = set(schema.get("required", ()))
    return {name: _value(inner, defs, f"{path}.{name}", full) for name, inner in schema.get("properties", {}).items()
            if full or name in required}


def _value(schema: dict[str, Any], defs: dict[str, Any], path: str, full: bool) -> Any:
    if "$ref" in schema:
        return _value(defs[schema["$ref"].rpartition("/")[2]], defs, path, full)
    if "anyOf" in schema:
        return _value(next(each for each in schema["anyOf"] if each.get("type") != "null"), defs, path, full)
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object" if "properties" in schema:
            return _object(schema, defs, path, full)
        case "object":
            inner = schema.get("additionalProperties")
            return {OTHER_FIELD: _value(inner, defs, f"{path}.{OTHER_FIELD}", full) if isinstance(inner, dict) else 1}
        case "array":
            return [_value(schema["items"], defs, f"{path}.0", full)]
        case "integer":
            return int(schema.get("minimum", 1))
        case "boolean":
            return True
        case "string" if schema.get("format") == "uuid":
            return str(uuid5(NAMESPACE, path))
        case "string":
            name = path.rpartition(".")[2]
            return WORDS.get(name, name)
        case other:
            raise TypeError(f"{path}: no example is known for {other or schema}")


__all__ = ["example"]
