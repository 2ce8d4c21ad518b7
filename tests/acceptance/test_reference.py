"""Every command of the registry is tried on real disks and a real S3, and what docs/reference shows is what it answers.

`STOREBUS_RECORD=1` writes the examples anew, and the pages with them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from api.registry import COMMANDS
from api.verify import verify_all
from tests.architecture.test_commands_document import EXAMPLES, write
from tests.support.lifecycle import UNTRIED
from tests.support.recording import kept, recorded

pytestmark = [pytest.mark.needs_s3, pytest.mark.needs_qemu]


PASSING = {"step", "completed", "progress", "jobid", "jobstatus", "size", "physicalsize", "virtualsize", "nextsnapshot"}
"""Fields that an answer has for a moment, or has not yet."""


def shape(found: Any) -> Any:
    """Which fields there are, whatever their values: of a list, of its first thing."""
    match found:
        case dict():
            return {name: shape(each) for name, each in sorted(found.items()) if name not in PASSING}
        case list():
            return [shape(found[0])] if found else []
        case _:
            return None


async def test_every_command_is_tried_and_answers_as_the_reference_shows(machine_program: None, s3_server: Any, tmp_path: Path) -> None:
    async with recorded(s3_server, tmp_path) as (ask, writer, up):
        text = kept(ask, writer, UNTRIED)
        assert not await verify_all(up.dsn)
    if os.environ.get("STOREBUS_RECORD"):
        EXAMPLES.write_text(text)
        write()
    now, then = json.loads(text), json.loads(EXAMPLES.read_text())
    untried = {each.name for each in COMMANDS} - {name for name, each in now.items() if "request" in each}
    assert untried == set(UNTRIED), "a command has no line in tests/support/lifecycle.py"
    assert all("refused" in now[name] for name in UNTRIED)
    changed = {name: (shape(then.get(name)), shape(now[name])) for name in now if shape(then.get(name)) != shape(now[name])}
    assert not changed, "record them again: STOREBUS_RECORD=1"
    assert "canary" not in text and s3_server.secret_key not in text and str(tmp_path) not in text
