"""The mover: the one child process of an agent, in which bytes move. The control process never blocks on them.

Owns the agent's side; the child's is `mover_child`. They speak JSON lines; secrets travel only down the child's standard input,
and what the child logs is cleared of them. The child dies with its agent. A child that dies or does not obey a cancel is
replaced, and what it was doing is done again. Refuses to load what moves bytes: those libraries are the child's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from schema.agent import ProviderSpec
from schema.failure import Failed, Failure
from schema.message import Order
from schema.motion import MotionSpec

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

    async def announced(self, *, disks: bool) -> tuple[tuple[ProviderSpec, ...], tuple[MotionSpec, ...]]:
        """The image stores and motions that are installed here; `disks`: with those of a hypervisor's host. Raises WorkFailure,
        MoverDied."""
        await self._started()
        self._next += 1
        number = self._next
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (future, lambda stage, done, total: None)
        try:
            await self._send({"id": number, "announce": {"disks": disks}})
            answer = await future
        finally:
            self._waiting.pop(number, None)
        if "failure" in answer:
            raise WorkFailure(Failure.model_validate(answer["failure"]))
        return (tuple(ProviderSpec.model_validate(spec) for spec in answer["providers"]),
                tuple(MotionSpec.model_validate(spec) for spec in answer["motions"]))

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
                sys.executable, "-m", "agents.mover_child", str(os.getpid()), stdin=asyncio.subprocess.PIPE,
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
