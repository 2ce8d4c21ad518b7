"""CloudStack's request signature: HMAC-SHA1 over the sorted parameters, under the user's secret key.

Owns the text that is signed, in the forms that clients in use make of it, and the end of a signature's life. Refuses to know
who the key belongs to. Rule: neither the text, nor the signature that would have been right, nor the key is logged or shown.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote

from schema.failure import Failed

UNAUTHORIZED = "unable to verify user credentials and/or request signature"
"""CloudStack's text for whatever is wrong with who a caller says it is."""
SAFE = ("*", "", "[]*")
"""Characters besides letters, digits, `_.-~` that clients leave as they are in values: Java's and Python's `cs`, a plain
percent encoding, libcloud's."""
MOST = 255
"""Characters of a key, a signature or a time."""


class Unauthorized(Failed):
    """Who is calling could not be verified. Never says what was wrong."""

    code = 401
    cscode = 4365

    def __init__(self) -> None:
        super().__init__(UNAUTHORIZED)


def texts(parameters: Mapping[str, str]) -> list[bytes]:
    """What may have been signed: sorted by name as it is or in lower case; values in each of the encodings."""
    given = [(name, value) for name, value in parameters.items() if name.lower() != "signature"]
    found: dict[str, None] = {}
    for safe in SAFE:
        for tilde in ("~", "%7E"):  # Python leaves it, Java does not
            pairs = [(name, quote(value, safe=safe).replace("~", tilde)) for name, value in given]
            for key in (str, str.lower):
                pairs.sort(key=lambda pair: key(pair[0]))
                found["&".join(f"{name}={value}" for name, value in pairs).lower()] = None
    return [text.encode() for text in found]


def _digest(text: bytes, secret: str) -> bytes:
    return base64.b64encode(hmac.digest(secret.encode(), text, hashlib.sha1))


def sign(parameters: Mapping[str, str], secret: str) -> str:
    """The signature of a request, in the first of the forms."""
    return _digest(texts(parameters)[0], secret).decode()


def verified(parameters: Mapping[str, str], secret: str) -> bool:
    """Whether the parameter `signature` is right. Every form is compared, each in constant time."""
    told = value_of(parameters, "signature").encode()
    right = False
    for text in texts(parameters):
        right |= hmac.compare_digest(_digest(text, secret), told)
    return right


def value_of(parameters: Mapping[str, str], name: str) -> str:
    """A parameter of the protocol itself, its name in any letter case; empty when it is not there."""
    return next((value for spelled, value in parameters.items() if spelled.lower() == name), "")


def check_form(parameters: Mapping[str, str], now: datetime) -> None:
    """Raises Unauthorized for a signature that is over, for names that could stand for several parameters in the signed text,
    and for a version 3 without its end."""
    if any("&" in name or "=" in name for name in parameters):
        raise Unauthorized
    if len({name.lower() for name in parameters}) != len(parameters):
        raise Unauthorized
    if any(len(value_of(parameters, name)) > MOST for name in ("apikey", "signature", "expires", "signatureversion")):
        raise Unauthorized
    if value_of(parameters, "signatureversion") != "3":
        return
    try:
        ends = datetime.fromisoformat(value_of(parameters, "expires"))
    except ValueError:
        raise Unauthorized from None
    if (ends if ends.tzinfo is not None else ends.replace(tzinfo=UTC)) <= now:
        raise Unauthorized


__all__ = ["UNAUTHORIZED", "Unauthorized", "check_form", "sign", "texts", "value_of", "verified"]
