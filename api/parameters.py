"""Parameters: CloudStack's encodings into typed values, or a refusal that names the parameter.

Owns maps (`details[0].key=K&details[0].value=V`), lists, booleans, numbers, dates, UUIDs, lengths and control
characters. Refuses to know any command: it is given the parameters to read. Codes: 430 for a map or list that cannot
be parsed, 431 for everything else that is wrong with a parameter.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from api.registry import Parameter, Type
from schema.failure import BadParameter, Malformed

RESERVED = frozenset({"command", "response", "apikey", "signature", "signatureversion", "expires", "sessionkey", "_"})
"""Parameters of the protocol itself."""
MAX_PARAMETERS = 100
MAX_ITEMS = 500
"""Items of a list parameter."""
INT, LONG = 1 << 31, 1 << 63
_MAP = re.compile(r"^(?P<base>\w+)(?:\[(?P<index>\d{1,4})\])?\.(?P<key>[\w.:/-]+)$")
_UUID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DATES = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d'T'%H:%M:%S%z")


@dataclass(frozen=True, slots=True)
class Parsed:
    """The values that were given, by parameter name, and the names of parameters that nobody knows."""

    values: dict[str, Any]
    unknown: list[str] = field(default_factory=list)


def parse(parameters: Sequence[Parameter], raw: Mapping[str, str]) -> Parsed:
    """Read `raw` (names in any letter case). Raises BadParameter (431) or Malformed (430) naming the parameter."""
    known = {name: each for each in parameters for name in (each.name, *each.aliases)}
    plain: dict[str, tuple[str, str]] = {}
    maps: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    reserved: set[str] = set()
    for spelled, value in raw.items():
        name = spelled.lower()
        if name in RESERVED:
            if name in reserved:
                raise _twice(spelled)
            reserved.add(name)
            continue
        base = re.split(r"[\[.]", name, maxsplit=1)[0]
        owner = known.get(base)
        if owner is None or (owner.type is not Type.MAP and base != name):
            unknown.append(spelled)
        elif owner.type is Type.MAP:
            maps.setdefault(owner.name, {})[spelled] = value
        elif owner.name in plain:
            raise _twice(spelled)
        else:
            plain[owner.name] = (spelled, value)
    values: dict[str, Any] = {}
    for each in parameters:
        if each.type is Type.MAP:
            found = _map(each, maps.get(each.name, {}))
            if found:
                values[each.name] = found
        elif each.name in plain and plain[each.name][1] != "":
            values[each.name] = _value(each, plain[each.name][1])
        if each.required and each.name not in values:
            raise BadParameter("missing", field=each.name, remedy=_suggestion(each, unknown))
    return Parsed(values, unknown)


def _twice(spelled: str) -> BadParameter:
    return BadParameter("given twice, perhaps under another of its names", field=_shown(spelled), remedy="give it once")


def _suggestion(missing: Parameter, unknown: Iterable[str]) -> str:
    close = difflib.get_close_matches(missing.name, [each.lower() for each in unknown], n=1, cutoff=0.75)
    if close:
        return f"{close[0]!r} is not a parameter; did you mean {missing.name}?"
    return f"give {missing.description}" if missing.description else ""


def _value(parameter: Parameter, text: str) -> Any:
    check_text(parameter, text)
    name = parameter.name
    if parameter.all_zones and text == "-1":
        return None
    match parameter.type:
        case Type.UUID:
            return _uuid(name, text)
        case Type.BOOLEAN:
            if text.lower() not in ("true", "false"):
                raise BadParameter(f"{text[:64]!r} is not true or false", field=name)
            return text.lower() == "true"
        case Type.INTEGER:
            return _number(name, text, INT)
        case Type.LONG:
            return _number(name, text, LONG)
        case Type.LIST:
            return _list(parameter, text)
        case Type.DATE:
            return _date(name, text)
        case _:
            return _choice(parameter, text)


def check_text(parameter: Parameter, text: str, where: str = "") -> None:
    """Raises BadParameter for control characters and for what is too long. Never repeats the value."""
    control = _CONTROL.search(text)
    if control is not None:
        raise BadParameter(f"the value holds the control character 0x{ord(control.group()):02x} at {control.start()}",
                           field=where or parameter.name, remedy="leave it out")
    most = parameter.length if parameter.type is not Type.LIST else parameter.length * MAX_ITEMS
    if len(text) > most:
        raise BadParameter(f"the value has {len(text)} characters", field=where or parameter.name,
                           remedy=f"at most {most} are allowed")


def _choice(parameter: Parameter, text: str) -> str:
    if not parameter.choices:
        return text
    for choice in parameter.choices:
        if text.lower() == choice.lower():
            return choice
    raise BadParameter(f"{text[:64]!r} is not one of {', '.join(parameter.choices)}", field=parameter.name)


def _uuid(name: str, text: str) -> UUID:
    if _UUID.match(text) is None:
        raise BadParameter(f"{text[:64]!r} is not a UUID", field=name, remedy="the lists show the ids of things")
    return UUID(text)


def _number(name: str, text: str, bound: int) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,20}", text) is None:
        raise BadParameter(f"{text[:64]!r} is not a whole number", field=name)
    number = int(text)
    if not -bound <= number < bound:
        raise BadParameter(f"{text} is not within {-bound} to {bound - 1}", field=name)
    return number


def _list(parameter: Parameter, text: str) -> list[Any]:
    items = [item.strip() for item in text.split(",")]
    if any(not item for item in items):
        raise Malformed("the list has an empty item", field=parameter.name, remedy="separate items by single commas")
    if len(items) > MAX_ITEMS:
        raise BadParameter(f"the list has {len(items)} items", field=parameter.name,
                           remedy=f"at most {MAX_ITEMS} are allowed")
    return [_uuid(parameter.name, item) for item in items] if parameter.of_uuids else items


def _date(name: str, text: str) -> datetime:
    for form in _DATES:
        try:
            found = datetime.strptime(text, form)  # noqa: DTZ007 - a date without a zone is UTC, set below
        except ValueError:
            continue
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    raise BadParameter(f"{text[:64]!r} is not a date", field=name, remedy="write yyyy-MM-dd or yyyy-MM-dd HH:mm:ss")


def _map(parameter: Parameter, given: Mapping[str, str]) -> dict[str, str]:
    """`base[i].key` with `base[i].value`, `base[i].NAME=value`, or `base.NAME=value`."""
    pairs: dict[str, dict[str, str]] = {}
    found: dict[str, str] = {}
    for spelled, value in given.items():
        match = _MAP.match(spelled)
        if match is None:
            raise Malformed("not an entry of a map", field=_shown(spelled),
                            remedy=f"write {parameter.name}[0].key=K&{parameter.name}[0].value=V")
        check_text(parameter, value, _shown(spelled))
        key = match["key"]
        if match["index"] is not None and key.lower() in ("key", "value"):
            slot = pairs.setdefault(match["index"], {})
            if key.lower() in slot:
                raise Malformed("given twice", field=_shown(spelled))
            slot[key.lower()] = value
        else:
            _put(parameter, found, key, value)
    for index, slot in sorted(pairs.items(), key=lambda pair: int(pair[0])):
        if not slot.get("key"):
            raise Malformed("missing or empty", field=f"{parameter.name}[{index}].key")
        if "value" not in slot and parameter.keys_alone:
            slot["value"] = ""
        if "value" not in slot:
            raise Malformed("missing", field=f"{parameter.name}[{index}].value")
        check_text(parameter, slot["key"], f"{parameter.name}[{index}].key")
        _put(parameter, found, slot["key"], slot["value"])
    return found


def _put(parameter: Parameter, into: dict[str, str], key: str, value: str) -> None:
    if any(key.lower() == known.lower() for known in into):
        raise Malformed(f"the key {key[:64]!r} is given twice", field=parameter.name)
    into[key] = value


def _shown(spelled: str) -> str:
    """A name from outside, fit to be shown and logged."""
    return _CONTROL.sub("?", spelled)[:128]


__all__ = ["MAX_PARAMETERS", "RESERVED", "Parsed", "check_text", "parse"]
