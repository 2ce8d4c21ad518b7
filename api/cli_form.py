"""How what a command prints is asked for: its form, and what of it.

Owns the options -o and --query of every command that prints data. Refuses to print: that is `api.output`'s. Nothing heavy is
imported before an option is given, so that help is instant.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, get_type_hints

import typer


def _asked(text: str | None) -> str | None:
    """The option --query: read before anything is done."""
    if text is not None:
        from api.query import CHOSEN, read
        from schema.failure import BadParameter

        try:
            CHOSEN.set(read(text))
        except BadParameter as wrong:
            raise typer.BadParameter(wrong.failure.cause) from None
    return text


QUERY = Annotated[str | None, typer.Option("--query", metavar="JMESPATH", callback=_asked,
                                           help="Print what this finds in the data: 'volume[].id'.")]


def queried(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command that prints data the option --query; the output does the rest."""

    @functools.wraps(command)
    def run(*words: Any, query: str | None = None, **options: Any) -> Any:
        return command(*words, **options)

    kinds = get_type_hints(command, include_extras=True)
    known = [each.replace(annotation=kinds[each.name]) for each in inspect.signature(command).parameters.values()]
    asked = inspect.Parameter("query", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=QUERY)
    run.__signature__ = inspect.Signature([*known, asked])  # type: ignore[attr-defined]  # a function has it
    run.__annotations__ = {**kinds, "query": QUERY}
    return run


class Format(StrEnum):
    """As api.output.Format; here so that help needs no import of it."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"


Form = Annotated[Format | None, typer.Option("-o", "--output", help="table on a terminal, JSON in a pipe.")]
"""The option -o."""

__all__ = ["Form", "Format", "queried"]
