"""One private OpenStack Swift (account, container, object and proxy server, tempauth) from the package `swift`.

It owns the processes, their ports and their directory. It refuses to know pytest. Swift has a virtual environment of its
own, `swift` inside ours, because its eventlet must not meet our asyncio; scripts/setup makes it. The servers die with the
process that started them, however that one ends (their starter waits for the end of a pipe that only it holds).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

INSTALL = "run: scripts/setup test"
GIVEN = "STOREBUS_TEST_SWIFT_PYTHON"
"""Variable: the interpreter of an environment that has the package `swift`."""
READY_S = 180.0
SEGMENTS = 32
"""Of the largest manifest: few, so that small tests need manifests of manifests."""
_TRIES = 3
_LAUNCHER = Path(__file__).with_name("swift_processes.py")


class SwiftMissing(Exception):
    """Swift is not installed; the text has the line that installs it."""


class SwiftFailed(Exception):
    """Swift did not become ready; the text ends with the last lines of its logs."""


def find_swift() -> Path:
    """The interpreter that has Swift. Raises SwiftMissing."""
    given = os.environ.get(GIVEN)
    found = Path(given) if given else Path(sys.prefix) / "swift" / "bin" / "python"
    if not found.exists() or not (found.parent / "swift-proxy-server").exists():
        raise SwiftMissing(f"OpenStack Swift is not installed in {found.parent.parent.name}: {INSTALL}")
    return found


@dataclass(kw_only=True)
class SwiftServer:
    """A running Swift with one account."""

    url: str
    """http://127.0.0.1:port/auth/v1.0: where tempauth gives tokens."""
    account: str
    username: str
    key: str
    root: Path
    process: subprocess.Popen[bytes]

    @property
    def endpoint(self) -> str:
        """http://127.0.0.1:port"""
        return self.url.removesuffix("/auth/v1.0")

    def forget_tokens(self) -> None:
        """Make every token invalid, as when they expire."""
        (self.root / "forget").touch()

    def alive(self) -> bool:
        """Whether the starter still runs."""
        return self.process.poll() is None

    def stop(self) -> None:
        """Kill the servers and remove what they wrote. Twice is fine."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=10)
        shutil.rmtree(self.root, ignore_errors=True)


def start_swift(*, parent: Path | None = None, segments: int = SEGMENTS) -> SwiftServer:
    """Start Swift on free ports with a fresh directory below `parent`; its manifests have `segments` at most. Blocks until a real put, get and delete succeeded:
    3 to 8 s. Raises SwiftMissing or SwiftFailed."""
    python = find_swift()
    for attempt in range(_TRIES):
        server = _spawn(python, parent, segments)
        try:
            _wait_ready(server)
        except SwiftFailed:
            server.stop()
            if attempt == _TRIES - 1:  # a port was taken between choosing and using it: choose again, but not for ever
                raise
        except BaseException:
            server.stop()
            raise
        else:
            return server
    raise AssertionError("unreachable")


def _spawn(python: Path, parent: Path | None, segments: int) -> SwiftServer:
    root = Path(tempfile.mkdtemp(prefix="swift-", dir=parent))
    ports = _free_ports(4)
    with (root / "starter.log").open("wb") as log:
        process = subprocess.Popen([str(python), "-P", str(_LAUNCHER), "all", str(root), str(segments), *map(str, ports)], stdin=subprocess.PIPE,
                                   stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    return SwiftServer(url=f"http://127.0.0.1:{ports[0]}/auth/v1.0", account="test", username="tester", key="testing",
                       root=root, process=process)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_ready(server: SwiftServer) -> None:
    deadline = time.monotonic() + READY_S
    last = "nothing was tried"
    while time.monotonic() < deadline and server.alive():
        try:
            return _round_trip(server)
        except (URLError, OSError, AssertionError) as error:  # not listening yet, or one of the four is not
            last = str(error)
            time.sleep(0.1)
    logs = "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1000:]}" for log in sorted(server.root.glob("*.log")))
    raise SwiftFailed(f"Swift did not become ready within {READY_S:.0f} s ({last})\n{logs}")


def _round_trip(server: SwiftServer) -> None:
    login = Request(server.url, headers={"X-Auth-User": f"{server.account}:{server.username}", "X-Auth-Key": server.key})
    with urlopen(login, timeout=5) as answer:
        token, storage = answer.headers["X-Auth-Token"], answer.headers["X-Storage-Url"]

    def ask(method: str, path: str, body: bytes | None = None) -> bytes:
        with urlopen(Request(f"{storage}/{path}", data=body, method=method, headers={"X-Auth-Token": token}), timeout=10) as got:
            found: bytes = got.read()
            return found

    ask("PUT", "ready")
    ask("PUT", "ready/object", b"ready")
    assert ask("GET", "ready/object") == b"ready"
    ask("DELETE", "ready/object")
    ask("DELETE", "ready")
