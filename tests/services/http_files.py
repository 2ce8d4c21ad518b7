"""A small threaded web server that tells the truth about files, and every lie that HTTP allows.

`/<behaviour>/<name>`; what each behaviour does is said at its method. It remembers who asked for what and counts the bytes
that it could send, so that a test can see what a client did not take.
"""

from __future__ import annotations

import contextlib
import re
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PIECE = 64 * 1024


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    files: HttpFiles

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what many tests are about."""


class HttpFiles:
    """Files by name, served until closed."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        """Bytes of bodies that the operating system took from the server."""
        self.gate = threading.Event()
        """`/gated` goes on beyond `hold_at` when it is set."""
        self.hold_at = 0
        self.pause_s, self.pause_every = 0.0, 1 << 20
        """`/slow` waits so many seconds after each so many bytes."""
        self.headers: dict[str, str] = {}
        """What `/slow` says beside."""
        self.ended = threading.Event()
        """Set when a client has left a gated answer."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.files = self
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def url(self, path: str) -> str:
        """The address of a path."""
        return f"http://127.0.0.1:{self.port}/{path}"

    @property
    def allow(self) -> str:
        """What the URL guard must let through."""
        return f"127.0.0.1/32:{self.port}"

    def close(self) -> None:
        """Stop serving."""
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *arguments: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        """Dispatch by the first part of the path."""
        files = self.server.files
        files.asked.append((self.path, dict(self.headers)))
        self.close_connection = True
        parts = urlsplit(self.path)
        behaviour, _, name = parts.path.lstrip("/").partition("/")
        with contextlib.suppress(ConnectionError):
            getattr(self, f"_{behaviour}", self._nothing)(files.bodies.get(name, b""), name, parse_qs(parts.query))

    def _head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()

    def _write(self, data: bytes) -> None:
        for at in range(0, len(data), PIECE):
            self.wfile.write(data[at:at + PIECE])
            self.server.files.sent += len(data[at:at + PIECE])

    def _nothing(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """404."""
        self._head(404, Content_Length="0")

    def _file(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """The truth, ranges too."""
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if ranged:
            first, last = int(ranged[1]), min(int(ranged[2] or len(body) - 1), len(body) - 1)
            self._head(206, Content_Length=str(last - first + 1), Content_Range=f"bytes {first}-{last}/{len(body)}")
            self._write(body[first:last + 1])
        else:
            self._head(200, Content_Length=str(len(body)), Accept_Ranges="bytes")
            self._write(body)

    def _chunked(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """The truth without its length."""
        self._head(200, Transfer_Encoding="chunked")
        for at in range(0, len(body), PIECE):
            piece = body[at:at + PIECE]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.server.files.sent += len(piece)
        self.wfile.write(b"0\r\n\r\n")

    def _unended(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """Chunks whose end never comes."""
        self._head(200, Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n%s\r\n" % (len(body) // 2, body[:len(body) // 2]))

    def _nolength(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """Ends where the connection ends."""
        self._head(200)
        self._write(body)

    def _truncated(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """Says the whole length and sends half."""
        self._head(200, Content_Length=str(len(body)))
        self._write(body[:len(body) // 2])

    def _shorter(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """Says a length that is less than what there is."""
        self._head(200, Content_Length=str(int(query["by"][0])))
        self._write(body)

    def _huge(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """Says that it is enormous."""
        self._head(200, Content_Length=str(1 << 50))
        self._write(body)

    def _endless(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """Never ends and never says so."""
        self._head(200)
        while True:
            self._write(body)

    def _encoded(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """Says that it is compressed."""
        self._head(200, Content_Encoding=query["as"][0], Content_Length=str(len(body)))
        self._write(body)

    def _status(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """An error page."""
        self._head(int(name), Content_Length="5")
        self._write(b"sorry")

    def _to(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """A redirect to `where`; without it, one that does not say where."""
        where = query.get("where")
        self._head(int(name), Content_Length="0", **({"Location": where[0]} if where else {}))

    def _hops(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """/hops/<n>/<name>: n relative redirects, then the file."""
        count, _, rest = name.partition("/")
        where = f"/hops/{int(count) - 1}/{rest}" if int(count) > 1 else f"/file/{rest}"
        self._head(302, Content_Length="0", Location=where)

    def _gated(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """Stops at `hold_at` until the gate opens or the client leaves."""
        files = self.server.files
        self._head(200, Content_Length=str(len(body)))
        try:
            self._write(body[:files.hold_at])
            self.connection.settimeout(0.05)
            while not files.gate.wait(0.02):
                with contextlib.suppress(TimeoutError):
                    if self.connection.recv(1) == b"":
                        return
            self.connection.settimeout(None)
            self._write(body[files.hold_at:])
        finally:
            files.ended.set()

    def _slow(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """The truth, with pauses; ranges of what If-Range names."""
        files = self.server.files
        ranged = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if ranged and self.headers.get("If-Range") in files.headers.values():
            first, last, whole = int(ranged[1]), int(ranged[2]), len(body)
            body = body[first:last + 1]
            self._head(206, Content_Length=str(len(body)), Content_Range=f"bytes {first}-{last}/{whole}", **files.headers)
        else:
            self._head(200, Content_Length=str(len(body)), **files.headers)
        for at in range(0, len(body), files.pause_every):
            self._write(body[at:at + files.pause_every])
            time.sleep(files.pause_s)

    def _nonsense(self, body: bytes, name: str, query: dict[str, list[str]]) -> None:
        """Not HTTP at all."""
        self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")


class Canary:
    """A listener that nobody may ever reach; it counts who does."""

    def __init__(self) -> None:
        self.reached = 0
        canary = self

        class _Count(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                canary.reached += 1

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Count)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@contextlib.contextmanager
def http_files() -> Iterator[HttpFiles]:
    """A server while this is open."""
    files = HttpFiles()
    try:
        yield files
    finally:
        files.close()


@contextlib.contextmanager
def canary() -> Iterator[Canary]:
    """A canary while this is open."""
    one = Canary()
    try:
        yield one
    finally:
        one.close()
