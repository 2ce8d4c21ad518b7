"""The listener: sockets, and how long anything on them may take.

Owns the connections: how many, how long a request's head may be on its way, that whoever sends more than is read, or does not
read what is sent, is let go. Refuses to know what is asked (`api.http`). Rule: nothing done slowly holds anything for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.authentication import Authentication
from api.edge import Edge
from api.flood import UNLIMITED, Rate
from api.http import Checks, make_app
from schema.failure import BadParameter

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 512
"""Requests at once; more are answered 503 by the server."""
MAX_HEAD = 64 << 10
"""Bytes of a request's line and headers."""
HEAD_S = 10.0
"""How long a request's head may be on its way, from the connection's or the head's first byte on."""
KEEP_S = 30
"""How long a connection waits for another request."""
LINGER_S = 2.0
"""How long what is still being sent after the answer is thrown away, so that the answer can be read."""
SEND_S = 60.0
"""How long a piece of an answer may wait for its reader."""
CLOSE_S = 5.0


class Protocol(HttpToolsProtocol):
    """uvicorn's, with an end to what is never finished."""

    _head = _heads = 0
    """Bytes of a head that is not whole yet, besides those that came together with what was before it; heads after the first."""
    _in_head = _in_body = False
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        """The first head's time begins."""
        super().connection_made(transport)
        self._in_head = True
        self._end_in(HEAD_S)

    def data_received(self, data: bytes) -> None:
        """A head is read only so far."""
        heads = self._heads
        super().data_received(data)
        self._head = self._head + len(data) if self._in_head and self._heads == heads else 0
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._go_on()
        self._read()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A head that is not whole yet has its time, however its bytes trickle in."""
        super().on_message_begin()
        if not self._in_head:
            self._in_head = True
            self._heads += 1
            self._end_in(HEAD_S)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head, self._in_body = False, True
        self._go_on()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._in_body = False
        self._go_on()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A body that was not read to its end is read no further for long."""
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._end_in(LINGER_S)

    def pause_writing(self) -> None:
        """An answer does not wait for its reader for ever."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(SEND_S, self._not_read)

    def resume_writing(self) -> None:
        """It is read."""
        super().resume_writing()
        self._read()

    def _not_read(self) -> None:
        log.warning("an answer was not read", extra={"action": "answer_not_read"})
        self.transport.abort()

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _end_in(self, seconds: float) -> None:
        self._go_on()
        self._timer = self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self._in_head and self.cycle is not None and not self.cycle.response_complete:
            self._end_in(HEAD_S)  # the head of the request after the one that is answered
        else:
            self.transport.close()

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Server(uvicorn.Server):
    """uvicorn inside a process that handles its signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class HttpListener:
    """A listener that answers from `start` until `aclose`. `url` is where. `checks` and `rate`: see make_app."""

    def __init__(self, edge: Edge, *, host: str = "127.0.0.1", port: int = 0, checks: Checks | None = None,
                 authentication: Authentication | None = None, rate: Rate = UNLIMITED) -> None:
        self._edge, self._host, self._port, self._checks = edge, host, port, checks
        self._authentication, self._rate = authentication, rate
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self) -> str:
        """Listen; the URL. Raises BadParameter when the address cannot be had."""
        listener = _bind(self._host, self._port)
        address = listener.getsockname()
        self.url = f"http://{_reachable(address[0])}:{address[1]}"
        app = make_app(self._edge, loopback=ipaddress.ip_address(address[0]).is_loopback,
                       checks=self._checks, authentication=self._authentication, rate=self._rate)
        self._streams = app.streams
        config = uvicorn.Config(
            app, http=Protocol, log_config=None, access_log=False,
            server_header=False, lifespan="off", ws="none", limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=int(CLOSE_S), timeout_keep_alive=KEEP_S)
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="http")
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.005)
        return self.url

    async def aclose(self) -> None:
        """Finish the requests in hand, bounded, and stop listening."""
        if self._server is None or self._task is None:
            return
        self._streams.close()
        self._server.should_exit = True
        try:
            await asyncio.wait_for(asyncio.shield(self._task), CLOSE_S + 2)
        except TimeoutError:
            self._server.force_exit = True
            await asyncio.wait([self._task], timeout=CLOSE_S)


def _reachable(address: str) -> str:
    """How this machine reaches a listener: one on every address is reached on loopback."""
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        return "[::1]" if ip.version == 6 else "127.0.0.1"
    return f"[{address}]" if ip.version == 6 else address


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise BadParameter(f"{host}:{port} cannot be listened on: {error.strerror or error}", field="api_port",
                           remedy="choose another with --api-port, 0 takes any free one") from None


__all__ = ["HttpListener"]
