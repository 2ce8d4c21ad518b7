"""How often a role looks for reference cycles: seldom, because a role under load holds many objects that live for a moment.

Owns the thresholds and nothing else. Refuses to switch the collector off: cycles are still found, after more objects. It is
called where a role's work begins, never by a client: a program that only publishes or subscribes keeps its own settings.
"""

from __future__ import annotations

import gc

THRESHOLDS = 50_000, 20, 50
"""New objects before the young are looked through (Python 3.11's own: 700), and how many such turns before the older are. At
700 every message in flight is looked through several times."""


def collect_seldom() -> None:
    """Set the thresholds of this process; again changes nothing."""
    gc.set_threshold(*THRESHOLDS)


__all__ = ["collect_seldom"]
