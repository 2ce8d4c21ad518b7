"""The mover's child: the process in which an agent's bytes move. Reads orders, does them side by side, says what became of them.

Owns the child's side of the lines that `mover` speaks, and `InlineMover`, which does the same work in the calling process, for
plug-ins that live in memory. Refuses to outlive its agent, and to log a secret that is in use. Rule: an agent that is gone is no
cancel. Its pipes close before the kernel ends us; what is under way is left as it lies, since the next start goes on with it.
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
from typing import Any, NoReturn, TextIO

from agents.image_stores.registry import providers
from agents.leftovers import noted
from agents.motion.registry import announced
from agents.mover import CAUSE_MAX, EVERY_S, LINE_MAX, OnProgress, WorkFailure
from agents.operations import OPERATIONS
from agents.stall import watched
from agents.toolbox import Toolbox
from schema.codec import decode
from schema.failure import Failed, Failure, WorkFailed, WorkRetryable
from schema.message import Order

log = logging.getLogger(__name__)


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


def _remaining(failed: Failed, left: list[str]) -> Failure:
    return failed.failure.model_copy(update={"remains": bool(left)})


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

    async def serve(self) -> NoReturn:
        """Until the agent is gone."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=LINE_MAX)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
        while (line := await reader.readline()).endswith(b"\n"):  # an agent that is killed may have said half of one
            said = json.loads(line)
            if "settings" in said:
                self._tools = Toolbox(**said["settings"])
            elif "announce" in said:
                self._tasks[said["id"]] = asyncio.create_task(self._announce(said["id"], **said["announce"]))
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
        os._exit(0)

    async def _announce(self, number: int, *, disks: bool) -> None:
        """What is installed here. Its libraries are large: only this process loads them."""
        try:
            found = await asyncio.to_thread(providers)
            self._say({"id": number, "providers": [spec.model_dump(mode="json") for spec in found],
                       "motions": [spec.model_dump(mode="json") for spec in announced(disks=disks)]})
        except Exception as error:
            log.exception("the plug-ins could not be looked through")
            self._fail(number, WorkFailed(f"internal error: {type(error).__name__}", remedy="see the agent's log"), [])
        self._tasks.pop(number, None)

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
        try:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()
        except BrokenPipeError:
            os._exit(0)


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
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(Child(out, redacted).serve())


if __name__ == "__main__":
    main()
