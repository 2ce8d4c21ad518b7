"""What the log has, as decisions need it: a stream folded to its state, the command inside a job, an order's row as the order.

Refuses to read the log: rows are given. Rule: an unknown event stops here, for a decider may not guess.
"""

from __future__ import annotations

from typing import Any

from bus.envelope import Envelope
from bus.event_store import NO_STREAM, LogRow
from bus.submission import submitted
from handlers.table import EVOLVE
from schema.codec import canonical, decode
from schema.job import JobSubmitted
from schema.message import Command, Event, Message, Order


def submitted_by(envelope: Envelope, command: Command) -> JobSubmitted:
    """The JobSubmitted of a command that came by message and is not in the log yet."""
    return submitted(command, job_id=envelope.id, principal=envelope.principal or "system", tenant=envelope.tenant)


def command_of(fact: JobSubmitted) -> Command:
    """The command inside a JobSubmitted."""
    message = decode(fact.command, fact.version, canonical(fact.body))
    assert isinstance(message, Command)
    return message


def fold(stream: str, rows: list[LogRow]) -> tuple[int, Any]:
    """(version, state) of a stream. An unknown event stops here: a decider may not guess."""
    evolve = EVOLVE[stream.split("-", 1)[0]]
    state = None
    for row in rows:
        if row.kind == "order":
            continue
        event: Message = decode(row.type, row.type_version, row.payload)
        assert isinstance(event, Event)
        state = evolve(state, event)
    return (rows[-1].version if rows else NO_STREAM), state


def order_of(row: LogRow) -> Order:
    """The order of a row of kind order."""
    order = decode(row.type, row.type_version, row.payload)
    assert isinstance(order, Order)
    return order


__all__ = ["command_of", "fold", "order_of", "submitted_by"]
