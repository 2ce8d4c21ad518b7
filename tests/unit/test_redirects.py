"""Downloads go where the guard let them, at every hop."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from agents.download import opened
from agents.url_guard import UrlGuard, parse_allow
from schema.failure import BadParameter


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A server that redirects: /inside to another port of this host, /outside to an address nobody may reach, /fine to /end."""

    async def give(request: web.Request) -> web.StreamResponse:
        match request.path:
            case "/inside":
                raise web.HTTPFound(f"http://127.0.0.1:{request.url.port and request.url.port + 1}/")
            case "/outside":
                raise web.HTTPFound("http://169.254.169.254/latest")
            case "/fine":
                raise web.HTTPFound("/end")
        return web.Response(body=b"end")

    application = web.Application()
    application.router.add_get("/{any:.*}", give)
    runner = web.AppRunner(application, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.mark.parametrize("where", ["inside", "outside"])
async def test_a_redirect_is_checked_like_the_first_address(port: int, where: str) -> None:
    guard = UrlGuard(parse_allow(f"127.0.0.1/32:{port}"))
    with pytest.raises(BadParameter) as refused:
        async with opened(f"http://127.0.0.1:{port}/{where}", guard):
            pass
    assert "public" in refused.value.failure.cause


async def test_a_redirect_that_is_allowed_is_followed(port: int) -> None:
    async with opened(f"http://127.0.0.1:{port}/fine", UrlGuard(parse_allow(f"127.0.0.1/32:{port}"))) as answer:
        assert await answer.read() == b"end"
