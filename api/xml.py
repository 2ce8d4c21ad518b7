"""XML: an answer as CloudStack writes it where `response=json` was not asked for.

Owns how JSON's values become elements: an object's fields are elements, a list is its element repeated, null is left out. A name
that is no element's name (a setting of a provider may have any) stands in `<entry key="...">`. Refuses to know commands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

XML_TYPE = "text/xml; charset=UTF-8"
HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot carry, not even escaped."""


def rendered(body: Mapping[str, Any], version: str) -> str:
    """A document of an answer's one key. `version` is the CloudStack release whose API is followed."""
    [(root, value)] = body.items()
    inner = "".join(_fields(value)) if isinstance(value, Mapping) else "".join(_element(root, value))
    return f"{HEAD}<{root} cloud-stack-version={quoteattr(version)}>{inner}</{root}>"


def _fields(value: Mapping[str, Any]) -> Iterator[str]:
    for name, each in value.items():
        yield from _element(str(name), each)


def _element(name: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for each in value:
            yield from _element(name, each)
        return
    opened, closed = (name, name) if _NAME.fullmatch(name) else (f"entry key={quoteattr(_text(name))}", "entry")
    inner = "".join(_fields(value)) if isinstance(value, Mapping) else escape(_text(value))
    yield f"<{opened}>{inner}</{closed}>"


def _text(value: Any) -> str:
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return _FORBIDDEN.sub("\ufffd", shown)


__all__ = ["XML_TYPE", "rendered"]
