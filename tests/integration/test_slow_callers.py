"""Callers who send or read slowly, or too much: each is let go in bounded time, and the others are answered meanwhile."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from api import listener, request
from api.edge import Edge
from api.flood import Rate
from api.listener import HttpListener
from tests.support.system import FakeSystem


@pytest.fixture
async def url(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A listener whose patience is a second."""
    for module, name in ((listener, "HEAD_S"), (listener, "LINGER_S"), (listener, "SEND_S"), (request, "BODY_S")):
        monkeypatch.setattr(module, name, 1.0)
    http = HttpListener(Edge(await FakeSystem.start()))
    yield await http.start()
    await http.aclose()


async def opened(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def answers(url: str) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/client/api?command=listZones") as answer:
        assert answer.status == 200


async def trickled(url: str, head: bytes, piece: bytes, most_s: float) -> bytes:
    """Send `head`, then `piece` again and again until the other side ends it; what it answered."""
    reader, writer = await opened(url)
    began, got = time.monotonic(), b""
    writer.write(head)
    reading = asyncio.create_task(reader.read(-1))
    try:
        while not reading.done():
            assert time.monotonic() - began < most_s, "it is not let go"
            writer.write(piece)
            await asyncio.sleep(0.05)
            await answers(url)
        got = reading.result()
    except ConnectionError:
        pass
    finally:
        writer.close()
    return got


async def test_a_head_that_trickles_in_is_let_go(url: str) -> None:
    for head in (b"", b"GET /client/api?command=listZones HTTP/1.1\r\nHost: 127.0.0.1\r\n"):
        await trickled(url, head, b"x: y\r\n" if head else b"", 6)


async def test_the_second_head_of_a_connection_has_its_time_too(url: str) -> None:
    whole = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    assert b"200 OK" in await trickled(url, whole + b"GET /livez HTTP/1.1\r\n", b"x: y\r\n", 6)


async def test_a_body_that_trickles_in_is_answered_408(url: str) -> None:
    head = (b"POST /client/api?response=json HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            b"Content-Length: 100000\r\n\r\n")
    assert b'"errorcode":408' in await trickled(url, head, b"a", 8)


async def test_a_body_that_never_ends_is_answered_413_and_cut(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "BODY_S", 30.0)  # it is its size that ends it, however slowly it is sent here
    head = (b"POST /client/api?response=json HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n")
    assert b'"errorcode":413' in await trickled(url, head, b"10000\r\n" + b"a" * 65536 + b"\r\n", 20)


async def test_a_body_that_is_announced_too_long_is_not_read(url: str) -> None:
    reader, writer = await opened(url)
    writer.write(b"POST /client/api?response=json HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n")
    assert b"413" in await asyncio.wait_for(reader.readline(), 1)  # before a byte of it
    writer.close()


async def test_a_head_that_is_too_large_is_refused(url: str) -> None:
    reader, writer = await opened(url)
    writer.write(b"GET /client/api?command=" + b"x" * listener.MAX_HEAD * 2)
    assert b" 400 " in await asyncio.wait_for(reader.readline(), 3)
    writer.close()


async def test_a_head_that_comes_together_with_a_long_body_is_no_long_head(url: str) -> None:
    reader, writer = await opened(url)
    body = b"command=listZones&response=json&x=" + b"a" * 100_000
    head = b"POST /client/api HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n"
    last = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    writer.write(head % len(body) + body + last)
    await asyncio.sleep(0.3)
    writer.write(b"Connection: close\r\n\r\n")
    answered = await asyncio.wait_for(reader.read(-1), 10)
    assert answered.count(b" 400 ") == 0 and b'"live":true' in answered, answered
    writer.close()


async def test_an_answer_that_nobody_reads_is_given_up(url: str, caplog: pytest.LogCaptureFixture) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.connect((host, int(port)))
        caller.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 50)
        async with asyncio.timeout(10):
            while "an answer was not read" not in caplog.text:
                await answers(url)
                await asyncio.sleep(0.05)


async def test_who_asks_as_fast_as_it_is_answered_is_answered_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """429, Retry-After, CloudStack's envelope; the bucket fills again."""
    monkeypatch.setattr("api.flood.HOLD_S", 0.3)
    http = HttpListener(Edge(await FakeSystem.start(), facts={"apilimitmax": 5}), rate=Rate(5, 1))
    url = await http.start()
    async with aiohttp.ClientSession() as session:
        async def ask() -> int:
            async with session.get(f"{url}/client/api?command=listCapabilities&response=json") as answer:
                body = (await answer.json())
                if answer.status == 429:
                    [error] = body.values()
                    assert (error["errorcode"], error["cserrorcode"]) == (429, 4545) and answer.headers["Retry-After"] == "1"
                else:
                    assert body["listcapabilitiesresponse"]["capability"]["apilimitmax"] == 5
                return answer.status

        began = time.monotonic()
        found = sorted(await asyncio.gather(*(ask() for _ in range(20))))
        assert found == [200] * 5 + [429] * 15 and time.monotonic() - began >= 0.3
        await asyncio.sleep(1.0)
        assert await ask() == 200
        async with session.get(f"{url}/livez") as answer:
            assert answer.status == 200
    await http.aclose()
