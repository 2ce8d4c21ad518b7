"""Ranges of S3 objects straight from the socket into a buffer: no copy on the way, and no turn of the event loop for each piece.

Owns connections of its own, each used by one thread at a time, and URLs that the client signed. Refuses to retry and to explain:
what is not simply there as it was asked for is asked of the client, which does both. Rule: nothing writes to a buffer once
`read_into` has ended; a cancelled read cuts its connection and waits for its thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from agents import stall
from agents.image_stores.base import Seen
from agents.uninterrupted import to_the_end

PIECE = 512 << 10
"""Bytes taken from the socket at once: after each the transfer counts as moving."""
CONNECT_S = 3.0
"""Seconds for a connection, at most: a cancelled read waits for it. The client waits longer."""
URL_S = 3600
"""Seconds for which a URL is signed; it is used for half of them."""
URLS = 64
"""Signed URLs kept at most."""

Sign = Callable[[str, int], Awaitable[str]]
"""(key, seconds) -> a URL by which the object may be read. A secret."""


class _NotPlain(Exception):
    """The answer is not the range as it was asked for."""


@dataclass
class _Line:
    """A connection, as the thread that uses it and the loop that may cut it see it."""

    connection: http.client.HTTPConnection | None = None
    cut: bool = False

    def stop(self) -> None:
        """Let the thread end now, wherever it waits."""
        self.cut = True
        made = self.connection
        if made is not None and made.sock is not None:
            with contextlib.suppress(OSError):
                made.sock.shutdown(socket.SHUT_RDWR)


@dataclass
class Ranges:
    """Of one store."""

    sign: Sign
    silence_s: float
    """Seconds without a byte after which a connection counts as broken."""
    most: int
    """Connections at most."""
    cafile: str = ""
    """File with the authorities that sign the endpoint's certificate."""
    works: bool = True
    """False once the store refused a signed URL: from then on the client is asked at once."""
    _urls: dict[str, tuple[float, SplitResult]] = field(default_factory=dict, repr=False)
    _idle: list[http.client.HTTPConnection] = field(default_factory=list, repr=False)
    _threads: ThreadPoolExecutor | None = None
    _context: ssl.SSLContext | None = None

    async def read_into(self, key: str, offset: int, view: memoryview, seen: Seen | None = None) -> bool:
        """Fill `view` with the object's bytes from `offset` on. False: not to be had this way, and `view` holds anything."""
        if not self.works or not len(view):
            return False
        url, tell, line = await self._url(key), stall.from_thread(), _Line()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.most, "ranges")
        reading = asyncio.get_running_loop().run_in_executor(self._threads, self._read, line, url, offset, view, tell, seen)
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            line.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await to_the_end(asyncio.gather(reading, return_exceptions=True))
            raise

    async def _url(self, key: str) -> SplitResult:
        now = asyncio.get_running_loop().time()
        known = self._urls.get(key)
        if known is None or known[0] < now:
            while len(self._urls) >= URLS:
                del self._urls[next(iter(self._urls))]
            known = self._urls[key] = now + URL_S / 2, urlsplit(await self.sign(key, URL_S))
        return known[1]

    def _read(self, line: _Line, url: SplitResult, offset: int, view: memoryview, tell: Callable[[], None],
              seen: Seen | None) -> bool:
        """In a thread. One request on a connection that is idle, or on a new one."""
        try:
            made = line.connection = self._idle.pop() if self._idle else self._connect(url)
        except (OSError, ssl.SSLError, ValueError):
            return False
        whole = False
        try:
            if not line.cut:
                self._get(made, url, offset, view, tell, seen)
                whole = True
        except _NotPlain:
            self.works = False
        except (OSError, http.client.HTTPException, ValueError):
            pass  # the client asks again, and says what is wrong
        if whole and not line.cut:
            self._idle.append(made)
        else:
            made.close()
        return whole

    def _connect(self, url: SplitResult) -> http.client.HTTPConnection:
        assert url.hostname is not None
        if url.scheme == "https":
            if self._context is None:
                self._context = ssl.create_default_context(cafile=self.cafile or None)
            made: http.client.HTTPConnection = http.client.HTTPSConnection(
                url.hostname, url.port, timeout=CONNECT_S, context=self._context)
        else:
            made = http.client.HTTPConnection(url.hostname, url.port, timeout=CONNECT_S)
        made.connect()
        made.sock.settimeout(self.silence_s)
        return made

    def _get(self, made: http.client.HTTPConnection, url: SplitResult, offset: int, view: memoryview,
             tell: Callable[[], None], seen: Seen | None) -> None:
        end = offset + len(view) - 1
        made.request("GET", f"{url.path}?{url.query}", headers={"Range": f"bytes={offset}-{end}"})
        answer = made.getresponse()
        if answer.status in (401, 403, 200):
            raise _NotPlain  # signed URLs or ranges are not understood there
        if answer.status != http.client.PARTIAL_CONTENT or answer.length != len(view) or not (
                answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-{end}/")):
            raise ValueError("another answer")
        at = 0
        while at < len(view):
            got = answer.readinto(view[at:at + PIECE])
            if not got:
                raise ValueError("it ended early")
            if seen is not None:
                seen(at, view[at:at + got])
            at += got
            tell()
        answer.readinto(bytearray(1))  # its end: the connection is free for the next request

    def close(self) -> None:
        """Let go of idle connections. No thread reads any more: each was waited for."""
        for made in self._idle:
            made.close()
        self._idle.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=False)


__all__ = ["Ranges"]
