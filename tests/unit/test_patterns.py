"""Topic patterns: AMQP's table, and the same answers as a second, obvious implementation."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from bus.patterns import Matcher, check, matches, prefix
from schema.failure import BadParameter

TABLE = [
    ("#", "snapshot.taken", True),
    ("#", "", True),
    ("snapshot.taken", "snapshot.taken", True),
    ("snapshot.taken", "snapshot.taken.root", False),
    ("snapshot.*", "snapshot.taken", True),
    ("snapshot.*", "snapshot", False),
    ("snapshot.*", "snapshot.taken.root", False),
    ("snapshot.#", "snapshot", True),
    ("snapshot.#", "snapshot.taken.root", True),
    ("snapshot.#", "snapshots.taken", False),
    ("*.taken.#", "snapshot.taken", True),
    ("#.root", "snapshot.taken.root", True),
    ("#.root", "root", True),
    ("#.taken.#", "snapshot.taken.root", True),
    ("snapshot.#.root", "snapshot.root", True),
    ("snapshot.#.root", "snapshot.taken.x.root", True),
    ("snapshot.#.root", "snapshot.taken.x.other", False),
    ("#.#", "", True),
    ("#.*", "one", True),
    ("*.*", "one", False),
    ("a.b+c.d", "a.bbc.d", False),
]


@pytest.mark.parametrize(("pattern", "name", "expected"), TABLE)
def test_table(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected
    assert Matcher([pattern])(name) is expected


def obvious(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(obvious(pattern[1:], words[taken:]) for taken in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and obvious(pattern[1:], words[1:])


def test_agrees_with_the_obvious_definition() -> None:
    names = [words for count in range(1, 5) for words in itertools.product("ab", repeat=count)]
    patterns = [words for count in range(1, 5) for words in itertools.product("ab*#", repeat=count)]
    random.Random(7).shuffle(patterns)
    for pattern, name in itertools.product(patterns[:150], names):
        assert matches(".".join(pattern), ".".join(name)) is obvious(list(pattern), list(name)), (pattern, name)


def test_no_pattern_is_slow() -> None:
    pattern, name = ".".join(["#", "a"] * 60), ".".join(["a"] * 126 + ["b"])
    began = time.perf_counter()
    assert not matches(pattern, name)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("pattern", ["", "snap*", "snapshot.ta#", "x" * 256])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(BadParameter, match="pattern"):
        check(pattern)
    with pytest.raises(BadParameter):
        Matcher([pattern])


def test_prefix_reaches_descendants() -> None:
    assert prefix("snapshot") == "snapshot.#"
    assert prefix("snapshot.*") == "snapshot.*"
    assert matches(prefix("snapshot"), "snapshot.taken.root")
    assert matches(prefix("snapshot"), "snapshot")


def test_matcher_without_patterns_means_everything_and_forgets_in_time() -> None:
    assert Matcher([])("anything.at.all")
    matcher = Matcher(["volume.*", "snapshot.#"])
    assert [name for name in ("volume.ready", "volume", "snapshot", "zone.created") if matcher(name)] == [
        "volume.ready", "snapshot"]
    for number in range(10_000):
        matcher(f"zone.n{number}")
    assert len(matcher._known) <= 4096
