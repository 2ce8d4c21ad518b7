"""The mover: the one child process of an agent, in which bytes move. The control process never blocks on them.

Both sides are here: `Mover` (the agent's) and `main` (the child's). They speak JSON lines; secrets travel only down the
child's standard input. The child dies with its agent. A child that dies or does not obey a cancel is replaced, and what
it was doing is done again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from agents.operations import OPERATIONS
from agents.toolbox import Toolbox
from schema.codec import decode
from schema.failure import Failed, Failure, WorkFailed
from schema.message import Order

log = logging.getLogger(__name__)

OBEY_S = 4.0
"""Seconds that a cancelled task may take before its process is killed."""
EVERY_S = 0.2
LINE_MAX = 1 << 20
OnProgress = Callable[[str, int, int], None]


class MoverDied(Exception):
    """The child ended while it worked: nothing is known of the work but that its bytes have stopped."""


class WorkFailure(Failed):
    """What an operation failed with, as the child told it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.cause, field=failure.field, remedy=failure.remedy)
        self.failure = failure


class Mover:
    """The agent's side. `run` may be called many times at once."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, tuple[asyncio.Future[dict[str, Any]], OnProgress]] = {}
        self._next = 0
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int:
        """The child's pid; 0 when none runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def run(self, order: Order, payload: bytes, secrets: Mapping[str, str], on_progress: OnProgress) -> dict[str, Any]:
        """Do the order: {"result": ..., "bytes": n}. Raises WorkFailure, MoverDied; cancelled, the bytes stop within 5 s."""
        await self._started()
        self._next += 1
        number = self._next
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (future, on_progress)
        try:
            await self._send({"id": number, "type": order.TYPE, "version": order.VERSION, "payload": payload.decode(),
                              "secrets": dict(secrets)})
            try:
                answer = await asyncio.shield(future)
            except asyncio.CancelledError:
                await self._stop(number, future)
                raise
        finally:
            self._waiting.pop(number, None)
        if "failure" in answer:
            raise WorkFailure(Failure.model_validate(answer["failure"]))
        return answer

    async def _stop(self, number: int, future: asyncio.Future[dict[str, Any]]) -> None:
        with contextlib.suppress(MoverDied):
            await self._send({"cancel": number})
        await asyncio.wait([future], timeout=OBEY_S)
        if not future.done():
            log.warning("the mover does not stop: it is replaced", extra={"action": "mover_killed"})
            self.kill()
        future.cancel()

    def kill(self) -> None:
        """SIGKILL the child: its sockets close at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _send(self, message: dict[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            raise MoverDied
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise MoverDied from None

    async def _started(self) -> None:
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            if self._reader is not None:
                await asyncio.gather(self._reader, return_exceptions=True)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agents.mover", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                limit=LINE_MAX, preexec_fn=_die_with_parent)
            await self._send({"settings": self._settings})
            self._reader = asyncio.create_task(self._read(self._process), name="mover")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            said = json.loads(line)
            found = self._waiting.get(said["id"])
            if found is None:
                continue
            future, on_progress = found
            if "progress" in said:
                on_progress(*said["progress"])
            elif not future.done():
                future.set_result(said)
        await process.wait()
        for future, _ in list(self._waiting.values()):
            if not future.done():
                future.set_exception(MoverDied())
                future.exception()  # its caller may be gone

    async def aclose(self) -> None:
        """End the child; what it was doing is found unfinished at the next start."""
        self.kill()
        if self._process is not None:
            await self._process.wait()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


# --- the child's side -----------------------------------------------------------------------------------------------


class _Thinned:
    """Progress of one task: at most five lines a second, and the last word is always said."""

    def __init__(self, number: int) -> None:
        self.number, self.moved = number, 0
        self._word: tuple[str, int, int] = ("", 0, 0)
        self._due: asyncio.TimerHandle | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.moved = max(self.moved, done)
        self._word = (stage, done, total)
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(EVERY_S, self._say)

    def _say(self) -> None:
        self._due = None
        say({"id": self.number, "progress": list(self._word)})


class Child:
    """Reads orders, does them side by side, says what became of them."""

    def __init__(self) -> None:
        self._tools = Toolbox()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Until standard input ends."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=LINE_MAX)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
        while line := await reader.readline():
            said = json.loads(line)
            if "settings" in said:
                self._tools = Toolbox(**said["settings"])
            elif "cancel" in said:
                task = self._tasks.get(said["cancel"])
                if task is not None:
                    task.cancel()
            else:
                task = asyncio.create_task(self._do(said))
                self._tasks[said["id"]] = task
                task.add_done_callback(partial(self._forget, said["id"]))

    def _forget(self, number: int, task: asyncio.Task[None]) -> None:
        self._tasks.pop(number, None)

    async def _do(self, said: dict[str, Any]) -> None:
        number = said["id"]
        progress = _Thinned(number)
        try:
            order = decode(said["type"], said["version"], said["payload"].encode())
            result = await OPERATIONS[type(order)](order, self._tools, said["secrets"], progress)  # type: ignore[index] # orders only
            say({"id": number, "result": result.model_dump(mode="json"), "bytes": progress.moved})
        except asyncio.CancelledError:
            say({"id": number, "cancelled": True})
        except Failed as failed:
            say({"id": number, "failure": failed.failure.model_dump(mode="json")})
        except Exception as error:
            # Its text may hold anything; the class says enough, and the traceback stays here.
            log.exception("an operation failed in a way that nobody foresaw")
            failure = WorkFailed(f"internal error: {type(error).__name__}", remedy="see the agent's log").failure
            say({"id": number, "failure": failure.model_dump(mode="json")})


def say(message: dict[str, Any]) -> None:
    """One line to the agent. A pipe holds more than is ever said at once; the agent always reads."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """The child."""
    import uvloop

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s mover %(levelname)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is the agent's to handle
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        uvloop.run(Child().serve())


if __name__ == "__main__":
    main()
