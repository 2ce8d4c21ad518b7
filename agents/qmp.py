"""QMP: the words in which a running qemu is asked and told. One client at a time, for as long as one question takes.

Owns the greeting, the answers, and what a refusal means. Refuses to know machines and disks. Every wait is bounded; an event that
comes between question and answer is passed over: what became of something is asked for, not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from schema.failure import WorkFailed, WorkRetryable

ANSWER_S = 20.0
"""An answer may wait for a disk."""
LINE_MAX = 16 << 20
"""Bytes of one answer: the list of many block nodes is long."""
LATE = "see whether the host is overloaded, or somebody else uses the machine's QMP socket"


class NotRunning(Exception):
    """Nobody listens: there is no qemu behind this socket."""


class Ended(WorkRetryable):
    """It ended between question and answer."""


class Refusal(WorkFailed):
    """qemu understood, and said no."""


class Qmp:
    """One conversation."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, command: str, **arguments: Any) -> Any:
        """What qemu answers. Raises Refusal with its own words, WorkRetryable when it does not answer."""
        said = {"execute": command} | ({"arguments": arguments} if arguments else {})
        try:
            async with asyncio.timeout(ANSWER_S):
                self._writer.write(json.dumps(said).encode() + b"\n")
                with contextlib.suppress(ConnectionError):  # reading tells that it ended, as when it ends a moment later
                    await self._writer.drain()
                while True:
                    answer = await self._line()
                    if "error" in answer:
                        raise _refusal(command, str(answer["error"].get("desc", "")))
                    if "return" in answer:
                        return answer["return"]
        except TimeoutError:
            raise WorkRetryable(f"the machine does not answer {command}", remedy=LATE) from None

    async def _line(self) -> dict[str, Any]:
        try:
            line = await self._reader.readline()
        except ConnectionError:
            line = b""
        if not line:
            raise Ended("the machine ended while it was asked", remedy="it is asked again, or started")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def greeted(self) -> None:
        """Take the greeting, and leave the mode in which nothing else is understood."""
        await self._line()
        await self.ask("qmp_capabilities")


def _refusal(command: str, text: str) -> WorkFailed:
    if "lock" in text and "Failed to get" in text:
        return WorkRetryable(f"the disk is in use by another process (qemu: {text})", remedy="stop what uses it")
    return Refusal(f"qemu refuses {command}: {text}")


@contextlib.asynccontextmanager
async def conversation(folder: Path, name: str, *, patience_s: float = ANSWER_S) -> AsyncIterator[Qmp]:
    """Talk to the qemu whose socket is `name` in `folder`, whose path may be longer than a socket's may be. Raises NotRunning,
    WorkRetryable when nobody greets."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotRunning from None
    try:
        async with asyncio.timeout(patience_s):
            reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{descriptor}/{name}", limit=LINE_MAX)
            try:
                qmp = Qmp(reader, writer)
                await qmp.greeted()
            except BaseException:
                writer.close()
                raise
    except (FileNotFoundError, ConnectionRefusedError, Ended):
        raise NotRunning from None
    except TimeoutError:
        raise WorkRetryable("the machine does not answer", remedy=LATE) from None
    finally:
        os.close(descriptor)
    try:
        yield qmp
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(1.0):
                await writer.wait_closed()


__all__ = ["NotRunning", "Qmp", "Refusal", "conversation"]
