"""A failed request of a store that is spoken to over HTTP, understood: its cause, its remedy, and what it means.

It owns the step from "what went wrong" to the right class of error, and how long is waited before a request is sent again. It
refuses to know any library or protocol: each store reads its own library's exceptions into a Trouble, from codes only, never
from a text that might hold a secret.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from schema.failure import Failed, Refused, Unknown, WorkFailed, WorkRetryable

T = TypeVar("T")
BACKOFF_S = 0.2
MAX_BACKOFF_S = 5.0


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
    busy: bool = False
    """The server is there, and refused or broke off for now: asking again within seconds may help."""

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


async def opened(action: str, retries: int, call: Callable[[], Awaitable[T]],
                 understand: Callable[[Exception], Trouble | None]) -> T:
    """The answer to the first request to a store, of which nothing is known yet.

    A server that is busy, or breaks off, is asked again `retries` times: a transfer must not fail for that. One that is not
    there or says nothing is most often a wrong address, and its caller is told at once. Raises Refused, or WorkRetryable when
    it passes.
    """
    for attempt in range(retries + 1):
        try:
            return await call()
        except Exception as error:
            trouble = understand(error)
            if trouble is None:
                raise
            if not trouble.passes:
                raise trouble.refusal(action) from None
            if not trouble.busy or attempt == retries:
                raise trouble.failure(action) from None
        await back_off(attempt)
    raise AssertionError("unreachable")


async def back_off(attempt: int) -> None:
    """Wait before a request is sent again. Full jitter: many that were told to slow down at once do not come back at once."""
    await asyncio.sleep(random.uniform(0.05, min(MAX_BACKOFF_S, BACKOFF_S * 2.0**attempt)))  # noqa: S311 no secret


def at(action: str, name: str) -> str:
    """An action as an error tells it: with the store that it was done in, by the operator's name for it."""
    return f"{action} in the image store {name}" if name else action


def unconfirmed(action: str, error: Failed) -> Unknown:
    """`action` may be done, and the look that would have shown it failed with `error`."""
    return Unknown(f"{action}: {error.failure.cause}; whether it took effect is not known", field=error.failure.field,
                   remedy=error.failure.remedy)


class Damaged(Exception):
    """An answer came, but not the bytes that it should hold, or an ETag of other bytes."""
