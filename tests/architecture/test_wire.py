"""The wire, frozen: one golden file for each (type, version) that was ever written. Files are added, never edited.

`python tests/architecture/test_wire.py` writes the files that are missing, and touches no other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import schema
from schema.codec import UPCASTERS, canonical, decode, encode, newest_version
from schema.examples import example
from schema.message import Command

WIRE = Path(schema.__file__).parent / "wire"
REGISTRY = schema.vocabulary()
KNOWN = [known for known, cls in REGISTRY.items() if cls.__module__.startswith("schema.")]  # not those of tests


def file_of(name: str, version: int) -> Path:
    return WIRE / f"{name}.v{version}.json"


def golden(name: str, version: int) -> dict[str, Any]:
    cls = REGISTRY[name, version]
    return {"type": name, "version": version, "kind": str(cls.KIND), "minimal": example(cls, full=False),
            "full": example(cls)}


FILES = sorted(WIRE.glob("*.json"))


def contains(larger: Any, smaller: Any) -> bool:
    """Every field of `smaller` is in `larger` with the same value: a newer writer may only add."""
    if isinstance(smaller, dict):
        return isinstance(larger, dict) and all(
            name in larger and contains(larger[name], value) for name, value in smaller.items())
    if isinstance(smaller, list):
        return isinstance(larger, list) and len(larger) == len(smaller) and all(map(contains, larger, smaller))
    return bool(larger == smaller)


def test_every_message_has_its_golden_file() -> None:
    missing = [f"{name} v{version}" for name, version in KNOWN if not file_of(name, version).exists()]
    assert not missing, f"run `python tests/architecture/test_wire.py` and commit what it wrote for {missing}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_was_written_once_is_read_for_ever(path: Path) -> None:
    file = json.loads(path.read_text())
    name, version = file["type"], file["version"]
    assert path == file_of(name, version)
    newest = newest_version(name)
    assert newest >= version, f"{name} was removed from the registry, but logs hold it"
    for form in ("minimal", "full"):
        message = decode(name, version, canonical(file[form]))
        assert file["kind"] == message.KIND
        assert newest == message.VERSION
        if version == newest:
            assert contains(json.loads(encode(message)), file[form]), f"{name} v{version} lost or changed a field"
        if isinstance(message, Command):
            assert message.key(schema.job.JobStarted.model_validate(
                {"job_id": "00000000-0000-4000-8000-000000000001", "steps": []}).job_id)


def test_every_old_version_has_an_upcaster() -> None:
    for name, version in KNOWN:
        for old in range(1, newest_version(name)):
            assert (name, old) in UPCASTERS, f"{name} v{old} cannot become v{old + 1}"
        assert (name, 1) in REGISTRY, f"{name} has version {version} but no version 1"


def test_the_guard_sees_a_change() -> None:
    """What the test above must catch: a field that went away, another value, a shorter list."""
    assert contains({"a": 1, "b": [{"c": 2, "d": 3}]}, {"b": [{"c": 2}]})
    for worse in ({}, {"a": 2}, {"a": [1]}, {"a": None}):
        assert not contains(worse, {"a": 1})
    assert not contains({"b": []}, {"b": [1]})


if __name__ == "__main__":
    WIRE.mkdir(exist_ok=True)
    for name, version in KNOWN:
        if not file_of(name, version).exists():
            file_of(name, version).write_text(json.dumps(golden(name, version), indent=1, sort_keys=True) + "\n")
            print(file_of(name, version))
