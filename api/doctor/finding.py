"""What a check of the doctor found, and the words that all of them share."""

from __future__ import annotations

from dataclasses import dataclass

CHECK_S = 10.0
"""How long a check waits for a server."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `state`: ok, warning (it works without) or fault."""

    state: str
    detail: str
    remedy: str = ""
    of: str = ""
    """The thing that it is about, where a check is about several."""
    stops: bool = False
    """What depends on it cannot be looked at."""


def span_text(seconds: float) -> str:
    """A time for people."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"


__all__ = ["CHECK_S", "Finding", "span_text"]
