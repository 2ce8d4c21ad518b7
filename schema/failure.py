"""The one error tree. A failure crosses the wire as data and is raised in a process as `Failed`.

    Failed
     ├─ Refused           the caller asked for something that cannot be: nothing was done
     │   ├─ Malformed       430  a map or list parameter cannot be parsed
     │   ├─ BadParameter    431  a parameter is missing, wrong, unknown or names nothing
     │   ├─ Unsupported     432  no such command
     │   ├─ Denied          531  the caller may not
     │   └─ InUse           536  something still needs it
     ├─ Unavailable       503/534  a service is away: nothing was done, try again
     ├─ WorkFailed        530  an agent tried and failed: certainly did not happen
     ├─ Cancelled         530  somebody asked for it to stop, and it did
     └─ Unknown           530  an answer is missing: it may have happened (indeterminate)

Every class says whether it is definite ("certainly did not happen") or not; that alone decides whether to retry,
compensate or ask. The codes are CloudStack's.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Damage(BaseModel):
    """Where an object in an image store is not what was written."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    object: str
    """Its key; a damaged manifest is named by the object beside which it lies."""
    what: str
    """part, size, missing (the object or its manifest is not there) or manifest."""
    part: int = 0
    """The first bad part, counted from 1; 0 when it is not about a part."""
    parts: int = 0
    """Parts of the object."""
    bad: int = 0
    """Bad parts, where all were looked at."""
    offset: int = 0
    """Its first byte in the object."""
    length: int = 0
    """Its bytes."""
    expected: str = ""
    """Hex SHA-256 that was written, or the size, or the root."""
    found: str = ""
    """The same, as it is now."""

    @property
    def text(self) -> str:
        """Where and what, for a person."""
        match self.what:
            case "part":
                more = f", {self.bad} parts are bad in all" if self.bad > 1 else ""
                end = self.offset + self.length - 1
                return (f"part {self.part} of {self.parts} (bytes {self.offset} to {end}) of the object {self.object} "
                        f"has the SHA-256 {self.found}, not {self.expected}{more}")
            case "size":
                return f"the object {self.object} has {self.found} bytes, not {self.expected}"
            case "missing":
                return f"the object {self.object} is not whole in the store: {self.found}"
            case _:
                return f"the manifest of the object {self.object} is not what was written: {self.found}"


class Failure(BaseModel):
    """A failure as data, safe to show to the caller. `field`, `cause` and `remedy` are sentences for a person."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: int = 530
    """CloudStack's error code."""
    cscode: int = 4250
    """CloudStack's exception code."""
    field: str = ""
    """The parameter or setting at fault, in the caller's spelling; empty when none is."""
    cause: str
    remedy: str = ""
    definite: bool = True
    retryable: bool = False
    damage: Damage | None = None
    """The object that was found damaged, when that is why."""
    remains: bool = False
    """What the attempt made in an image store may still be there: its removal was tried, and goes on by a job of its own."""

    @property
    def text(self) -> str:
        """One line: field, cause, remedy."""
        head = f"{self.field}: {self.cause}" if self.field else self.cause
        return f"{head.rstrip('.')}. {self.remedy}".strip() if self.remedy else head


class Failed(Exception):
    """Base of all Storebus errors."""

    code: ClassVar[int] = 530
    cscode: ClassVar[int] = 4250
    definite: ClassVar[bool] = True
    retryable: ClassVar[bool] = False

    def __init__(self, cause: str, *, field: str = "", remedy: str = "") -> None:
        self.failure = Failure(
            code=self.code, cscode=self.cscode, field=field, cause=cause, remedy=remedy,
            definite=self.definite, retryable=self.retryable,
        )
        super().__init__(self.failure.text)


class Refused(Failed):
    """The caller asked for something that cannot be; nothing was done."""

    code = 431
    cscode = 4350


class Malformed(Refused):
    """A map, list, number or body cannot be parsed."""

    code = 430
    cscode = 9999


class BadParameter(Refused):
    """A parameter is missing, of the wrong type, illegal in this state, or names nothing that exists."""


class Unsupported(Refused):
    """No such command here."""

    code = 432
    cscode = 4555


class Denied(Refused):
    """The caller may not do this."""

    code = 531
    cscode = 4365


class InUse(Refused):
    """Something still needs the thing; the cause names what."""

    code = 536
    cscode = 4375


class Unavailable(Failed):
    """A service, a store or an agent is away. Nothing was done; the same call may work later."""

    code = 503
    cscode = 4380
    retryable = True


class NoRoom(Failed):
    """A store has no room for what is asked. Nothing was done."""

    code = 533
    cscode = 4345


class WorkFailed(Failed):
    """An agent tried and failed, and has cleaned up after itself."""


class Damaged(WorkFailed):
    """An object is not what was written; `damage` says where."""

    def __init__(self, cause: str, damage: Damage, *, remedy: str = "") -> None:
        super().__init__(cause, remedy=remedy)
        self.damage = damage
        self.failure = self.failure.model_copy(update={"damage": damage})


class WorkRetryable(WorkFailed):
    """An agent failed for a reason that may pass (a store that is away, a broken connection)."""

    retryable = True


class Cancelled(Failed):
    """Somebody asked for the work to stop, and it stopped."""


class Unknown(Failed):
    """An answer is missing: the effect may have happened. Ask before trying again."""

    definite = False
    retryable = True
