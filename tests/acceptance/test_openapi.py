"""schemathesis over the OpenAPI document of a running installation: whatever it makes up, nothing is answered with 5xx, and every
answer is of the form that the document says. STOREBUS_SOAK_N asks for that many made-up requests of each command.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.support.up import Up

EXAMPLES = int(os.environ.get("STOREBUS_SOAK_N", "0")) or 2
SLOW = "addImageStore|addSecondaryStorage|addS3|addSwift|createSecondaryStagingStore|createStoragePool"
"""Commands that wait for an agent that tries to reach what was made up: they are asked, but seldom."""
PROGRAM = os.environ.get("STOREBUS_TEST_SCHEMATHESIS", "")
"""A python that has it; empty: this one."""


@pytest.mark.skipif(not PROGRAM and importlib.util.find_spec("schemathesis") is None and not os.environ.get("CI"),
                    reason="needs schemathesis: make setup")
@pytest.mark.timeout(1200)
async def test_nothing_that_is_made_up_is_our_error(tmp_path: Path) -> None:
    up = Up(environment={"STOREBUS_API_LIMIT": "0"})
    try:
        await up.start()
        async with aiohttp.ClientSession() as http, http.get(f"{up.url}/openapi.json") as answer:
            assert (await answer.json())["openapi"] == "3.1.0"
        for more, examples in ((["--exclude-path-regex", SLOW], EXAMPLES), (["--include-path-regex", SLOW], 1)):
            process = await asyncio.create_subprocess_exec(
                PROGRAM or sys.executable, "-m", "schemathesis.cli", "run", f"{up.url}/openapi.json", "--url", up.url, "--phases", "fuzzing",
                "--checks", "not_a_server_error,response_schema_conformance,content_type_conformance", "--max-examples", str(examples),
                "--seed", "7", "--request-timeout", "40", "--report", "ndjson", "--report-dir", str(tmp_path), "--no-color", *more,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path)
            out, _ = await process.communicate()
            text = out.decode()
            assert process.returncode == 0 and "passed" in text, text[-6000:]
        log = (up.base / "up.log").read_text(errors="replace")
        assert "request_failed" not in log and "Traceback" not in log, log[-4000:]
    finally:
        up.remove()
