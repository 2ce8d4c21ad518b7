"""What every message is: frozen, keyword-only data with a wire name and a version.

Owns the base classes and the registry (wire name, version) -> class. Refuses to know any noun, any transport
and any clock: a message is complete when it is built, and time and ids travel in the envelope around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Kind(StrEnum):
    """What a log row or a message on the bus is for; the relay routes by it."""

    COMMAND = "command"  # a request, imperative; its id is the job id
    EVENT = "event"  # a fact in a stream, past tense
    ORDER = "order"  # what a handler asks one agent to do
    REPORT = "report"  # what an agent answers; never a log row of its own
    TIMER = "timer"  # a wait that has come due; never a log row of its own


class Secret(str):
    """A reference to a secret kept in the vault (`vault:<uuid>`). The secret itself is never a message field."""

    PREFIX: ClassVar[str] = "vault:"

    @classmethod
    def is_reference(cls, value: str) -> bool:
        """True when `value` only points into the vault."""
        return value.startswith(cls.PREFIX)


REGISTRY: dict[tuple[str, int], type[Message]] = {}
"""Every message class by (wire name, version). Filled as the classes are defined; double registration is refused."""


class Message(BaseModel):
    """Base of all messages. Unknown fields are ignored on read (a newer writer may add some)."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_bytes="base64", val_json_bytes="base64")

    TYPE: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1
    KIND: ClassVar[Kind]

    @classmethod
    def __init_subclass__(cls, type: str = "", version: int = 1, **kwargs: Any) -> None:  # noqa: A002 - the wire's word
        super().__init_subclass__(**kwargs)
        if not type:
            return  # an abstract base such as Event
        cls.TYPE, cls.VERSION = type, version
        if (type, version) in REGISTRY:
            raise TypeError(f"two message classes are named {type} version {version}")
        REGISTRY[type, version] = cls


class Command(Message):
    """A request. `key()` names the root thing it concerns: commands of one thing are handled in order."""

    KIND = Kind.COMMAND
    SECRETS: ClassVar[tuple[str, ...]] = ()
    """Fields whose values are secret: in the log, only vault references stand there."""

    EVENT: ClassVar[str] = ""
    """CloudStack's name of what a job of it does, like SNAPSHOT.CREATE; empty: the wire name in capitals."""

    @classmethod
    def event(cls, body: Mapping[str, Any]) -> str:
        """CloudStack's name of what the job of this command does."""
        return cls.EVENT or cls.TYPE.upper().replace("_", ".")

    @classmethod
    def events(cls) -> tuple[str, ...]:
        """Every name that `event` may give."""
        return (cls.event({}),)

    def key(self, job_id: UUID) -> str:
        """The partition key. The default is the job itself: nothing else can be concerned yet."""
        return f"job-{job_id}"


class Event(Message):
    """A fact about the thing whose stream it is in."""

    KIND = Kind.EVENT


class Order(Message):
    """One piece of work for one agent. `work_id` + `attempt` name every object it makes; see `work_name`."""

    KIND = Kind.ORDER

    job_id: UUID
    work_id: UUID
    attempt: int = 1
    agent: str
    reply_key: str
    """Partition key that the reports carry back, so that they meet the job's other messages."""

    @property
    def work_name(self) -> str:
        """`<work id>.<attempt>`: never reused, so that what it names is known to be this attempt's."""
        return f"{self.work_id}.{self.attempt}"


class Report(Message):
    """An agent's answer about one order."""

    KIND = Kind.REPORT

    job_id: UUID
    work_id: UUID
    attempt: int = 1
    agent: str
