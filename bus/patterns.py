"""Subjects and topic patterns, with AMQP's meaning everywhere: `*` is one word, `#` is any number of words, also none.

Owns the matching of dotted names. Refuses to know what the names stand for. The log, the memory transport, local
handlers and the console all match through here, so a pattern means the same wherever it is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from schema.failure import BadParameter

MAX_LENGTH = 255
"""AMQP's limit of a routing key, bytes."""
_CACHED = 4096


def check(pattern: str) -> str:
    """The pattern itself. Raises BadParameter when it is empty, too long, or has `*` or `#` inside a word."""
    if not pattern or len(pattern.encode()) > MAX_LENGTH:
        raise BadParameter(f"a pattern has 1 to {MAX_LENGTH} bytes", field="pattern", remedy="`#` matches everything")
    for word in pattern.split("."):
        if word not in ("*", "#") and ("*" in word or "#" in word):
            raise BadParameter(f"{word!r} mixes a wildcard with other characters", field="pattern",
                               remedy="`*` and `#` stand for whole words, as in `snapshot.*`")
    return pattern


@lru_cache(maxsize=_CACHED)
def _words(pattern: str) -> tuple[str, ...]:
    return tuple(check(pattern).split("."))


def matches(pattern: str, name: str) -> bool:
    """True when the dotted `name` is one that `pattern` means. Raises BadParameter for a pattern that is none.

    Walks back to the last `#` only, so that no pattern, however odd, takes more than words times words steps.
    """
    wanted, words = _words(pattern), name.split(".")
    at = here = 0
    back, resume = -1, 0  # the last `#`, and the word up to which it has taken
    while here < len(words):
        if at < len(wanted) and wanted[at] == "#":
            back, resume = at, here
            at += 1
        elif at < len(wanted) and wanted[at] in ("*", words[here]):
            at, here = at + 1, here + 1
        elif back >= 0:
            resume += 1
            at, here = back + 1, resume
        else:
            return False
    return all(word == "#" for word in wanted[at:])


def prefix(subject: str) -> str:
    """The pattern of a subject and all its descendants, `<subject>.#`; patterns stay as they are."""
    words = subject.split(".")
    return subject if "#" in words or words[-1] == "*" else f"{subject}.#"


class Matcher:
    """Whether a name is meant by any of some patterns; none of them means everything. Remembers its answers."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        for pattern in self.patterns:
            check(pattern)
        self._all = not self.patterns or "#" in self.patterns
        self._known: dict[str, bool] = {}

    def __call__(self, name: str) -> bool:
        """True when `name` is meant."""
        if self._all:
            return True
        answer = self._known.get(name)
        if answer is None:
            answer = any(matches(pattern, name) for pattern in self.patterns)
            if len(self._known) >= _CACHED:  # names come from the wire: the memory of them is bounded
                self._known.clear()
            self._known[name] = answer
        return answer


__all__ = ["MAX_LENGTH", "Matcher", "check", "matches", "prefix"]
