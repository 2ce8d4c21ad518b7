"""Ranges straight from the socket: what is there as it was asked for, and everything else left to the client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from agents.image_stores.s3_ranges import Ranges
from tests.contract.image_store import Told

BODY = bytes(range(256)) * 8192  # 2 MiB


class Server:
    """Answers ranges, or lies as it was told."""

    def __init__(self) -> None:
        self.lie = ""
        self.asked = 0
        self.url = ""

    async def give(self, request: web.Request) -> web.StreamResponse:
        """One answer."""
        self.asked += 1
        at = request.http_range
        part = BODY[at]
        assert at.start is not None
        headers = {"Content-Range": f"bytes {at.start}-{at.start + len(part) - 1}/{len(BODY)}"}
        match self.lie:
            case "refused":
                return web.Response(status=403)
            case "whole":
                return web.Response(body=BODY)
            case "elsewhere":
                return web.Response(status=206, body=part, headers={"Content-Range": f"bytes 7-{len(part) + 6}/{len(BODY)}"})
            case "busy":
                return web.Response(status=503)
        response = web.StreamResponse(status=206, headers=headers | {"Content-Length": str(len(part))})
        await response.prepare(request)
        if self.lie in ("cut", "hang"):
            await response.write(part[:len(part) // 2])
            if self.lie == "hang":
                await asyncio.sleep(30)
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(part)
        return response


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    here, app = Server(), web.Application()
    app.router.add_get("/bucket/{key:.*}", here.give)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    here.url = f"http://127.0.0.1:{runner.addresses[0][1]}/bucket"
    yield here
    await runner.cleanup()


@contextlib.asynccontextmanager
async def ranges(server: Server) -> AsyncIterator[Ranges]:
    async def sign(key: str, seconds: int) -> str:
        return f"{server.url}/{key}?signed=yes"

    made = Ranges(sign, 2.0, 8)
    try:
        yield made
    finally:
        made.close()


async def test_fills_the_buffer_and_uses_the_connection_again(server: Server) -> None:
    async with ranges(server) as reader:
        for offset, length in ((0, 1 << 20), (4097, 999_999), (len(BODY) - 5, 5)):
            buffer = bytearray(length)
            assert await reader.read_into("k", offset, memoryview(buffer))
            assert bytes(buffer) == BODY[offset:offset + length]
        assert len(reader._idle) == 1


async def test_every_piece_is_told_of_once_in_its_order(server: Server) -> None:
    async with ranges(server) as reader:
        told = Told()
        assert await reader.read_into("k", 7, memoryview(bytearray(1_999_999)), told)
    assert told.bytes == BODY[7:2_000_006]
    assert len(told.times) > 3 and told.times.count(0) == 1


async def test_after_an_answer_that_broke_it_is_told_from_the_beginning(server: Server) -> None:
    async with ranges(server) as reader:
        server.lie, told = "cut", Told()
        assert not await reader.read_into("k", 0, memoryview(bytearray(2 << 20)), told)
        assert BODY.startswith(told.bytes) and len(told.bytes) <= 1 << 20
        server.lie = ""
        assert await reader.read_into("k", 0, memoryview(bytearray(2 << 20)), told)
    assert told.bytes == BODY


async def test_many_at_once(server: Server) -> None:
    async with ranges(server) as reader:
        buffers = [bytearray(100_000) for _ in range(20)]
        assert all(await asyncio.gather(*(reader.read_into("k", number * 100_000, memoryview(buffer))
                                          for number, buffer in enumerate(buffers))))
        assert b"".join(buffers) == BODY[:2_000_000]


@pytest.mark.parametrize("lie", ["refused", "whole"])
async def test_a_store_that_does_not_understand_is_not_asked_again(server: Server, lie: str) -> None:
    server.lie = lie
    async with ranges(server) as reader:
        assert not await reader.read_into("k", 1, memoryview(bytearray(1000)))
        assert not reader.works
        assert not await reader.read_into("k", 1, memoryview(bytearray(1000)))
        assert server.asked == 1


@pytest.mark.parametrize("lie", ["elsewhere", "busy", "cut"])
async def test_what_goes_wrong_once_is_left_to_the_client_once(server: Server, lie: str) -> None:
    async with ranges(server) as reader:
        server.lie = lie
        assert not await reader.read_into("k", 1, memoryview(bytearray(1000)))
        server.lie = ""
        buffer = bytearray(1000)
        assert await reader.read_into("k", 1, memoryview(buffer))
        assert bytes(buffer) == BODY[1:1001]


async def test_past_the_end_is_the_clients_to_tell(server: Server) -> None:
    async with ranges(server) as reader:
        assert not await reader.read_into("k", len(BODY) - 5, memoryview(bytearray(10)))


async def test_cancelled_it_ends_at_once_and_nothing_writes_any_more(server: Server) -> None:
    server.lie = "hang"
    async with ranges(server) as reader:
        buffer = bytearray(1 << 20)
        task = asyncio.create_task(reader.read_into("k", 0, memoryview(buffer)))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 1
        assert not reader._idle


async def test_silence_is_left_to_the_client(server: Server) -> None:
    server.lie = "hang"
    async with ranges(server) as reader:
        reader.silence_s = 0.2
        began = time.monotonic()
        assert not await reader.read_into("k", 0, memoryview(bytearray(1 << 20)))
        assert time.monotonic() - began < 2
