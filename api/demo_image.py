"""The demo's disk image, and the web server it is fetched from.

Owns how the image is made: an ext4 file system filled with this machine's own documentation (plus reproducible noise, so
that a transfer takes a moment), as qcow2; or any image or URL given. Everything lies in the demo's own folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from agents import gate, qemu
from schema.failure import WorkFailed

DISK = 256 << 20
NOISE = 48 << 20
"""Bytes of reproducible noise in the file system: data that neither compresses nor is sparse."""
DOCUMENTS = 48 << 20
"""Most bytes of documentation copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskImage:
    """A qcow2 file."""

    path: Path
    size: int
    virtual_size: int
    sha256: str


async def tool(*arguments: str) -> str:
    """Run a program; its output. Raises WorkFailed with what it said."""
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    except FileNotFoundError:
        raise WorkFailed(f"{arguments[0]} is not installed",
                         remedy="apt-get install --no-install-recommends qemu-utils e2fsprogs") from None
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise WorkFailed(f"{arguments[0]} ended with {process.returncode}: {out.decode(errors='replace')[-500:]}")
    return out.decode(errors="replace")


async def build_image(given: str, folder: Path) -> DiskImage:
    """The image to demonstrate with: built here, or the file or URL given (converted to qcow2 if it is something else)."""
    await asyncio.to_thread(lambda: folder.mkdir(parents=True))
    target = folder / "disk.qcow2"
    if given:
        source = await _fetch(given, folder / "given") if "://" in given else Path(given)
        kind = await gate.driver_of(str(source))
        await qemu.run("qemu-img", "convert", "-f", kind, "-O", "qcow2", str(source), str(target))
    else:
        raw = folder / "disk.raw"
        tree = await asyncio.to_thread(_documents, folder / "tree")
        with raw.open("wb") as file:
            file.truncate(DISK)
        await tool("mkfs.ext4", "-q", "-F", "-L", "storebus", "-d", str(tree), str(raw))
        await qemu.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(target))
        await asyncio.to_thread(shutil.rmtree, tree)
        raw.unlink()
    info = await qemu.info(str(target), "qcow2")
    digest = await asyncio.to_thread(_sha256, target)
    return DiskImage(path=target, size=target.stat().st_size, virtual_size=info["virtual-size"], sha256=digest)


def _documents(tree: Path) -> Path:
    tree.mkdir()
    left = DOCUMENTS
    for source in sorted(Path("/usr/share/doc").rglob("*")):
        if source.is_symlink() or not source.is_file() or source.stat().st_size > left:
            continue
        target = tree / source.relative_to("/usr/share")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        left -= source.stat().st_size
    (tree / "noise").write_bytes(random.Random(1).randbytes(NOISE))  # noqa: S311 - reproducible noise, no secret
    return tree


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _fetch(url: str, target: Path) -> Path:
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        if answer.status != 200:
            raise WorkFailed(f"{url} answers {answer.status}", field="IMAGE")
        with target.open("wb") as file:
            async for chunk in answer.content.iter_chunked(1 << 20):
                await asyncio.to_thread(file.write, chunk)
    return target


@dataclass(frozen=True, slots=True, kw_only=True)
class WebServer:
    """Where the image is served."""

    port: int
    url: str
    slow_url: str
    """The same bytes, slowly."""


@contextlib.asynccontextmanager
async def serve(path: Path, *, slow: int) -> AsyncIterator[WebServer]:
    """Serve the image on a free loopback port; `slow` is the bytes a second of the slow address."""

    size = (await asyncio.to_thread(path.stat)).st_size

    async def fast(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path)

    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(size)})
        await response.prepare(request)
        with path.open("rb") as file, contextlib.suppress(ConnectionError):  # the cancelled transfer hangs up
            while chunk := await asyncio.to_thread(file.read, slow // 8):
                await response.write(chunk)
                await asyncio.sleep(0.125)
        return response

    application = web.Application()
    application.router.add_get("/disk.qcow2", fast)
    application.router.add_get("/slow/disk.qcow2", slowly)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield WebServer(port=port, url=f"http://127.0.0.1:{port}/disk.qcow2",
                        slow_url=f"http://127.0.0.1:{port}/slow/disk.qcow2")
    finally:
        await runner.cleanup()
