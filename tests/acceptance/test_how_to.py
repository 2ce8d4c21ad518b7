"""The operator's how-to, read as an operator reads it: each of its commands is run, in its order, in one shell."""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.up import Up
from tests.support.web import site

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/scheduled-backups.md"
STARTED = "storebus up\n"
"""The block that the test does itself: it does not end."""


@pytest.mark.needs_qemu
@pytest.mark.timeout(300)
async def test_from_nothing_to_restored_backups(qemu_tools: None, tmp_path: Path) -> None:
    """A snapshot comes by its schedule, is restored, and its bytes are the disk's."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks[0] == STARTED and len(blocks) > 8
    async with site(tmp_path, random.Random(9).randbytes(2 << 20) + bytes(4 << 20)) as web:
        up = Up(environment={"STOREBUS_DOWNLOAD_ALLOW": f"127.0.0.1/32:{urlsplit(web.url('image')).port}",
                             "STOREBUS_MAX_IMAGE_BYTES": str(64 << 20)})
        try:
            await up.start()
            script = "set -eux\n" + "\n".join(blocks[1:])
            script = re.sub(r"^IMAGE=.*$", f"IMAGE={web.url('image')}", script, flags=re.MULTILINE)
            script = script.replace("/tmp/backups", str(up.base / "backups"))
            program = tmp_path / "storebus"
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -m api.cli "$@"\n')
            program.chmod(0o755)
            clean = {name: value for name, value in os.environ.items() if not name.startswith("STOREBUS_")}
            process = await asyncio.create_subprocess_exec(
                "bash", "-c", script, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, env=clean | {
                    "PATH": f"{tmp_path}:{clean['PATH']}", "STOREBUS_DATA_DIR": str(up.data), "STOREBUS_CONFIG_DIR": str(tmp_path / "none"),
                    "NO_COLOR": "1", "PYTHONPATH": str(ROOT)})
            out, err = await asyncio.wait_for(process.communicate(), 240)
            assert process.returncode == 0, err.decode()[-3000:]
            assert b"Images are identical" in out and b'"damaged":[]' in out.replace(b" ", b"")
            assert not list((up.data / "primary").iterdir()), "what it made, it deletes"
            assert not await up.call("listSnapshotPolicies", listall="true")
        finally:
            up.remove()
