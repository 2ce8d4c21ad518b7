"""SQL by name: the blocks of `schema/sql/queries.sql`. Owns the loading; refuses to build SQL from parts."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources


@cache
def _queries() -> dict[str, str]:
    text = (resources.files("schema") / "sql" / "queries.sql").read_text()
    blocks = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(blocks[1::2], (block.strip() for block in blocks[2::2]), strict=True))


def query(name: str) -> str:
    """The query of this name. Raises KeyError for one that is not there."""
    return _queries()[name]
