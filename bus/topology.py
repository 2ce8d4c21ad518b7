"""The broker's topology as one literal table: exchanges, queues, what is bound where, and why each argument is there.

Works on RabbitMQ 3.10 to 4.x without plug-ins. Declared by whoever connects, so a wiped broker has it back with the first
connection. Refuses to hold anything that must not be lost: the log is the truth, queues are on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bus.transport import Address
from schema.ids import PARTITIONS

COMMANDS, WORK, ORDERS, EVENTS = "storebus.commands", "storebus.work", "storebus.orders", "storebus.events"
CLOUDSTACK = "cloudstack-events"
"""CloudStack's name of its event exchange."""
PROGRESS, DEAD, LOST = "storebus.progress", "storebus.dead", "storebus.lost"
EXCHANGES = {COMMANDS: "topic", WORK: "direct", ORDERS: "direct", EVENTS: "topic", PROGRESS: "fanout", DEAD: "fanout",
             LOST: "fanout", CLOUDSTACK: "topic"}
"""Name -> type; all durable."""

QUORUM: dict[str, Any] = {
    "x-queue-type": "quorum",
    # A net only: the consumer holds a message after three tries. RabbitMQ 4 would otherwise drop it after twenty.
    "x-delivery-limit": 1000,
    "x-dead-letter-exchange": DEAD,
    # At-most-once, the default, may lose dead letters; at-least-once needs reject-publish.
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}
SINGLE: dict[str, Any] = QUORUM | {"x-single-active-consumer": True}
SUBSCRIBER: dict[str, Any] = {"x-queue-type": "classic", "x-max-length": 10_000, "x-overflow": "drop-head",
                              "x-dead-letter-exchange": LOST}
"""A subscriber never stops the relay: it loses the oldest, which are counted, and replays."""
COUNTER: dict[str, Any] = {"x-queue-type": "classic", "x-max-length": 100_000, "x-overflow": "drop-head"}
"""What subscribers lost: its depth is the count, up to its bound."""
WATCHER: dict[str, Any] = {"x-queue-type": "classic", "x-max-length": 10_000, "x-overflow": "drop-head"}
"""Progress: only the last values matter."""
TRANSIENT = ("progress", "call", "reply")
"""Kinds whose messages need not survive the broker."""
TARGET: dict[str, Any] = {"x-queue-type": "classic", "x-expires": 24 * 3600 * 1000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue as it is declared."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    exchange: str = ""
    """Bound to it; empty: reached by its name alone."""
    key: str = ""
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False


def standing() -> list[Queue]:
    """The queues that are always there."""
    parts = [Queue(name=f"{WORK}.p{n:02d}", arguments=SINGLE, exchange=WORK, key=f"{n:02d}") for n in range(PARTITIONS)]
    return [
        *parts,
        Queue(name=f"{COMMANDS}.in", arguments=QUORUM, exchange=COMMANDS, key="#"),
        Queue(name=DEAD, arguments={"x-queue-type": "quorum"}, exchange=DEAD),
        Queue(name=LOST, arguments=COUNTER, exchange=LOST),
    ]


def source(address: Address, unique: str) -> Queue:
    """The queue that a consumer of `address` reads; `unique` names its private one."""
    match address.kind:
        case "work":
            return Queue(name=f"{WORK}.p{address.name}", arguments=SINGLE, exchange=WORK, key=address.name)
        case "agent":
            return Queue(name=f"storebus.agent.{address.name}", arguments=SINGLE, exchange=ORDERS, key=address.name)
        case "commands":
            return Queue(name=f"{COMMANDS}.in", arguments=QUORUM, exchange=COMMANDS, key="#")
        case "dead":
            return Queue(name=DEAD, arguments={"x-queue-type": "quorum"}, exchange=DEAD)
        case "lost":
            return Queue(name=LOST, arguments=COUNTER, exchange=LOST)
        case "events":
            return Queue(name=f"storebus.subscriber.{unique}", arguments=SUBSCRIBER, exchange=EVENTS, key=address.name,
                         durable=False, exclusive=True, auto_delete=True)
        case "progress":
            return Queue(name=f"storebus.watcher.{unique}", arguments=WATCHER, exchange=PROGRESS, durable=False,
                         exclusive=True, auto_delete=True)
        case "call":
            # Durable, because RabbitMQ 4 phases out transient queues that are not exclusive; its messages are transient.
            return Queue(name=f"storebus.call.{address.name}", arguments={"x-queue-type": "classic"}, auto_delete=True)
        case "reply":
            return Queue(name=f"storebus.reply.{address.name}", durable=False, exclusive=True, auto_delete=True)
        case _:
            return Queue(name=address.name, arguments=TARGET)


def target(address: Address) -> tuple[str, str, bool]:
    """(exchange, routing key, mandatory) of a publish."""
    match address.kind:
        case "work":
            return WORK, address.name, True
        case "agent":
            return ORDERS, address.name, True
        case "commands":
            return COMMANDS, address.name, True
        case "events":
            return EVENTS, address.name, False  # no subscriber is normal
        case "cloudstack":
            return CLOUDSTACK, address.name, False  # nor is one here
        case "progress":
            return PROGRESS, "", False
        case "call":
            return "", f"storebus.call.{address.name}", True
        case "reply":
            return "", f"storebus.reply.{address.name}", True
        case _:
            return "", address.name, True
