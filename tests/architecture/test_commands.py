"""The registry against the contract and against the tests: nothing is missing without a reason, nothing is offered untried."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.not_here import NOT_OURS, NOT_YET, reason
from api.registry import BY_NAME, COMMANDS, find
from schema.failure import Unsupported
from tests.architecture.tree import ROOT

CONTRACT = [line for line in (Path(__file__).parent / "cloudstack_commands.txt").read_text().splitlines() if line and line[0] != "#"]
FOLDERS = ("integration", "acceptance", "faults")
"""Where tests ask over HTTP."""
REFUSALS = frozenset({"refused", "raises", "match"})
"""Calls that do not show that a command works."""


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def said(tree: ast.AST) -> Iterator[str]:
    """What a test asks for: the text that it gives to a call, and the methods of clients."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            how = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if how not in REFUSALS:
                yield how
                given = (*node.args, *(each.value for each in node.keywords if each.arg == "command"))
                yield from (str(each.value).split(" ")[0] for each in given if isinstance(each, ast.Constant))
        elif isinstance(node, ast.Attribute):
            yield node.attr  # a method that is handed on, as to a thread
        elif isinstance(node, ast.Dict):
            yield from (str(value.value) for key, value in zip(node.keys, node.values, strict=True)
                        if isinstance(key, ast.Constant) and key.value == "command" and isinstance(value, ast.Constant))
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):  # one command after another
            yield from (str(each.value) for each in ast.walk(node.iter) if isinstance(each, ast.Constant))


TRIED = {word for folder in FOLDERS for path in (ROOT / "tests" / folder).glob("test_*.py") for word in said(ast.parse(path.read_text()))}


def test_the_contract_is_whole() -> None:
    assert len(CONTRACT) == len(set(CONTRACT)) >= 90


@pytest.mark.parametrize("name", CONTRACT)
def test_each_command_is_here_or_says_why_not(name: str) -> None:
    assert (name.lower() in BY_NAME) != (name in NOT_YET or name in NOT_OURS)
    if name.lower() not in BY_NAME:
        with pytest.raises(Unsupported, match=re.escape(reason(name)[:40])):
            find(name)


def test_what_is_not_here_is_of_the_contract() -> None:
    assert {*NOT_YET, *NOT_OURS} <= set(CONTRACT) and not set(NOT_YET) & set(NOT_OURS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_command_is_tried_from_end_to_end(command: object) -> None:
    """A test that asks for it over HTTP and goes on with the answer; the suite says whether it passes."""
    name = getattr(command, "name")  # noqa: B009 - parametrized objects have no type here
    assert name in TRIED or snake(name) in TRIED, f"no test of {', '.join(FOLDERS)} asks for {name}"
