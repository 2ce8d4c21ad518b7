"""`/events` over HTTP: live, filtered, cut anywhere and resumed without a gap; who reads slowly or may no more is told and let go."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from api import event_stream
from api.access import SYSTEM, Principal
from api.authentication import Authentication
from api.edge import Edge
from api.event_stream import EventStreams, wanted
from api.first_keys import first_keys, read_keys
from api.listener import HttpListener
from api.signature import sign
from bus.event_store import LogFilter
from tests.support.api import Api
from tests.support.system import FakeSystem


class Reader:
    """One open stream, read line by line."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer, self.last = answer, ""

    async def next(self, timeout_s: float = 10) -> tuple[str, dict[str, Any]]:
        """(type, data) of the next event. Keeps the last id."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(timeout_s):
            while True:
                line = (await self.answer.content.readline()).decode()
                if not line:
                    raise EOFError
                if line != "\n":
                    name, _, value = line.rstrip("\n").partition(": ")
                    fields[name] = value
                    continue
                self.last = fields.get("id", self.last)
                if "data" in fields:
                    return fields["event"], json.loads(fields["data"])
                fields = {}


@asynccontextmanager
async def opened(api: Api, last: str = "", **parameters: str) -> AsyncIterator[Reader]:
    headers = {"Last-Event-ID": last} if last else {}
    async with api.http.get(f"{api.url}/events", params=parameters, headers=headers) as answer:
        assert answer.status == 200 and answer.content_type == "text/event-stream", await answer.text()
        yield Reader(answer)


async def test_what_happens_is_told_as_it_happens_and_filtered(cloud: Api) -> None:
    async with opened(cloud, types="volume.*,snapshot.taken") as reader:
        made = await cloud.ok("createVolume", name="v", size=1)
        await cloud.job(made["jobid"])
        first = [await reader.next(), await reader.next()]
        assert [kind for kind, _ in first] == ["volume.requested", "volume.ready"]
        assert {data["stream"] for _, data in first} == {f"volume-{made['id']}"} and first[0][1]["correlation"] == made["jobid"]
    other = await cloud.ok("createVolume", name="w", size=1)
    await cloud.job(other["jobid"])
    async with opened(cloud, **{"id": made["id"], "from": "beginning"}) as reader:
        taken = await cloud.ok("createSnapshot", volumeid=made["id"])
        await cloud.job(taken["jobid"])
        found = []
        while not found or found[-1][0] != "snapshot.backed_up":
            found.append(await reader.next())
        assert made["id"] in json.dumps(found[0][1]) and not any(other["id"] in json.dumps(data) for _, data in found)
        assert {"volume.ready", "job.submitted", "snapshot.backed_up"} <= {kind for kind, _ in found}


async def test_a_connection_that_is_cut_anywhere_goes_on_without_a_gap(cloud: Api) -> None:
    """Reader and writers at once; the reader is cut after so many events, again and again, and has each of them once."""
    dice, got, last = random.Random(7), [], "0"

    async def write() -> None:
        for number in range(12):
            made = await cloud.ok("createVolume", name=f"v{number}", size=1)
            await cloud.job(made["jobid"])

    writing = asyncio.create_task(write())
    while not writing.done() or int(last) < await cloud.system.store.head():
        async with opened(cloud, last) as reader:
            for _ in range(dice.randint(1, 9)):
                try:
                    _, data = await reader.next(1.0)
                except TimeoutError:
                    break
                got.append(data["position"])
            last = reader.last
    await writing
    rows = (await cloud.system.store.read_log(0, filter=LogFilter(kinds=frozenset({"event", "command"})), limit=10_000)).rows
    assert got == [row.position for row in rows] and len(got) > 60


async def test_a_wrong_place_or_pattern_is_named(api: Api) -> None:
    for last, parameters, named in (("99999999", {}, "Last-Event-ID"), ("x", {}, "Last-Event-ID"), ("", {"from": "never"}, "from"),
                                    ("", {"types": "vol*.x"}, "pattern"), ("", {"id": "x" * 65}, "id")):
        headers = {"Last-Event-ID": last} if last else {}
        async with api.http.get(f"{api.url}/events", params={**parameters, "response": "json"}, headers=headers) as answer:
            [error] = (await answer.json()).values()
            assert answer.status == error["errorcode"] == 431 and error["errortext"].startswith(named), error
    async with api.http.post(f"{api.url}/events") as answer:
        assert answer.status == 405
    async with api.http.get(f"{api.url}/events", headers={"Origin": "http://evil.example"}) as answer:
        assert answer.status == 403


async def stay() -> Principal:
    return SYSTEM


async def test_a_slow_reader_is_told_and_let_go_and_resumes(cloud: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "SLOW_S", 0.05)
    made = await cloud.ok("createVolume", name="v", size=1)
    await cloud.job(made["jobid"])
    streams = EventStreams(cloud.system.store)
    read, last = [], 0
    while last < await cloud.system.store.head():
        asked = await wanted(cloud.system.store, {}, str(last))
        pieces = []
        async for piece in await streams.read(asked, SYSTEM, stay):
            pieces.append(piece.decode())
            if len(pieces) == 3:
                await asyncio.sleep(0.1)
        assert pieces[-1].startswith("event: end\n") and "too slow" in pieces[-1]
        read += [int(piece.split("\n")[0].removeprefix("id: ")) for piece in pieces[1:-1]]
        last = read[-1]
        if len(pieces) < 4 or last >= (await cloud.system.store.head()) - 3:
            break
    assert read == sorted(set(read)) and len(read) >= 2
    assert streams._open == {}


async def test_streams_are_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "OF_ONE", 2)
    monkeypatch.setattr("api.flood.HOLD_S", 0.0)
    async with opened(api), opened(api), api.http.get(f"{api.url}/events") as answer:
        assert answer.status == 429 and answer.headers["Retry-After"]
    for _ in range(1000):
        async with api.http.get(f"{api.url}/events") as answer:
            if answer.status == 200:
                return
        await asyncio.sleep(0.02)
    raise AssertionError("what was closed is still counted")


async def test_with_identity_a_stream_is_signed_and_ends_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "BEAT_S", 0.2)
    monkeypatch.setattr(event_stream, "POLL_S", 0.1)
    monkeypatch.setattr("api.authentication.REMEMBERED_S", 0.0)
    system = await FakeSystem.start()
    await first_keys(system.runtime, system.vault, tmp_path)
    keys = read_keys(tmp_path)
    assert keys is not None
    listener = HttpListener(Edge(system), authentication=Authentication(system))
    url = await listener.start()

    def signed(**more: str) -> dict[str, str]:
        sent = {"apiKey": keys[0], "response": "json", **more}
        return {**sent, "signature": sign(sent, keys[1])}

    async with aiohttp.ClientSession() as http:
        async with http.get(f"{url}/events", params={"types": "volume.*"}) as answer:
            assert answer.status == 401
        async with http.get(f"{url}/events", params=signed(types="#"), headers={"Last-Event-ID": "0"}) as answer:
            reader = Reader(answer)
            assert (await reader.next())[1]["position"] == 1
            user = (await system.rows("user", {"api_key": keys[0]}))[0][0]["id"]
            async with http.get(f"{url}/client/api", params=signed(command="registerUserKeys", id=user)) as changed:
                assert changed.status == 200
            kind, told = "", {}
            while kind != "end":
                kind, told = await reader.next()
            assert "unable to verify" in told["reason"]
    await listener.aclose()
