"""A proxy in front of an S3 endpoint (or any HTTP/1.1 server) that misbehaves on demand and counts what passes.

It owns faults and counts. It refuses to know S3 beyond an error body: requests pass unchanged, `Host` included, so that
the signature, made for this proxy's address, stays valid. One request after another on a connection; bodies are
streamed in small pieces.

    async with S3Proxy(server.endpoint) as proxy:
        client uses proxy.endpoint
        proxy.rate = 1 << 20          # bytes per second in each direction, over all connections; None: no limit
        proxy.pause(); proxy.resume() # nothing passes meanwhile, connections stay open
        proxy.fail(3)                 # answer the next 3 requests with 503 SlowDown, without passing them on
        proxy.reset(1, after=100_000) # cut the next request's connection after so many body bytes upwards
        proxy.cut_answers(1, after=0) # pass the next request whole, cut its answer's body after so many bytes
        proxy.lie(1)                  # pass the next request whole, answer it with a wrong ETag
        proxy.alter(1, change)        # pass the next request whole, its answer (head and body) as `change` makes it
        proxy.drop()                  # cut all connections now
        proxy.clock_ahead_s = 3600    # the Date of answers, as if the server's clock were wrong
        proxy.requests, proxy.bytes_up, proxy.bytes_down, proxy.last_byte_at
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Self
from urllib.parse import urlsplit

_PIECE = 32 << 10
_HEAD = 64 << 10
_ETAG = re.compile(rb"(?im)^(etag: )[^\r]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as it came by."""

    method: str
    target: str
    """Path and query."""
    headers: dict[str, str]
    """Names in lower case."""
    at: float
    """time.monotonic()"""


@dataclass(slots=True)
class _Fault:
    """A fault that waits for `left` requests that match."""

    kind: str
    left: int
    after: int = 0
    match: Callable[[Seen], bool] = field(default=lambda _: True)
    status: int = 503
    code: str = "SlowDown"
    change: Callable[[bytes, bytes], tuple[bytes, bytes]] = field(default=lambda head, body: (head, body))


class _Cut(Exception):
    """The connection is cut on purpose."""


class S3Proxy:
    """See the module's text. All counters are cumulative; `clear` starts again."""

    def __init__(self, endpoint: str, *, host: str = "127.0.0.1") -> None:
        parts = urlsplit(endpoint)
        assert parts.hostname is not None
        self._upstream = (parts.hostname, parts.port or 80)
        self._host = host
        self.rate: float | None = None
        self.requests: list[Seen] = []
        self.bytes_up = 0
        """Body bytes passed to the server."""
        self.bytes_down = 0
        """Body bytes passed to the client."""
        self.last_byte_at = 0.0
        """time.monotonic() of the last body byte in either direction."""
        self.cuts = 0
        """Connections cut on purpose."""
        self.failed = 0
        """Requests answered with an error of ours."""
        self.altered = 0
        """Answers that were changed on the way."""
        self.clock_ahead_s = 0
        self._faults: list[_Fault] = []
        self._open = asyncio.Event()
        self._open.set()
        self._due = 0.0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> str:
        """http://host:port of this proxy."""
        assert self._server is not None, "start it first"
        return f"http://{self._host}:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> Self:
        """Listen on a free port."""
        listener = socket.create_server((self._host, 0))
        # Inherited by what it accepts: a proxy that hoards megabytes could not be slow.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _HEAD)
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=_HEAD)
        return self

    async def stop(self) -> None:
        """Cut everything and stop listening."""
        if self._server is not None:
            self._server.close()
        self.resume()
        self.drop()
        for _ in range(3):  # whoever was let in a moment ago begins, and so has an end; what was closed is closed
            await asyncio.sleep(0)
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def pause(self) -> None:
        """Let nothing pass, keep connections open."""
        self._open.clear()

    @property
    def passes(self) -> bool:
        """Whether anything passes."""
        return self._open.is_set()

    def resume(self) -> None:
        """Let everything pass again."""
        self._open.set()

    def fail(self, count: int, *, status: int = 503, code: str = "SlowDown",
             match: Callable[[Seen], bool] = lambda _: True) -> None:
        """Answer the next `count` matching requests with an S3 error, without passing them on."""
        self._faults.append(_Fault("fail", count, 0, match, status, code))

    def reset(self, count: int, *, after: int = 0, match: Callable[[Seen], bool] = lambda _: True) -> None:
        """Cut both connections of the next `count` matching requests after `after` body bytes towards the server."""
        self._faults.append(_Fault("reset", count, after, match))

    def cut_answers(self, count: int, *, after: int = 0, match: Callable[[Seen], bool] = lambda _: True) -> None:
        """Pass the next `count` matching requests whole; cut the client's connection after `after` bytes of the
        answer's body (0: before its head)."""
        self._faults.append(_Fault("answer", count, after, match))

    def lie(self, count: int, *, match: Callable[[Seen], bool] = lambda _: True) -> None:
        """Pass the next `count` matching requests whole, and give another ETag than the server's."""
        self._faults.append(_Fault("lie", count, 0, match))

    def alter(self, count: int, change: Callable[[bytes, bytes], tuple[bytes, bytes]], *,
              match: Callable[[Seen], bool] = lambda _: True) -> None:
        """Pass the next `count` matching requests whole; their answers' heads and bodies are what `change` makes of them.
        The length and the framing are put right again. For small answers: they are held whole."""
        self._faults.append(_Fault("alter", count, 0, match, change=change))

    def heal(self) -> None:
        """Forget waiting faults, the limit and the pause."""
        self._faults.clear()
        self.rate = None
        self.resume()

    def drop(self) -> None:
        """Cut all connections now."""
        for writer in list(self._writers):
            writer.transport.abort()

    def clear(self) -> None:
        """Counters to zero."""
        self.requests.clear()
        self.bytes_up = self.bytes_down = self.cuts = self.failed = self.altered = 0

    # --- one connection -----------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            server, upstream = await asyncio.open_connection(*self._upstream, limit=_HEAD)
            self._writers.add(upstream)
            while await self._exchange(reader, writer, server, upstream):
                pass
        except (_Cut, OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # either side went away, or was cut
        finally:
            for one in (writer, upstream):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()
                    with suppress(OSError, asyncio.CancelledError):
                        await one.wait_closed()
            self._tasks.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: asyncio.StreamReader,
                        upstream: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, headers = _parse(head)
        method, target, _ = first.split(" ", 2)
        seen = Seen(method=method, target=target, headers=headers, at=time.monotonic())
        self.requests.append(seen)
        await self._open.wait()
        fault = self._take(seen)
        if fault is not None and fault.kind == "fail":
            await self._answer_error(writer, fault, head_only=method == "HEAD")
            return False  # the body was not read: this connection is of no more use
        upstream.write(head)
        cut = fault.after if fault is not None and fault.kind == "reset" else None
        await self._body(reader, upstream, headers, cut, up=True)
        await upstream.drain()
        if cut is not None:
            self._cut()
        while True:
            answer = await server.readuntil(b"\r\n\r\n")
            status, answered = _parse(answer)
            code = int(status.split(" ", 2)[1])
            if code != 100:
                break
            writer.write(answer)
        if self.clock_ahead_s:
            answer = _redated(answer, self.clock_ahead_s)
        if fault is not None and fault.kind == "lie":
            answer = _ETAG.sub(rb'\1"00000000000000000000000000000000"', answer)
        if fault is not None and fault.kind == "alter":
            await self._alter(server, writer, answer, answered, fault, empty=method == "HEAD" or code in (204, 304))
            return False
        cut = fault.after if fault is not None and fault.kind == "answer" else None
        if cut == 0:
            self._cut()
        await self._open.wait()
        writer.write(answer)
        if method != "HEAD" and code not in (204, 304):
            await self._body(server, writer, answered, cut, up=False)
        await writer.drain()
        if cut is not None:
            self._cut()
        return "close" not in (headers.get("connection", ""), answered.get("connection", ""))

    def _take(self, seen: Seen) -> _Fault | None:
        for fault in self._faults:
            if fault.left > 0 and fault.match(seen):
                fault.left -= 1
                return fault
        return None

    def _cut(self) -> None:
        self.cuts += 1
        raise _Cut

    async def _answer_error(self, writer: asyncio.StreamWriter, fault: _Fault, *, head_only: bool) -> None:
        self.failed += 1
        body = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>a test</Message></Error>".encode()
        writer.write(f"HTTP/1.1 {fault.status} Made\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
                     "Connection: close\r\n\r\n".encode() + (b"" if head_only else body))
        await writer.drain()
        writer.write_eof()
        await asyncio.sleep(0.05)  # let the client read it before the connection is torn down

    async def _alter(self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, headers: dict[str, str],
                     fault: _Fault, *, empty: bool) -> None:
        body = b"" if empty else await _whole(server, headers)
        changed, content = fault.change(head, body)
        if not empty:
            lines = [line for line in changed.removesuffix(b"\r\n\r\n").split(b"\r\n")
                     if not line.lower().startswith((b"content-length:", b"transfer-encoding:", b"connection:"))]
            lines += [b"Content-Length: %d" % len(content), b"Connection: close"]
            changed = b"\r\n".join(lines) + b"\r\n\r\n"
        self.altered += 1
        writer.write(changed + content)
        await writer.drain()
        writer.write_eof()
        await asyncio.sleep(0.05)  # let the client read it before the connection is torn down

    async def _body(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, headers: dict[str, str],
                    cut: int | None, *, up: bool) -> None:
        if "chunked" in headers.get("transfer-encoding", ""):
            while True:
                line = await source.readuntil(b"\r\n")
                sink.write(line)
                size = int(line.split(b";")[0], 16)
                cut = await self._pass(source, sink, size, cut, up=up)
                sink.write(await source.readuntil(b"\r\n"))
                if size == 0:
                    return
        await self._pass(source, sink, int(headers.get("content-length", "0")), cut, up=up)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, left: int, cut: int | None, *,
                    up: bool) -> int | None:
        while left > 0:
            piece = await source.read(min(left, _PIECE))
            if not piece:
                raise EOFError
            await self._throttle(len(piece))
            await self._open.wait()
            sink.write(piece)
            await sink.drain()
            left -= len(piece)
            self.last_byte_at = time.monotonic()
            if up:
                self.bytes_up += len(piece)
            else:
                self.bytes_down += len(piece)
            if cut is not None:
                cut -= len(piece)
                if cut <= 0:
                    self._cut()
        return cut

    async def _throttle(self, count: int) -> None:
        if self.rate is None:
            return
        now = time.monotonic()
        self._due = max(self._due, now) + count / self.rate
        await asyncio.sleep(self._due - now)


async def _whole(source: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """A body, without its framing."""
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await source.readexactly(int(headers.get("content-length", "0")))
    pieces: list[bytes] = []
    while size := int((await source.readuntil(b"\r\n")).split(b";")[0], 16):
        pieces.append(await source.readexactly(size))
        await source.readexactly(2)
    await source.readuntil(b"\r\n")
    return b"".join(pieces)


def _redated(head: bytes, ahead_s: int) -> bytes:
    """The head with another Date."""
    lines = head.split(b"\r\n")
    at = next(index for index, line in enumerate(lines) if line.lower().startswith(b"date:"))
    moment = parsedate_to_datetime(lines[at][5:].decode()) + timedelta(seconds=ahead_s)
    lines[at] = b"Date: " + format_datetime(moment, usegmt=True).encode()
    return b"\r\n".join(lines)


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return first, {name.strip().lower(): value.strip() for name, value in pairs}
