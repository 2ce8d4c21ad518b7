"""Who serves a memory store's links over HTTP: a double of what a real store does with a signed URL. GET, HEAD and one range."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


@contextmanager
def served(bucket: Any) -> Iterator[None]:
    """This dictionary's links work within."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            found = bucket.linked(unquote(parts.path[1:]), dict(parse_qsl(parts.query)), time.time())
            if isinstance(found, int):
                self.send_error(found)
                return
            first, last, wanted = 0, len(found) - 1, self.headers.get("Range", "")
            if wanted:
                start, _, end = wanted.removeprefix("bytes=").partition("-")
                first, last = int(start), min(int(end or last), last)
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(found)}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(found[first:last + 1])

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            """Its URLs are secrets here too."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    bucket.links_at = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
