"""A slice of the fuzz run, seeded; `make fuzz` goes on for as long as it is told."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import run
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS, Target
from tests.support.attacks import Qcow2

SLICE_S = 2.0
"""Shared by all targets."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_slice_finds_nothing(name: str, seed: int) -> None:
    judge = run.own(name, SLICE_S / len(TARGETS), seed)
    assert judge.inputs > len(judge.target.seeds), "not one mutation was tried"
    assert judge.taken, "not even an honest input is taken: the target tests nothing"


def test_a_run_can_be_had_again() -> None:
    def some() -> list[bytes]:
        dice = random.Random(3)
        return [mutated(dice, [b"abc" * 50, b"x"], [b"word"]) for _ in range(200)]

    assert some() == some()
    assert len(set(some())) > 150


@pytest.mark.parametrize(("name", "body"), [
    ("envelope", b"cloudEvents_id: !\xff"), ("url", b"\nhttps://[2606:4700::1]@/"), ("start", b"0001-01-01"), ("start", b"9" * 5000),
    ("plain clusters", Qcow2(snapshots=1, snapshots_at=0xFFFF << 48).body()),
])
def test_what_was_found_once_stays_mended(name: str, body: bytes) -> None:
    with pytest.raises(TARGETS[name].raises):
        TARGETS[name].call(body)


def slow(data: bytes) -> None:
    """Burns processor time."""
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass


@pytest.mark.parametrize(("call", "words"), [(lambda data: {}[data], "KeyError"), (slow, "more than")], ids=["undeclared", "slow"])
def test_the_judge_sees(monkeypatch: pytest.MonkeyPatch, call: Callable[[bytes], Any], words: str) -> None:
    monkeypatch.setitem(TARGETS, "planted", Target(call, (ValueError,), [b"123456789"]))
    monkeypatch.setattr(run, "SECONDS_MAX", 0.01 if words == "more than" else 5.0)
    with pytest.raises(run.Fault, match=words):
        run.own("planted", 0.1, 1)


def test_the_judge_sees_memory() -> None:
    """In a process of its own, as a run is: one that has done much before may give back meanwhile what others left in it."""
    code = ("from tests.fuzz import run; from tests.fuzz.targets import TARGETS, Target; run.MEMORY_MAX, run.LOOKS = 64 << 20, 1; "
            "TARGETS['planted'] = Target(lambda data: b'x' * (100 << 20), (ValueError,), [b'1']); run.own('planted', 0.1, 1)")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 1 and "Fault: planted: more than 67108864 bytes of memory" in done.stderr, done.stderr
