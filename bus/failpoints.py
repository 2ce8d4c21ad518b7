"""Failpoints: named places where a fault test may kill, fail or delay this process. Nothing happens unless armed.

Owns the names that were armed. Refuses to be armed by a message: only by the process's own start.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

_armed: dict[str, str] = {}
NAMES = frozenset({
    "relay.before_publish", "relay.after_publish", "relay.after_confirm", "relay.before_checkpoint",
    "consumer.before_handle", "consumer.after_handle_before_ack", "forwarder.after_publish_before_ack",
    "scheduler.after_publish", "agent.after_journal_before_ack", "agent.before_work",
    "agent.after_work_before_report", "agent.after_report_before_release", "api.after_append",
})


class Injected(Exception):
    """Raised at a failpoint armed with `raise`."""


def arm(points: Mapping[str, str]) -> None:
    """Arm points: `kill` (SIGKILL), `raise`, `sleep:<seconds>`; `kill@3` acts at the third hit. Unknown names are errors."""
    for name, action in points.items():
        if name not in NAMES:
            raise ValueError(f"no failpoint is named {name!r}")
        _armed[name] = action


def hit(name: str) -> None:
    """This place was reached."""
    action = _armed.get(name)
    if action is None:
        return
    what, _, nth = action.partition("@")
    if nth and int(nth) > 1:
        _armed[name] = f"{what}@{int(nth) - 1}"
        return
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "raise":
        del _armed[name]
        raise Injected(name)
    elif what.startswith("sleep:"):
        time.sleep(float(what.removeprefix("sleep:")))
