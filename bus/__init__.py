"""How messages move and rest: publish, subscribe, call, replay. Knows no storage noun.

`Bus` is the surface; the rest of what is named here is what its methods take, give and raise. Each is loaded when it is asked
for: a process that needs one module below this package does not pay for the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bus.handles import Dispatcher, handles  # a module and what it is for have one name: only now is it the latter's

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.errors import CallCancelled, CallFailed, CallTimedOut, Conflict, LogBroken, NoHandler
    from bus.job import JobFailure, JobHandle, JobStopped
    from bus.replay import Outcome, Replay
    from bus.subscription import SubscribedEvent

__all__ = [
    "Bus", "CallCancelled", "CallFailed", "CallTimedOut", "Conflict", "Dispatcher", "JobFailure", "JobHandle",
    "JobStopped", "LogBroken", "NoHandler", "Outcome", "Replay", "SubscribedEvent", "handles",
]

_HOMES = {
    "client": ("Bus",), "errors": ("CallCancelled", "CallFailed", "CallTimedOut", "Conflict", "LogBroken", "NoHandler"),
    "job": ("JobFailure", "JobHandle", "JobStopped"), "replay": ("Outcome", "Replay"),
    "subscription": ("SubscribedEvent",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"bus.{module}"), name)
    raise AttributeError(f"module 'bus' has no attribute {name!r}")
