"""An error object of the API as the failure it was: the same tree, the same words, on both sides of the wire.

Owns which class a code becomes. Refuses to guess: an answer that names no field raises a failure without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.signature import Unauthorized
from schema.failure import (
    BadParameter,
    Cancelled,
    Denied,
    Failed,
    Failure,
    InUse,
    Malformed,
    NoRoom,
    Refused,
    Unavailable,
    Unknown,
    Unsupported,
    WorkFailed,
)

NOT_ENDED = 4560
"""CloudStack's exception code of a synchronous command whose job goes on."""
CLASSES: dict[int, type[Failed]] = {
    430: Malformed, 431: BadParameter, 432: Unsupported, 531: Denied, 533: NoRoom, 536: InUse, 429: Unavailable,
    503: Unavailable, 534: Unavailable}
"""What a code becomes; other codes are told apart by their hundreds."""


def failed(error: Mapping[str, Any], *, cancelled: bool = False) -> Failed:
    """The error that an answer, or a job's result, tells. `cancelled`: its job was."""
    code = int(error.get("errorcode", 530))
    kind = Cancelled if cancelled else _kind(code, int(error.get("cserrorcode", 0)))
    cause = str(error.get("cause") or error.get("errortext") or "refused without a reason")
    failure = Failure(code=code, cscode=int(error.get("cserrorcode", kind.cscode)), field=str(error.get("field", "")),
                      cause=cause, remedy=str(error.get("remedy", "")), definite=bool(error.get("definite", kind.definite)),
                      retryable=kind.retryable)
    made = Unauthorized() if kind is Unauthorized else kind(cause, field=failure.field, remedy=failure.remedy)
    made.failure = failure
    return made


def _kind(code: int, cscode: int) -> type[Failed]:
    if code == Unauthorized.code:
        return Unauthorized
    if cscode == NOT_ENDED:
        return Unknown
    return CLASSES.get(code) or (Refused if 400 <= code < 500 else WorkFailed if code == 530 else Failed)


__all__ = ["NOT_ENDED", "failed"]
