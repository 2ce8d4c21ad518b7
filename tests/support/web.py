"""A web server of tests: the truth, and every lie about an image that a URL can tell."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from agents.qemu import run

BACKING_AT, SIZE_AT = 8, 24


@dataclass
class Site:
    """Addresses of images and lies."""

    port: int
    image: Path
    stop_at: int = 0
    """The address /slow gives this many bytes and then waits until it is raised."""

    def url(self, name: str) -> str:
        """The address of one."""
        return f"http://127.0.0.1:{self.port}/{name}"


async def make_image(folder: Path, data: bytes) -> Path:
    """A qcow2 image with this content, made by qemu."""
    raw, image = folder / "image.raw", folder / "image.qcow2"
    await asyncio.to_thread(raw.write_bytes, data)
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    return image


async def lies(folder: Path, image: Path) -> dict[str, bytes]:
    """Name -> body."""
    good = image.read_bytes()
    backed = folder / "backed.qcow2"
    await run("qemu-img", "create", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", str(backed), "1M")
    external = folder / "external.qcow2"
    await run("qemu-img", "create", "-f", "qcow2", "-o", f"data_file={folder}/outside.raw", str(external), "1M")
    huge = bytearray(good)
    huge[SIZE_AT:SIZE_AT + 8] = struct.pack(">Q", 1 << 60)
    unknown = bytearray(good)
    unknown[72:80] = struct.pack(">Q", 1 << 40)
    return {
        "html": b"<!DOCTYPE html><html><body>404, sorry</body></html>", "empty": b"", "gzip": gzip.compress(bytes(50 << 20)),
        "backing": backed.read_bytes(), "datafile": external.read_bytes(), "huge": bytes(huge), "unknown": bytes(unknown),
        "noise": bytes(range(256)) * 4096, "half": good[:len(good) // 2 // 512 * 512],
    }


@contextlib.asynccontextmanager
async def site(folder: Path, data: bytes) -> AsyncIterator[Site]:
    """Serve the truth at /image, lies under their names, and some that only a server can tell."""
    image = await make_image(folder, data)
    bodies = await lies(folder, image)
    here = Site(0, image)

    async def give(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name == "image":
            return web.FileResponse(image)
        if name == "redirect-inside":
            raise web.HTTPFound("http://127.0.0.1:22/latest/meta-data")
        if name == "redirect-file":
            raise web.HTTPFound("file:///etc/passwd")
        if name == "loop":
            raise web.HTTPFound("/loop")
        if name == "encoded":
            return web.Response(body=gzip.compress(image.read_bytes()), headers={"Content-Encoding": "gzip"})
        if name == "broken":
            return web.Response(status=503)
        if name == "truncated":
            return await _cut(request, image.read_bytes())
        if name == "slow":
            return await _slow(request, here)
        if name in bodies:
            return web.Response(body=bodies[name])
        raise web.HTTPNotFound

    application = web.Application()
    application.router.add_get("/{name}", give)
    runner = web.AppRunner(application, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    here.port = runner.addresses[0][1]
    try:
        yield here
    finally:
        await runner.cleanup()


async def _cut(request: web.Request, body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[:len(body) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


async def _slow(request: web.Request, here: Site) -> web.StreamResponse:
    body = await asyncio.to_thread(here.image.read_bytes)
    response = web.StreamResponse(headers={"Content-Length": str(len(body))})
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        sent = 0
        while sent < len(body):
            step = body[sent:min(here.stop_at, sent + (1 << 20))]
            if step:
                await response.write(step)
                sent += len(step)
            await asyncio.sleep(0.02)
    return response
