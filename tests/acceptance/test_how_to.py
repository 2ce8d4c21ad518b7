"""How-tos, read as an operator reads them: each of their commands is run, in its order, in one shell."""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.services.forked import program
from tests.support.up import Up
from tests.support.web import site

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/how-to"
DOOR = "http://127.0.0.1:8096"
"""Where an installation answers unless it is told otherwise."""


async def run(page: str, up: Up, folder: Path, said: dict[str, str]) -> str:
    """What the page's commands print. The first block is what the test did itself, since it does not end; `said` is what the page
    says of a machine -> what it is here."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (PAGES / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks[0].endswith("storebus up\n") and len(blocks) > 2
    script = "set -eux\n" + "\n".join(blocks[1:])
    for there, here in said.items():
        assert re.search(there, script, re.MULTILINE), there
        script = re.sub(there, here, script, flags=re.MULTILINE)
    program(folder)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STOREBUS_")}
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", script, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=clean | {
            "PATH": f"{folder}:{Path(sys.executable).parent}:{clean['PATH']}", "STOREBUS_DATA_DIR": str(up.data),
            "STOREBUS_CONFIG_DIR": str(folder / "none"), "NO_COLOR": "1", "PYTHONPATH": str(ROOT)})
    out, err = await asyncio.wait_for(process.communicate(), 400)
    assert process.returncode == 0, err.decode()[-3000:]
    return out.decode()


@pytest.mark.needs_qemu
@pytest.mark.timeout(1000)
async def test_from_nothing_to_restored_backups(qemu_tools: None, tmp_path: Path) -> None:
    """A snapshot comes by its schedule, is restored, and its bytes are the disk's."""
    async with site(tmp_path, random.Random(9).randbytes(2 << 20) + bytes(4 << 20)) as web:
        up = Up(environment={"STOREBUS_DOWNLOAD_ALLOW": f"127.0.0.1/32:{urlsplit(web.url('image')).port}",
                             "STOREBUS_MAX_IMAGE_BYTES": str(64 << 20)})
        try:
            await up.start()
            out = await run("scheduled-backups.md", up, tmp_path, {
                r"^IMAGE=.*$": f"IMAGE={web.url('image')}", "/tmp/backups": str(up.base / "backups")})
            assert "Images are identical" in out and '"damaged":[]' in out.replace(" ", "")
            assert not list((up.data / "primary").iterdir()), "what it made, it deletes"
            assert not await up.call("listSnapshotPolicies", listall="true")
        finally:
            up.remove()


@pytest.mark.needs_qemu
@pytest.mark.timeout(400)
async def test_tools_of_cloudstack(qemu_tools: None, tmp_path: Path) -> None:
    """The command `cs`, as it is installed: signed, and what it makes is its account's."""
    up = Up(environment={"STOREBUS_IDENTITY": "true"})
    (tmp_path / "password").write_text("canary-pw\n")
    try:
        await up.start()
        out = await run("tools-of-cloudstack.md", up, tmp_path, {DOOR: up.url, "/tmp/ann.password": str(tmp_path / "password")})
        assert '"account": "ann"' in out and f'"size": {2 << 30}' in out
        assert not await up.call("listVolumes", listall="true"), "what it made, it deletes"
    finally:
        up.remove()
