"""Request: the parameters of an HTTP request, from its query and its form, or a refusal.

Owns how much of a request is read (a body is given up at the byte that passes the limit) and that a name comes once. Refuses to
know which parameters there are. What was read before a refusal stays known, so that the refusal is told in the form asked for.
"""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qsl

from starlette.requests import Request

from api.parameters import MAX_PARAMETERS
from schema.failure import BadParameter, Malformed

MAX_BODY = 1 << 20
BODY_S = 30.0
"""How long a body may take to come."""
FORM = "application/x-www-form-urlencoded"


class TooLarge(Malformed):
    """The body passes the limit."""

    code = 413


class TooSlow(Malformed):
    """The body did not come in time."""

    code = 408


async def read_parameters(request: Request, found: dict[str, str]) -> None:
    """Put what the query string and the form hold into `found`. Raises Malformed, TooLarge, TooSlow or
    BadParameter."""
    _take(_pairs(request.scope["query_string"]), found)
    if request.method != "POST":
        return
    try:
        async with asyncio.timeout(BODY_S):
            body = await _body(request)
    except TimeoutError:
        raise TooSlow(f"the body did not come within {BODY_S:g} s", field="body") from None
    if not body:
        return
    kind = request.headers.get("content-type", FORM).partition(";")[0].strip().lower()
    if kind != FORM:
        raise Malformed(f"{kind[:64]!r} cannot be read", field="Content-Type", remedy=f"send {FORM}")
    _take(_pairs(body), found)


def _take(pairs: list[tuple[str, str]], found: dict[str, str]) -> None:
    twice = ""
    for name, value in pairs:
        if name in found:
            twice = twice or name
        else:
            found[name] = value
    if len(found) > MAX_PARAMETERS:
        raise BadParameter(f"the request has {len(found)} parameters", field="command",
                           remedy=f"at most {MAX_PARAMETERS} are allowed")
    if twice:
        shown = "".join(each if each.isprintable() else "?" for each in twice[:64])
        raise BadParameter("given twice", field=shown, remedy="give each parameter once, in the query or in the form")


async def _body(request: Request) -> bytes:
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told[:20]) > MAX_BODY:
        raise TooLarge(f"the body is larger than {MAX_BODY} bytes", field="body")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            raise TooLarge(f"the body is larger than {MAX_BODY} bytes", field="body")
        chunks.append(chunk)
    return b"".join(chunks)


def _pairs(text: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text.decode("ascii"), keep_blank_values=True, errors="strict",
                         max_num_fields=10 * MAX_PARAMETERS)
    except UnicodeDecodeError:
        raise Malformed("the parameters are not UTF-8 in percent encoding", field="command") from None
    except ValueError:
        raise BadParameter("the request has too many parameters", field="command",
                           remedy=f"at most {MAX_PARAMETERS} are allowed") from None


__all__ = ["BODY_S", "MAX_BODY", "TooLarge", "TooSlow", "read_parameters"]
