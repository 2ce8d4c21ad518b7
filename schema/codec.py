"""Messages to bytes and back: canonical JSON, wire names, upcasters.

The stored bytes are hashed, so they are canonical: UTF-8, keys sorted, no spaces, no floats. Reading is lenient:
unknown fields are ignored, older versions pass through the upcasters; an unknown type or a version from the
future is an error that says so, and the reader decides (a decider stops, a subscriber skips). Knows no noun: a name that it does
not know is looked for once more when the whole vocabulary has been asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from schema.failure import Malformed
from schema.message import REGISTRY, Message

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
UPCASTERS: dict[tuple[str, int], Upcaster] = {}
"""(wire name, old version) -> pure function giving the body of the next version."""


class UnknownType(Malformed):
    """No class here has this wire name."""


class FromTheFuture(Malformed):
    """The message has a version newer than this process reads."""


def canonical(body: Mapping[str, Any]) -> bytes:
    """The one byte form of a JSON object. Floats are refused: they have no canonical form."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def encode(message: Message) -> bytes:
    """The stored and sent form of a message; fields that are None are left out."""
    return canonical(message.model_dump(mode="json", exclude_none=True))


def newest_version(type: str) -> int:  # noqa: A002 - the wire's own word
    """The newest version of `type` that this process reads; 0 when it knows none."""
    if (type, 1) not in REGISTRY:
        import schema  # which is made of this module among others

        schema.vocabulary()
    version = 0
    while (type, version + 1) in REGISTRY:
        version += 1
    return version


def decode(type: str, version: int, payload: bytes) -> Message:  # noqa: A002 - the wire's own word
    """The message in `payload`. Raises UnknownType, FromTheFuture or Malformed, each naming the cause."""
    newest = newest_version(type)
    if newest == 0:
        raise UnknownType(f"no message is named {type!r}", field="type", remedy="`storebus asyncapi` lists the names")
    if not 1 <= version <= newest:
        raise FromTheFuture(f"{type} version {version} is not 1 to {newest}", field="version",
                            remedy="upgrade this role")
    try:
        if version == newest:
            return REGISTRY[type, newest].model_validate_json(payload)
        body = json.loads(payload)
        for old in range(version, newest):
            body = UPCASTERS[type, old](body)
        return REGISTRY[type, newest].model_validate_json(json.dumps(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Malformed(f"{type}: {first['msg']}", field=where or "body") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise Malformed(f"the body of {type} is not JSON: {error}", field="body") from None
