"""`--query`: a JMESPath expression over what a command prints.

Owns the reading of an expression, and which one this run of the command line was given. Refuses to print anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jmespath

from schema.failure import BadParameter

MOST = 4096
"""Characters of an expression."""
Query = Callable[[Any], Any]
"""What is printed -> what is asked of it."""
CHOSEN: ContextVar[Query | None] = ContextVar("query", default=None)
"""The expression of this run."""


def read(text: str) -> Query:
    """The expression as a function. Raises BadParameter saying where it is wrong."""
    if len(text) > MOST:
        raise BadParameter(f"the expression has {len(text)} characters", field="query", remedy=f"at most {MOST} are allowed")
    try:
        compiled = jmespath.compile(text)
    except jmespath.exceptions.JMESPathError as error:
        raise BadParameter(" ".join(str(error).split()), field="query",
                           remedy="for example 'volume[].{id: id, name: name}'") from None

    def ask(found: Any) -> Any:
        try:
            return compiled.search(json.loads(json.dumps(found, default=str)))
        except jmespath.exceptions.JMESPathError as error:
            raise BadParameter(" ".join(str(error).split()), field="query") from None

    return ask


__all__ = ["CHOSEN", "Query", "read"]
