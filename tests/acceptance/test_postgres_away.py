"""Postgres away: a clean 503, and everything goes on by itself when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import aiohttp

from api.verify import verify_all
from tests.acceptance.conftest import Place
from tests.acceptance.test_promises import descendants


def postmaster(place: Place) -> int:
    assert place.up.process is not None
    for pid in descendants(place.up.process.pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/postgres"):
                return pid
    raise AssertionError("no postmaster")


async def test_a_killed_database_is_a_clean_503_and_comes_back(place: Place) -> None:
    jobs = [(await place.up.call("createVolume", name=f"p{n}", size=1))["jobid"] for n in range(3)]
    os.kill(postmaster(place), signal.SIGQUIT)
    seen: dict[int, str] = {}
    async with aiohttp.ClientSession() as http:
        for _ in range(1200):
            async with http.get(f"{place.up.url}/client/api", params={"command": "listVolumes", "response": "json"}) as answer:
                seen[answer.status] = await answer.text()
            if answer.status == 200 and 503 in seen:
                break
            if answer.status == 503:
                assert "Postgres" in json.loads(seen[503])["listvolumesresponse"]["errortext"]
            await asyncio.sleep(0.05)
    assert seen.keys() == {200, 503}, (seen, place.up.log()[-4000:])
    for job in jobs:
        end = await place.up.end(job)
        assert end["jobstatus"] == 1, (end, place.up.log()[-4000:])
    assert (await place.up.end((await place.up.call("createVolume", name="after", size=1))["jobid"]))["jobstatus"] == 1
    assert await verify_all(place.up.dsn) == []
