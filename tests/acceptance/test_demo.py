"""`make demo`'s own checks can fail: one byte, one row, one field, and it says which and ends with an error."""

from __future__ import annotations

import asyncio
import random
import re
import sys
from pathlib import Path

import pytest

from tests.support.web import make_image


async def demo(image: Path, before: str = "") -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api.cli", "demo", "--image", str(image), "--before-checks", before,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    said, _ = await process.communicate()
    return process.returncode or 0, re.sub(r"\s+", " ", said.decode())


@pytest.fixture(scope="module")
async def image(qemu_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for a transfer to be cancelled halfway."""
    return await make_image(tmp_path_factory.mktemp("demo"), random.Random(4).randbytes(40 << 20))


@pytest.mark.timeout(480)
@pytest.mark.soak(but=("-everything held", "object-bytes 16777216 to"))
@pytest.mark.parametrize(("what", "named"), [
    ("", "everything held"), ("object", "bytes 16777216 to"), ("event", "position 20"), ("projection", "read.volume"),
])
async def test_the_demo_holds_and_names_what_was_damaged(image: Path, what: str, named: str) -> None:
    before = f"{sys.executable} {Path(__file__).with_name('damage.py')} {what}" if what else ""
    status, said = await demo(image, before)
    assert (status == 0) == (what == ""), said
    assert named in said, said
