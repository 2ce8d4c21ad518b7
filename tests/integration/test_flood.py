"""A flood from one key, as fast as so many connections can send: it is answered 429, and the others hardly notice.

The API is a process of its own, so is each caller: what is measured is what a caller sees. STOREBUS_SOAK_N asks for 200 connections
and half a minute. As a program, this file is one caller: it asks listZones, signed, and prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from typing import Any

import aiohttp

from api.signature import sign
from tests.support.up import Up

SOAK = int(os.environ.get("STOREBUS_SOAK_N", "0"))
CONNECTIONS, SECONDS = (200, 30.0) if SOAK else (40, 3.0)
LIMIT = {"STOREBUS_API_LIMIT": "300", "STOREBUS_API_LIMIT_INTERVAL": "3"}
TIMES = 5
"""How much longer the others' slowest requests (p99) may take than without the flood."""
QUICK_S = 0.02
"""The quick run's machine is shared with other tests: below this a request is as quick as it need be."""


async def caller(url: str, key: str, secret: str, connections: int, seconds: float, pause_s: float) -> dict[str, Any]:
    """Ask from so many connections for so long; (status, how often), p50 and p99 of the answers that were given."""
    sent = {"command": "listZones", "response": "json", "apiKey": key}
    sent["signature"] = sign(sent, secret)
    found: Counter[int] = Counter()
    took: list[float] = []
    end = time.monotonic() + seconds
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        async def one() -> None:
            while time.monotonic() < end:
                began = time.monotonic()
                async with http.post(f"{url}/client/api", data=sent) as answer:
                    await answer.read()
                found[answer.status] += 1
                if answer.status == 200:
                    took.append(time.monotonic() - began)
                await asyncio.sleep(pause_s)

        await asyncio.gather(*(one() for _ in range(connections)))
    took.sort()
    return {"status": {str(status): count for status, count in found.items()}, "p50": took[len(took) // 2],
            "p99": took[min(len(took) - 1, len(took) * 99 // 100)]}


async def called(*words: object) -> dict[str, Any]:
    """What a caller in a process of its own saw."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.integration.test_flood", *map(str, words),
                                                   stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), SECONDS + 30)
    found: dict[str, Any] = json.loads(out)
    return found


async def test_a_flood_from_one_key_does_not_slow_the_others() -> None:
    up = Up(environment={"STOREBUS_IDENTITY": "true", **LIMIT})
    try:
        await up.start()
        keys, url = [], up.url
        async with aiohttp.ClientSession() as http, http.get(f"{url}/client/api?command=listZones&response=json") as answer:
            assert answer.status == 401  # nobody comes in unsigned, and no other listener is open
        assert "open_listener" not in up.log()
        for name in ("flood", "other"):
            account = await up.call("createAccount", username=name, password="p", email="a@b", firstname="A", lastname="B")
            user = await up.call("registerUserKeys", id=account["account"]["user"][0]["id"])
            keys.append((user["userkeys"]["apikey"], user["userkeys"]["secretkey"]))
        alone = await called(url, *keys[1], 2, SECONDS, 0.05)
        flood, other = await asyncio.gather(
            called(url, *keys[0], CONNECTIONS, SECONDS + 1, 0), called(url, *keys[1], 2, SECONDS, 0.05))
        print(json.dumps({"alone": alone, "under the flood": other, "the flood": flood}))
        assert set(alone["status"]) == set(other["status"]) == {"200"}
        assert flood["status"]["429"] > CONNECTIONS and set(flood["status"]) <= {"200", "429"}
        assert other["p99"] < TIMES * (alone["p99"] if SOAK else max(alone["p99"], QUICK_S)), (alone, other)
    finally:
        up.remove()


if __name__ == "__main__":
    where, api_key, api_secret, many, long, between = sys.argv[1:]
    print(json.dumps(asyncio.run(caller(where, api_key, api_secret, int(many), float(long), float(between)))))
