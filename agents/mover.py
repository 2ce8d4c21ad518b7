"""The mover: the one child process of an agent, in which bytes move. The control process never blocks on them.

Both sides are here: `Mover` (the agent's) and `main` (the child's). They speak JSON lines; secrets travel only down the
child's standard input, and what the child logs is cleared of them. The child dies with its agent. A child that dies or does
not obey a cancel is replaced, and what it was doing is done again. `InlineMover` does the same work in the calling process, for
plug-ins that live in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TextIO

from agents.leftovers import noted
from agents.operations import OPERATIONS
from agents.stall import watched
from agents.toolbox import Toolbox
from schema.codec import decode
from schema.failure import Failed, Failure, WorkFailed, WorkRetryable
from schema.message import Order

log = logging.getLogger(__name__)

OBEY_S = 4.0
"""Seconds that a cancelled task may take before its process is killed."""
EVERY_S = 0.2
LINE_MAX = 1 << 20
CAUSE_MAX = 2000
"""Characters of a failure's cause that are passed on."""
OnProgress = Callable[[str, int, int], None]


class MoverDied(Exception):
    """The child ended while it worked: nothing is known of the work but that its bytes have stopped.

    `deliberate` when this side ended it, so that nobody counts it as the work's fault.
    """

    def __init__(self, *, deliberate: bool = False) -> None:
        super().__init__("the mover ended")
        self.deliberate = deliberate


class WorkFailure(Failed):
    """What an operation failed with, as the child told it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.cause, field=failure.field, remedy=failure.remedy)
        self.failure = failure


def _remaining(failed: Failed, left: list[str]) -> Failure:
    return failed.failure.model_copy(update={"remains": bool(left)})


class Mover:
    """The agent's side. `run` may be called many times at once."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, tuple[asyncio.Future[dict[str, Any]], OnProgress]] = {}
        self._next = 0
        self._starting = asyncio.Lock()
        self._killed = self._closed = False

    @property
    def pid(self) -> int:
        """The child's pid; 0 when none runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def run(self, order: Order, payload: bytes, secrets: Mapping[str, str], on_progress: OnProgress) -> dict[str, Any]:
        """Do the order: {"result": ..., "bytes": n}. Raises WorkFailure, MoverDied.

        Cancelled, the bytes stop within 5 s and this ends as the work did: CancelledError when it stopped and cleaned up, its
        result or failure when it had ended before, MoverDied when it had to be killed and may have left something.
        """
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
                answer = await self._stopped(number, future)
                if "cancelled" in answer:
                    raise
        finally:
            self._waiting.pop(number, None)
        if "failure" in answer:
            raise WorkFailure(Failure.model_validate(answer["failure"]))
        return answer

    async def _stopped(self, number: int, future: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
        """Tell the child to stop; its answer. Raises MoverDied when it does not obey."""
        await self._send({"cancel": number})
        await asyncio.wait([future], timeout=OBEY_S)
        if not future.done():
            log.warning("the mover does not stop: it is replaced", extra={"action": "mover_killed"})
            self.kill()
            await asyncio.wait([future])  # the kernel ends it, and its reader says so
        return future.result()

    def kill(self) -> None:
        """SIGKILL the child: its sockets close at once."""
        if self._process is not None and self._process.returncode is None:
            self._killed = True
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _send(self, message: dict[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            raise MoverDied(deliberate=self._killed)
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise MoverDied(deliberate=self._killed) from None

    async def _started(self) -> None:
        async with self._starting:
            if self._closed:
                raise MoverDied(deliberate=True)
            if self._process is not None and self._process.returncode is None:
                return
            if self._reader is not None:
                await asyncio.gather(self._reader, return_exceptions=True)
            self._killed = False
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agents.mover", str(os.getpid()), stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, limit=LINE_MAX)
            self._reader = asyncio.create_task(self._read(self._process), name="mover")
            await self._send({"settings": self._settings})

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        try:
            await self._listen(process)
        except Exception:
            log.exception("the mover speaks no sense: it is replaced", extra={"action": "mover_killed"})
            self.kill()
        await process.wait()
        for future, _ in list(self._waiting.values()):
            if not future.done():
                future.set_exception(MoverDied(deliberate=self._killed))
                future.exception()  # its caller may be gone

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
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

    async def aclose(self) -> None:
        """End the child for good; what it was doing is found unfinished at the next start."""
        self._closed = True
        self.kill()
        if self._process is not None:
            await self._process.wait()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)


class InlineMover:
    """Does the work in the calling process: for plug-ins in memory, which a child would not share. Not for bytes that count."""

    def __init__(self, tools: Toolbox) -> None:
        self._tools = tools

    async def run(self, order: Order, payload: bytes, secrets: Mapping[str, str], on_progress: OnProgress) -> dict[str, Any]:
        """As Mover.run; a failure is raised as the operation raised it."""
        moved = 0

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal moved
            moved = max(moved, done)
            on_progress(stage, done, total)

        with noted() as left:
            try:
                result = await watched(
                    partial(OPERATIONS[type(order)], order, self._tools, secrets), progress, self._tools.stall_seconds)
            except asyncio.CancelledError:
                if left:
                    raise WorkFailure(_remaining(WorkFailed("the work was stopped"), left)) from None
                raise
            except Failed as failed:
                raise WorkFailure(_remaining(failed, left)) from None
        return {"result": result.model_dump(mode="json"), "bytes": moved}

    async def aclose(self) -> None:
        """Nothing is open between orders."""


# --- the child's side -----------------------------------------------------------------------------------------------


class Redacted(logging.Formatter):
    """A formatter whose lines hold none of the secrets that are in use, whoever put them there."""

    def __init__(self, form: str) -> None:
        super().__init__(form)
        self.secrets: list[str] = []

    def clear(self, text: str) -> str:
        """The text without secrets."""
        for secret in self.secrets:
            text = text.replace(secret, "***") if secret else text
        return text

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return self.clear(super().format(record))


class _Thinned:
    """Progress of one task: at most five lines a second, and the last word is always said."""

    def __init__(self, number: int, say: Callable[[dict[str, Any]], None]) -> None:
        self.number, self.moved, self._tell = number, 0, say
        self._word: tuple[str, int, int] = ("", 0, 0)
        self._due: asyncio.TimerHandle | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.moved = max(self.moved, done)
        self._word = (stage, done, total)
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(EVERY_S, self._say)

    def _say(self) -> None:
        self._due = None
        self._tell({"id": self.number, "progress": list(self._word)})


class Child:
    """Reads orders, does them side by side, says what became of them."""

    def __init__(self, out: TextIO, redacted: Redacted) -> None:
        self._out, self._redacted = out, redacted
        self._tools = Toolbox()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._stopping: set[int] = set()

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
                    self._stopping.add(said["cancel"])
                    task.cancel()
            else:
                task = asyncio.create_task(self._do(said))
                self._tasks[said["id"]] = task
                self._redacted.secrets += said["secrets"].values()
                task.add_done_callback(partial(self._ended, said))

    def _ended(self, said: dict[str, Any], task: asyncio.Task[None]) -> None:
        self._tasks.pop(said["id"], None)
        self._stopping.discard(said["id"])
        for secret in said["secrets"].values():
            self._redacted.secrets.remove(secret)
        if task.cancelled():  # before its first step
            self._say({"id": said["id"], "cancelled": True})

    async def _do(self, said: dict[str, Any]) -> None:
        number = said["id"]
        progress = _Thinned(number, self._say)
        with noted() as left:
            try:
                order = decode(said["type"], said["version"], said["payload"].encode())
                operation = OPERATIONS[type(order)]  # type: ignore[index] # orders only
                result = await watched(
                    partial(operation, order, self._tools, said["secrets"]), progress, self._tools.stall_seconds)
                self._say({"id": number, "result": result.model_dump(mode="json"), "bytes": progress.moved})
            except asyncio.CancelledError:
                if number not in self._stopping:  # something within gave up on itself
                    self._fail(number, WorkRetryable("the work was interrupted from within", remedy="it is tried again"), left)
                elif left:
                    self._fail(number, WorkFailed("the work was stopped"), left)
                else:
                    self._say({"id": number, "cancelled": True})
            except Failed as failed:
                self._fail(number, failed, left)
            except Exception as error:
                # Its text may hold anything; the class says enough, and the traceback stays here.
                log.exception("an operation failed in a way that nobody foresaw")
                self._fail(number, WorkFailed(f"internal error: {type(error).__name__}", remedy="see the agent's log"), left)

    def _fail(self, number: int, failed: Failed, left: list[str]) -> None:
        failure = _remaining(failed, left)
        cause = self._redacted.clear(failure.cause)[:CAUSE_MAX]
        self._say({"id": number, "failure": failure.model_copy(update={"cause": cause}).model_dump(mode="json")})

    def _say(self, message: dict[str, Any]) -> None:
        """One line to the agent. A pipe holds more than is ever said at once; the agent always reads."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def _die_with(parent: int) -> None:
    """End when the agent ends, however it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before this line
        sys.exit(1)


def _give_back() -> None:
    """Large buffers go back to the kernel when they are let go of: glibc would learn to keep them, in an arena per thread."""
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
        mallopt(-8, 2)  # M_ARENA_MAX


def main() -> None:
    """The child."""
    import uvloop

    _die_with(int(sys.argv[1]))
    _give_back()
    redacted = Redacted("%(asctime)s mover %(levelname)s %(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(redacted)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is the agent's to handle
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no word to the agent
        with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
            uvloop.run(Child(out, redacted).serve())


if __name__ == "__main__":
    main()
