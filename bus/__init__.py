"""How messages move and rest: publish, subscribe, call, replay. Knows no storage noun.

`Bus` is the surface; the rest of what is named here is what its methods take, give and raise.
"""

from bus.client import Bus
from bus.errors import CallCancelled, CallFailed, CallTimedOut, Conflict, LogBroken, NoHandler
from bus.handles import Dispatcher, handles
from bus.job import JobFailure, JobHandle, JobStopped
from bus.replay import Outcome, Replay
from bus.subscription import SubscribedEvent

__all__ = [
    "Bus", "CallCancelled", "CallFailed", "CallTimedOut", "Conflict", "Dispatcher", "JobFailure", "JobHandle",
    "JobStopped", "LogBroken", "NoHandler", "Outcome", "Replay", "SubscribedEvent", "handles",
]
