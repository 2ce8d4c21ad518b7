"""A failed request of a store that is spoken to over HTTP, understood: its cause, its remedy, and what it means.

It owns the step from "what went wrong" to the right class of error. It refuses to know any library or protocol: each
store reads its own library's exceptions into a Trouble, from codes only, never from a text that might hold a secret.
"""

from __future__ import annotations

from dataclasses import dataclass

from schema.failure import Failed, Refused, Unknown, WorkFailed, WorkRetryable


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """One failed request, understood."""

    code: str
    """The store's error code, or a word of ours for what never reached it."""
    cause: str
    field: str = ""
    remedy: str = ""
    passes: bool = False
    """Asking again may help."""
    reached: bool = False
    """The request may have had its effect although no answer came."""

    def failure(self, action: str, *, changes: bool = False) -> Failed:
        """The error to raise when `action` is given up; `changes` when its effect would be visible."""
        cause = f"{action}: {self.cause}"
        if changes and self.reached:
            return Unknown(f"{cause}; whether it took effect is not known", field=self.field, remedy=self.remedy)
        kind = WorkRetryable if self.passes else WorkFailed
        return kind(cause, field=self.field, remedy=self.remedy)

    def refusal(self, action: str) -> Refused:
        """The error to raise while a store is being opened or tested."""
        return Refused(f"{action}: {self.cause}", field=self.field, remedy=self.remedy)


def at(action: str, name: str) -> str:
    """An action as an error tells it: with the store that it was done in, by the operator's name for it."""
    return f"{action} in the image store {name}" if name else action


def unconfirmed(action: str, error: Failed) -> Unknown:
    """`action` may be done, and the look that would have shown it failed with `error`."""
    return Unknown(f"{action}: {error.failure.cause}; whether it took effect is not known", field=error.failure.field,
                   remedy=error.failure.remedy)


class Damaged(Exception):
    """An answer came, but not the bytes that it should hold, or an ETag of other bytes."""
