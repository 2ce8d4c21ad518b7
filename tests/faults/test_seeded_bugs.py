"""Each seeded bug turns its tests red; without one they are green. Tests that cannot fail prove nothing."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from tests.conftest import SEED, SOAK
from tests.faults.commands import seeded
from tests.faults.seeded_bugs import BUGS

CHOSEN = sorted(BUGS) if SOAK else sorted(seeded(sorted(BUGS), 3, SEED))
"""All of them in a soak."""


async def outcome(tests: str, bug: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")} | {"STOREBUS_TEST_BUG": bug}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.faults.seeded_bugs", "-p", "no:cacheprovider", tests,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()[-1500:]


@pytest.mark.parametrize("bug", CHOSEN)
async def test_a_seeded_bug_is_noticed(bug: str) -> None:
    status, said = await outcome(BUGS[bug][1], bug)
    assert status == 1, said


@pytest.mark.parametrize("tests", sorted({BUGS[bug][1] for bug in CHOSEN}))
async def test_without_a_bug_they_are_green(tests: str) -> None:
    status, said = await outcome(tests, "")
    assert status == 0, said
