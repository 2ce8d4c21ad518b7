"""The product's processes without their loading: `storebus` forked from one that has loaded it, once for each worker of a run.

A test suite starts hundreds of processes of the product, and loading Python and its packages is most of what each costs. What is
forked runs the same `api.cli.main` with its own words, environment, folder, streams and session, and is killed, waited for and looked
at like any process; its children are its own. What differs: the modules are there already, and /proc shows the environment of what it
was forked from. So a soak, and whoever tests just that, starts it as an operator does.

The parent ("nursery") is one process without threads. It is asked over a socket, a message each: words, environment and folder, with
the three streams and the end of a pipe, into which the exit status goes. It ends with its worker, and all that it bore with it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
MESSAGE = 1 << 17
"""Bytes of a request: an environment is a few thousand."""
MODULES = ("api.cli", "api.roles", "api.agent_role", "api.bootstrap", "api.cli_call", "api.cli_bus", "api.completion", "api.http", "uvloop")
"""What is loaded before anything is forked."""
GONE = -signal.SIGKILL
"""The status of what went with its nursery."""
Stream = int | IO[Any] | None

PROGRAM = """\
import json, os, socket, sys
asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
asked.connect({path!r})
read, write = os.pipe()
words = json.dumps({{"words": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}})
socket.send_fds(asked, [words.encode()], [0, 1, 2, write])
os.close(write)
asked.recv(16)
code = int(os.read(read, 16) or b"1")
sys.exit(code if code >= 0 else 128 - code)
"""
"""`storebus` for a shell: a small program that asks for the forking and waits for its end."""


class Forked:
    """One process, with what `subprocess.Popen` has of it."""

    def __init__(self, args: Sequence[str], pid: int, status: int) -> None:
        self.args, self.pid, self._status = list(args), pid, status
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its status, when it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises TimeoutExpired."""
        if self.returncode is None:
            one = select.poll()
            one.register(self._status, select.POLLIN)
            if not one.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            code = os.read(self._status, 16)
            os.close(self._status)
            self.returncode = int(code) if code else GONE
        return self.returncode

    def send_signal(self, how: int) -> None:
        """Nothing happens when it has ended."""
        if self.poll() is None:
            os.kill(self.pid, how)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The test's end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="sb-forked-"))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._door = str(self._folder / "door")
        door.bind(self._door)
        door.listen()
        with theirs, door:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), str(door.fileno())], cwd=ROOT, stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), door.fileno()], start_new_session=True,
                env={name: value for name, value in os.environ.items() if not name.startswith("STOREBUS_")})
        self._socket = ours

    def start(self, words: Sequence[str], environment: Mapping[str, str], folder: Path, streams: Sequence[int]) -> Forked:
        """Fork once; its streams are copies of these."""
        read, write = os.pipe()
        try:
            with self._lock:
                asked = json.dumps({"words": list(words), "environment": dict(environment), "folder": str(folder)}).encode()
                socket.send_fds(self._socket, [asked], [*streams, write])
                pid = int(self._socket.recv(16) or b"0")
        finally:
            os.close(write)
        if not pid:
            os.close(read)
            raise RuntimeError("the process that the product is forked from has ended")
        return Forked(words, pid, read)

    def program(self) -> str:
        """The text of a program that runs as `storebus`."""
        return f"#!{sys.executable} -ISs\n{PROGRAM.format(path=self._door)}"

    def end(self) -> None:
        """It ends when nobody can ask it any more."""
        self._socket.close()
        self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)


_nursery: Nursery | None = None
_making = threading.Lock()


def _soaks() -> bool:
    return os.environ.get("STOREBUS_SOAK_N", "0") != "0"


def _one() -> Nursery:
    """This worker's, made when it is first needed."""
    global _nursery
    with _making:
        if _nursery is None:
            _nursery = Nursery()
            atexit.register(_nursery.end)
        return _nursery


def storebus(*words: str, env: Mapping[str, str], stdin: Stream = subprocess.DEVNULL, stdout: Stream = None, stderr: Stream = None,
             loaded: bool = True) -> Forked | subprocess.Popen[bytes]:
    """A running `storebus` in a session of its own; streams are descriptors, files or DEVNULL, else the caller's own.

    `loaded`: it may be forked; a soak never does."""
    if not loaded or _soaks():
        return subprocess.Popen([sys.executable, "-m", "api.cli", *words], env=dict(env), stdin=stdin, stdout=stdout, stderr=stderr, cwd=ROOT,
                                start_new_session=True)
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        streams = [nothing if each == subprocess.DEVNULL else own if each is None else each if isinstance(each, int) else each.fileno()
                   for each, own in ((stdin, 0), (stdout, 1), (stderr, 2))]
        return _one().start(words, env, ROOT, streams)
    finally:
        os.close(nothing)


def told(*words: str, env: Mapping[str, str], typed: bytes = b"", timeout_s: float = 120) -> tuple[int, bytes, bytes]:
    """A whole run: its status, and what it wrote. Blocks; raises TimeoutExpired when it does not end."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(os.memfd_create(name), "w+b")) for name in ("in", "out", "err")]
        files[0].write(typed)
        files[0].seek(0)
        process = storebus(*words, env=env, stdin=files[0], stdout=files[1], stderr=files[2])
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        files[1].seek(0)
        files[2].seek(0)
        return status, files[1].read(), files[2].read()


def program(folder: Path) -> Path:
    """`storebus` as a program for shells, in a folder that goes onto their PATH."""
    made = folder / "storebus"
    made.write_text(f'#!/bin/sh\nexec {sys.executable} -m api.cli "$@"\n' if _soaks() else _one().program())
    made.chmod(0o755)
    return made


# --- the nursery ------------------------------------------------------------------------------------------------------


class _Child(Exception):
    """Raised in what was forked, to leave the nursery's loop."""


class _Births:
    """Forks what is asked for, and tells how it ended."""

    def __init__(self, worker: socket.socket, door: socket.socket) -> None:
        self._worker, self._door = worker, door
        self._asking = {worker.fileno(): worker}
        self._born: dict[int, tuple[int, int]] = {}
        """pidfd -> (pid, where its status goes)"""
        self._any = selectors.DefaultSelector()
        for each in (worker, door):
            self._any.register(each, selectors.EVENT_READ)

    def go_on(self) -> None:
        """Until the worker has gone. Raises _Child in each child."""
        while self._worker.fileno() in self._asking:
            for key, _ in self._any.select():
                if key.fd in self._born:
                    self._ended(key.fd)
                elif key.fd in self._asking:
                    self._asked(self._asking[key.fd])
                else:
                    one, _ = self._door.accept()
                    self._asking[one.fileno()] = one
                    self._any.register(one, selectors.EVENT_READ)
        for pid, _ in self._born.values():
            os.kill(pid, signal.SIGKILL)

    def _ended(self, watched: int) -> None:
        pid, status = self._born.pop(watched)
        self._any.unregister(watched)
        os.close(watched)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError):  # who waited for it has gone
            os.write(status, str(code).encode())
        os.close(status)

    def _asked(self, by: socket.socket) -> None:
        message, fds, _, _ = socket.recv_fds(by, MESSAGE, 4)
        if not message:
            self._any.unregister(by)
            del self._asking[by.fileno()]
            if by is not self._worker:
                by.close()
            return
        pid = os.fork()
        if pid == 0:
            self._any.close()
            _become(json.loads(message), fds, [
                *(each.detach() for each in self._asking.values()), self._door.detach(), *self._born,
                *(status for _, status in self._born.values())])
            raise _Child
        watched = os.pidfd_open(pid)
        self._born[watched] = (pid, fds[3])
        self._any.register(watched, selectors.EVENT_READ)
        for each in fds[:3]:
            os.close(each)
        with contextlib.suppress(OSError):
            by.send(str(pid).encode())


def _become(asked: Mapping[str, Any], fds: Sequence[int], others: Sequence[int]) -> None:
    """In the child: what a new process would have."""
    os.setsid()
    for number, each in enumerate(fds[:3]):
        os.dup2(each, number)
    for each in (*fds, *others):
        os.close(each)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    for action in filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")):
        warnings.filterwarnings(action)  # type: ignore[arg-type] # an action is all that our tests name there
    sys.argv = ["storebus", *asked["words"]]
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 - the process's own streams
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115 - the same


def main() -> None:
    """Load, then fork; in a child, run."""
    from importlib import import_module

    for name in MODULES:
        import_module(name)
    from api.cli import main as run

    births = _Births(*(socket.socket(fileno=int(given)) for given in sys.argv[1:3]))
    gc.collect()
    gc.freeze()
    try:
        births.go_on()
    except _Child:
        run()


__all__ = ["Forked", "program", "storebus", "told"]

if __name__ == "__main__":
    main()
