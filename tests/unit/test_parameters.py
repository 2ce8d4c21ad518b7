"""CloudStack's encodings: what each parses to, and how each mistake is refused by name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from api.parameters import parse
from api.registry import Parameter, Type
from schema.failure import BadParameter, Failed, Malformed

ID = "6f1d1f2e-0f0a-4c2a-9d0e-2f6b7a1c3d4e"
PARAMETERS = (
    Parameter(name="id", type=Type.UUID), Parameter(name="ids", type=Type.LIST, of_uuids=True),
    Parameter(name="zones", type=Type.LIST), Parameter(name="zoneid", type=Type.UUID, all_zones=True),
    Parameter(name="name", aliases=("storename",), length=20), Parameter(name="flag", type=Type.BOOLEAN),
    Parameter(name="page", type=Type.INTEGER), Parameter(name="size", type=Type.LONG),
    Parameter(name="since", type=Type.DATE), Parameter(name="details", type=Type.MAP),
    Parameter(name="format", choices=("qcow2", "raw")),
)


def read(**raw: str) -> dict[str, Any]:
    """The values of one request."""
    return parse(PARAMETERS, raw).values


@pytest.mark.parametrize(("raw", "values"), [
    # names in any letter case, aliases, and what means "not given"
    ({"NAME": "a"}, {"name": "a"}), ({"storeName": "a"}, {"name": "a"}), ({"name": ""}, {}), ({"id": ""}, {}),
    # booleans, numbers and dates
    ({"flag": "TRUE"}, {"flag": True}), ({"flag": "false"}, {"flag": False}), ({"page": "-1"}, {"page": -1}),
    ({"size": "9223372036854775807"}, {"size": 2**63 - 1}),
    ({"since": "2026-03-31"}, {"since": datetime(2026, 3, 31, tzinfo=UTC)}),
    ({"since": "2026-03-31 11:53:59"}, {"since": datetime(2026, 3, 31, 11, 53, 59, tzinfo=UTC)}),
    # ids and lists
    ({"id": ID.upper()}, {"id": UUID(ID)}), ({"zoneid": "-1"}, {"zoneid": None}),
    ({"ids": f"{ID}, {ID}"}, {"ids": [UUID(ID)] * 2}), ({"zones": "a,b"}, {"zones": ["a", "b"]}),
    # choices in any letter case
    ({"format": "QCOW2"}, {"format": "qcow2"}),
    # maps: CloudStack's two forms, and ours for people
    ({"details[0].key": "a", "details[0].value": "1", "details[1].key": "B", "details[1].value": ""},
     {"details": {"a": "1", "B": ""}}),
    ({"details[0].a": "1", "Details[1].b": "2"}, {"details": {"a": "1", "b": "2"}}),
    ({"details.bucket": "x"}, {"details": {"bucket": "x"}}),
    # the protocol's own parameters are not ours
    ({"command": "x", "response": "json", "apiKey": "k", "signature": "s"}, {}),
])
def test_what_is_read(raw: dict[str, str], values: dict[str, Any]) -> None:
    """Each encoding of the contract."""
    assert read(**raw) == values


@pytest.mark.parametrize(("raw", "error", "field"), [
    ({"id": "123"}, BadParameter, "id"), ({"id": ID[:-1]}, BadParameter, "id"),
    ({"ids": f"{ID},x"}, BadParameter, "ids"), ({"ids": f"{ID},,{ID}"}, Malformed, "ids"),
    ({"flag": "yes"}, BadParameter, "flag"), ({"page": "1.5"}, BadParameter, "page"),
    ({"page": "2147483648"}, BadParameter, "page"), ({"size": "9223372036854775808"}, BadParameter, "size"),
    ({"size": "٣"}, BadParameter, "size"), ({"since": "yesterday"}, BadParameter, "since"),
    ({"format": "iso"}, BadParameter, "format"), ({"name": "a" * 21}, BadParameter, "name"),
    ({"name": "a\x00b"}, BadParameter, "name"), ({"name": "a\nb"}, BadParameter, "name"),
    ({"zones": ",".join("a" * 501)}, BadParameter, "zones"), ({"zones": "a\x7f"}, BadParameter, "zones"),
    ({"details": "a"}, Malformed, "details"), ({"details[x].key": "a"}, Malformed, "details[x].key"),
    ({"details[0]": "a"}, Malformed, "details[0]"), ({"details[0].key": "a"}, Malformed, "details[0].value"),
    ({"details[0].value": "a"}, Malformed, "details[0].key"),
    ({"details[0].key": "", "details[0].value": "a"}, Malformed, "details[0].key"),
    ({"details.a": "1", "details[0].A": "2"}, Malformed, "details"),
    ({"details.a": "\x1b[2J"}, BadParameter, "details.a"),
])
def test_what_is_refused(raw: dict[str, str], error: type[Failed], field: str) -> None:
    """Malformed is 430, everything else 431; the text names the parameter and never repeats control characters."""
    with pytest.raises(error) as refused:
        read(**raw)
    assert refused.value.failure.field == field
    assert refused.value.failure.code == (430 if error is Malformed else 431)
    assert not any(ord(c) < 0x20 for c in str(refused.value))


def test_a_missing_parameter_is_named_with_the_likely_mistake() -> None:
    """A typing error is the usual reason for a missing parameter."""
    required = (Parameter(name="volumeid", type=Type.UUID, required=True, description="the UUID of the volume"),)
    with pytest.raises(BadParameter) as refused:
        parse(required, {"volume_id": ID})
    assert refused.value.failure.field == "volumeid"
    assert "did you mean volumeid" in str(refused.value)
    with pytest.raises(BadParameter, match="give the UUID of the volume"):
        parse(required, {"volumeid": ""})


def test_unknown_parameters_are_told_and_ignored() -> None:
    """CloudStack's clients send more than any server knows."""
    parsed = parse(PARAMETERS, {"name": "a", "fancy": "1", "name[0].key": "x"})
    assert parsed.values == {"name": "a"}
    assert parsed.unknown == ["fancy", "name[0].key"]


@pytest.mark.parametrize("twice", [{"storename": "second"}, {"NAME": "second"}, {"Command": "x", "command": "x"}])
def test_a_parameter_given_twice_is_refused(twice: dict[str, str]) -> None:
    """Whatever its spelling: nobody can tell which one was meant."""
    with pytest.raises(BadParameter, match="twice") as refused:
        read(name="first", **twice)
    assert refused.value.failure.field in twice
