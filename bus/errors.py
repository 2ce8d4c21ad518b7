"""Errors of the bus and the event store, part of the one tree in `schema.failure`.

    Failed
     ├─ Unavailable
     │   ├─ StoreAway        Postgres does not answer
     │   └─ BrokerAway       the broker does not answer, or refuses for now (nack, alarm)
     ├─ Unknown
     │   ├─ PublishUnknown   no confirm came: the message may be in the queue (publish again; ids make it harmless)
     │   └─ AppendUnknown    the connection broke during an append: it may have been committed (append again)
     ├─ Conflict             another append came first: nothing was written; read again and decide again
     │   ├─ ClaimTaken       somebody else holds the name
     │   └─ CounterFull      the number would pass its ceiling, or go below zero
     ├─ Unroutable           no queue takes the message: nothing was sent
     ├─ NoHandler / CallFailed / CallTimedOut / CallCancelled   of `bus.call`
     └─ LogBroken            the log is not what it was: density, version, chain or epoch; the reader stops
"""

from __future__ import annotations

from schema.failure import Cancelled, Failed, Failure, Unavailable, Unknown


class StoreAway(Unavailable):
    """Postgres does not answer; nothing was done."""


class BrokerAway(Unavailable):
    """The broker does not answer or refuses for now; nothing was sent."""


class PublishUnknown(Unknown):
    """No confirm came: the message may be in its queue."""


class AppendUnknown(Unknown):
    """The connection broke during an append: it may have been committed."""


class Conflict(Failed):
    """Another append came first; nothing was written. `stream` says where."""

    retryable = True

    def __init__(self, cause: str, *, stream: str = "", actual: int = -1) -> None:
        super().__init__(cause)
        self.stream, self.actual = stream, actual


class ClaimTaken(Conflict):
    """Somebody else holds the name; `stream` is the claim's name, `holder` what holds it."""

    def __init__(self, cause: str, *, stream: str = "", holder: str = "") -> None:
        super().__init__(cause, stream=stream)
        self.holder = holder


class CounterFull(Conflict):
    """The number would pass its ceiling or go below zero; `stream` is the counter's name, `actual` its value."""


class Unroutable(Failed):
    """No queue takes the message; nothing was sent."""


class NoHandler(Failed):
    """Nobody answers at this address."""

    code = 432
    cscode = 4555


class CallFailed(Failed):
    """The other side failed; its failure is `remote`, whose codes and texts this error shows."""

    def __init__(self, remote: Failure) -> None:
        super().__init__(remote.cause, field=remote.field, remedy=remote.remedy)
        self.remote = self.failure = remote


class CallTimedOut(Unknown):
    """No answer in time: the call may have had its effect."""

    code = 530
    cscode = 4560


class CallCancelled(Cancelled):
    """The caller gave up."""


class LogBroken(Failed):
    """The log is not what it was: a position, version, hash or epoch is wrong. The reader stops here."""
