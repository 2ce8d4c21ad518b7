"""XML answers: what JSON says, in elements that any parser reads back."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from api.xml import rendered


def read(value: Any) -> ElementTree.Element:
    """The root of an answer with this body."""
    root = ElementTree.fromstring(rendered({"r": value}, "4.22"))
    assert (root.tag, root.get("cloud-stack-version")) == ("r", "4.22")
    return root


@pytest.mark.parametrize(("value", "found"), [
    ({"a": 1, "b": True, "c": None, "d": "", "e": False}, [("a", "1"), ("b", "true"), ("d", None), ("e", "false")]),
    ({"a": [1, "x", None], "b": []}, [("a", "1"), ("a", "x")]),
    ({"a": "<&>\"']]>"}, [("a", "<&>\"']]>")]),
    ({"a": "bad\x00\x1b\ud800end"}, [("a", "bad\ufffd\ufffd\ufffdend")]),
    ({}, []),
])
def test_values_are_elements(value: Any, found: list[tuple[str, str | None]]) -> None:
    assert [(each.tag, each.text) for each in read(value)] == found


def test_maps_are_nested_and_any_key_is_carried() -> None:
    root = read({"details": {"bucket": "b", "$ref <x>\"": {"in side": 1}}, "list": [{"k": 1}, {"k": 2}]})
    assert root.findtext("details/bucket") == "b"
    entry = root.find("details/entry")
    assert entry is not None and entry.get("key") == "$ref <x>\""
    inner = entry.find("entry")
    assert inner is not None and (inner.get("key"), inner.text) == ("in side", "1")
    assert [each.findtext("k") for each in root.findall("list")] == ["1", "2"]
