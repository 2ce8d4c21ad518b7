"""`@handles("snapshot.*")`: which function takes which subjects. An exact table, filled by decoration.

Owns the marks, the table and who is found for a subject. Refuses to know where subjects come from: a call, an event
of the log or the public exchange are dispatched alike.

A subject without wildcards also takes its descendants, as a subscription to a prefix does: `snapshot` takes
`snapshot.taken` where nobody nearer takes it. Two functions for one subject are a mistake, and refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from bus.errors import NoHandler
from bus.patterns import check, matches

Handler = Callable[[str, Any], Awaitable[Any]]
"""`await handler(subject, payload)`; a method has its object bound already."""
Function = TypeVar("Function", bound=Callable[..., Awaitable[Any]])
_MARK = "__storebus_handles__"


def handles(*subjects: str) -> Callable[[Function], Function]:
    """Mark a coroutine function (or method) as the handler of subjects or patterns, for `Dispatcher.register`."""
    if not subjects:
        raise TypeError("@handles needs at least one subject")
    for subject in subjects:
        check(subject)

    def mark(function: Function) -> Function:
        if not _is_async(function):
            raise TypeError(f"{getattr(function, '__qualname__', function)} must be `async def`: it must not block")
        setattr(function, _MARK, subjects)
        return function

    return mark


class Dispatcher:
    """The table of handlers. Register functions marked with `@handles`, or objects with such methods."""

    def __init__(self, *sources: object) -> None:
        self.table: dict[str, Handler] = {}
        self.register(*sources)

    def register(self, *sources: object) -> None:
        """Take in all marked functions. Raises TypeError for a subject that is taken, or a source with no mark."""
        for source in sources:
            found = _marked(source)
            if not found:
                raise TypeError(f"{source!r} has nothing that is marked with @handles")
            for subject, handler in found:
                if subject in self.table:
                    raise TypeError(f"{subject!r} has a handler already: "
                                    f"{getattr(self.table[subject], '__qualname__', self.table[subject])}")
                self.table[subject] = handler

    def all(self, subject: str) -> list[Handler]:
        """Everybody who takes `subject`, nearest first: exact, then patterns, then each ancestor. Nobody twice."""
        names = [subject] if subject in self.table else []
        names += [each for each in self.table if each != subject and _is_pattern(each) and matches(each, subject)]
        words = subject.split(".")
        names += [parent for end in range(len(words) - 1, 0, -1) if (parent := ".".join(words[:end])) in self.table]
        found: list[Handler] = []
        for name in names:
            if (handler := self.table[name]) not in found:
                found.append(handler)
        return found

    def find(self, subject: str) -> Handler:
        """The nearest handler of `subject`. Raises NoHandler."""
        found = self.all(subject)
        if not found:
            raise NoHandler(f"nobody handles {subject!r}", field="address")
        return found[0]

    async def dispatch(self, subject: str, payload: Any) -> int:
        """Hand the payload to everybody who takes `subject`, one after another; how many that were."""
        found = self.all(subject)
        for handler in found:
            await handler(subject, payload)
        return len(found)

    async def __call__(self, subject: str, payload: Any) -> Any:
        """Hand the payload to the nearest handler; its answer. Raises NoHandler."""
        return await self.find(subject)(subject, payload)


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function)


def _is_pattern(subject: str) -> bool:
    return "*" in subject or "#" in subject


def _marked(source: object) -> list[tuple[str, Handler]]:
    own = getattr(source, _MARK, None)
    if own is not None:
        return [(subject, source) for subject in own]  # type: ignore[misc] # only `mark` sets it, on coroutine functions
    return [(subject, member) for _, member in inspect.getmembers(source, inspect.ismethod)
            for subject in getattr(member, _MARK, ())]


__all__ = ["Dispatcher", "Handler", "handles"]
